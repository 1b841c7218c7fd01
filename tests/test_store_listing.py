"""`triptych list`, `show`, `diff` and `verify` on a store with a changed setting."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_recipe import STAGES, Chain

from checkpoint_store import CheckpointStore
from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def root(copy_of_chain: Path, chain: Chain) -> Path:
    """A second PPO checkpoint has taken over the name small/ppo."""
    store = CheckpointStore(copy_of_chain / "store")
    old = store.manifest(chain.summary["stages"]["ppo"]["key"])
    files = copy_of_chain / "files"
    shutil.copytree(chain.checkpoint("ppo"), files)
    (files / "manifest.json").unlink()
    store.publish(
        files,
        stage="ppo",
        name="small/ppo",
        key="9" * 20,
        config={**old.config, "kl_coef": 0.5},
        parents=old.parents,
        data=old.data,
        code_version=old.code,
        seed=1,
        metrics={**old.metrics, "objective/score": 2.5, "warnings": ["few answers end"]},
    )
    return copy_of_chain


def ran(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> tuple[int, str, str]:
    """-> (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main([*words, "--root", str(root)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_all_checkpoints_are_listed_the_earlier_ones_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = ran(capsys, root, "list")
    names = [line.split()[0] for line in shown.splitlines()[1:]]
    assert code == 0 and sorted(names) == sorted([*(f"small/{stage}" for stage in STAGES), "small/ppo~1"])
    row = next(line for line in shown.splitlines() if line.startswith("small/ppo "))
    assert "9" * 12 in row and "score 2.5" in row and "1 warning" in row
    assert ran(capsys, root, "list", "small/p")[1].count("\n") == 3
    rows = json.loads(ran(capsys, root, "list", "--json")[1])
    assert {row["name"] for row in rows} == set(names)
    assert next(row for row in rows if row["name"] == "small/ppo")["warnings"] == ["few answers end"]


def test_a_checkpoint_shows_its_numbers_first_and_only_the_settings_that_differ(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = ran(capsys, root, "show", "small/ppo")
    lines = shown.splitlines()
    assert code == 0 and lines[0].split() == ["small/ppo", "9" * 20]
    assert lines[1].startswith("numbers   score 2.5") and lines[2] == "warnings  few answers end"
    assert "kl_coef 0.5  (default 0.02)" in shown and "gae_lambda" not in shown
    assert "sft: small/sft" in shown and f"checkpoints/{'9' * 20}" in shown
    assert "gae_lambda" in ran(capsys, root, "show", "small/ppo", "--verbose")[1]


def test_a_difference_shows_what_differs_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = ran(capsys, root, "diff", "small/ppo~1", "small/ppo")
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[1:]}
    assert code == 0 and rows.keys() == {"seed", "kl_coef", "score"}
    assert rows["kl_coef"] == ["0.02", "0.5"] and rows["seed"] == ["0", "1"]
    assert "the same checkpoint" in ran(capsys, root, "diff", "small/ppo", "9999")[1]
    code, _, error = ran(capsys, root, "diff", "small/ppo", "small/sft")
    assert code == 2 and "give two of the same stage" in error


def test_verify_goes_on_after_the_first_damage_and_tells_all(
    root: Path, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    home = root / "store" / "checkpoints"
    for stage in ("sft", "ppo"):
        with (home / chain.summary["stages"][stage]["key"] / "config.json").open("a") as file:
            file.write(" ")
    (root / "store" / "refs" / "small" / "gone.ref").write_text("7" * 20)
    code, shown, error = ran(capsys, root, "verify")
    assert code == 2 and shown.count("all files match") == 4
    assert error.count("is damaged: config.json has") == 2 and "small/gone points to" in error
    assert "3 problems in 6 checkpoints" in error.splitlines()[-1]


def test_a_root_without_checkpoints_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "verify"):
        code, _, error = ran(capsys, tmp_path / "nowhere", command)
        assert code == 2 and "no checkpoints in" in error


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'],
    ids=["empty", "list", "bytes", "deep", "bare"],
)
def test_a_damaged_manifest_is_one_line_in_every_command_and_can_be_removed(
    chain: Chain, copy_of_chain: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    key = chain.summary["stages"]["sft"]["key"]
    path = copy_of_chain / "store" / "checkpoints" / key / "manifest.json"
    path.write_bytes(content)
    for words in (
        *(["list"], ["show", "small/sft"], ["log", "small/ppo"], ["verify", "small/sft"], ["diff", key, key]),
        ["run", str(chain.path)],
    ):
        code, _, error = ran(capsys, copy_of_chain, *words)
        assert code == 2, words
        assert str(path) in error and "restore it from a copy" in error and error.count("\n") == 1
    assert ran(capsys, copy_of_chain, "rm", key, "--force", "--yes")[0] == 0
    assert not path.parent.exists()


@pytest.mark.parametrize("metrics", [{}, {"seconds": "x"}, {"seconds": 1.0, "models": []}])
def test_a_manifest_that_lacks_numbers_is_named_at_the_end_of_a_run(
    chain: Chain, copy_of_chain: Path, metrics: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of_chain / "store" / "checkpoints" / chain.summary["stages"]["evaluate"]["key"] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": metrics}))
    code, _, error = ran(capsys, copy_of_chain, "run", str(chain.path))
    assert code == 2 and str(path) in error and "metrics lack a sound '" in error and error.count("\n") == 1
