"""What is declared agrees with what is imported, pinned and run."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
IMPORTED_AS = {"pyyaml": "yaml", "vl-convert-python": "vl_convert"}  # distributions whose module has another name
STAGES = {
    "sft": "sft",
    "comparisons": "comparisons",
    "reward_model": "reward-model",
    "ppo": "ppo",
    "evaluate": "evaluate",
}


def requirements(*extras: str) -> Iterator[Requirement]:
    """What is declared, our own extras aside."""
    lists = [PROJECT["project"]["dependencies"], *(PROJECT["project"]["optional-dependencies"][e] for e in extras)]
    found = (Requirement(line) for lines in lists for line in lines)
    return (requirement for requirement in found if requirement.name != "triptych")


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if line[0] != "#")
    }


def libraries(package: str) -> set[str]:
    """Top-level names of all that a package imports and is neither ours nor Python's."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_library_a_package_imports_is_declared(package: str) -> None:
    declared = {IMPORTED_AS.get(r.name, r.name.replace("-", "_")) for r in requirements("qlora", "report")}
    assert libraries(package) - declared == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_every_extra_is_pinned_within_its_bounds() -> None:
    pinned = constraints()
    for requirement in requirements(*PROJECT["project"]["optional-dependencies"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_pins_of_installed_packages_fit_each_other() -> None:
    """Of each package that is pinned and installed in that version, what it requires is pinned within its bounds."""
    pinned = constraints()
    looked_at = 0
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if pinned.get(name) != distribution.version:
            continue
        looked_at += 1
        for requirement in map(Requirement, distribution.requires or ()):
            needed = canonicalize_name(requirement.name)
            if needed in pinned and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert requirement.specifier.contains(pinned[needed]), (name, str(requirement), pinned[needed])
    assert looked_at > 50


@pytest.mark.slow  # pip asks the package index
@pytest.mark.timeout(600)
def test_all_extras_together_install_with_the_constraints_and_nothing_is_left_to_chance(tmp_path: Path) -> None:
    """What fits all extras together fits each of them, since every version is pinned."""
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    report = tmp_path / "report.json"
    words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "-c", "constraints.txt"]
    command = [sys.executable, "-m", "pip", *words, f".[{extras}]"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    chosen = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    pinned = constraints()
    assert {"s3fs", "bitsandbytes", "altair", "gguf", "pytest"} <= {package["name"].lower() for package in chosen}
    for package in chosen:
        name, version = canonicalize_name(package["name"]), package["version"].partition("+")[0]
        assert name in ("triptych", "setuptools") or pinned.get(name) == version, (name, version)


def test_the_tested_set_names_public_versions_only() -> None:
    # a local version ("+cpu") or a path would install on one machine and fail on the next
    for name, version in constraints().items():
        assert re.fullmatch(r"[a-z0-9-]+", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), (name, version)


def script(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "scripts" / name, *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_script_runs_from_any_folder(name: str, tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    result = script(f"{name}.py", "--config", recipe, "--print_config", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("name: quickstart\n")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_script_stands_for_its_own_command(name: str, tmp_path: Path) -> None:
    result = script(f"{name}.py", cwd=tmp_path)
    assert result.returncode == 2
    assert f"triptych {STAGES[name]} --config RECIPE" in result.stderr


def test_the_pipeline_script_takes_a_recipe(tmp_path: Path) -> None:
    result = script("pipeline.py", str(ROOT / "recipes" / "quickstart.yaml"), "--print_config", cwd=tmp_path)
    assert (result.returncode, result.stdout.partition("\n")[0]) == (0, "name: quickstart")
