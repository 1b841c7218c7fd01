"""`triptych chat MODEL`: talk to a policy in the terminal.

Answers are sampled as in training: at a temperature, without top-p or penalties, and with a fixed seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint_store import Root, open_store
from pipeline.terminal.arguments import Arguments, count, seed
from pipeline.terminal.console import visible

if TYPE_CHECKING:
    import torch

    from data_schema.records import Message
    from policy.language_model import LanguageModel

NEW, QUIT = "/new", "/quit"
POLICY_STAGES = ("sft", "select", "ppo")


def command(words: Sequence[str]) -> None:
    """Run `triptych chat MODEL [--prompt TEXT]`."""
    parser = Arguments("chat", __doc__)
    parser.add_argument("model", metavar="MODEL", help="policy: a name such as quickstart/ppo, a key, or a folder")
    parser.add_root()
    parser.add_argument("--prompt", metavar="TEXT", help="answer this prompt and exit")
    parser.add_argument("--temperature", type=positive, default=1.0, help="sampling temperature (default: 1)")
    parser.add_argument("--max-new-tokens", type=count, default=64, metavar="N", help="length limit (default: 64)")
    parser.add_argument(
        "--template", default="tokenizer", help="template's name, such as chatml (default: the tokenizer's own)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the sampling (default: 0)")
    chat(parser.parse_args(words))


def find_policy(named: str, root: Root) -> Path:
    """The folder of a policy. Raises StoreError for an unknown name, ModelError for a checkpoint that cannot answer."""
    from policy import ModelError

    folder, manifest = open_store(root).open(named)
    if manifest is not None and manifest.stage not in POLICY_STAGES:
        fits = f"; to score answers, write: triptych score {named} FILE" if manifest.stage == "reward_model" else ""
        raise ModelError(
            f"{named} is a checkpoint of the stage {manifest.stage} and cannot answer; give one of: "
            f"{', '.join(POLICY_STAGES)}{fits}"
        )
    return folder


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
    from policy.special_tokens import stop_ids

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
        stop_ids=stop_ids(tokenizer),
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

    directory = find_policy(options.model, options.root)
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
        print(shown(answer(language_model, [Message("user", options.prompt)], **sampling)))
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
                print(visible(str(error)))
                continue
            print(f"model> {shown(reply) or '(an empty answer)'}")
            if reply:  # a conversation cannot contain an empty message
                conversation += [question, Message("assistant", reply)]


def shown(reply: str) -> str:
    """The answer with its line ends and tabs, other control characters visible."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in reply.split("\n"))


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}; it must be a number above 0")
    return value
