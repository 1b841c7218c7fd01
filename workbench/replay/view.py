"""Shows a replayed iteration on the terminal, or returns it as one JSON object."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema.errors import printable
from pipeline.terminal.console import screen
from stages.ppo.record import Record

Number = float | str | None  # str: why an iteration stopped; None: the number is missing
COLUMNS = ("reward", "kl", "value", "advantage", "logprob")


class Difference(NamedTuple):
    """The first number that differs from the recorded one."""

    iteration: int
    minibatch: int | None  # None: a number of the whole iteration, from metrics.jsonl
    name: str
    recorded: Number
    replayed: Number


class Replay(NamedTuple):
    began_after: int  # iteration whose snapshot the replay started from; 0: the parent checkpoints
    compared: int  # count of equal numbers
    difference: Difference | None
    metrics: dict[str, float]  # of the last repeated iteration; {} if it stopped


def episodes_of(record: Record, tokenizer: PreTrainedTokenizerBase, pick: str, n: int) -> list[dict[str, Any]]:
    """Return the first `n` episodes in the order of `pick`. A token's reward is that of PPO before any whitening: minus
    its KL penalty, plus the score at the last real token."""
    experience = record.experience
    rollout = experience.rollout
    rewards = -record.kl_coef * experience.kl
    last = rollout.lengths - 1
    rewards[range(len(last)), last] += experience.scores
    columns = (rewards, experience.kl, experience.values, experience.advantages, experience.logprobs)
    return [
        {
            "episode": i,
            "prompt": tokenizer.decode(rollout.prompts[i][rollout.prompt_mask[i]]),
            "score": experience.scores[i].item(),
            "parts": {name: scores[i].item() for name, scores in experience.parts.items()},
            "kl": experience.kl[i].sum().item(),
            "ended": bool(rollout.ended[i]),
            "tokens": [
                {"token": tokenizer.decode([token]), "id": token}
                | {name: values[i, t].item() for name, values in zip(COLUMNS, columns, strict=True)}
                for t, token in enumerate(rollout.responses[i][rollout.response_mask[i]].tolist())
            ],
        }
        for i in picked(record, pick)[:n]
    ]


def picked(record: Record, pick: str) -> list[int]:
    """Return all episodes in the order of `pick`, those of the minibatch that stopped the run first."""
    by: dict[str, Tensor] = {
        "best": -record.experience.scores,
        "worst": record.experience.scores,
        "kl": -record.experience.kl.sum(1),
    }
    order = by[pick].argsort(stable=True).tolist() if pick in by else list(range(len(record.experience.scores)))
    at_fault = set(record.at_fault)
    return sorted(order, key=lambda episode: episode not in at_fault)


def print_replay(
    options: argparse.Namespace,
    record: Record,
    found: Replay | None,
    changed: Sequence[str],
    episodes: Sequence[dict[str, Any]],
) -> None:
    """Print the metrics, the result of the comparison, and the episodes."""
    console = screen()
    title = f"{options.run}, iteration {options.step}: {len(record.experience.scores)} episodes"
    console.print(
        Text(f"{printable(title)}, {len(record.steps)} minibatches, KL coefficient {record.kl_coef:g}", "bold")
    )
    if record.stopped:
        console.print(Text(f"the run stopped here: {printable(record.stopped)}", "red"), soft_wrap=True)
    if found is not None:
        table = Table.grid(padding=(0, 2))
        for name, value in found.metrics.items():
            table.add_row(name, f"{value:.9g}")
        console.print(table)
        console.print(
            Text(printable(outcome(found, options.step)), "green" if found.difference is None else "red"),
            soft_wrap=True,
        )
        if found.difference is not None and changed:
            console.print(f"library versions changed since the run: {', '.join(changed)}", soft_wrap=True, markup=False)
    for episode in episodes:
        print_episode(console, episode)


def outcome(found: Replay, step: int) -> str:
    start = f"the snapshot of iteration {found.began_after}" if found.began_after else "the parent checkpoints"
    if found.difference is None:
        return f"from {start} to iteration {step}: all {found.compared} recorded numbers are equal bit for bit"
    different = found.difference
    place = f"iteration {different.iteration}"
    if different.minibatch is not None:
        place += f", minibatch {different.minibatch}"
    return (
        f"from {start}: {found.compared} numbers are equal; first difference in {place}: {different.name} was "
        f"{different.recorded!r} and is now {different.replayed!r}"
    )


def print_episode(console: Console, episode: dict[str, Any]) -> None:
    parts = ", ".join(f"{name} {value:.3f}" for name, value in episode["parts"].items())
    end = "ended" if episode["ended"] else "did not end"
    heading = (
        f"\nepisode {episode['episode']}: score {episode['score']:.3f} ({parts}), KL {episode['kl']:.3f} nats, {end}"
    )
    console.print(Text(printable(heading), "bold"), soft_wrap=True)
    console.print(Text(printable(episode["prompt"]), "dim"), soft_wrap=True)
    table = Table("token", *COLUMNS, box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for token in episode["tokens"]:
        cells = [Text(f"{token[name]:+.3f}", colour(name, token[name])) for name in COLUMNS]
        table.add_row(Text(repr(printable(token["token"]))), *cells)
    console.print(table)


def colour(name: str, value: float) -> str:
    """Return green for a positive reward or advantage and red for a negative one, else no colour."""
    if name not in ("reward", "advantage") or value == 0:
        return ""
    return "green" if value > 0 else "red"


def as_json(
    options: argparse.Namespace,
    record: Record,
    found: Replay | None,
    changed: Sequence[str],
    episodes: Sequence[dict[str, Any]],
) -> Any:
    """Return values ready for JSON; non-finite numbers become strings. `equal` is null if nothing was repeated."""
    difference = found.difference if found else None
    return finite(
        {
            "run": str(options.run),
            "step": options.step,
            "kl_coef": record.kl_coef,
            "stopped": record.stopped or None,
            "at_fault": record.at_fault,
            "equal": None if found is None else difference is None,
            "compared": found.compared if found else 0,
            "began_after": found.began_after if found else None,
            "difference": difference._asdict() if difference else None,
            "changed_libraries": list(changed),
            "metrics": found.metrics if found else {},
            "steps": record.steps,
            "episodes": list(episodes),
        }
    )


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
