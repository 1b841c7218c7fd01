from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_recipe import Chain

from checkpoint_store import CheckpointStore
from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def remove(root: Path, *words: str) -> int:
    return main(["rm", *words, "--root", str(root)])


def test_a_checkpoint_goes_with_its_names_and_on_request_its_run(chain: Chain, copy_of_chain: Path) -> None:
    key = chain.summary["stages"]["evaluate"]["key"]
    assert remove(copy_of_chain, "small/evaluate", "--yes") == 0
    store = CheckpointStore(copy_of_chain / "store")
    assert not store.exists(key) and "small/evaluate" not in store.names()
    assert (copy_of_chain / "runs" / key).is_dir()
    assert remove(copy_of_chain, "small/ppo", "--yes", "--runs") == 0
    assert not (copy_of_chain / "runs" / chain.summary["stages"]["ppo"]["key"]).exists()
    assert len(store.keys()) == 3


def test_a_parent_stays_unless_its_children_go_too(copy_of_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(copy_of_chain / "store")
    assert remove(copy_of_chain, "small/ppo", "--yes") == 2
    assert "is a parent of small/evaluate" in capsys.readouterr().err and len(store.keys()) == 5
    assert remove(copy_of_chain, "small/ppo", "small/evaluate", "--yes") == 0
    assert len(store.keys()) == 3
    assert remove(copy_of_chain, "small/sft", "--force", "--yes") == 0
    assert "small/sft" not in store.names()


@pytest.mark.parametrize(("answer", "left"), [("y\n", 4), ("n\n", 5), ("\n", 5)])
def test_on_a_terminal_it_asks(
    copy_of_chain: Path, answer: str, left: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert remove(copy_of_chain, "small/evaluate") == (0 if left == 4 else 2)
    assert "Delete this checkpoint? [y/N]" in capsys.readouterr().out
    assert len(CheckpointStore(copy_of_chain / "store").keys()) == left


def test_without_a_terminal_nothing_is_deleted_unconfirmed(
    copy_of_chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert remove(copy_of_chain, "small/evaluate") == 2
    assert "add --yes" in capsys.readouterr().err
    assert len(CheckpointStore(copy_of_chain / "store").keys()) == 5
