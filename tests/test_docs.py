"""What the documents name is there: functions, files, headings, recipes, metrics."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

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
SETTING = re.compile(
    r"`((?:sft|comparisons|reward_model|select|ppo|evaluate|tracking|optimizer|lora)\.[a-z_.]+)(?<!\.py)`"
)
QUOTED = re.compile(r"\*\*`([^`]+)`\*\*")  # in docs/troubleshooting.md: a message; its variable parts are as VARIABLE
VARIABLE = re.compile(r"\.\.\.|\b(?:FILE|ROW|COLUMN|NAME|MODEL|STAGE|SETTING|VALUE|N)\b")
PACKAGES = ("data_schema", "checkpoint_store", "policy", "reward", "stages", "pipeline", "workbench")
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


def texts_in(node: ast.AST) -> Iterator[str]:
    """The string constants below a node, docstrings excluded; the variable parts of an f-string become NUL."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts_in(child)


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
def test_every_file_and_folder_of_the_packages_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", page.read_text(encoding="utf-8"))
    ours = [path for path in named if path.split("/")[0] in (*PACKAGES, "tests", "scripts", "benchmarks")]
    assert not [path for path in ours if not (ROOT / path).exists() and path == path.lower()]  # CAPITALS: any name


@pytest.mark.parametrize("page", [page for page in PAGES if page != LOG], ids=lambda page: page.name)
def test_no_line_of_a_page_needs_scrolling(page: Path) -> None:
    lines = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in lines if len(line) > (160 if line.startswith("|") else 120)]


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


def test_every_json_example_of_a_page_has_one_object_per_line() -> None:
    pages = {page.name: FENCE.findall(page.read_text(encoding="utf-8")) for page in PAGES}
    lines = [line for blocks in pages.values() for kind, code in blocks if kind == "json" for line in code.splitlines()]
    assert len(lines) > 5
    for line in lines:
        assert isinstance(json.loads(line), dict), line


def test_every_message_quoted_in_troubleshooting_is_in_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = [" ".join(quote.split()) for quote in QUOTED.findall(page)]
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = (text for path in files for text in texts_in(ast.parse(path.read_text(encoding="utf-8"))))
    source = "\n".join(" ".join(text.split()) for text in texts)
    parts_of = {quote: [part.strip(" ':;,.()") for part in VARIABLE.split(quote)] for quote in quotes}
    constant = {quote: [part for part in parts if len(part) >= 10] for quote, parts in parts_of.items()}
    assert len(quotes) > 80
    assert not [quote for quote, parts in constant.items() if not parts], "too short to be checked"
    assert not [part for parts in constant.values() for part in parts if part not in source]


def test_troubleshooting_names_no_metric_that_tracking_does_not_explain() -> None:
    told = METRIC.findall((ROOT / "docs" / "tracking.md").read_text(encoding="utf-8"))
    known = re.compile("|".join(re.sub("MODEL|PART", r"\\w+", name) for name in told))
    named = METRIC.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert named
    assert not [name for name in named if not known.fullmatch(name)]


def test_every_metric_that_a_stage_records_is_explained_and_no_other(chain: Chain) -> None:
    told = set(METRIC.findall((ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")))
    patterns = {name: re.compile(re.sub("MODEL|PART", r"\\w+", name)) for name in told}
    records = (chain.root / "runs").glob("*/metrics.jsonl")
    lines = [json.loads(line) for path in records for line in path.read_text().splitlines()]
    recorded = {name for line in lines for name in line} - {"step", "time"}
    assert not {name for name in recorded if not any(pattern.fullmatch(name) for pattern in patterns.values())}
    assert not {name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, recorded))}


def missing_setting(dotted: str) -> bool:
    kind: Any = Recipe
    for name in (f"sft.{dotted}" if dotted.startswith(("optimizer.", "lora.")) else dotted).split("."):
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        if name not in hints:
            return True
        inner = get_args(hints[name])
        kind = next(
            filter(is_dataclass, (hints[name], *inner, *(part for each in inner for part in get_args(each)))), None
        )
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_a_page_names_with_its_section_is_there(page: Path) -> None:
    assert not [name for name in SETTING.findall(page.read_text(encoding="utf-8")) if missing_setting(name)]


@pytest.mark.parametrize(
    "dotted", ["ppo.gae", "sft.optimizer.lr", "lora.dropout", "ppo.rewards.nothing", "sft.epochs.x"]
)
def test_a_setting_that_is_not_there_is_found(dotted: str) -> None:
    assert missing_setting(dotted)
    assert not missing_setting("ppo.rewards.length_penalty") and not missing_setting("lora.rank")


@pytest.mark.parametrize("heading", ["SFT and reward model", "`TrainingArguments`"])
def test_the_names_that_come_from_trl_are_trl_s(heading: str) -> None:
    """Of PPO's there is no class left to look at: TRL removed it after 1.12."""
    from trl import RewardConfig, SFTConfig

    known = {field.name for config in (SFTConfig, RewardConfig) for field in fields(config)}
    known |= {"model", "peft_config", "eval_dataset", "margin"}  # the trainers' own arguments, and a column
    section = (ROOT / "docs" / "coming_from_trl.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    cells = re.findall(r"^\| (.*?`.+?) \|", section.split("\n## ")[0], re.M)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(names) > 10
    assert not [name for name in names if name not in known]


@pytest.mark.parametrize("name", ["python_api.md", "using_the_model.md"])
def test_the_python_examples_of_a_page_run_in_order(
    name: str, copy_of_chain: Path, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert 'ROOT = "out"' in text and 'NAME = "quickstart"' in text
    text = text.replace('ROOT = "out"', f"ROOT = {str(copy_of_chain)!r}")
    text = text.replace('NAME = "quickstart"', 'NAME = "small"')
    text = text.replace('RECIPE = "recipes/quickstart.yaml"', f"RECIPE = {str(chain.path)!r}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    examples = [code for kind, code in FENCE.findall(text) if kind == "python"]
    assert len(examples) > 4
    names: dict[str, Any] = {}
    for number, code in enumerate(examples):
        if module := re.match(r"# (\w+)\.py\n", code):  # a file that a later example imports
            (tmp_path / f"{module[1]}.py").write_text(code)
            monkeypatch.delitem(sys.modules, module[1], raising=False)
        else:
            exec(compile(code, f"{name}, example {number}", "exec"), names)
