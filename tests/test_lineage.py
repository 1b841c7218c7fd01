from __future__ import annotations

from pathlib import Path

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
        at.publish(
            source,
            stage=stage,
            name=name,
            key=key,
            config={"learning_rate": 1e-5},
            parents=parents,
            data=data,
            code_version={"commit": "c0ffee", "dirty": None},
            seed=7,
            metrics={"loss": 0.123456, "table": ["a"]},
        )
    return at


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
        "demonstrations: fingerprint f1, source demos.jsonl, records 120, dropped empty answer 3",
        "commit c0ffee",
        "loss 0.1235",
    ):
        assert part in text
    assert "learning_rate" not in text and "table" not in text


def test_the_verbose_log_holds_the_resolved_config_and_all_metrics(store: CheckpointStore) -> None:
    text = format_lineage(store, "quick/sft", verbose=True)
    assert '"learning_rate": 1e-05' in text and "table [a]" in text and "numpy" in text


def test_a_parent_that_is_gone_is_named_with_its_child(store: CheckpointStore) -> None:
    (store.path(SFT) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=rf"the parent 'policy' of quick/ppo \(key {SFT}\) is not in"):
        lineage(store, "quick/ppo")
