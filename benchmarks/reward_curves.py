"""How reward and KL grow with the seconds of training: measures what time_to_reward.py trained, and compares two sides.

    python benchmarks/reward_curves.py benchmarks/results/time_to_reward_NAME.json

prints the tables of a result again. The last line is one JSON object: the comparison of each pair of runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

SIDES = ("ours", "trl")
SHARES = (0.25, 0.5, 0.75, 1.0)  # levels, as shares of the highest gain in reward that both sides reached


class Point(NamedTuple):
    """One policy's answers to the held-out prompts."""

    seconds: float  # of training
    updates: int
    reward: float  # mean score of the reward model
    reward_error: float  # its standard error
    kl: float  # nats per answer, from the SFT model
    objective: float  # mean score as PPO gets it: replaced for answers without EOS
    eos_rate: float
    length: float  # tokens


def measure(work: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[list[Point]]:
    """Answer the held-out prompts with each run's saved policies; yields each run's curve, the SFT model first."""
    import torch

    from data_schema import Prompt, Source, load_all
    from pipeline.build import build
    from policy.encoding import encode_prompts
    from policy.language_model import choose_device, load_language_model
    from policy.maths.kl import replace_score_without_eos
    from stages.answering import scored_answers
    from stages.evaluate.answers import sequence_kl
    from stages.ppo.reward_settings import RewardPart
    from stages.ppo.rewards import Reader, load_rewards
    from stages.ppo.settings import PpoConfig
    from stages.statistics import mean_with_standard_error

    torch.set_num_threads(work["threads"])
    ppo = build(PpoConfig, work["ppo"], "ppo")
    device, sft = choose_device(ppo.device), Path(work["sft"])
    reference = load_language_model(sft, device)
    prompts = list(load_all([Source(work["held_out"])], Prompt))
    ids = encode_prompts(reference.tokenizer, [prompt.prompt for prompt in prompts])
    reader = Reader(reference.tokenizer, sft, device, ppo.sampling.batch_size, 0)
    rewards = load_rewards([RewardPart()], {"sft": sft, "reward_model": Path(work["reward_model"])}, reader)

    @torch.no_grad()
    def point(model: Any, seconds: float, updates: int) -> Point:
        found: list[tuple[float, ...]] = []  # of each answer: reward, KL, objective, whether it ended, length
        for _, rollout, _, scores in scored_answers(model, rewards, prompts, ids, ppo.sampling, seed=0):
            kl = sequence_kl(model, reference, rollout, ppo.sampling.temperature)
            got = replace_score_without_eos(scores.judged, rollout.ended, ppo.score_without_eos)
            tensors = (scores.judged, got, rollout.ended.float(), rollout.lengths.float())
            reward, objective, ended, length = (tensor.tolist() for tensor in tensors)
            found += zip(reward, kl, objective, ended, length, strict=True)
        rewards_of, *others = (list(column) for column in zip(*found, strict=True))
        return Point(seconds, updates, *mean_with_standard_error(rewards_of)[:2], *map(statistics.fmean, others))

    at_first = point(reference, 0.0, 0)
    for run in runs:
        policy = load_language_model(sft, device)
        curve = [at_first]
        for saved in run["saved"]:
            weights = torch.load(saved["weights"], map_location=device, mmap=True)
            unknown = policy.model.load_state_dict(weights, strict=False).unexpected_keys
            assert not unknown, unknown
            curve.append(point(policy, saved["seconds"], saved["updates"]))
        yield curve


def compare(ours: Sequence[Point], trl: Sequence[Point]) -> dict[str, Any]:
    """Compare two curves that start at the same SFT model: seconds to levels of reward, and TRL's seconds to the
    highest level that both reached divided by ours (None if that is not above the start)."""
    start = ours[0].reward
    top = min(max(point.reward for point in curve) for curve in (ours, trl))
    levels = []
    for share in SHARES if top > start else ():
        level = start + share * (top - start)
        seconds = [seconds_to(curve, level) for curve in (ours, trl)]
        levels.append({"reward": level, **dict(zip(SIDES, seconds, strict=True)), "ratio": seconds[1] / seconds[0]})
    at_top = {side: levels[-1][side] if levels else 0.0 for side in SIDES}
    kl = {side: kl_at(curve, at_top[side]) for side, curve in zip(SIDES, (ours, trl), strict=True)}
    return {"seconds_ratio": levels[-1]["ratio"] if levels else None, "kl_at_level": kl, "levels": levels}


def seconds_to(curve: Sequence[Point], level: float) -> float:
    """Seconds at which a curve first reaches a level above its start, by linear interpolation."""
    for a, b in pairwise(curve):
        if a.reward < level <= b.reward:
            return a.seconds + (level - a.reward) / (b.reward - a.reward) * (b.seconds - a.seconds)
    raise ValueError(f"the curve never reaches {level}, or starts there; give a level between its start and its top")


def kl_at(curve: Sequence[Point], seconds: float) -> float:
    """KL of a curve, in nats per answer, by linear interpolation."""
    for a, b in pairwise(curve):
        if a.seconds <= seconds <= b.seconds:
            return a.kl + (seconds - a.seconds) / (b.seconds - a.seconds) * (b.kl - a.kl)
    return curve[-1].kl


def table(curves: Mapping[str, Sequence[Point]], compared: Mapping[str, Any]) -> str:
    """Both curves and the seconds to each level, as text."""
    names = f"{'reward':>18} {'KL':>7} {'objective':>9} {'ended':>6} {'tokens':>6}"
    lines = [f"{'side':5} {'seconds':>8} {'updates':>8} {names}"]
    for side, curve in curves.items():
        for p in curve:
            lines.append(
                f"{side:5} {p.seconds:8.1f} {p.updates:8d} {p.reward:8.3f} +- {p.reward_error:6.3f} {p.kl:7.3f} "
                f"{p.objective:9.3f} {p.eos_rate:6.2f} {p.length:6.1f}"
            )
    for level in compared["levels"]:
        lines.append(
            f"reward {level['reward']:.3f}: ours {level['ours']:.1f} s, TRL {level['trl']:.1f} s, "
            f"ratio {level['ratio']:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="file that time_to_reward.py wrote")
    found = json.loads(parser.parse_args().result.read_text())["curves"]
    pairs = []
    for both in zip(*(found[side] for side in SIDES), strict=True):
        curves = {side: [Point(**point) for point in curve] for side, curve in zip(SIDES, both, strict=True)}
        pairs.append(compare(*curves.values()))
        print(table(curves, pairs[-1]))
    print(json.dumps({"pairs": pairs}))


if __name__ == "__main__":
    main()
