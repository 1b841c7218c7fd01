"""The rules of the source tree: who may import whom, no circles, how full a folder may be, what each folder says of
itself. Every rule is a function of a directory, and is shown to find an offender planted in a small tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "data_schema": set(),
    "checkpoint_store": set(),
    "policy": {"data_schema"},
    "reward": {"data_schema", "policy"},
    "stages": {"data_schema", "checkpoint_store", "policy", "reward"},
    "pipeline": {"data_schema", "checkpoint_store", "policy", "reward", "stages"},
    "workbench": {"data_schema", "checkpoint_store", "policy", "reward", "stages", "pipeline"},
}
OUTSIDE = {"scripts", "tests", "benchmarks"}  # not in the wheel
MODELS = {"torch", "transformers", "trl", "peft", "accelerate", "wandb"}
TABLES = {"pyarrow", "datasets", "pandas"}
DOTTED = re.compile(rf"(?:{'|'.join(MAY_IMPORT)})(?:\.\w+)+")  # a text that names a module
COMMAND_LINE = ("pipeline", "__main__.py")  # names the workbench's commands as text, on purpose
MOST_FILES = 16  # in a folder, __init__.py not counted
MOST_LINES = 300
WHOLE = {  # tests of the project rather than of one file
    *("bad_input", "benchmarks", "docs", "every_recipe", "house", "package_names", "packaging", "public_comparisons"),
    *("public_instructions", "quickstart", "trl_faults", "vectors"),
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of all packages; a package's own file is its __init__.py."""
    files = [path for package in (*MAY_IMPORT, *OUTSIDE) for path in sorted((root / package).rglob("*.py"))]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports: inside functions, under TYPE_CHECKING, or from a text that is
    passed to import_module or names a module. Of `from a import b` both a and a.b are given, as b may be a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                yield node.lineno, "." * node.level + module  # relative: refused below
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from ((node.lineno, each.value) for each in node.args if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path.parts[-2:] != COMMAND_LINE:
            name = node.value.partition(":")[0]  # module:function
            if DOTTED.fullmatch(name):
                yield node.lineno, name


def wrong_imports(root: Path) -> list[str]:
    """Imports of packages that a package does not stand on, and of model libraries where data are defined; packages
    that have no place in the order."""
    packages = {path.parent.name for path in root.glob("[!.]*/__init__.py")}
    found = [f"{name} is not in MAY_IMPORT" for name in sorted(packages - MAY_IMPORT.keys() - OUTSIDE)]
    for package, below in MAY_IMPORT.items():
        refused = (MAY_IMPORT.keys() | OUTSIDE) - below - {package}
        if package in ("data_schema", "checkpoint_store"):
            refused |= MODELS
        for path in sorted((root / package).rglob("*.py")):
            names = {(line, name.split(".")[0] or "a relative name") for line, name in imports(path)}
            wrong = sorted((line, top) for line, top in names if top in refused or top == "a relative name")
            found += [f"{path.relative_to(root)}:{line} imports {top}" for line, top in wrong]
    return found


def circles(root: Path) -> list[str]:
    """The strongly connected components of more than one file, over all imports. To import a.b.c also runs the
    __init__.py of a and of a.b."""
    files = modules(root)
    follows = {}
    for name, path in files.items():
        targets = {target for _, target in imports(path)}
        packages = {".".join(t.split(".")[:i]) for t in targets for i in range(1, t.count(".") + 1)}
        outer = {p for p in packages if not f"{name}.".startswith(f"{p}.")}
        follows[name] = ((targets | outer) & files.keys()) - {name}
    reached: dict[str, set[str]] = {}
    for name in files:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            fresh = follows[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        reached[name] = seen
    found = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in files
        if name in reached[name]
    }
    return [" <-> ".join(circle) for circle in sorted(found)]


def source_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder of the wheel's packages, with the names of its Python files, __init__ left out."""
    for package in MAY_IMPORT:
        for folder in sorted({path.parent for path in (root / package).rglob("*.py")}):
            yield folder, sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def crowded_folders(root: Path) -> list[str]:
    return [
        f"{folder.relative_to(root)} has {len(names)} files"
        for folder, names in source_folders(root)
        if len(names) > MOST_FILES
    ]


def files_that_want_a_folder(root: Path) -> list[str]:
    """Two files, or a file and a folder, whose names begin alike before an underscore (`stop.py` and `stop_early.py`
    do); a leading underscore makes no prefix."""
    found = []
    for folder, files in source_folders(root):
        names = [*files, *(path.name for path in folder.iterdir() if path.is_dir())]
        prefixes = Counter(name.partition("_")[0] for name in names)
        parted = {name.partition("_")[0] for name in names if "_" in name.strip("_")} - {""}
        found += [f"{folder.relative_to(root)}: {prefix}_*" for prefix in sorted(parted) if prefixes[prefix] > 1]
    return found


def long_files(root: Path) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(root).values()}
    return [
        f"{path.relative_to(root)} has {n} lines"
        for path, n in lengths.items()
        if n > MOST_LINES and path.relative_to(root).parts[0] not in ("tests", "benchmarks")
    ]


def folders_that_say_too_little(root: Path) -> list[str]:
    """Every folder's __init__.py begins with a docstring of one line, and README's map has the same line; the map has
    no other folder."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| \[([\w/]+)/\]\(\1\) \| (.+) \|$", readme, re.M))
    folders = {folder.relative_to(root).as_posix() for folder, _ in source_folders(root)}
    found = [f"README.md lists {name}/, which is not a package's folder" for name in sorted(told.keys() - folders)]
    for folder, _ in source_folders(root):
        name = folder.relative_to(root).as_posix()
        init = folder / "__init__.py"
        line = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) if init.is_file() else None
        if not line or "\n" in line:
            found.append(f"{name}/__init__.py has no docstring of one line")
        elif told.get(name) != line:
            found.append(f"{name}: '{line}' in __init__.py, '{told.get(name)}' in README.md")
    return found


def misnamed_tests(root: Path) -> list[str]:
    """A test is named after a source file: its name, with its folder's before it if need be, and then perhaps what it
    is about. `test_ppo_stage_options.py` tests stages/ppo/stage.py. No test is in a folder below tests/."""
    names: set[str] = set()
    for name in modules(root):
        parts = [part.strip("_") for part in name.split(".")]
        if parts[0] != "tests":
            names |= {"_".join(parts[i:]) for i in range(len(parts))}
    paths = sorted((root / "tests").rglob("test_*.py"))
    tests = [p.relative_to(root / "tests").with_suffix("").as_posix().removeprefix("test_") for p in paths]
    return [test for test in tests if test not in WHOLE and not any(f"{test}_".startswith(f"{n}_") for n in names)]


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    wrong_imports,
    circles,
    crowded_folders,
    files_that_want_a_folder,
    long_files,
    folders_that_say_too_little,
    misnamed_tests,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    assert len(modules(ROOT)) > 200
    assert rule(ROOT) == []


SOUND_MAP = "\n".join(f"| [{package}/]({package}) | The package {package}. |" for package in MAY_IMPORT)

# What is planted into a tree without fault -> the rule that finds it, and a part of what it says.
OFFENDERS: list[tuple[dict[str, str], Rule, str]] = [
    ({"policy/kl.py": "import reward"}, wrong_imports, "policy/kl.py:1 imports reward"),
    ({"policy/kl.py": "def f():\n    from stages import job"}, wrong_imports, "policy/kl.py:2 imports stages"),
    ({"stages/job.py": "from pipeline.plan import KEY"}, wrong_imports, "stages/job.py:1 imports pipeline"),
    ({"pipeline/plan.py": "from workbench import plan"}, wrong_imports, "pipeline/plan.py:1 imports workbench"),
    ({"pipeline/plan.py": "importlib.import_module('workbench.plan')"}, wrong_imports, "plan.py:1 imports workbench"),
    ({"reward/score.py": "import scripts.chat"}, wrong_imports, "reward/score.py:1 imports scripts"),
    ({"data_schema/rows.py": "import torch"}, wrong_imports, "data_schema/rows.py:1 imports torch"),
    ({"policy/kl.py": "from . import masks"}, wrong_imports, "policy/kl.py:1 imports a relative name"),
    ({"stages/job.py": "from importlib import import_module as f\nf('pipeline.plan')"}, wrong_imports, "job.py:2"),
    ({"stages/job.py": "RUNNER = 'pipeline.runner:run_pipeline'"}, wrong_imports, "job.py:1 imports pipeline"),
    ({"gadgets/__init__.py": "import reward"}, wrong_imports, "gadgets is not in MAY_IMPORT"),
    ({"policy/a.py": "from policy import b", "policy/b.py": "import policy.a"}, circles, "policy.a <-> policy.b"),
    (
        {
            "policy/a.py": "from policy.b import B",
            "policy/b.py": "def f():\n    from policy.c import C",
            "policy/c.py": "if TYPE_CHECKING:\n    from policy.a import A",
        },
        circles,
        "policy.a <-> policy.b <-> policy.c",
    ),
    (
        {"policy/m/__init__.py": "from policy.b import B", "policy/m/a.py": "", "policy/b.py": "import policy.m.a"},
        circles,
        "policy.b <-> policy.m",
    ),
    ({f"reward/file{i}.py": "" for i in range(MOST_FILES + 1)}, crowded_folders, f"reward has {MOST_FILES + 1} files"),
    ({"stages/ppo_stop.py": "", "stages/ppo_roles.py": ""}, files_that_want_a_folder, "stages: ppo_*"),
    ({"stages/stop.py": "", "stages/stop_early.py": ""}, files_that_want_a_folder, "stages: stop_*"),
    ({"stages/ppo/__init__.py": "", "stages/ppo_stop.py": ""}, files_that_want_a_folder, "stages: ppo_*"),
    ({"stages/job.py": "\n" * (MOST_LINES + 1)}, long_files, f"stages/job.py has {MOST_LINES + 1} lines"),
    ({"policy/maths/kl.py": ""}, folders_that_say_too_little, "policy/maths/__init__.py has no docstring"),
    ({"policy/__init__.py": '"""Two\nlines."""'}, folders_that_say_too_little, "policy/__init__.py has no docstring"),
    ({"policy/__init__.py": '"""Another."""'}, folders_that_say_too_little, "policy: 'Another.' in __init__.py"),
    ({"README.md": f"{SOUND_MAP}\n| [policy/old/](policy/old) | Old. |"}, folders_that_say_too_little, "policy/old/"),
    ({"tests/test_elsewhere.py": ""}, misnamed_tests, "elsewhere"),
    ({"tests/below/test_job.py": ""}, misnamed_tests, "below/test_job"),
]


@pytest.fixture
def sound_tree(tmp_path: Path) -> Path:
    for package in MAY_IMPORT:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f'"""The package {package}."""\n')
    (tmp_path / "README.md").write_text(SOUND_MAP)
    (tmp_path / "tests").mkdir()
    (tmp_path / "stages" / "job.py").write_text("from policy import ModelError\n")
    (tmp_path / "tests" / "test_job.py").touch()
    return tmp_path


def test_a_tree_without_fault_passes_every_rule(sound_tree: Path) -> None:
    assert [rule(sound_tree) for rule in RULES] == [[]] * len(RULES)


@pytest.mark.parametrize(("files", "rule", "said"), OFFENDERS, ids=[f"{r.__name__}-{s}" for _, r, s in OFFENDERS])
def test_a_planted_offender_is_found(sound_tree: Path, files: dict[str, str], rule: Rule, said: str) -> None:
    for name, text in files.items():
        path = sound_tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = rule(sound_tree)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("package", "late"),
    [
        ("data_schema", MODELS | TABLES),
        ("checkpoint_store", MODELS | TABLES),
        ("policy", {"transformers", "peft"}),
        ("pipeline", MODELS | TABLES),
        ("pipeline.__main__", MODELS | TABLES),
        ("pipeline.recipe", MODELS | TABLES),
    ],
)
def test_importing_a_package_does_not_load_heavy_libraries(package: str, late: set[str]) -> None:
    code = f"import sys, {package}; print(*sorted({late!r} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_every_command_of_the_table_is_there() -> None:
    """The command line names the workbench's commands as text, so that `pipeline` imports nothing of it."""
    from pipeline.__main__ import TOOLS

    files = modules(ROOT)
    commands = defaultdict(list)
    for name, module in TOOLS.items():
        commands[module].append(name)
        functions = [
            node.name for node in ast.parse(files[module].read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert "command" in functions, f"{module} has no command(words)"
    assert all(module.startswith("workbench.") and len(names) == 1 for module, names in commands.items())
