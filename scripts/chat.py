"""Talk to a published policy in the terminal.

    python scripts/chat.py quickstart/ppo
    python scripts/chat.py DIRECTORY --prompt "sort these words : pear apple fig"

CHECKPOINT is a name or key in ROOT/store, or a directory in Hugging Face layout. Answers are sampled as in training: at
a temperature, without top-p or penalties, and with a fixed seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/, whose evaluate.py would shadow a library

if TYPE_CHECKING:
    import torch

    from data_schema.records import Message
    from policy.language_model import LanguageModel

NEW, QUIT = "/new", "/quit"
POLICY_STAGES = ("sft", "select", "ppo")


def find_checkpoint(name: str, root: Path) -> Path:
    """Find a checkpoint's directory. Raises StoreError for an unknown name, ModelError for one that cannot answer."""
    from checkpoint_store import CheckpointStore
    from policy import ModelError

    if Path(name).is_dir():
        return Path(name)
    store = CheckpointStore(root / "store")
    key = store.resolve(name)
    if (stage := store.manifest(key).stage) not in POLICY_STAGES:
        raise ModelError(
            f"{name} comes from the stage {stage} and cannot answer; give a checkpoint of: {', '.join(POLICY_STAGES)}."
        )
    return store.path(key)


def answer(
    language_model: LanguageModel,
    conversation: Sequence[Message],
    *,
    max_new_tokens: int,
    temperature: float,
    rng: torch.Generator,
) -> str:
    """Sample the model's next message. If the conversation is too long, the oldest exchanges are left out.

    Raises ModelError if even the last message does not fit."""
    from policy import ModelError
    from policy.encoding import decode_responses, encode_prompts, pad
    from policy.sampling.generate import sample_responses

    model, tokenizer = language_model
    room = getattr(model.config, "max_position_embeddings", sys.maxsize) - max_new_tokens
    for start in range(0, len(conversation), 2):
        ids = encode_prompts(tokenizer, [conversation[start:]])
        if len(ids[0]) <= room:
            break
    else:
        raise ModelError(f"the message has {len(ids[0])} tokens, {room} fit; shorten it or lower --max-new-tokens.")
    prompts, mask = pad(ids, tokenizer.pad_token_id, "left")
    responses = sample_responses(
        model,
        prompts.to(model.device),
        mask.to(model.device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        rng=rng,
    )
    return decode_responses(tokenizer, responses.tokens, responses.lengths)[0]


def chat(options: argparse.Namespace) -> None:
    """Answer `--prompt`, or each line that the user types until the end of input."""
    import torch

    from data_schema.records import Message
    from pipeline.runner import quiet_libraries
    from policy import ModelError
    from policy.encoding import set_template
    from policy.language_model import choose_device, load_language_model

    directory = find_checkpoint(options.checkpoint, options.root)
    quiet_libraries()
    device = choose_device(options.device)
    language_model = load_language_model(directory, device)
    language_model.model.eval()
    set_template(language_model.tokenizer, options.template)
    sampling = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "rng": torch.Generator(device).manual_seed(options.seed),
    }
    if options.prompt is not None:
        print(answer(language_model, [Message("user", options.prompt)], **sampling))
        return

    print(f"{NEW} starts a new conversation, {QUIT} exits.")
    conversation: list[Message] = []
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            print()
            return
        if text == QUIT:
            return
        if text == NEW:
            conversation = []
        elif text:
            question = Message("user", text)
            try:
                reply = answer(language_model, [*conversation, question], **sampling)
            except ModelError as error:
                print(error)
                continue
            print(f"model> {reply or '(an empty answer)'}")
            if reply:  # a conversation cannot contain an empty message
                conversation += [question, Message("assistant", reply)]


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chat.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint's name or key, or a directory")
    parser.add_argument("--root", type=Path, default=Path("out"), help="folder with the store (default: out)")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this prompt and exit")
    parser.add_argument("--temperature", type=positive, default=1.0, help="sampling temperature (default: 1)")
    parser.add_argument("--max-new-tokens", type=count, default=64, metavar="N", help="length limit (default: 64)")
    parser.add_argument(
        "--template", default="tokenizer", help="template's name, such as chatml (default: the tokenizer's own)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    options = parser.parse_args(arguments)

    from pipeline.__main__ import guarded

    return guarded(lambda: chat(options))


if __name__ == "__main__":
    sys.exit(main())
