"""What a source's path names: files here, a data set on the hub, or a Python function; and how to get at it."""

import ast
import glob
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.files import check_is_file, file_ending

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class FileLocation(NamedTuple):
    paths: tuple[Path, ...]  # one, or those of a folder or pattern in the order of their names


class HubLocation(NamedTuple):
    name: str  # owner/name
    folder: str | None  # the part of the data set, load_dataset's data_dir

    @property
    def stem(self) -> str:
        return "/".join(filter(None, [self.name.split("/")[1], self.folder]))


class PythonLocation(NamedTuple):
    module: str
    function: str


Location = FileLocation | HubLocation | PythonLocation


def locate(path: str) -> Location:
    """What `path` names. A path that does not exist is a file's if it looks like one, else a hub data set's.

    Raises DataError when it looks like nothing, and for a file that is not there.
    """
    if path.startswith("python:"):
        parts = path.split(":")
        if len(parts) != 3 or not all(parts):
            raise DataError(f"{path}: a Python source is written python:module:function", field="path")
        return PythonLocation(parts[1], parts[2])
    here, there = places(path)
    for candidate in (here, there):
        if candidate.is_file():
            return FileLocation((candidate,))
        if candidate.is_dir():
            return FileLocation(_data_files(path, map(str, candidate.iterdir())))
        if glob.has_magic(path) and (found := glob.glob(str(candidate), recursive=True)):
            return FileLocation(_data_files(path, found))
    if glob.has_magic(path):
        raise DataError(f"{path}: no file fits this pattern; check it and the current folder", field="path")
    name, _, folder = path.partition(":")
    if here.exists() or there.exists() or file_ending(path) or path.startswith((".", "/", "~")):
        check_is_file(there if there.exists() or not here.parent.is_dir() else here)  # complains: it is none
    if not HUB_NAME.fullmatch(name):
        raise DataError(
            f"{path}: neither a file, nor owner/name on the hub, nor python:module:function; check the spelling",
            field="path",
        )
    return HubLocation(name, folder or None)


def places(path: str) -> tuple[Path, Path]:
    """Where a file of this path may be: from the current folder, and from the folder in TRIPTYCH_DATA."""
    here = Path(path).expanduser()
    data_folder = os.environ.get("TRIPTYCH_DATA")
    return here, Path(data_folder).expanduser() / here if data_folder else here


def _data_files(path: str, names: Iterable[str]) -> tuple[Path, ...]:
    """The data files among `names`, sorted. Raises DataError when there is none, or when they are of several types."""
    files = sorted(file for file in map(Path, names) if file_ending(file.name) and file.is_file())
    endings = sorted({str(file_ending(file.name)) for file in files})
    if not files:
        raise DataError(f"{path}: holds no data file; name one", field="path")
    if len(endings) > 1:
        raise DataError(
            f"{path}: holds files of several types ({', '.join(endings)}); give one of them, or a pattern such as"
            f" {Path(path) / ('*' + endings[0]) if not glob.has_magic(path) else '*' + endings[0]}",
            field="path",
        )
    return tuple(files)


def hub_rows(location: HubLocation, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a hub data set. Raises DataError, at the call, when it cannot be had."""
    import datasets

    try:
        rows = datasets.load_dataset(location.name, data_dir=location.folder, split=split)
    except Exception as error:  # the library raises a dozen types for "no network", "no such name", "no such split"
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{location.name}: cannot load split '{split}' from the hub ({type(error).__name__}: {told[:300]});"
            " check name, split and network, or give the path of a local copy",
            field="path",
        ) from error
    return enumerate(rows, start=1)


def hub_revision(name: str) -> str | None:
    """The commit that the hub serves now; without network the one in the local cache; None when neither is known."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(name, timeout=5).sha
        except Exception:  # no network, or no such data set: loading will say so
            pass
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    ref = cache / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def python_function(location: PythonLocation) -> Callable[..., Iterable[Any]]:
    """The function of a Python source. Raises DataError when module or function is not there."""
    _module_file(location.module)
    function = getattr(importlib.import_module(location.module), location.function, None)
    if not callable(function):
        raise DataError(f"python:{location.module}: has no function '{location.function}'; check the name")
    return function


def python_files(module: str) -> list[Path]:
    """The module's source file and those of the modules beside it that it imports, in a fixed order."""
    first = _module_file(module)
    files, waiting = {first}, [first]
    while waiting:
        tree = ast.parse(waiting.pop().read_bytes())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            for name in names:
                beside = first.with_name(name.rpartition(".")[2] + ".py")
                if beside.is_file() and beside not in files:
                    files.add(beside)
                    waiting.append(beside)
    return sorted(files)


def _module_file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a parent package is missing
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DataError(f"python:{module}: no such Python module; install it, or set PYTHONPATH to its folder")
    return Path(spec.origin)
