"""Our side of time_to_reward.py: the PPO stage on the work that WORK describes. time_to_reward.py runs it; run
directly, it prints one JSON object.

    python benchmarks/reward_ours.py WORK.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from pairs import peak_memory  # noqa: E402
from reward_peer import BudgetSpent, Clock  # noqa: E402


def run(work: Mapping[str, Any]) -> dict[str, Any]:
    """Run the PPO stage for the budget's seconds."""
    import torch

    from pipeline.build import build
    from stages.job import Job
    from stages.ppo import stage
    from stages.ppo.settings import PpoConfig
    from stages.tracking import Tracker

    torch.set_num_threads(work["threads"])
    folder = Path(tempfile.mkdtemp(prefix="ours-", dir=work["folder"]))
    clock = Clock(folder, work["budget"], work["every"])
    begin, learners = stage.begin, []

    def begin_and_start(*words: Any, **named: Any) -> Any:
        learners.append(begin(*words, **named))
        clock.start()
        return learners[0]

    class Watch(Tracker):
        def log(self, metrics: Mapping[str, float | int], step: int) -> None:
            super().log(metrics, step)
            trained = {n: p for n, p in learners[0].roles.policy.named_parameters() if p.requires_grad}
            clock.update_ends(step, trained)

    tracker = Watch(
        folder / "run", project="benchmark", group="benchmark", job_type="ppo", run_id="ours", config={},
        wandb_mode="disabled",
    )  # fmt: skip
    parents = {role: Path(work[role]) for role in ("sft", "reward_model")}
    config = build(PpoConfig, work["ppo"], "ppo")
    with patch.object(stage, "begin", begin_and_start), contextlib.suppress(BudgetSpent):
        stage.run(config, Job(folder / "run", parents, tracker, work["seed"]))
    return {"peak_memory": peak_memory(), "updates": clock.saved[-1]["updates"], "saved": clock.saved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="file of time_to_reward.py that describes the work")
    print(json.dumps(run(json.loads(parser.parse_args().work.read_text()))))


if __name__ == "__main__":
    main()
