from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, StoreError, format_lineage, lineage

BASE, SFT, REWARD, POLICY = "ba" * 10, "5f" * 10, "3e" * 10, "90" * 10


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """base <- sft <- reward_model; ppo comes from sft and reward_model."""
    at = CheckpointStore(tmp_path / "store")
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_text("weights")
    demonstrations = {"fingerprint": "f1", "source": "demos.jsonl", "records": 120, "dropped": {"empty answer": 3}}
    chain = [
        ("base", "base", BASE, {}, {}),
        ("sft", "quick/sft", SFT, {"base": BASE}, {"demonstrations": demonstrations}),
        ("reward_model", "quick/rm", REWARD, {"policy": SFT}, {}),
        ("ppo", "quick/ppo", POLICY, {"policy": SFT, "reward_model": REWARD}, {}),
    ]
    for stage, name, key, parents, data in chain:
        metrics = {"loss": 0.123456, "held_out_loss": 0.123456, "table": ["a"]}
        publish(at, source, name, key, stage=stage, parents=parents, data=data, metrics=metrics)
    return at


def publish(at: CheckpointStore, source: Path, name: str, key: str, **changes: Any) -> None:
    about: dict[str, Any] = {
        "stage": "ppo",
        "config": {"learning_rate": 1e-5},
        "parents": {},
        "data": {},
        "code_version": {"commit": "c0ffee", "dirty": None},
        "seed": 7,
        "metrics": {},
    }
    at.publish(source, name=name, key=key, **{**about, **changes})


def test_lineage_lists_each_checkpoint_once_and_before_its_parents(store: CheckpointStore) -> None:
    keys = [manifest.key for manifest in lineage(store, "quick/ppo")]
    assert keys == [POLICY, REWARD, SFT, BASE]
    assert [manifest.key for manifest in lineage(store, SFT[:6])] == [SFT, BASE]


def test_the_log_reads_from_the_base_to_the_policy(store: CheckpointStore) -> None:
    text = format_lineage(store, "quick/ppo")
    assert text.splitlines()[0] == "base -> quick/sft -> quick/rm -> quick/ppo"
    for part in (
        f"quick/ppo  {POLICY}",
        "stage    sft, seed 7",
        "parent   reward_model: quick/rm (3e3e3e3e)",
        "demonstrations: source demos.jsonl, records 120, dropped empty answer 3",
        "commit c0ffee",
        "loss 0.1235",
    ):
        assert part in text
    assert "learning_rate" not in text and "table" not in text and "fingerprint" not in text


def test_the_verbose_log_holds_the_resolved_config_and_all_metrics(store: CheckpointStore) -> None:
    text = format_lineage(store, "quick/sft", verbose=True)
    assert '"learning_rate": 1e-05' in text and "table [a]" in text and "numpy" in text and "fingerprint f1" in text


def test_the_main_numbers_and_the_warnings_come_first(store: CheckpointStore, tmp_path: Path) -> None:
    metrics = {"policy/loss": 0.1, "objective/score": 1.5, "objective/kl": 2.0, "warnings": ["no answer ends"]}
    publish(store, tmp_path / "source", "last/ppo", "91" * 10, metrics=metrics)
    lines = format_lineage(store, "last/ppo").splitlines()
    at = lines.index(f"last/ppo  {'91' * 10}")
    assert lines[at + 1 : at + 3] == ["  numbers  score 1.5, KL 2", "  warning  no answer ends"]


def test_a_checkpoint_that_is_its_own_ancestor_is_named(store: CheckpointStore) -> None:
    path = Path(store.root) / "checkpoints" / SFT / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parents": {"base": POLICY}}))
    with pytest.raises(StoreError, match=rf"quick/sft .*has the parent 'base' {POLICY}, which descends from it"):
        lineage(store, "quick/ppo")


def test_a_chain_of_more_than_a_thousand_checkpoints_is_read(store: CheckpointStore) -> None:
    home = Path(store.root) / "checkpoints"
    base = json.loads((home / BASE / "manifest.json").read_text())
    keys = [f"{number:020x}" for number in range(1100)]
    for key, parent in pairwise([*keys, BASE]):
        (home / key).mkdir()
        row = {**base, "key": key, "parents": {"before": parent}}
        (home / key / "manifest.json").write_text(json.dumps(row))
    assert [manifest.key for manifest in lineage(store, keys[0])] == [*keys, BASE]


def test_a_parent_that_is_gone_is_named_with_its_child(store: CheckpointStore) -> None:
    (store.path(SFT) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=rf"the parent 'policy' of quick/ppo \(key {SFT}\) is not in"):
        lineage(store, "quick/ppo")
