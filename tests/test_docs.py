"""What the documents name is there: functions, files, headings, recipes, metrics."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from small_recipe import Chain

from pipeline.configs import Recipe
from pipeline.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
LOG = ROOT / "benchmarks" / "experiment_log.md"
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", LOG]
assert DOCS, "docs/ holds no page"

REFERENCE = re.compile(r"`([\w./-]+\.py):([A-Za-z_][\w.]*)`")
LINK = re.compile(r"\]\(([^()\s]+)\)|<(?:img|a|source)\s[^>]*?(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
METRIC = re.compile(r"`((?:sft|reward_model|objective|reward|policy|value|monitor|evaluate)/[\w/]+)`")


def names_in(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names_in(node.body, f"{prefix}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


@cache
def names_of(path: Path) -> frozenset[str]:
    """Functions, classes, methods (Class.method) and module-level names of a Python file."""
    return frozenset(names_in(ast.parse(path.read_text(encoding="utf-8")).body))


@cache
def anchors_of(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives a page's headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+?)\s*$", text, re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def missing_reference(file: str, name: str) -> str | None:
    path = ROOT / "tests" / file if file.startswith("test_") else ROOT / file
    if not path.is_file():
        return f"{file} is not there"
    return None if name in names_of(path) else f"{file} has no {name}"


def missing_link(page: Path, target: str) -> str | None:
    file, _, anchor = target.partition("#")
    path = page.parent / file if file else page
    if not path.exists():
        return f"{target} leads to no file"
    return f"{target}: no such heading" if anchor and anchor not in anchors_of(path) else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_a_page_names_is_there(page: Path) -> None:
    found = (missing_reference(file, name) for file, name in REFERENCE.findall(page.read_text(encoding="utf-8")))
    assert not list(filter(None, found))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_leads_to_a_file_and_heading(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [a or b for a, b in LINK.findall(text)]
    inner = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert not list(filter(None, (missing_link(page, target) for target in inner)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"\brecipes/[\w-]+\.yaml", page.read_text(encoding="utf-8"))
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_every_whole_recipe_in_the_documents_loads(tmp_path: Path) -> None:
    blocks = [
        code for page in PAGES for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "yaml"
    ]
    recipes = [code for code in blocks if "name" in (yaml.safe_load(code) or {})]
    assert recipes
    for code in recipes:
        path = tmp_path / "recipe.yaml"
        path.write_text(code)
        assert isinstance(load_recipe(path), Recipe)


def test_every_metric_that_a_stage_records_is_explained_and_no_other(chain: Chain) -> None:
    told = set(METRIC.findall((ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")))
    patterns = {name: re.compile(re.sub("MODEL|PART", r"\\w+", name)) for name in told}
    records = (chain.root / "runs").glob("*/metrics.jsonl")
    lines = [json.loads(line) for path in records for line in path.read_text().splitlines()]
    recorded = {name for line in lines for name in line} - {"step", "time"}
    assert not {name for name in recorded if not any(pattern.fullmatch(name) for pattern in patterns.values())}
    assert not {name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, recorded))}
