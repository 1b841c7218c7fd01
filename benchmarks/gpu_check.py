"""Everything that only a GPU can tell, in one call of less than ten minutes: gpu_check.sh runs this.

    benchmarks/gpu_check.sh [--peer-python PATH] [--only PART ...] [--minutes 9.5] [--cpu]

Parts: `device` (what it is), `tests` (those marked gpu: numbers equal to the CPU's), `rollout` (tokens per second as a
share of the memory's bandwidth), `update` (model FLOP utilisation), `ppo_step` (PPO's step at SmolLM2's shape and at
about 1B; beside TRL 1.12 if --peer-python names the Python of an environment that has it), `quickstart` (all five
stages). Models have random weights; nothing is downloaded. --cpu rehearses the same parts on the CPU with tiny models:
it shows that the script works, and its figures mean nothing. Each part prints one JSON object, and the last line is one
JSON object with the main figures. All of it is written to gpu_check.json in $OUT, or else in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import pairs  # noqa: E402
from gpu_device import config_of, make_model  # noqa: E402

ROOT = Path(__file__).parents[1]
Figures = dict[str, Any]


class Call:
    """This call of the check: its options and the time that is left."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.device = "cpu" if options.cpu else "cuda"
        self.shapes = ["tiny"] if options.cpu else ["smollm2", "llama1b"]
        self.ends = time.monotonic() + 60 * options.minutes

    def left(self) -> float:
        """Seconds until the call has to end."""
        return self.ends - time.monotonic()

    def run(self, words: Sequence[object], at_most: float, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of ours, or TRL's, for `at_most` seconds or the time that is left."""
        offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run(
            [str(word) for word in words], cwd=ROOT, env=os.environ | offline | environment, text=True,
            capture_output=True, timeout=max(1.0, min(at_most, self.left())),
        )  # fmt: skip

    def figures(self, words: Sequence[object], at_most: float) -> Figures:
        """The JSON object that a benchmark prints last, or what went wrong."""
        try:
            done = self.run(words, at_most)
        except subprocess.TimeoutExpired as error:
            return {"error": f"took more than {error.timeout:.0f} s"}
        if done.returncode:
            return {"error": last_line(done.stderr)}
        return pairs.last_object(done.stdout)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no output"


def device(call: Call) -> Figures:
    """Names, sizes and measured speeds."""
    return call.figures([sys.executable, ROOT / "benchmarks" / "gpu_device.py", "--device", call.device], 60)


def tests(call: Call) -> Figures:
    """The tests marked gpu; every one that fails is named."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rf", "--no-header", "--timeout", "200"]
    try:
        done = call.run(words, 200, **({"TRIPTYCH_TEST_DEVICE": "cpu"} if call.options.cpu else {}))
    except subprocess.TimeoutExpired as error:
        return {"error": f"took more than {error.timeout:.0f} s"}
    failed = [line.removeprefix("FAILED ")[:300] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    said = last_line(done.stdout)
    return {"said": said, "failed": failed} | ({"error": said} if done.returncode else {})


def rollout(call: Call) -> Figures:
    small = ["--rows", 4, "--prompt-len", 6, "--response-len", 8, "--ways", "ours", "dynamic", "static"]
    found: Figures = {}
    for shape in call.shapes:
        size = small if call.options.cpu else ["--seconds", 70 if shape == "smollm2" else 40]
        words = [sys.executable, ROOT / "benchmarks" / "gpu_rollout.py", "--shape", shape, "--device", call.device]
        found[shape] = call.figures([*words, *size], 150)
    return found


def update(call: Call) -> Figures:
    small = ["--batch", 4, "--micro", 2, "--prompt-len", 6, "--response-len", 8, "--repeats", 1]
    found: Figures = {}
    for shape in call.shapes:
        words = [sys.executable, ROOT / "benchmarks" / "gpu_update.py", "--shape", shape, "--device", call.device]
        found[shape] = call.figures([*words, *(small if call.options.cpu else [])], 90)
    return found


def ppo_step(call: Call) -> Figures:
    """Seconds of a step and its phases: ours in both types, and TRL's in float32 where its Python is given."""
    found: Figures = {}
    for shape in call.shapes:
        folder = call.scratch / shape
        save_random_model(shape, folder, call.device)
        size = ["--prompt-len", 6, "--response-len", 4, "--batch", 4, "--ppo-epochs", 2, "--episodes", 4]
        size = size if call.options.cpu else ["--episodes", 64 if shape == "smollm2" else 32]
        common = ["--model", folder, *size]
        ours = [sys.executable, ROOT / "benchmarks" / "ppo_step_speed.py", "--ours", "--device", call.device]
        rows: Figures = {}
        for precision in ("float32", "bfloat16"):
            rows[precision] = call.figures([*ours, "--precision", precision, *common], 90)
        if call.options.peer_python:
            rows["trl"] = call.figures([call.options.peer_python, ROOT / "benchmarks" / "ppo_peer.py", *common], 120)
            for precision in ("float32", "bfloat16"):
                if "error" not in rows[precision] and "error" not in rows["trl"]:
                    ratio = rows[precision]["episodes_per_second"] / rows["trl"]["eps_per_s"]
                    memory = rows[precision]["peak_memory"] / (rows["trl"]["mem"]["peak_rss_mb"] * 2**20)
                    rows[precision] |= {"times_as_fast_as_trl": ratio, "share_of_trl_memory": memory}
        found[shape] = rows
    return found


def save_random_model(shape: str, folder: Path, device: str) -> None:
    """A checkpoint of random weights with a word-level tokenizer, that both sides can load."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words |= {f"t{i}": i for i in range(4, config_of(shape).vocab_size)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), padding_side="left",
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    make_model(shape, torch.device(device)).save_pretrained(folder)
    if device == "cuda":
        torch.cuda.empty_cache()


def quickstart(call: Call) -> Figures:
    """The five stages, with their seconds, against the README's figures for a CPU."""
    root = call.scratch / "quickstart"
    words: list[object] = [sys.executable, "-m", "pipeline", "run", "recipes/quickstart.yaml", "--root", root]
    stages = ("sft", "comparisons", "reward_model", "ppo", "evaluate")
    words += [word for stage in stages for word in (f"--{stage}.device", call.device)]
    if call.options.cpu:
        words += ["--ppo.iterations", 1, "--sft.data.limit", 660, "--evaluate.n_prompts", 16]
        words += ["--comparisons.prompts.limit", 300, "--comparisons.held_out_prompts", 16]
    started = time.monotonic()
    try:
        done = call.run(words, 200)
    except subprocess.TimeoutExpired as error:
        return {"error": f"took more than {error.timeout:.0f} s"}
    if done.returncode:
        return {"error": last_line(done.stderr)}
    summary = json.loads((root / "pipelines" / "quickstart" / "summary.json").read_text())
    answers = summary["evaluation"]
    return {
        "seconds": time.monotonic() - started,
        "gold_of_sft": answers["sft"].get("gold_mean"),
        "gold_of_ppo": answers["ppo"].get("gold_mean"),
        "win_rate": answers["ppo"]["win_rate"],
        "seconds_of_stages": {name: stage.get("seconds") for name, stage in summary["stages"].items()},
    }


# In order of what a first run on a new device has to tell.
PARTS: dict[str, Callable[[Call], Figures]] = {
    "device": device,
    "tests": tests,
    "rollout": rollout,
    "update": update,
    "ppo_step": ppo_step,
    "quickstart": quickstart,
}


def headline(found: Mapping[str, Figures]) -> Figures:
    """The main figures of all parts, and the parts that went wrong."""
    wrong = {name: texts for name, part in found.items() if (texts := errors_in(part))}
    shown: Figures = {"device": found.get("device", {}).get("name"), "tests": found.get("tests", {}).get("said")}
    for shape, part in found.get("rollout", {}).items():
        for precision in ("float32", "bfloat16"):
            ways = part.get(precision, {}).get("ways", {}) if isinstance(part, dict) else {}
            shares = {way: row["share_of_limit"] for way, row in ways.items() if "share_of_limit" in row}
            shown |= {f"rollout_{shape}_{precision}": shares} if shares else {}
    for kind, name in (("update", "utilisation"), ("ppo_step", "episodes_per_second")):
        for shape, part in found.get(kind, {}).items():
            rows = part.items() if isinstance(part, dict) else ()
            values = {precision: row[name] for precision, row in rows if isinstance(row, dict) and name in row}
            shown |= {f"{kind}_{shape}_{name}": values} if values else {}
    shown["quickstart_win_rate"] = found.get("quickstart", {}).get("win_rate")
    return shown | {"went_wrong": wrong}


def errors_in(part: Any) -> list[str]:
    """What went wrong anywhere in a part's figures."""
    if not isinstance(part, dict):
        return []
    own = [str(part["error"])] if "error" in part else []
    return own + [text for value in part.values() for text in errors_in(value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="Python with TRL 1.12, for its side of ppo_step")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="run these parts only")
    parser.add_argument("--minutes", type=float, default=9.5, help="the call ends after these")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with tiny models")
    options = parser.parse_args()

    import torch

    if not options.cpu and not torch.cuda.is_available():
        sys.exit("gpu_check: torch sees no GPU here; run it where there is one, or rehearse it with --cpu")
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        call = Call(options, Path(scratch))
        for name in [name for name in PARTS if name in options.only]:
            started = time.monotonic()
            try:
                part = PARTS[name](call) if call.left() > 0 else {"error": "no time left"}
            except Exception as error:  # the other parts still have something to tell
                part = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            found[name] = part
            print(json.dumps({"part": name, "part_seconds": round(time.monotonic() - started, 1), **part}), flush=True)
    summary = headline(found)
    pairs.RESULTS = Path(os.environ.get("OUT") or (scratch_results(options.cpu)))
    pairs.write_result("gpu_check", {"rehearsal": options.cpu, "summary": summary, **found})
    print(json.dumps(summary))
    sys.exit(1 if summary["went_wrong"] else 0)


def scratch_results(rehearsal: bool) -> Path:
    """Where results are written without $OUT; a rehearsal's are no results."""
    return Path(tempfile.mkdtemp(prefix="gpu_check_")) if rehearsal else pairs.RESULTS


if __name__ == "__main__":
    main()
