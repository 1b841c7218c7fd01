from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_recipe import WORLD, Chain, small_recipe, write_recipe
from tiny_models import quickstart_tokenizer, tiny_t5

from checkpoint_store import CheckpointStore
from data_schema import Comparison, DataError, Message, Records
from pipeline.gate.check import check_stages
from pipeline.plan import plan_pipeline
from pipeline.recipe import load_recipe
from policy.language_model import save_checkpoint
from stages.errors import ConfigError
from stages.job import keep_back

LONG = "echo this : " + "fox " * 60
SHORT = "echo this : fox"


def check(tmp_path: Path, base: Path, *only: str, **changes: Any) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", small_recipe(base), **changes))
    store = CheckpointStore(tmp_path / "out" / "store")
    plans = plan_pipeline(recipe, store)
    check_stages(plans, set(only) or {plan.stage for plan in plans}, store, recipe.seed)


def with_positions(base: Path, directory: Path, positions: int) -> Path:
    shutil.copytree(base, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return directory


def prompts(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def numbered(n: int, text: str = SHORT) -> list[str]:
    """Distinct prompts in the quickstart's words."""
    return [f"{text} {'dog ' * i}" for i in range(n)]


def question(i: int) -> str:
    return f"echo this : {'dog ' * (i % 20)} {'fox ' * (i // 20)}"


def demonstrations(path: Path, *answers: str) -> str:
    rows = [{"prompt": question(i), "completion": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def comparisons(path: Path, *pairs: tuple[str, str]) -> str:
    rows = [{"prompt": question(i), "chosen": a, "rejected": b} for i, (a, b) in enumerate(pairs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_demonstrations_that_need_more_positions_than_the_model_has_are_refused(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = with_positions(small_base, tmp_path / "base", 48)
    data = demonstrations(tmp_path / "rows.jsonl", *["fox ."] * 70, "fox " * 60)
    asked = {"sft__data": data, "sft__held_out": 0.2}
    with pytest.raises(
        ConfigError, match=r"sft.data: 1 of \d+ rows are too long for the model.* 48 .* sft.max_length to 48"
    ):
        check(tmp_path, base, "sft", **asked, sft__max_length=128)
    check(tmp_path, base, "sft", **asked, sft__max_length=48)  # dropped and counted


def test_an_encoder_decoder_is_held_to_its_positions_and_its_template_to_every_row(
    tmp_path: Path, small_base: Path
) -> None:
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_t5(tokenizer), tokenizer, tmp_path / "t5")
    data = demonstrations(tmp_path / "rows.jsonl", *["fox ."] * 70, "fox " * 60)
    asked = {"sft__data": data, "sft__held_out": 0.2}
    check(tmp_path, tmp_path / "t5", "sft", **asked)
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "t5" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    with pytest.raises(ConfigError, match=r"^sft.data: 1 of \d+ rows are too long for the model"):
        check(tmp_path, tmp_path / "t5", "sft", **asked, sft__max_length=128)
    talk = [{"role": role, "content": "fox"} for role in ("system", "user", "assistant")]
    rows = [{"messages": [{"role": "user", "content": question(i)}, talk[2]]} for i in range(70)]
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": talk}]))
    with pytest.raises(ConfigError, match=r"rows:71: the chat template cannot render .* no system messages"):
        check(tmp_path, tmp_path / "t5", "sft", **asked)


@pytest.mark.parametrize(
    ("stage", "cure"),
    [
        ("comparisons", "lower comparisons.sampling.max_new_tokens, or shorten or remove those prompts"),
        ("ppo", "lower ppo.max_prompt_length to 36"),
        ("evaluate", "lower evaluate.max_prompt_length to 36"),
    ],
)
def test_prompts_leave_room_for_an_answer(tmp_path: Path, small_base: Path, stage: str, cure: str) -> None:
    base = with_positions(small_base, tmp_path / "base", 48)
    path = prompts(tmp_path / "prompts.jsonl", *numbered(20, "echo this :"), LONG[:150])
    with pytest.raises(ConfigError, match=rf"^{stage}.prompts: 1 of 21 rows .* 12 more .*{cure}"):
        check(tmp_path, base, "sft", stage, **{f"{stage}__prompts": path})


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_rows_of_pretraining_text_fit_the_model_and_can_be_filled(tmp_path: Path, small_base: Path, stage: str) -> None:
    text = {f"{stage}__pretraining_data": {"path": f"{WORLD}:documents", "limit": 2}}
    with pytest.raises(ConfigError, match=rf"{stage}.pretraining_length is 256, but the model has positions for 128"):
        check(tmp_path, small_base, "sft", stage, **text, **{f"{stage}__pretraining_length": 256})
    with pytest.raises(ConfigError, match=rf"{stage}.pretraining_data has \d+ tokens, less than one row of 128"):
        check(tmp_path, small_base, "sft", stage, **text, **{f"{stage}__pretraining_length": 128})


def test_a_share_to_hold_out_that_gets_no_row_is_named_with_its_way_out(tmp_path: Path, small_base: Path) -> None:
    data = demonstrations(tmp_path / "rows.jsonl", *["fox ."] * 20)
    with pytest.raises(DataError, match=r"sft.held_out is 0.01, but .* or set sft.held_out to 0"):
        check(tmp_path, small_base, "sft", sft__data=data, sft__held_out=0.01)
    pairs = {
        "reward_model__data": comparisons(tmp_path / "pairs.jsonl", *[("fox .", "dog .")] * 20),
        "comparisons": ...,
    }
    with pytest.raises(DataError, match=r"reward_model.held_out is 0.01, but .* or set reward_model.held_out to 0"):
        check(tmp_path, small_base, "reward_model", **pairs, reward_model__held_out=0.01)


def test_comparisons_that_length_leaves_empty_are_an_error_before_training(tmp_path: Path, small_base: Path) -> None:
    stages = "sft", "reward_model"
    pairs = [("fox .", "dog .")] * 40
    few = {"comparisons": ..., "reward_model__batch_prompts": 4, "reward_model__max_length": 64}
    path = comparisons(tmp_path / "pairs.jsonl", *pairs)
    check(tmp_path, small_base, *stages, **few, reward_model__data=path, reward_model__held_out=0.3)
    with pytest.raises(ConfigError, match=r"reward_model: \d rows within max_length are fewer than one batch of 4"):
        check(tmp_path, small_base, *stages, **{**few, "reward_model__max_length": 8}, reward_model__data=path)
    held_out = held_out_rows(pairs, 0.3)
    lonely = comparisons(
        tmp_path / "lonely.jsonl", *[("fox " * 60, b) if i in held_out else (a, b) for i, (a, b) in enumerate(pairs)]
    )
    with pytest.raises(ConfigError, match=r"no held-out comparison is left .* or set it to 0"):
        check(tmp_path, small_base, *stages, **few, reward_model__data=lonely, reward_model__held_out=0.3)


def held_out_rows(pairs: Sequence[tuple[str, str]], share: float) -> set[int]:
    """The rows of `comparisons` that the reward model's stage holds out with seed 0."""
    records = Records.of(
        Comparison,
        [Comparison(str(i), "s", (Message("user", question(i)),), pair, (1, 2)) for i, pair in enumerate(pairs)],
    )
    return {int(record.id) for record in keep_back(records, share, 0)[1]}


def test_evaluation_prompts_that_are_trained_on_are_found_before_training(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = numbered(20)
    same = prompts(tmp_path / "trained.jsonl", *trained)
    with pytest.raises(ConfigError, match=r"^evaluate.prompts: 0 of 20 prompts are left: 20 are also trained on"):
        check(tmp_path, small_base, ppo__prompts=same, evaluate__prompts=same)
    some = prompts(tmp_path / "some.jsonl", *trained[:5], *numbered(20, "sort these words :"))
    check(tmp_path, small_base, ppo__prompts=same, evaluate__prompts=some)
    [line] = [line for line in caplog.messages if "also trained on" in line]
    assert line.startswith("warning: evaluate.prompts: 5 are also trained on and will be left out of 25 (some:1)")


def test_evaluation_prompts_of_published_stages_are_compared_too(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.root, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"^evaluate.prompts: 0 of \d+ prompts are left"):
        check(tmp_path, chain.base, "evaluate", evaluate__prompts=chain.recipe["ppo"]["prompts"])


def test_too_few_prompts_for_a_rollout_are_an_error_and_a_function_is_read_further_first(
    tmp_path: Path, small_base: Path
) -> None:
    path = prompts(tmp_path / "prompts.jsonl", *numbered(5))
    with pytest.raises(ConfigError, match=r"ppo: 5 of 5 prompts .* fewer than one batch of 16"):
        check(tmp_path, small_base, "sft", "ppo", ppo__prompts=path)
    many = {"ppo__rollout_batch": 1024, "ppo__prompts": {"path": f"{WORLD}:prompts", "limit": 1200}}
    check(tmp_path, small_base, "sft", "ppo", **many)


def test_more_frozen_layers_than_the_model_has_are_refused(tmp_path: Path, small_base: Path) -> None:
    with pytest.raises(ConfigError, match=r"frozen_layers is 2, but the model has 2 layers .* at most 1"):
        check(tmp_path, small_base, "sft", "reward_model", reward_model__frozen_layers=2)


def test_data_that_length_leaves_empty_are_refused_and_a_large_loss_is_a_warning(
    tmp_path: Path, small_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = demonstrations(tmp_path / "rows.jsonl", *["fox ."] * 60, *["fox " * 60] * 20)
    changes = {"sft__data": data, "sft__held_out": 0.2}
    with pytest.raises(ConfigError, match=r"sft: \d rows within max_length are fewer than one batch"):
        check(tmp_path, small_base, "sft", **changes, sft__max_length=8)
    check(tmp_path, small_base, "sft", **changes, sft__max_length=64)
    assert any("will be dropped" in line and "sft.max_length (64)" in line for line in caplog.messages)
