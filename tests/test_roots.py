from __future__ import annotations

from pathlib import Path

import pytest
from small_recipe import Chain

from checkpoint_store import StoreError, local_root, open_store, parse_root
from pipeline.__main__ import main
from pipeline.plan import Selection
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline


@pytest.mark.parametrize(
    ("text", "root", "store"),
    [
        ("out", Path("out"), "out/store"),
        ("/data/out/", Path("/data/out"), "/data/out/store"),
        ("file:///data/out", Path("/data/out"), "/data/out/store"),
        ("memory://bucket/folder/", "memory://bucket/folder", "memory://bucket/folder/store"),
    ],
)
def test_a_root_is_a_folder_or_an_address(text: str, root: Path | str, store: str) -> None:
    assert parse_root(text) == root
    assert open_store(parse_root(text)).root == store


@pytest.mark.parametrize("text", ["s3:/bucket/folder", "nosuchsystem://bucket"])
def test_an_address_that_leads_nowhere_is_refused_before_a_folder_is_made(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError):
        parse_root(text)
    assert main(["list", "--root", text]) == 2
    assert text.partition(":")[0] in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_publishes_at_an_address_and_keeps_its_run_directory_here(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    root = parse_root("memory://test_roots")
    recipe = load_recipe(chain.path, ["--tracking.wandb=disabled", "--sft.epochs=0.1"])
    summary = run_pipeline(recipe, root, Selection(only="sft"))
    key = summary["stages"]["sft"]["key"]
    assert open_store(root).resolve("small/sft") == key
    assert (local_root(root) / "runs" / key / "metrics.jsonl").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]
    assert not (tmp_path / "out" / "store").exists()
    assert run_pipeline(recipe, root, Selection(only="sft"))["stages"]["sft"]["skipped"]
    capsys.readouterr()
    assert main(["list", "--root", "memory://test_roots"]) == 0
    assert "small/sft" in capsys.readouterr().out
