from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from scripts.t0_by_template import main


@pytest.fixture
def t0(tmp_path: Path) -> list[str]:
    names = ["sums_easy", "sums_hard", "sums_easy", "colours_name", "sumsets_list", "film_bad", "film_bad", "tale_end"]
    answers = ["1", "1", "1", "red", "2", "no", "no ", "and so they lived"]
    rows = [json.dumps({"prompt": str(i), "completion": f"{answer}<|endoftext|>"}) for i, answer in enumerate(answers)]
    with gzip.open(tmp_path / "t0.jsonl.gz", "wt") as file:
        file.write("".join(f"{row}\n" for row in rows))
    (tmp_path / "index.tsv").write_text("".join(f"{name}\t{i}\n" for i, name in enumerate(names)))
    return [str(tmp_path / "t0.jsonl.gz"), str(tmp_path / "index.tsv"), str(tmp_path / "t0")]


def test_each_template_gets_its_rows_and_lands_in_its_part(t0: list[str], tmp_path: Path) -> None:
    assert main([*t0, "--hold-out", "sums", "--longest-answer", "10"]) == 0
    written = {
        str(path.relative_to(tmp_path / "t0")): [json.loads(row)["prompt"] for row in path.read_text().splitlines()]
        for path in (tmp_path / "t0").rglob("*.jsonl")
    }
    assert written == {
        "held_out/sums_easy.jsonl": ["0", "2"],  # held out whatever its answers are
        "held_out/sums_hard.jsonl": ["1"],
        "train/colours_name.jsonl": ["3"],  # one row tells nothing of the others
        "train/sumsets_list.jsonl": ["4"],
        "one_answer/film_bad.jsonl": ["5", "6"],
        "long_answers/tale_end.jsonl": ["7"],
    }


def test_what_does_not_fit_is_told_in_one_line(
    t0: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*t0, "--hold-out", "colour"]) == 2
    assert "begins with colour_" in capsys.readouterr().err
    (tmp_path / "index.tsv").write_text("sums_easy\t1\n")
    assert main(t0) == 2
    assert "8 rows" in capsys.readouterr().err
    assert not (tmp_path / "t0").exists()
    with gzip.open(tmp_path / "t0.jsonl.gz", "wt") as file:
        file.write('{"inputs": "1", "targets": "2"}\n')
    assert main(t0) == 2
    assert "'completion'" in capsys.readouterr().err
