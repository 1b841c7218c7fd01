from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from small_recipe import JUDGE, Chain, small_recipe, store_contents, write_recipe
from tiny_models import quickstart_tokenizer

from checkpoint_store import CheckpointStore
from data_schema import DataError, Source
from pipeline.__main__ import main
from pipeline.configs import Recipe
from pipeline.gate.check import check_stages
from pipeline.plan import STAGES, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.errors import ModelError
from stages.errors import ConfigError

GOOD = {"prompt": "sort these words : fox dog", "completion": "dog fox ."}
NO_SYSTEM = {"messages": [{"role": r, "content": "fox"} for r in ("system", "user", "assistant")]}
SETTINGS = [
    (stage, name)
    for stage in STAGES
    for kind in get_args(get_type_hints(Recipe)[stage])
    if is_dataclass(kind)
    for name, hint in get_type_hints(kind).items()
    if hint == list[Source]
]


def check(tmp_path: Path, base: Path, *, only: str | None = None, dry_run: bool = False, **changes: Any) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", small_recipe(base), **changes))
    store = CheckpointStore(tmp_path / "out" / "store")
    plans = plan_pipeline(recipe, store)
    check_stages(plans, {only} if only else {plan.stage for plan in plans}, store, recipe.seed, dry_run)


def base_with(tokenizer: Any, small_base: Path, directory: Path) -> Path:
    """The small model's directory with another tokenizer."""
    shutil.copytree(small_base, directory)
    tokenizer.save_pretrained(directory)
    return directory


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_sound_recipe_passes_in_a_moment_and_says_nothing(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(tmp_path, small_base)  # imports
    started = time.process_time()
    check(tmp_path, small_base)
    assert time.process_time() - started < 0.3 * len(STAGES)
    assert caplog.messages == []


@pytest.mark.parametrize(("stage", "name"), SETTINGS)
def test_every_setting_that_names_data_is_looked_at(tmp_path: Path, small_base: Path, stage: str, name: str) -> None:
    bad = jsonl(tmp_path / "rows.jsonl", {"colour": "blue"})
    needed = {
        "sft": {"sft__pretraining_length": 16},
        "reward_model": {"reward_model__normalise_on": "demonstrations"},
        "select": {"sft__select": "reward_model"},
    }.get(stage, {})
    with pytest.raises(DataError, match="no known format"):
        check(tmp_path, small_base, only=stage, **{**needed, f"{stage}__{name}": bad})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pad_token": "<eos>"}, "pads with its EOS"),
        ({"pad_token": None}, "no padding token"),
        ({"chat_template": "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"}, "prompt"),
    ],
    ids=["pad is eos", "no pad", "the template keeps no prefix"],
)
def test_a_broken_tokenizer_stops_the_run_before_its_first_stage(
    tmp_path: Path, small_base: Path, change: dict[str, Any], part: str
) -> None:
    tokenizer: Any = quickstart_tokenizer()
    for name, value in change.items():
        setattr(tokenizer, name, value)
    base = base_with(tokenizer, small_base, tmp_path / "base")
    template = "tokenizer" if "chat_template" in change else "quickstart"
    path = write_recipe(tmp_path / "recipe.yaml", small_recipe(base), sft__template=template)
    with pytest.raises(ConfigError, match=f"^sft: .*{part}"):
        run_pipeline(load_recipe(path), tmp_path / "out")
    assert store_contents(tmp_path / "out") == [] and not (tmp_path / "out" / "runs").exists()


def test_a_pad_token_of_the_recipe_mends_the_tokenizer(tmp_path: Path, small_base: Path) -> None:
    tokenizer: Any = quickstart_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    check(tmp_path, base_with(tokenizer, small_base, tmp_path / "base"), sft__pad_token="<|pad|>")


@pytest.mark.parametrize(("template", "lines"), [("plain", 1), ("tokenizer", 0), ("quickstart", 0)])
def test_a_template_that_replaces_the_model_s_own_is_a_warning(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture, template: str, lines: int
) -> None:
    base = base_with(quickstart_tokenizer(), small_base, tmp_path / "base")  # whose template is the quickstart's
    check(tmp_path, base, only="sft", sft__template=template)
    found = [line for line in caplog.messages if "replaces the chat template" in line]
    assert len(found) == lines
    assert not lines or "sft.template 'plain' replaces the chat template of " in found[0]


def test_tokens_without_an_embedding_are_a_warning(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer: Any = quickstart_tokenizer()
    tokenizer.add_tokens(["zebra", "okapi"])
    check(tmp_path, base_with(tokenizer, small_base, tmp_path / "base"), only="sft")
    [line] = caplog.messages
    assert "has 2 more ids than the model has embeddings" in line and "'okapi'" in line


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("bert", ["BertForMaskedLM"], "an encoder that fills in masked words"),
        ("bert", ["BertModel"], "type 'bert', which cannot write an answer"),
        ("distilbert", [], "type 'distilbert', which cannot write an answer"),
    ],
)
def test_an_encoder_is_refused(tmp_path: Path, small_base: Path, kind: str, names: list[str], message: str) -> None:
    base = base_with(quickstart_tokenizer(), small_base, tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"model_type": kind, "architectures": names}))
    with pytest.raises((ConfigError, ModelError), match=message):
        check(tmp_path, base, only="sft")


@pytest.mark.parametrize(
    ("setting", "named", "message"),
    [
        ("ppo__sft", "reward_model", r"^ppo\.sft: .* is a reward model, which cannot generate text"),
        ("ppo__reward_model", "sft", r"^ppo\.reward_model: .* is a LlamaForCausalLM, not a reward model"),
        (
            "ppo__sft",
            "comparisons",
            r"^ppo\.sft: .*it is the checkpoint of the stage comparisons, which holds no model",
        ),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_with_its_setting(
    chain: Chain, tmp_path: Path, setting: str, named: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tmp_path, chain.base, only="ppo", **{setting: str(chain.checkpoint(named))})


def test_a_model_without_an_exact_way_to_be_read_is_refused(tmp_path: Path, small_base: Path) -> None:
    """A decoder that reads both ways: its class is a language model's, so only the trial shows it."""
    base = base_with(quickstart_tokenizer(), small_base, tmp_path / "base")
    size = len(quickstart_tokenizer())
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {"model_type": "roformer", "architectures": ["RoFormerForCausalLM"], "vocab_size": size, **shape}
    (base / "config.json").write_text(json.dumps({**config, "is_decoder": False}))
    with pytest.raises(ConfigError, match=r"cannot be used|cannot write an answer"):
        check(tmp_path, base, only="sft")


def test_a_model_without_a_chat_template_is_named(chain: Chain, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"^ppo\.sft: '.*bare' has no chat template"):
        check(
            tmp_path,
            chain.base,
            only="ppo",
            ppo__sft=str(bare),
            ppo__reward_model=str(chain.checkpoint("reward_model")),
        )


@pytest.mark.parametrize(
    ("setting", "rows", "error", "part"),
    [
        ("sft__data", [GOOD] * 40 + [{**GOOD, "completion": ""}], DataError, r"rows.jsonl:41: 'completion' is empty"),
        ("sft__data", [GOOD] * 40 + [NO_SYSTEM], DataError, r"rows.jsonl:41"),
        ("sft__data", [NO_SYSTEM], DataError, r"sft.held_out is 0.03"),
        ("ppo__prompts", [{"colour": "blue"}], DataError, "no known format"),
        (
            "evaluate__prompts",
            [{"messages": [{"role": "user", "content": f"echo this : {i}"}]} for i in range(40)] + [NO_SYSTEM],
            ConfigError,
            r"^evaluate.prompts \(.*rows.jsonl\): 1 of 41 rows .* no system messages.*\(rows:41\)",
        ),
    ],
)
def test_rows_that_a_later_stage_cannot_use_stop_the_run_before_its_first_stage(
    tmp_path: Path, small_base: Path, setting: str, rows: list[Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        check(tmp_path, small_base, **{setting: jsonl(tmp_path / "rows.jsonl", *rows)})


def test_a_source_given_twice_is_an_error_however_its_path_is_written(tmp_path: Path, small_base: Path) -> None:
    path = Path(jsonl(tmp_path / "rows.jsonl", *({**GOOD, "prompt": f"echo this : {i}"} for i in range(64))))
    halves = [{"path": str(path), "limit": 32}, {"path": str(path), "skip": 32}]
    check(tmp_path, small_base, only="sft", sft__data=halves, sft__held_out=0.1)
    for again in (str(path), f"{path.parent}/./{path.name}", str(path.parent / "x" / ".." / path.name)):
        (path.parent / "x").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=r"^sft\.data: '.*rows\.jsonl' is given twice, so each of its rows"):
            check(tmp_path, small_base, only="sft", sft__data=[str(path), again], sft__held_out=0.1)


def test_only_the_stages_that_are_to_run_are_looked_at(tmp_path: Path, small_base: Path) -> None:
    bad = jsonl(tmp_path / "rows.jsonl", {"colour": "blue"})
    check(tmp_path, small_base, only="sft", ppo__prompts=bad)
    with pytest.raises(DataError, match="no known format"):
        check(tmp_path, small_base, only="ppo", ppo__prompts=bad)


def test_a_missing_checkpoint_is_left_to_the_runner(tmp_path: Path, small_base: Path) -> None:
    check(tmp_path, small_base, only="ppo")


def test_code_that_cannot_be_imported_stops_the_run_before_its_first_stage(
    tmp_path: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_judge.py").write_text("import no_such_module\ndef judge(meta, response, finished): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = {"evaluate__judge": "broken_judge:judge"}
    with pytest.raises(ConfigError, match=r"evaluate\.judge: cannot find"):
        check(tmp_path, small_base, **broken)
    check(tmp_path, small_base, dry_run=True, **broken)
    check(tmp_path, small_base, only="sft", evaluate__judge=JUDGE)


def test_a_dry_run_makes_the_same_checks_and_says_what_it_did_not_look_at(
    tmp_path: Path, small_base: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad = jsonl(tmp_path / "rows.jsonl", *[GOOD] * 40, {"colour": "blue"})
    path = write_recipe(tmp_path / "recipe.yaml", small_recipe(small_base), sft__data=bad)
    root = ["--root", str(tmp_path / "out")]
    assert main(["run", str(path), "--dry-run", *root]) == 2
    shown = capsys.readouterr()
    assert "rows.jsonl:41" in shown.err and "ppo" in shown.out
    good = write_recipe(tmp_path / "recipe.yaml", small_recipe(small_base))
    assert main(["run", str(good), "--dry-run", *root]) == 0
    [line] = caplog.messages
    assert line.startswith("not checked (a dry run runs no code and downloads nothing): sft.data, comparisons.prompts")


def test_a_dry_run_imports_no_code_of_the_recipe(tmp_path: Path, small_base: Path) -> None:
    (tmp_path / "own_rows.py").write_text("def rows(split, limit, seed): ...\n")
    path = write_recipe(tmp_path / "recipe.yaml", small_recipe(small_base), ppo__prompts="python:own_rows:rows")
    code = (
        "import sys; from pipeline.__main__ import main; "
        f"code = main(['run', {str(path)!r}, '--dry-run', '--root', {str(tmp_path)!r}]); "
        "print(code, 'own_rows' in sys.modules)"
    )
    here = str(Path(__file__).parent.parent)
    environment = {"PYTHONPATH": f"{here}:{tmp_path}", "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False"


def test_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ModelError), match="nowhere"):
        check(tmp_path, Path("./nowhere"), only="sft")


def test_a_model_of_the_hub_that_is_not_here_is_not_looked_at_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refs = tmp_path / "hub" / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    caplog.set_level(logging.INFO, "triptych.gate")
    check(tmp_path, Path("some/model"), only="sft", dry_run=True)
    assert "sft.base_model 'some/model'" in caplog.messages[-1]
