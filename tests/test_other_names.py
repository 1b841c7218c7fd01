from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_recipe import ROOT, small_recipe, write_recipe

from pipeline.__main__ import main
from pipeline.build import hints_of, kind_at, paths_of
from pipeline.configs import Recipe
from pipeline.other_names import NONE, REMARKS, SETTINGS, answer
from pipeline.recipe import load_recipe
from stages.errors import ConfigError

OURS = set(paths_of(Recipe))
ASKED = """learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs num_ppo_epochs
total_episodes cliprange cliprange_value init_kl_coef target_kl lam vf_coef missing_eos_penalty response_length
max_new_tokens max_seq_length lora_r lora_alpha target_modules load_in_4bit bf16 fp16 eval_steps save_steps
logging_steps warmup_ratio lr_scheduler_type weight_decay adam_epsilon model_name_or_path dataset_name
reward_model_path sft_model_path output_dir report_to run_name resume_from_checkpoint deepspeed fsdp max_steps
num_mini_batches local_rollout_forward_batch_size stop_token lora_dropout optim push_to_hub"""


def test_every_setting_of_ours_that_an_answer_names_is_there() -> None:
    named = {path for table in SETTINGS.values() for path in table.values()} - {"--root"}
    assert named <= OURS
    words = {
        word for text in [*NONE.values(), *REMARKS.values()] for word in re.findall(r"\b[a-z_]+\.[a-z_.]+\b", text)
    }
    files = {word for word in words if word.endswith((".md", ".jsonl"))}
    inner = {"optimizer.warmup_steps", "lora.alpha", "lora.rank"}  # of several sections
    assert words - files - inner <= OURS
    assert all(f"ppo.{path}" in OURS for path in inner)


def test_no_foreign_name_hides_a_setting_of_ours() -> None:
    for name, table in SETTINGS.items():
        for section in table:
            if section:
                assert name not in hints_of(kind_at(Recipe, section).__args__[0]), (section, name)


def test_names_that_people_type_are_answered() -> None:
    assert len(SETTINGS) + len(NONE) > 100 and not SETTINGS.keys() & NONE.keys()
    assert all(answer(name, "") for name in ASKED.split())
    assert answer("kl_coefficient", "ppo") is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--ppo.learning_rate", "Here it is ppo.optimizer.learning_rate"),
        ("--sft.learning_rate", "Here it is sft.optimizer.learning_rate"),
        ("--learning_rate", "sft.optimizer.learning_rate or reward_model.optimizer.learning_rate or ppo."),
        ("--per_device_train_batch_size", "sft.micro_batch_size or reward_model.micro_batch_tokens or ppo.micro_batch"),
        ("--ppo.per-device-train-batch-size", "Here it is ppo.micro_batch"),
        ("--ppo.lora.r", "Here it is ppo.lora.rank"),
        ("--sft.lora_r", "Here it is sft.lora.rank"),
        ("--ppo.cliprange", "Did you mean 'clip_range'?"),
        ("--sft.gradient_accumulation_steps", "There is none here: it follows from the batch"),
        ("--ppo.kl-coef", "Did you mean 'kl_coef'?"),
        ("--sft.kl_coef", "Did you mean 'ppo.kl_coef'?"),
        ("--sft.seed", "Did you mean 'seed'?"),
        ("--ppo.whiten_reward", "Did you mean 'whiten_rewards'?"),
        ("--ppo.eps", "Did you mean 'ppo.optimizer.eps' or 'ppo.value_optimizer.eps'?"),
        ("--report_to", "tracking.wandb"),
    ],
)
def test_a_setting_under_another_name_or_in_another_section_is_found(tmp_path: Path, given: str, meant: str) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")))
    with pytest.raises(ConfigError) as told:
        load_recipe(path, [f"{given}=1"])
    assert meant in str(told.value)


def test_the_page_for_trl_users_names_settings_that_are_there() -> None:
    page = (ROOT / "docs" / "coming_from_trl.md").read_text(encoding="utf-8")
    sections = "|".join(hints_of(Recipe))
    named = set(re.findall(rf"`((?:{sections})\.[\w.]+)`", page))
    assert len(named) > 30 and named <= OURS | {"ppo.preset"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--learning_rate", "1e-5"], "unknown option --learning_rate; here it is sft.optimizer.learning_rate or"),
        (["--kl_coef", "0.1"], "did you mean 'ppo.kl_coef'?"),
        (["--root", "a", "--root=b"], "--root is given 2 times"),
        (["--data", "a=x", "--data", "a=y"], "names the data set 'a' twice"),
    ],
)
def test_the_command_line_answers_foreign_names_and_refuses_repeated_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")))
    assert main(["run", str(path), "--dry-run", *words]) == 2
    shown = capsys.readouterr().err
    assert part in shown and shown.count("\n") == 1
