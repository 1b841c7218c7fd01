"""Shared by all benchmarks here: run two programs on the same work, as whole processes that alternate (A B A B).

Machines are shared and their speed drifts, so a result is the median ratio of neighbouring runs, never a single time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def alternate(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run each command `repeats` times, alternating; each prints one JSON object as its last line."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for repeat in range(repeats):
        for name, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            if done.returncode:
                sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
            # Some trainers print after the run, and the object may span several lines.
            found[name].append(last_object(done.stdout))
            shown = {key: value for key, value in found[name][-1].items() if isinstance(value, (int, float))}
            told = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
            print(f"run {repeat + 1} {name}: {told}", file=sys.stderr, flush=True)
    return found


def last_object(output: str) -> dict[str, Any]:
    """Return the last JSON object in the output."""
    decoder = json.JSONDecoder()
    for start in [i for i, line in enumerate(output.splitlines()) if line.startswith("{")]:
        try:
            found, _ = decoder.raw_decode("\n".join(output.splitlines()[start:]))
        except ValueError:
            continue
        if isinstance(found, dict):
            last = found
    return last


def run_sides(
    program: str, sides: Sequence[str], options: argparse.Namespace, names: Sequence[str], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Run both sides of a benchmark in alternation; `--side` selects one, and the named options are passed on."""
    return alternate(
        {side: [sys.executable, program, *forward(options, names), "--side", side] for side in sides}, repeats
    )


def forward(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Turn the named options into command-line words."""
    words = []
    for name in names:
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def ratio(found: Mapping[str, Sequence[Mapping[str, Any]]], name: str, above: str, below: str) -> float:
    """Median over neighbouring runs of one figure's ratio, side `above` divided by side `below`."""
    return median_ratio(*([run[name] for run in found[side]] for side in (above, below)))


def model_name(model: str) -> str:
    """The model's name in results: 'tiny', or the name of its directory."""
    return "tiny" if model == "tiny" else Path(model).name.lower()


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over neighbouring runs of above / below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_memory() -> int:
    """Peak resident bytes of this process, or peak allocated bytes on the GPU if there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write results/<name>.json, with the machine and the commit it was measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent).stdout
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    machine = {"processor": processor, "cores": os.cpu_count(), "system": platform.platform(terse=True)}
    RESULTS.mkdir(exist_ok=True)
    whole = {"commit": commit.strip(), "machine": machine, **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
