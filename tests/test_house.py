"""Who may import whom. Data and checkpoints know nothing of models; policy never imports reward."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "data_schema": set(),
    "checkpoint_store": set(),
    "policy": {"data_schema"},
    "reward": {"data_schema", "policy"},
    "stages": {"data_schema", "checkpoint_store", "policy", "reward"},
}
OUTSIDE = {"scripts", "tests", "benchmarks"}  # not in the wheel
MODELS = {"torch", "transformers", "trl", "peft", "accelerate", "wandb"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of everything the file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").split(".")[0]


def forbidden(package: str, names: set[str]) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} holds no Python file"
    found = ((path, line, name) for path in files for line, name in imports(path) if name in names)
    return [f"{path.relative_to(ROOT)}:{line} imports {name}" for path, line, name in found]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    others = (MAY_IMPORT.keys() | OUTSIDE) - MAY_IMPORT[package] - {package}
    assert forbidden(package, others) == []


@pytest.mark.parametrize("package", ["data_schema", "checkpoint_store"])
def test_data_and_checkpoints_know_nothing_of_models(package: str) -> None:
    assert forbidden(package, MODELS) == []


@pytest.mark.parametrize(
    ("package", "late"),
    [
        ("data_schema", MODELS | {"pyarrow", "datasets", "pandas"}),
        ("checkpoint_store", MODELS | {"pyarrow", "datasets", "pandas"}),
        ("policy", {"transformers", "peft"}),
    ],
)
def test_importing_a_package_does_not_load_heavy_libraries(package: str, late: set[str]) -> None:
    code = f"import sys, {package}; print(*sorted({late!r} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
