"""Of a folder the files of one split are read, as their names or `datasets` say; what is not data is not read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_schema import DataError, Demonstration, Source, fingerprint, load
from data_schema.folders import split_of


def write(folder: Path, *names: str) -> str:
    """A data file of each name, with one row whose prompt is the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name, "completion": "b"}
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n")
    return str(folder)


def read(path: str, split: str = "train") -> list[str]:
    return [record.messages[0].content for record in load(Source(path, split=split), Demonstration)]


SHARDS = [
    "data/test-00000-of-00001.parquet",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
]


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_clone_of_the_hub_is_read_by_split(tmp_path: Path, inside: str) -> None:
    write(tmp_path, *SHARDS)
    (tmp_path / "README.md").write_text("-")
    (tmp_path / "dataset_infos.json").write_text("{}")
    where = str(tmp_path / inside)
    assert read(where) == SHARDS[1:3]
    assert read(where, "test") == SHARDS[:1]
    assert read(where, "validation") == read(where, "dev") == SHARDS[3:]
    with pytest.raises(DataError, match=r"no file of split 'holdout'; its files are of test, train, validation"):
        read(where, "holdout")


def test_one_log_line_names_the_files_that_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = write(tmp_path, "train.jsonl", "validation/a.jsonl", "test.jsonl")
    with caplog.at_level(logging.INFO, "triptych.data"):
        assert read(where) == ["train.jsonl"]
    (line,) = [line for line in caplog.messages if "left out" in line]
    assert "split train" in line and "validation/a.jsonl" in line and f"{tmp_path.name}/test.jsonl" in line
    assert read(where, "validation") == ["validation/a.jsonl"]


def test_a_folder_without_splits_is_read_whole(tmp_path: Path) -> None:
    names = ["part-00001-of-00002.jsonl", "task1338_equity_evaluation_corpus.jsonl", "z.jsonl"]
    assert read(write(tmp_path, *names)) == read(str(tmp_path), "test") == names


def test_files_without_a_split_are_the_training_files(tmp_path: Path) -> None:
    where = write(tmp_path, "data.jsonl", "test.jsonl")
    assert (read(where), read(where, "test")) == (["data.jsonl"], ["test.jsonl"])


def test_a_pattern_for_one_split_is_read_whole_and_one_for_several_by_split(tmp_path: Path) -> None:
    write(tmp_path, *SHARDS)
    assert read(f"{tmp_path}/data/test-*.parquet") == SHARDS[:1]
    assert read(f"{tmp_path}/**/*.parquet") == SHARDS[1:3]
    assert read(f"{tmp_path}/data/*.parquet", "test") == SHARDS[:1]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl.gz", "train"),
        ("rte_dev.jsonl", "validation"),
        ("c4-train.00000-of-01024.json.gz", "train"),
        ("train_sft-00000-of-00003.parquet", "train_sft"),
        ("train_sft.jsonl", "train"),
        ("test-part-3.json", "test"),
        ("val/x.jsonl", "validation"),
        ("held_out.jsonl.zst", "held_out"),
        ("contest.jsonl", None),
        ("latest_news.jsonl", None),
        ("data-00000-of-00002.arrow", None),
    ],
)
def test_a_name_says_its_split(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": f"p{i}", "completion": "b"} for i in range(4)])
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(train=rows, test=rows.select([3])).save_to_disk(str(tmp_path / "both"))
    assert read(str(tmp_path / "one")) == ["p0", "p1", "p2", "p3"]
    assert read(str(tmp_path / "one"), "validation") == ["p0", "p1", "p2", "p3"]  # it does not say its split
    assert read(str(tmp_path / "both")) == ["p0", "p1", "p2", "p3"]
    assert read(str(tmp_path / "both"), "test") == ["p3"]
    with pytest.raises(DataError, match="no file of split 'dev'; its files are of test, train"):
        read(str(tmp_path / "both"), "dev")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"state.json lists data-00001-of-00002.arrow, which is missing"):
        read(str(tmp_path / "one"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"splits": 3}'])
def test_a_damaged_list_of_splits_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(damage)
    with pytest.raises(DataError, match=r"dataset_dict.json: has no list 'splits'"):
        read(str(tmp_path))


@pytest.mark.parametrize("name", ["adapter_config.json", "tokenizer_config.json", "model-00001-of-00002.safetensors"])
def test_a_model_s_folder_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=rf"is a model's folder \(it has {name}\), not data"):
        read(str(tmp_path))


def test_a_folder_of_subsets_asks_for_one_of_them(tmp_path: Path) -> None:
    where = write(tmp_path, "harmless-base/train.jsonl", "helpful-base/train.jsonl")
    with pytest.raises(DataError, match="contains data in its folders only; give one of harmless-base, helpful-base"):
        read(where)


def test_the_fingerprint_of_a_folder_covers_the_files_of_its_split_only(tmp_path: Path) -> None:
    where = write(tmp_path, "train.jsonl", "test.jsonl")
    train, test = (fingerprint(Source(where, split=split)) for split in ("train", "test"))
    (tmp_path / "test.jsonl").write_text('{"prompt": "new", "completion": "b"}\n')
    assert fingerprint(Source(where, split="train")) == train
    assert fingerprint(Source(where, split="test")) != test
