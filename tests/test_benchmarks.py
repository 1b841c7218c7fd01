"""The benchmarks measure what they say; their figures are in benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["kwise_speed", "sft_packing", "data_preparation", "ppo_step_speed", "ppo_memory", "kwise_overfitting"]
)
def test_each_explains_itself(name: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, check=True)
    assert "JSON object" in done.stdout or "record" in done.stdout


def test_the_last_object_of_an_output_is_taken_whatever_stands_around_it() -> None:
    pairs = load("pairs")
    output = '{"step": 1}\nloading ...\n{\n "seconds": 2.5,\n "runs": {"a": [1]}\n}\n'
    assert pairs.last_object(output) == {"seconds": 2.5, "runs": {"a": [1]}}
    assert pairs.last_object("noise\n" + json.dumps({"x": 1})) == {"x": 1}


def test_a_ratio_is_the_median_over_neighbouring_runs() -> None:
    # The second pair ran while the machine was three times slower: its ratio is unharmed.
    assert load("pairs").median_ratio([2.0, 6.6, 2.2], [1.0, 3.0, 1.0]) == pytest.approx(2.2)


def test_both_sides_of_the_kwise_benchmark_read_the_same_rankings() -> None:
    rankings = load("kwise_speed").rankings(3, 9, seed=1)
    assert rankings == load("kwise_speed").rankings(3, 9, seed=1)
    for _, answers, ranks in rankings:
        assert len(answers) == 9 and sorted(ranks) == list(range(1, 10))


def test_one_side_alone_gives_its_figures() -> None:
    command = [
        sys.executable,
        FOLDER / "kwise_speed.py",
        "--side",
        "ours",
        "--k",
        "3",
        "--steps",
        "1",
        "--prompts",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["seconds"] > 0 and found["peak_memory"] > 1e8 and found["steps"] == 1
