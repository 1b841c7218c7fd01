from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import FileEntry, Manifest, StoreError, code_state, stage_key

INPUTS: dict[str, Any] = {
    "stage": "sft",
    "config": {"learning_rate": 1e-5, "epochs": 2, "layers": [1, 2]},
    "parents": {"base": "0" * 20},
    "data": {"demonstrations": {"fingerprint": "ab"}},
    "code_version": {"commit": "c", "dirty": None},
}
MANIFEST = Manifest(
    stage="sft",
    name="quickstart/sft",
    key="ab" * 10,
    config={"learning_rate": 1e-5, "schedule": {"floor": 0.1}, "note": "naïve"},
    parents={"base": "0" * 20},
    data={"demonstrations": {"fingerprint": "ab", "records": 3, "dropped": {}}},
    code={"commit": "c", "dirty": None},
    seed=1,
    metrics={"loss": 0.1 + 0.2},
    libraries={"torch": "2"},
    files=(FileEntry("sub/model.safetensors", 5, "a" * 64),),
    folder="",
    created="2026-01-01T00:00:00+00:00",
)

REPLACEMENTS: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        "",
        "x",
        "\ud800",
        [],
        {},
        [1],
        {"a": 1},
        {"a": {"b": [None]}},
        10**400,
        "../..",
        "1" * 999,
    ),
)


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **changes})


def test_a_manifest_comes_back_from_json_as_it_was() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"seed": NaN}', "NaN is not a JSON number"),
        ("[]", "is a list, not an object"),
        ("null", "is null, not an object"),
        ('"text"', "is text, not an object"),
        (b"\xff\xfe{}", "is not text in UTF-8"),
        ("[" * 100_000, "nested more than 32 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 32 deep"),
        ("1" * 5000, "not valid JSON"),
        ('{"seed": 1e999}', "1e999 is too large for a number"),
        (edited(name="\ud800"), "half a surrogate pair"),
        (edited(metrics={"loss": 10**400}), "a number of 401 digits"),
        (edited(format=2), "reads format 1"),
        (edited(extra=1), "unknown field extra"),
        (json.dumps({k: v for k, v in json.loads(MANIFEST.to_json()).items() if k != "seed"}), "lacks the field seed"),
        (edited(seed="1"), "'seed' is text, not a whole number"),
        (edited(seed=True), "'seed' is true or false, not a whole number"),
        (edited(parents={"base": 1}), "'parents' must map text to text"),
        (edited(metrics=None), "'metrics' is null, not an object"),
        (edited(data={"prompts": []}), "'prompts' in the field 'data' is a list, not an object"),
        (edited(data={"prompts": {"dropped": {"empty": "3"}}}), "must map reasons to numbers of rows"),
        (edited(key="abc"), "field 'key' is \"abc\", not 20 hex digits"),
        (edited(created="yesterday"), "not a date and time"),
        (edited(folder="../elsewhere"), "points outside the checkpoint"),
        (edited(files=[{"path": "../x", "size": 1, "sha256": "a" * 64}]), "points outside the checkpoint"),
        (edited(files=[{"path": "/etc/x", "size": 1, "sha256": "a" * 64}]), "points outside the checkpoint"),
        (edited(files=[{"path": "x", "size": -1, "sha256": "a" * 64}]), "size of x is -1"),
        (edited(files=[{"path": "x", "size": 1, "sha256": "A"}]), "sha256 of x"),
        (edited(files=[{"path": "x", "size": 1}]), "lacks the field sha256"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        Manifest.from_json(text, where="store/manifest.json")
    assert str(caught.value).startswith("store/manifest.json: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def changed_somewhere(rng: random.Random) -> str:
    """The manifest with one value, at any depth, removed or replaced."""
    values = json.loads(MANIFEST.to_json())
    place: Any = values
    while True:
        name = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[name], dict | list) or not place[name] or rng.random() < 0.4:
            break
        place = place[name]
    if rng.random() < 0.2:
        del place[name]
    else:
        place[name] = rng.choice(REPLACEMENTS)
    return json.dumps(values)


def test_a_manifest_changed_anywhere_is_read_or_refused_in_a_line_without_python_s_words() -> None:
    refused = 0
    for seed in range(400):
        try:
            Manifest.from_json(changed_somewhere(random.Random(seed))).to_json()
        except StoreError as error:
            text = str(error)
            refused += 1
            assert "\n" not in text and ("restore it" in text or "use the version" in text), seed
            assert not re.search(r"\bNone|\bTrue\b|\bdict\b|\bstr\b|\bint\b|<class", text), (seed, text)
    assert refused > 100


def test_a_number_that_json_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"manifest\.metrics\.loss: nan"):
        replace(MANIFEST, metrics={"loss": float("nan")}).to_json()


def test_a_key_is_20_hex_digits_and_the_same_in_every_process() -> None:
    # the canonical text, written out by hand
    text = (
        '{"code":{"commit":"c","dirty":null},"config":{"epochs":2,"layers":[1,2],"learning_rate":1e-05},'
        '"data":{"demonstrations":{"fingerprint":"ab"}},"parents":{"base":"00000000000000000000"},"stage":"sft"}'
    )
    assert stage_key(**INPUTS) == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_the_order_of_settings_does_not_change_the_key() -> None:
    shuffled = {"layers": (1, 2), "epochs": 2, "learning_rate": 0.00001}
    assert stage_key(**{**INPUTS, "config": shuffled}) == stage_key(**INPUTS)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "ppo"},
        {"config": {**INPUTS["config"], "learning_rate": 1.0000000000000002e-5}},
        {"config": {**INPUTS["config"], "epochs": 2.0}},
        {"parents": {"base": "1" * 20}},
        {"parents": {"policy": "0" * 20}},
        {"data": {}},
        {"code_version": "c"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_result_changes_the_key(change: dict[str, Any]) -> None:
    assert stage_key(**{**INPUTS, **change}) != stage_key(**INPUTS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), r"key\.config\.x: inf"),
        ({1: "a"}, r"key\.config\.x: the key 1 is not text"),
        ([Path("a")], r"key\.config\.x\[0\]: a has no form in JSON"),
    ],
)
def test_a_value_without_an_exact_form_in_json_has_no_key(value: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        stage_key(**{**INPUTS, "config": {"x": value}})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "sft.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(directory: Path) -> str:
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--message", "change")
    return git(directory, "rev-parse", "HEAD")


def test_committed_code_is_its_commit(repository: Path) -> None:
    head = commit(repository)
    (repository / "notes.md").write_text("not code")
    assert code_state(repository) == {"commit": head, "dirty": None}


def test_each_uncommitted_state_of_the_code_has_a_digest_of_its_own(repository: Path) -> None:
    digests = [code_state(repository)["dirty"]]  # before the first commit
    commit(repository)
    (repository / "stages" / "sft.py").write_text("a = 2\n")
    digests.append(code_state(repository)["dirty"])
    (repository / "stages" / "ppo.py").write_text("b = 1\n")
    digests.append(code_state(repository)["dirty"])
    (repository / "stages" / "ppo.py").write_text("b = 2\n")
    digests.append(code_state(repository)["dirty"])
    git(repository, "add", ".")
    (repository / "stages" / "sft.py").unlink()
    digests.append(code_state(repository)["dirty"])
    assert None not in digests and len(set(digests)) == len(digests)
    assert code_state(repository)["dirty"] == digests[-1]


def test_code_outside_git_is_known_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("a = 1")
    assert str(code_state(tmp_path)["commit"]).startswith("triptych ")
    monkeypatch.setenv("PATH", "")
    assert code_state(Path(__file__).parent) == code_state(tmp_path)


def test_a_package_in_an_ignored_folder_is_not_taken_for_the_repository_around_it(repository: Path) -> None:
    (repository / ".gitignore").write_text(".venv/\n")
    commit(repository)
    (repository / ".venv").mkdir()
    (repository / ".venv" / "a.py").write_text("a = 1")
    assert str(code_state(repository / ".venv")["commit"]).startswith("triptych ")
