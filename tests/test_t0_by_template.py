from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from scripts.t0_by_template import main


@pytest.fixture
def t0(tmp_path: Path) -> list[str]:
    names = ["sums_easy", "sums_hard", "sums_easy", "colours_name", "sumsets_list"]
    with gzip.open(tmp_path / "t0.jsonl.gz", "wt") as file:
        file.write("".join(f'{{"row": {i}}}\n' for i in range(len(names))))
    (tmp_path / "index.tsv").write_text("".join(f"{name}\t{i}\n" for i, name in enumerate(names)))
    return [str(tmp_path / "t0.jsonl.gz"), str(tmp_path / "index.tsv"), str(tmp_path / "t0")]


def test_each_template_gets_its_rows_and_a_held_out_family_stands_apart(t0: list[str], tmp_path: Path) -> None:
    assert main([*t0, "--hold-out", "sums"]) == 0
    written = {str(path.relative_to(tmp_path / "t0")): path.read_text() for path in (tmp_path / "t0").rglob("*.jsonl")}
    assert written == {
        "held_out/sums_easy.jsonl": '{"row": 0}\n{"row": 2}\n',
        "held_out/sums_hard.jsonl": '{"row": 1}\n',
        "train/colours_name.jsonl": '{"row": 3}\n',
        "train/sumsets_list.jsonl": '{"row": 4}\n',
    }


def test_what_does_not_fit_is_told_in_one_line(
    t0: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*t0, "--hold-out", "colour"]) == 2
    assert "begins with colour_" in capsys.readouterr().err
    (tmp_path / "index.tsv").write_text("sums_easy\t1\n")
    assert main(t0) == 2
    assert "5 rows" in capsys.readouterr().err
    assert not (tmp_path / "t0").exists()
