"""Resolve a source's path to files, a hub data set or a Python function, and open the last two."""

import ast
import glob
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.files import check_is_file, file_ending
from data_schema.folders import DataFile, files_of_folder, files_of_pattern, of_split

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class FileLocation(NamedTuple):
    paths: tuple[Path, ...]  # one file, or the files of a folder or pattern, sorted by name
    left_out: tuple[Path, ...] = ()  # files of the folder or pattern that belong to other splits


class HubLocation(NamedTuple):
    name: str  # owner/name
    folder: str | None  # subset of the data set: load_dataset's data_dir

    @property
    def stem(self) -> str:
        return "/".join(filter(None, [self.name.split("/")[1], self.folder]))


class PythonLocation(NamedTuple):
    module: str
    function: str


Location = FileLocation | HubLocation | PythonLocation


def locate(path: str, split: str | None = None) -> Location:
    """The location that `path` names; of a folder the files of `split`, or all. If nothing exists there, it counts as a
    file if it looks like one, else as a hub data set. Raises DataError if it looks like neither, or like a file that
    does not exist, and for a folder without files of the split."""
    if path.startswith("python:"):
        parts = path.split(":")
        if len(parts) != 3 or not all(parts):
            raise DataError(f"{path}: not a Python source; write it as python:module:function", field="path")
        return PythonLocation(parts[1], parts[2])
    here, there = places(path)
    for candidate in (here, there):
        if candidate.is_file():
            return FileLocation((candidate,))
        if candidate.is_dir():
            return _files(path, files_of_folder(candidate), split)
        if glob.has_magic(path) and (found := glob.glob(str(candidate), recursive=True)):
            files = files_of_pattern(found)
            splits = {file.split for file in files}
            # A pattern that finds the files of one split says itself what is to be read.
            return _files(path, files, splits.pop() or split if split and len(splits) == 1 else split)
    if glob.has_magic(path):
        raise DataError(f"{path}: no file matches this pattern; check the pattern and the current folder", field="path")
    if (why := unsupported(path)) is not None:
        raise DataError(f"{path}: {why}; give a file on this machine, or owner/name on the hub", field="path")
    name, _, folder = path.partition(":")
    if here.exists() or there.exists() or file_ending(path) or path.startswith((".", "/", "~")):
        check_is_file(there if there.exists() or not here.parent.is_dir() else here)  # raises: it is not one
    if not HUB_NAME.fullmatch(name):
        raise DataError(
            f"{path}: not a file, not owner/name on the hub and not python:module:function; check the spelling",
            field="path",
        )
    return HubLocation(name, folder or None)


def unsupported(path: str) -> str | None:
    """Why a path that names nothing is of a kind that is not read; None if it may only be misspelt."""
    if path.startswith("file://"):
        return f"an address; write the path alone: {path.removeprefix('file://')}"
    if "://" in path:
        return "an address, which is not read; download it"
    if "$" in path or ("%" in path and path.count("%") > 1):
        return "environment variables are not replaced in a recipe; write the path itself"
    return None


def places(path: str) -> tuple[Path, Path]:
    """Where a file of this path may be: relative to the current folder, and relative to the folder in TRIPTYCH_DATA."""
    here = Path(path).expanduser()
    data_folder = os.environ.get("TRIPTYCH_DATA")
    return here, Path(data_folder).expanduser() / here if data_folder else here


def _files(path: str, files: Sequence[DataFile], split: str | None) -> FileLocation:
    """The files of a split, which have one type, or all (None). Raises DataError if there are none or several types."""
    if not files:
        raise DataError(f"{path}: contains no data file; give a file or folder with data", field="path")
    chosen = [file.path for file in files] if split is None else of_split(path, files, split)
    endings = sorted({str(file_ending(file.name)) for file in chosen})
    if len(endings) > 1 and split is not None:
        raise DataError(
            f"{path}: contains files of several types ({', '.join(endings)}); give one file, or a pattern such as"
            f" {Path(path) / ('*' + endings[0]) if not glob.has_magic(path) else '*' + endings[0]}",
            field="path",
        )
    return FileLocation(tuple(chosen), tuple(file.path for file in files if file.path not in chosen))


def hub_rows(location: HubLocation, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a hub data set. Raises DataError, when called, if it cannot be loaded."""
    import datasets

    try:
        rows = datasets.load_dataset(location.name, data_dir=location.folder, split=split)
    except Exception as error:  # the library raises a dozen types for "no network", "no such name", "no such split"
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{location.name}: cannot load split '{split}' from the hub ({type(error).__name__}: {told[:300]});"
            " check the name, the split and the network, or give the path of a local copy",
            field="path",
        ) from error
    return enumerate(rows, start=1)


def hub_revision(name: str) -> str | None:
    """The commit that the hub serves now; without a network the one in the local cache; None if neither is known."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(name, timeout=5).sha
        except Exception:  # no network, or no such data set: loading will report it
            pass
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    ref = cache / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def python_function(location: PythonLocation) -> Callable[..., Iterable[Any]]:
    """The function of a Python source. Raises DataError if the module or the function does not exist."""
    module_file(location.module)
    function = getattr(importlib.import_module(location.module), location.function, None)
    if not callable(function):
        raise DataError(f"python:{location.module}: has no function '{location.function}'; check the name")
    return function


def python_files(module: str) -> list[Path]:
    """The module's source file and those of the modules next to it that it imports, in a fixed order."""
    first = module_file(module)
    files, waiting = {first}, [first]
    while waiting:
        file = waiting.pop()
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or "?"
            raise DataError(f"{file}:{line}: not valid Python; fix the module") from None
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


def module_file(module: str) -> Path:
    """The source file of a module. Nothing is imported: `importlib.util.find_spec` would import its parent packages.
    Raises DataError if there is none."""
    folders: Sequence[str] | None = None  # None: those of sys.path
    origin: str | None = None
    parts = module.split(".")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        specs = (finder.find_spec(name, folders) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, specs), None) if all(parts) else None
        if spec is None or ((folders := spec.submodule_search_locations) is None and i + 1 < len(parts)):
            origin = None
            break
        origin = spec.origin
    if origin is None or not origin.endswith(".py"):
        raise DataError(f"python:{module}: no such Python module; install it, or set PYTHONPATH to its folder")
    return Path(origin)
