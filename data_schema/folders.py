"""Which files of a folder or pattern are read: those of one split, as their names say, and never what is not data.

Names follow the hub's: `data/train-00000-of-00002.parquet`, `test.jsonl`, `rte_dev.jsonl`, `validation/part-1.json`. A
folder that `datasets` has saved (save_to_disk) lists its files itself.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.files import file_ending
from data_schema.reading.types import unpacked_name

SPLITS = {  # a word in a name -> the split that it means
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("held_out", "heldout"), "held_out"),
}
SHARD = re.compile(r"[-._]\d+-of-\d+")
NUMBER = re.compile(r"[-._](part[-._]?)?\d+$")
WORD = re.compile(r"[a-z0-9]+")
ABOUT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "manifest.json"}
DOCUMENTS = {"readme", "license", "licence", "notice", "requirements"}


class DataFile(NamedTuple):
    path: Path
    split: str | None  # None: its name has none


def split_of(path: Path) -> str | None:
    """The split that the file's name, or else its folder's, says; None if neither does."""
    stem = Path(unpacked_name(path.name.lower())).stem
    shard = SHARD.search(stem)
    name = stem[: shard.start()] if shard else NUMBER.sub("", stem)
    words = WORD.findall(name)
    if name in SPLITS or not words:
        found = SPLITS.get(name)
    elif words[-1] in SPLITS:
        found = SPLITS[words[-1]]
    else:  # of train_sft-00000-of-00001 the split is train_sft, of train_sft.jsonl it is train
        found = (name if shard else SPLITS[words[0]]) if words[0] in SPLITS else None
    return found or SPLITS.get(path.parent.name.lower())


def files_of_folder(folder: Path) -> list[DataFile]:
    """The data files in a folder and in its folders that are named like a split, or else in its folder `data`.

    Raises DataError for a model's folder, and for a folder of other folders with data."""
    _refuse_model(folder)
    if (folder / "dataset_dict.json").is_file():
        splits = [str(name) for name in _listed(folder / "dataset_dict.json", "splits")]
        return [file._replace(split=name) for name in splits for file in files_of_folder(folder / name)]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        listed = _listed(folder / "state.json", "_data_files")
        files = [DataFile(folder / str(item["filename"]), None) for item in listed if "filename" in item]
        missing = next((file.path.name for file in files if not file.path.is_file()), None)
        if missing is not None:
            raise DataError(f"{folder}: state.json lists {missing}, which is missing; copy the whole folder again")
        return files
    inside = sorted(folder.iterdir())
    files = [DataFile(path, split_of(path)) for path in inside if _is_data(path)]
    folders = [path for path in inside if path.is_dir() and not path.name.startswith((".", "_"))]
    for path in folders:
        if path.name.lower() in SPLITS or (not files and path.name.lower() == "data"):
            files += files_of_folder(path)
    if not files:
        with_data = [path.name for path in folders if any(map(_is_data, path.rglob("*")))]
        if with_data:
            raise DataError(f"{folder}: contains data in its folders only; give one of {', '.join(with_data)}")
    return files


def _listed(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text("utf-8"))[key]
        if isinstance(found, list):
            return found
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(f"{path}: has no list '{key}', as save_to_disk writes it; save the data set again")


def _refuse_model(folder: Path) -> None:
    for name in sorted(path.name for path in folder.iterdir()):
        if name in ("adapter_config.json", "tokenizer_config.json") or name.endswith(".safetensors"):
            raise DataError(f"{folder}: is a model's folder (it has {name}), not data; give a file or folder of rows")


def _is_data(path: Path) -> bool:
    stem = path.name.lower().partition(".")[0]
    hidden = path.name.startswith((".", "_"))
    if hidden or path.name in ABOUT_DATA or stem in DOCUMENTS:
        return False
    return file_ending(path.name) is not None and path.is_file()


def files_of_pattern(found: Iterable[str]) -> list[DataFile]:
    """The data files among the paths that a pattern has found."""
    return [DataFile(path, split_of(path)) for path in sorted(map(Path, found)) if _is_data(path)]


def of_split(where: str, files: Sequence[DataFile], split: str) -> list[Path]:
    """The files of a split; files without a split in their names belong to train if no file is named so.

    Raises DataError if there are none."""
    named = {file.split for file in files} - {None}
    if not named:
        return [file.path for file in files]
    wanted = {split, SPLITS.get(split.lower(), split)}
    chosen = [file.path for file in files if file.split in wanted]
    if not chosen and "train" in wanted:
        chosen = [file.path for file in files if file.split is None]
    if not chosen:
        there = ", ".join(sorted(str(name) for name in named))
        raise DataError(
            f"{where}: has no file of split '{split}'; its files are of {there}: set split to one of these",
            field="split",
        )
    return chosen
