"""What the runner prints: the plan of a dry run; at the end of a run its summary, answers, next steps and warnings."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from checkpoint_store import CheckpointStore, Root, local_root
from pipeline.configs import Recipe
from pipeline.plan import Selection, StagePlan
from pipeline.terminal.arguments import DEFAULT_ROOT
from pipeline.terminal.console import one_line, screen, visible

EVALUATION_ROWS = {
    "gold_mean": "gold score",
    "correctness_mean": "correctness",
    "style_mean": "style",
    "reward_mean": "reward",
    "second_reward_mean": "second reward",
    "length_mean": "length (tokens)",
    "eos_rate": "ended with EOS",
    "kl": "KL from SFT (nats)",
    "distinct_share": "distinct answers",
    "same_opening_share": "begin with the same 4 tokens",
    "repeated_8grams": "8-grams in other answers too",
    "repetition": "3-grams repeated in an answer",
    "prompt_dependence": "score lost with another prompt",
    "first_prompt_dependence": "reward lost with another prompt",
    "base_nll_answers": "base model's loss (nats/token)",
    "sft_nll_answers": "SFT model's loss (nats/token)",
    "text_nll": "loss on plain text (nats/token)",
}
GAINS = {"reward_gain_sd": "reward", "second_reward_gain_sd": "the second reward model's score"}
SAMPLES, LONGEST = 3, 240  # prompts shown at the end of a run, and characters of each text
KEY_DIGITS = 12
SAMPLES_FILE, MODELS = "samples.jsonl", ("sft", "ppo")


def print_plan(recipe: Recipe, plans: Sequence[StagePlan], to_run: Collection[str], selection: Selection) -> None:
    """Print which stages would run, and why."""
    table = Table(title=f"{recipe.name}, seed {recipe.seed}: dry run", title_justify="left")
    for column in ("stage", "would", "why", "key"):
        table.add_column(column, overflow="fold")
    for plan in plans:
        if plan.stage in to_run:
            why = "forced" if plan.exists else plan.reason
            table.add_row(plan.stage, "run", visible(why), plan.key)
        else:
            table.add_row(plan.stage, "skip", "published" if plan.exists else "not selected", plan.key)
    screen().print(table)


def print_summary(summary: Mapping[str, Any], root: Root, uses_reward_model: bool = True) -> None:
    """Print each stage's seconds and checkpoint, then the models side by side. The accuracy of a reward model that
    nothing uses is left out."""
    console = screen()
    table = Table(title=f"{summary['recipe']}, seed {summary['seed']}", title_justify="left")
    for column, side in (("stage", "left"), ("seconds", "right"), ("checkpoint", "left"), ("key", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]  # rich wants a Literal
    for stage, row in summary["stages"].items():
        before = " (before)" if row["skipped"] else ""
        table.add_row(stage, f"{row['seconds']:.1f}{before}", row["checkpoint"], row["key"][:KEY_DIGITS])
    console.print(table)

    if "evaluation" in summary:
        console.print(evaluation_table(summary["evaluation"]))
        ppo = summary["evaluation"]["ppo"]
        console.print(
            f"PPO wins {ppo['win_rate']:.1%} of prompts against SFT (95 % interval {ppo['win_rate_low']:.1%} to "
            f"{ppo['win_rate_high']:.1%}), decided by the {summary['decided_by']}."
        )
        for name, what in GAINS.items():
            if {name, f"{name}_low", f"{name}_high"} <= ppo.keys():
                console.print(
                    f"PPO's gain in {what}: {ppo[name]:+.3f} standard deviations of SFT's scores (95 % interval "
                    f"{ppo[f'{name}_low']:+.3f} to {ppo[f'{name}_high']:+.3f})."
                )
    if uses_reward_model and "reward_model" in summary:
        console.print(accuracy_line(summary["reward_model"]))
        if second := summary["reward_model"].get("second"):
            correlation = second.get("score_correlation")
            agrees = "" if correlation is None else f" Its scores correlate {correlation:.3f} with the first's."
            console.print(accuracy_line(second, "Second reward model") + agrees)
    console.print(f"Summary: {local_root(root) / 'pipelines' / summary['recipe'] / 'summary.json'}", soft_wrap=True)


def accuracy_line(numbers: Mapping[str, Any], name: str = "Reward model") -> str:
    """How many held-out pairs a reward model orders correctly."""
    names = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy", "n")
    if any(type(numbers.get(name)) not in (int, float) for name in names):
        return f"{name}: no held-out pairs, so nothing is known about its accuracy; set reward_model.held_out."
    return (
        f"{name}: {numbers['pair_accuracy']:.1%} of {numbers['n']} held-out pairs right "
        f"({numbers['pair_accuracy_low']:.1%} to {numbers['pair_accuracy_high']:.1%}); "
        f"'the longer answer wins' would get {numbers['longer_wins_accuracy']:.1%}."
    )


def print_samples(summary: Mapping[str, Any], store: CheckpointStore, root: Root) -> None:
    """Print the models' answers to the first prompts: of the evaluation, or else of PPO's last iteration."""
    stages = summary["stages"]
    if "evaluate" in stages:
        title = "held-out prompts, answers"
        answers = answers_in(store.path(stages["evaluate"]["key"]) / SAMPLES_FILE)
    elif "ppo" in stages:
        title = "prompts of the last PPO iteration, answers"
        answers = answers_in(local_root(root) / "runs" / stages["ppo"]["key"] / SAMPLES_FILE)
    else:
        return
    if not answers:
        return
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for texts in answers[:SAMPLES]:
        for name, text in texts.items():
            table.add_row(name, one_line(text, LONGEST) or "(empty)")
        table.add_row("", "")
    screen().print(table)


def answers_in(path: Path) -> list[dict[str, str]]:
    """The prompts and answers of the last step in a file of samples; [] if it is missing or was changed by hand."""
    found: list[tuple[int, dict[str, str]]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers = {"PPO": row["response"]} if "step" in row else {m.upper(): row[m]["response"] for m in MODELS}
            found.append((row.get("step", 0), {"prompt": row["prompt"], **answers}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if not all(isinstance(text, str) for _, texts in found for text in texts.values()):
        return []
    return [texts for step, texts in found if step == found[-1][0]]


def print_next_steps(summary: Mapping[str, Any], root: Root) -> None:
    """Print the commands that show what the run has made."""
    stages = summary["stages"]
    names = {stage: shlex.quote(row["checkpoint"]) for stage, row in stages.items()}
    runs = {stage: local_root(root) / "runs" / row["key"] for stage, row in stages.items()}
    steps: list[tuple[str, str]] = []
    policy = next((stage for stage in ("ppo", "select", "sft") if stage in names), None)
    if policy is not None:
        steps.append((f"chat {names[policy]}", "talk to the model"))
    trained = [stage for stage in ("ppo", "reward_model", "sft") if stage in names]
    if curves := [stage for stage in trained if (runs[stage] / "metrics.jsonl").is_file()]:
        steps.append((f"curves {names[curves[0]]}", "its curves"))
    if "ppo" in runs and (iterations := sorted(runs["ppo"].glob("rollouts/[0-9]*.safetensors"))):
        last = int(iterations[-1].stem)
        steps.append((f"replay {names['ppo']} --step {last}", "the last iteration, token by token"))
    if "reward_model" in names:
        pairs = "" if summary.get("reward_model", {}).get("n") else " --data FILE"  # none were held out
        steps.append((f"judge {names['reward_model']}{pairs}", "how far the reward model can be trusted"))
    if steps:
        elsewhere = "" if root == DEFAULT_ROOT else f" --root {shlex.quote(str(root))}"
        calls = [f"{program()} {words}{elsewhere}" for words, _ in steps]
        print("Next:")
        for call, (_, purpose) in zip(calls, steps, strict=True):
            print(visible(f"  {call:<{max(map(len, calls))}}  # {purpose}"))


def program() -> str:
    """How triptych can be called from here: by its name if it is on the PATH, else by its file."""
    if shutil.which("triptych"):
        return "triptych"
    script = Path(sys.executable).parent / "triptych"
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m pipeline"
    return shlex.quote(min(os.path.relpath(script), str(script), key=len))


def print_warnings(summary: Mapping[str, Any]) -> None:
    """Repeat the warnings of all stages, those of earlier runs included."""
    if "warnings" in summary:
        print("Warnings:")
        for stage, texts in summary["warnings"].items():
            for text in texts:
                print(f"  {'' if text.startswith(stage) else f'{stage}: '}{one_line(text)}")


def evaluation_table(evaluation: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of SFT and PPO on held-out prompts."""
    table = Table(title="held-out prompts", title_justify="left")
    table.add_column("")
    for model in evaluation:
        table.add_column(model.upper(), justify="right")
    for key, title in EVALUATION_ROWS.items():
        if all(key in numbers for numbers in evaluation.values()):
            table.add_row(title, *(f"{numbers[key]:.3f}" for numbers in evaluation.values()))
    return table
