"""Finds a published reward model by name, checks it, and scores texts with it in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoint_store import Manifest, Root, StoreError, open_store
from data_schema import Message
from pipeline.locations import model_fingerprint
from pipeline.runner import quiet_libraries
from policy.encoding import RenderError, encode_answers
from policy.language_model import choose_device, load_tokenizer, positions
from policy.special_tokens import check_special_tokens
from reward.ensemble import Member, ensemble_scores, read_members
from reward.invariance import check_scores_are_independent
from reward.scalar_model import load_scalar_model
from stages.errors import ConfigError

Asked = tuple[Sequence[Message], Sequence[str]]  # a prompt, and answers to it


class Scorer(NamedTuple):
    name: str  # as the user wrote it
    directory: Path
    fingerprint: str  # its key in the store, or a digest of its files
    manifest: Manifest | None  # None for a directory outside the store
    model: PreTrainedModel
    members: Sequence[Member]  # further members of an ensemble, whose mean is the score; empty for one model
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # most tokens of prompt and answer, the model's number of positions


class Scored(NamedTuple):
    """The answers to one prompt."""

    scores: list[float]  # normalised, as PPO sees them
    lengths: list[int]  # tokens, EOS included


def open_scorer(named: str, root: Root, device: str = "auto") -> Scorer:
    """Open the reward model with this name or key in ROOT/store, or in this directory. Raises ConfigError, ModelError
    or StoreError if there is none, or if a text's score depends on its batch or on padding."""
    quiet_libraries()
    directory, manifest = find_checkpoint(named, root)
    check_is_reward_model(named, directory, manifest)
    model = load_scalar_model(directory, choose_device(device)).eval()
    tokenizer = load_tokenizer(directory)
    check_special_tokens(tokenizer, directory)
    if not tokenizer.chat_template:
        raise ConfigError(f"the reward model '{named}' has no chat template for messages; add one to its tokenizer")
    check_scores_are_independent(model, tokenizer.pad_token_id)
    key = manifest.key if manifest else model_fingerprint(str(directory))
    members = read_members(directory, model)
    return Scorer(named, directory, key, manifest, model, members, tokenizer, positions(model.config))


def check_is_reward_model(named: str, directory: Path, manifest: Manifest | None) -> None:
    """Raises ConfigError, with the command that fits, for a policy or for a checkpoint that is no model."""
    if manifest is not None and manifest.stage in ("comparisons", "evaluate"):
        raise ConfigError(
            f"'{named}' is a checkpoint of the stage {manifest.stage}, which holds no model; give one of reward_model"
        )
    policy = manifest.stage in ("sft", "select", "ppo") if manifest is not None else writes_text(directory)
    if policy:
        raise ConfigError(
            f"'{named}' is a policy, not a reward model; to talk to it, write: triptych chat {named}; to compare it "
            f"with other policies: triptych evaluate-tasks --models NAME={named} --tasks FILE"
        )


def writes_text(directory: Path) -> bool:
    """Whether config.json says that the model generates text; False if it cannot be read."""
    try:
        architectures = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"]
        return str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False


def find_checkpoint(named: str, root: Root) -> tuple[Path, Manifest | None]:
    """Return the directory for a path, or for a name or key in ROOT/store, and its manifest if it is in the store."""
    try:
        return open_store(root).open(named)
    except StoreError as error:
        raise ConfigError(f"'{named}' is not a directory, and: {error}") from error


def score_answers(scorer: Scorer, asked: Sequence[Asked], batch_size: int = 32) -> list[Scored | str]:
    """Return the scores of each prompt's answers, or the reason why it has none."""
    encoded = [_encode(scorer, prompt, answers) for prompt, answers in asked]
    kept = [row for row in encoded if not isinstance(row, str)]
    scores = iter(
        ensemble_scores(
            scorer.model,
            scorer.members,
            [prompt for prompt, answers in kept for _ in answers],
            [answer for _, answers in kept for answer in answers],
            scorer.tokenizer.pad_token_id,
            batch_size=batch_size,
        ).tolist()
    )
    return [
        row if isinstance(row, str) else Scored([next(scores) for _ in row[1]], [len(answer) for answer in row[1]])
        for row in encoded
    ]


def _encode(
    scorer: Scorer, prompt: Sequence[Message], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]] | str:
    try:
        ids, answer_ids = encode_answers(scorer.tokenizer, prompt, answers)
    except RenderError as error:
        return f"the chat template refuses it ({error.__cause__})"
    return (ids, answer_ids) if len(ids) + max(map(len, answer_ids)) <= scorer.max_length else "too long"
