from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, Manifest, StoreError, store

KEY, OTHER_KEY = "0a" * 10, "0b" * 10
ABOUT: dict[str, Any] = {
    "stage": "sft",
    "config": {"layers": (1, 2)},
    "parents": {},
    "data": {},
    "code_version": "1",
    "seed": 0,
    "metrics": {"loss": 1.5},
}


def checkpoint_files(directory: Path, content: str = "weights") -> Path:
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "model.safetensors").write_text(content)
    (directory / "tokenizer" / "vocab.json").write_text("{}")
    return directory


def publish(at: CheckpointStore, directory: Path, key: str = KEY, name: str = "sft", **changes: Any) -> Manifest:
    return at.publish(directory, **{**ABOUT, "key": key, "name": name, **changes})


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_files(tmp_path / "source")


def leftovers(at: CheckpointStore) -> list[str]:
    return [path for path in at._fs.find(at._base) if "attempt" in path.removeprefix(at._base)]


def test_what_was_published_is_read_back_the_same(root: str, source: Path) -> None:
    manifest = publish(CheckpointStore(root), source)
    again = CheckpointStore(root)
    assert again.manifest(KEY) == manifest and again.keys() == (KEY,) and again.names() == {"sft": KEY}
    assert [entry.path for entry in manifest.files] == ["model.safetensors", "tokenizer/vocab.json"]
    assert manifest.config == {"layers": [1, 2]} and manifest.libraries["numpy"]
    directory = again.path(KEY)
    assert (directory / "model.safetensors").read_text() == "weights"
    assert (directory / "tokenizer" / "vocab.json").read_text() == "{}"
    assert Manifest.from_json((directory / "manifest.json").read_text()) == manifest


def test_an_empty_store_says_how_to_fill_it(root: str) -> None:
    at = CheckpointStore(root)
    assert at.keys() == () and at.names() == {} and not at.exists(KEY)
    with pytest.raises(StoreError, match=r"no checkpoint 'sft' in .*; the store is empty.*`triptych run RECIPE`"):
        at.resolve("sft")


def test_a_second_publisher_of_a_key_leaves_the_first_ones_files(root: str, source: Path, tmp_path: Path) -> None:
    at = CheckpointStore(root)
    first = publish(at, source)
    second = publish(at, checkpoint_files(tmp_path / "second", "other"), name="renamed")
    assert second == first and at.names() == {"renamed": KEY, "sft": KEY}
    at.verify(KEY)


def test_of_two_publishers_at_once_one_wins_and_both_see_its_checkpoint(
    root: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_are_ready, commit = threading.Barrier(2, timeout=20), CheckpointStore._commit

    def commit_together(self: CheckpointStore, *arguments: Any) -> None:
        both_are_ready.wait()
        commit(self, *arguments)

    monkeypatch.setattr(CheckpointStore, "_commit", commit_together)
    sources = [source, checkpoint_files(tmp_path / "second", "other")]
    manifests: list[Manifest] = []
    threads = [
        threading.Thread(target=lambda s=s: manifests.append(publish(CheckpointStore(root), s))) for s in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at = CheckpointStore(root)
    at.verify(KEY)
    assert manifests == [at.manifest(KEY)] * 2
    assert len(leftovers(at)) == (0 if os.path.isdir(root) else len(manifests[0].files))


def test_a_publisher_killed_before_the_manifest_leaves_nothing_visible(tmp_path: Path, source: Path) -> None:
    code = (
        "import os, sys; from checkpoint_store import CheckpointStore\n"
        "CheckpointStore._commit = lambda *arguments: os._exit(9)\n"
        f"CheckpointStore({str(tmp_path / 'store')!r}).publish({str(source)!r}, key={KEY!r}, name='sft', **{ABOUT!r})"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    at = CheckpointStore(tmp_path / "store")
    assert killed.returncode == 9 and len(leftovers(at)) == 2
    assert not at.exists(KEY) and at.keys() == () and at.names() == {}
    publish(at, source)
    at.verify(KEY)
    assert leftovers(at) == [] and at.keys() == (KEY,)


def test_files_without_a_manifest_under_a_key_are_replaced(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    at._fs.makedirs(at._home(KEY))
    at._fs.pipe_file(f"{at._home(KEY)}/model.safetensors", b"half")
    assert at.keys() == ()
    publish(at, source)
    at.verify(KEY)
    assert (at.path(KEY) / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failed_publish_removes_its_files(
    root: str, source: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(CheckpointStore, "_commit", fail)
    at = CheckpointStore(root)
    with pytest.raises(type(failure)):
        publish(at, source)
    assert at._fs.find(at._base) == []


def test_an_upload_that_succeeded_but_was_reported_as_failed_keeps_its_files(
    root: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CheckpointStore._commit

    def commit_then_fail(self: CheckpointStore, *arguments: Any) -> None:
        commit(self, *arguments)
        raise FileExistsError("the retry found the first try's file")

    monkeypatch.setattr(CheckpointStore, "_commit", commit_then_fail)
    publish(CheckpointStore(root), source)
    CheckpointStore(root).verify(KEY)


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "sub/rng.PKL", "manifest.json"])
def test_a_pickle_or_a_manifest_is_refused(root: str, source: Path, name: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("")
    with pytest.raises(StoreError, match=name):
        publish(CheckpointStore(root), source)
    assert not CheckpointStore(root).exists(KEY)


@pytest.mark.parametrize(
    "changes",
    [{"key": "../up"}, {"name": "../up"}, {"name": "a//b"}, {"name": OTHER_KEY}, {"metrics": {"loss": float("nan")}}],
    ids=str,
)
def test_a_malformed_key_name_or_metric_is_refused(root: str, source: Path, changes: dict[str, Any]) -> None:
    at = CheckpointStore(root)
    with pytest.raises(StoreError):
        publish(at, source, **changes)
    assert at._fs.find(at._base) == []


def test_an_empty_folder_is_refused(root: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="it is empty"):
        publish(CheckpointStore(root), tmp_path / "empty")


def test_verify_names_every_file_that_differs(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    directory = at._files_home(publish(at, source))
    at._fs.pipe_file(f"{directory}/model.safetensors", b"wEights")
    at._fs.pipe_file(f"{directory}/tokenizer/vocab.json", b"{")
    at._fs.pipe_file(f"{directory}/adapter_config.json", b"{}")
    with pytest.raises(StoreError) as caught:
        CheckpointStore(root).verify(KEY)
    for part in ("model.safetensors was changed", "vocab.json has 1 bytes, not 2", "adapter_config.json is not in"):
        assert part in str(caught.value)
    at._fs.rm(f"{directory}/model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors is missing"):
        at.verify(KEY)


def test_a_flipped_byte_is_found_before_the_path_is_given(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    manifest = publish(at, source)
    at._fs.pipe_file(f"{at._files_home(manifest)}/model.safetensors", b"wEights")
    with pytest.raises(StoreError, match=r"model\.safetensors was changed"):
        at.path(KEY)


def test_one_process_hashes_a_checkpoint_once(root: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(CheckpointStore(root), source)
    first = CheckpointStore(root).path(KEY)

    def fail(*arguments: object) -> None:
        raise AssertionError("hashed twice")

    monkeypatch.setattr(store, "differences", fail)
    assert CheckpointStore(root).path(KEY) == first


def test_a_damaged_download_is_fetched_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    at = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    publish(at, source)
    cached = at.path(KEY)
    (cached / "model.safetensors").write_text("wEights")
    store._verified.clear()  # as in a new process
    assert (at.path(KEY) / "model.safetensors").read_text() == "weights"
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_a_name_a_key_and_the_first_digits_of_a_key_find_a_checkpoint(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    publish(at, source, name="quickstart/sft")
    publish(at, source, key="0a0a" + "1" * 16, name="quickstart")
    assert at.names() == {"quickstart": "0a0a" + "1" * 16, "quickstart/sft": KEY}
    assert [at.resolve(text) for text in ("quickstart/sft", KEY, KEY[:6])] == [KEY] * 3
    with pytest.raises(StoreError, match="give more digits"):
        at.resolve("0a0a")
    for unknown in ("0a0", "sft", "quickstart/", "../store"):
        with pytest.raises(StoreError, match="the store has quickstart, quickstart/sft"):
            at.resolve(unknown)


def test_a_name_moves_to_another_checkpoint_but_never_to_none(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    publish(at, source)
    publish(at, source, key=OTHER_KEY)
    assert at.resolve("sft") == OTHER_KEY
    at.name("sft", KEY)
    assert at.resolve("sft") == KEY
    with pytest.raises(StoreError, match="the store has sft"):
        at.name("best", "0c" * 10)


def test_stray_files_are_neither_checkpoints_nor_names(tmp_path: Path, source: Path) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    (tmp_path / "store" / "refs" / "sft.ref.123.tmp").write_text("half")
    (tmp_path / "store" / "checkpoints" / OTHER_KEY).mkdir()
    (tmp_path / "store" / "checkpoints" / "notes.txt").write_text("")
    assert at.keys() == (KEY,) and at.names() == {"sft": KEY}


def test_a_name_whose_checkpoint_was_deleted_says_so(tmp_path: Path, source: Path) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    (tmp_path / "store" / "checkpoints" / KEY / "manifest.json").unlink()
    with pytest.raises(StoreError, match="which is missing"):
        at.resolve("sft")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../up", b"a" * 10_000, b"0a 0a"], ids=repr)
def test_a_damaged_file_of_a_name_is_named_and_written_again(tmp_path: Path, source: Path, content: bytes) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    ref = tmp_path / "store" / "refs" / "sft.ref"
    ref.write_bytes(content)
    for read in (at.names, lambda: at.resolve("sft")):
        with pytest.raises(StoreError, match=r"sft\.ref is damaged: it must be one line with a key of 20 hex digits"):
            read()
    at.name("sft", KEY)
    assert at.resolve("sft") == KEY


def test_a_manifest_in_another_checkpoint_s_folder_is_refused(tmp_path: Path, source: Path) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    shutil.copytree(tmp_path / "store" / "checkpoints" / KEY, tmp_path / "store" / "checkpoints" / OTHER_KEY)
    with pytest.raises(StoreError, match=rf"it belongs to the checkpoint {KEY}"):
        at.manifest(OTHER_KEY)
    readable, problems = at.survey()
    assert [manifest.key for manifest in readable] == [KEY]
    assert len(problems) == 1 and OTHER_KEY in problems[0]


def test_folders_of_a_checkpoint_and_of_a_run_stand_for_its_key(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    at = CheckpointStore("store")
    publish(at, source)
    runs = [tmp_path / "runs" / key for key in (KEY, OTHER_KEY)]
    for run in runs:
        run.mkdir(parents=True)
        (run / "metrics.jsonl").touch()
    for named in (f"store/checkpoints/{KEY}", f"{tmp_path}/store/checkpoints/{KEY}/", f"runs/{KEY}"):
        assert at.resolve(named) == at.locate(named) == KEY
    with pytest.raises(StoreError, match="did not finish"):
        at.resolve(str(runs[1]))


def test_another_folder_is_located_but_has_no_key(tmp_path: Path, source: Path) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    assert at.locate(str(source)) == source and at.open(str(source)) == (source, None)
    assert at.open("sft") == (at.path(KEY), at.manifest(KEY))
    with pytest.raises(StoreError, match="a folder outside the store, of which no history is kept"):
        at.resolve(str(source))


def test_earlier_checkpoints_of_a_name_are_counted_back_from_the_present_one(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    for key in (OTHER_KEY, KEY):
        publish(at, source, key=key)
    assert at.resolve("sft~1") == OTHER_KEY
    for named in ("sft~2", "sft~0"):
        with pytest.raises(StoreError, match="sft has 1 earlier checkpoints"):
            at.resolve(named)


@pytest.mark.parametrize(
    ("named", "hint"),
    [
        ("sfft", "did you mean sft?"),
        ("quick", "a recipe's name, add the stage: there are quick/reward_model;"),
        ("quick/reward-model", "did you mean quick/reward_model?"),
    ],
)
def test_what_was_probably_meant_is_named(root: str, source: Path, named: str, hint: str) -> None:
    at = CheckpointStore(root)
    publish(at, source)
    publish(at, source, key=OTHER_KEY, name="quick/reward_model")
    with pytest.raises(StoreError, match=hint):
        at.resolve(named)


def test_a_name_that_is_right_is_not_written_again(tmp_path: Path, source: Path) -> None:
    at = CheckpointStore(tmp_path / "store")
    publish(at, source)
    ref = tmp_path / "store" / "refs" / "sft.ref"
    before = ref.stat()
    at.name("sft", KEY)
    assert (ref.stat().st_ino, ref.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_removed_name_leaves_the_checkpoint(root: str, source: Path) -> None:
    at = CheckpointStore(root)
    publish(at, source)
    at.unname("sft")
    assert at.names() == {} and at.keys() == (KEY,)


def test_an_unknown_kind_of_address_is_one_line() -> None:
    with pytest.raises(StoreError, match="cannot open the store nowhere://a"):
        CheckpointStore("nowhere://a")
