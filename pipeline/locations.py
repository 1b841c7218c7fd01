"""Where the models and data are that a recipe names, and their fingerprints. No torch.

A relative path is looked up in the current folder, then in the folder of the recipe file that names it (and the folder
above, if that folder is called `recipes`), then in the folder of the environment variable TRIPTYCH_DATA.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from data_schema.locations import unsupported
from data_schema.templates import is_template_file
from stages.errors import ConfigError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Settings that are paths, or lists of paths. Of the models, those that are not found may be names in the store or hub.
MODELS = ("base_model", "sft", "reward_model", "model")
STORED = ("sft", "select", "ppo", "reward_model")  # last part of a name in the store
FILES = ("path", "promptsource", "template", "sources")


def find_paths(rows: Any, folder: Path, kept: Collection[str] = ()) -> Any:
    """The settings of a recipe in `folder`, with relative paths that exist only there, or only in TRIPTYCH_DATA, put
    after that folder. Others stay as they are, and so do the data sets in `kept`."""
    if not isinstance(rows, dict):
        return [find_paths(item, folder, kept) for item in rows] if isinstance(rows, list) else rows
    found: dict[str, Any] = {}
    for name, value in rows.items():
        if name in MODELS + FILES and isinstance(value, str):
            is_name = value.partition(":")[0] in kept or (name == "template" and not is_template_file(value))
            found[name] = value if is_name else _found(value, folder, with_data=name in MODELS)
        elif name in FILES and isinstance(value, list):
            texts = [each for each in value if isinstance(each, str) and each.partition(":")[0] not in kept]
            found[name] = [_found(each, folder, False) if each in texts else each for each in value]
        else:
            found[name] = find_paths(value, folder, kept)
    return found


def _found(text: str, folder: Path, with_data: bool) -> str:
    path, hash_sign, rest = text.partition("#")  # FILE.yaml#TEMPLATE in `promptsource`
    if not path.strip() or path.startswith("python:"):
        return text
    for place in _places(folder, with_data):
        candidate = os.path.join(place, os.path.expanduser(path))
        try:
            if os.path.exists(candidate) or (glob.has_magic(candidate) and glob.glob(candidate)):
                return candidate + hash_sign + rest
        except ValueError:  # a character that no path can have
            return text
    return text


def _places(folder: Path, with_data: bool) -> Iterator[str]:
    yield ""  # the current folder
    yield str(folder)
    if folder.resolve().name == "recipes":
        yield str(folder.resolve().parent)
    if with_data and (data := os.environ.get("TRIPTYCH_DATA")):
        yield os.path.expanduser(data)


def base_model_fingerprint(source: str, setting: str) -> str:
    """The fingerprint of a directory, or of a model on the hub: its name and revision. Raises ConfigError, which names
    `setting`, if it is neither."""
    if source.strip() and Path(source).expanduser().is_dir():
        return model_fingerprint(source)
    problem = f"{setting} '{source}' is not a directory in {Path.cwd()}, next to the recipe or in TRIPTYCH_DATA"
    if Path(source).is_file():
        raise ConfigError(f"{setting} '{source}' is a file; give the directory of a model in Hugging Face layout")
    if (why := unsupported(source)) is not None:
        raise ConfigError(f"{setting} '{source}': {why}; give a model's directory on this machine, or owner/name")
    if source.rpartition("/")[2] in STORED:
        raise ConfigError(
            f"{problem}; to start from a checkpoint in the store, give its folder, which 'triptych show {source}' "
            "prints"
        )
    if _looks_local(source):
        raise ConfigError(f"{problem}; give the directory of a model in Hugging Face layout, or a hub name: owner/name")
    revision = hub_revision(source)
    if revision is None:
        offline = " HF_HUB_OFFLINE is set, so the hub was not asked." if _is_offline() else ""
        raise ConfigError(
            f"{problem}, nor is it a model on the hub that can be reached or is in the cache.{offline} Check the path; "
            f"for a model on the hub check the name, your access and the network, or run "
            f"'hf download {source} --local-dir DIR' where it works and give DIR"
        )
    return f"{source}@{revision}"


def _looks_local(source: str) -> bool:
    """Whether a text that names no directory can only have been meant as one."""
    if source.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(source):
        return True
    return "/" in source and Path(source.partition("/")[0]).is_dir()


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@cache
def hub_revision(name: str) -> str | None:
    """The commit of a hub model that would be used: what the hub has now; without a network what the local cache has,
    which is the same after a download. None if neither is known."""
    if not _is_offline():
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().model_info(name, timeout=5).sha
        except Exception:  # no network, no access, or no such model; the cache may have it
            pass
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    ref = cache / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def model_fingerprint(directory: str) -> str:
    """The sha256 over a model directory's files. Hidden ones do not count: downloads keep their state there."""
    digest = hashlib.sha256()
    folder = Path(directory).expanduser()
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    for relative, path in sorted(files.items()):
        if relative.name == "manifest.json" or any(part.startswith(".") for part in relative.parts):
            continue
        digest.update(relative.as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
