"""Settings of published PPO runs. `ppo.preset` fills in those that a recipe leaves out. docs/ppo.md lists the sources,
and the values that no source gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXTS_PER_EPISODE = 8  # InstructGPT C.4: pretraining examples per episode
NO_CLIPPING = 1e6  # a limit on the gradient norm that only a broken run reaches

BOTH: dict[str, Any] = {
    "kl_estimator": "k1",
    "score_without_eos": -1.0,
    "whiten_rewards": False,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "value_clip_range": 0.2,
}
INSTRUCTGPT_ADAM = {
    "schedule": "constant",
    "warmup_steps": 10,
    "betas": [0.9, 0.95],
    "eps": 1e-5,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
TLDR_ADAM = {
    "learning_rate": 3e-6,
    "schedule": "linear",
    "warmup_steps": 0,
    "betas": [0.9, 0.999],
    "eps": 1e-5,
    "weight_decay": 0.01,
    "max_grad_norm": NO_CLIPPING,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Ouyang et al. 2022, appendix C.4; `pretraining_rows` follows from TEXTS_PER_EPISODE.
    "instructgpt": {
        "iterations": 500,
        "rollout_batch": 512,
        "minibatches": 8,
        "inner_epochs": 1,
        "max_prompt_length": 1024,
        "sampling": {"max_new_tokens": 1024, "temperature": 1.0},
        "kl_coef": 0.02,
        **BOTH,
        "ema_decay": 0.992,
        "pretraining_coef": 27.8,
        "optimizer": {**INSTRUCTGPT_ADAM, "learning_rate": 8.05e-6},
        "value_optimizer": {**INSTRUCTGPT_ADAM, "learning_rate": 9e-6},
    },
    # Huang et al. 2024, summarize_from_feedback_details: ppo.py's defaults and PyTorch's AdamW.
    "tldr": {
        "iterations": 1953,  # a million episodes
        "rollout_batch": 512,
        "minibatches": 1,
        "inner_epochs": 4,
        "max_prompt_length": 512,
        "sampling": {"max_new_tokens": 53, "temperature": 0.7},
        "kl_coef": 0.05,
        **BOTH,
        "pretraining_coef": 0.0,
        "optimizer": TLDR_ADAM,
        # Its value loss is weighted 0.1. A tenth of the gradient gives the same Adam step as ten times eps.
        "value_optimizer": {**TLDR_ADAM, "eps": 1e-4},
    },
}


def preset_settings(ppo: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the preset named in a recipe's `ppo` section, which the section overrides; {} without a preset.

    Pretraining text keeps its 8 rows per episode for any batch and number of minibatches in the section."""
    name = ppo.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return {}  # no preset, or an unknown one, which is refused when the section is read
    preset = PRESETS[name]
    if name != "instructgpt":
        return preset
    try:
        episodes = int(ppo.get("rollout_batch", preset["rollout_batch"])) // int(
            ppo.get("minibatches", preset["minibatches"])
        )
    except (TypeError, ValueError, ZeroDivisionError):
        return preset  # refused, with the setting's name, when the section is read
    return {**preset, "pretraining_rows": TEXTS_PER_EPISODE * max(1, episodes)}
