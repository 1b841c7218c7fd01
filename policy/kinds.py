"""What a directory or a config.json holds: a language model, a reward model, or something that is neither.

transformers opens many of these without an error, for example a reward model as a language model with a random head, so
every loader asks first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from policy.errors import ModelError

Wanted = Literal["language model", "reward model", "tokenizer"]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model*.bin.index.json")
MERGE = (
    'merge it first: PeftModel.from_pretrained(base, "{source}").merge_and_unload().save_pretrained(DIR), save the '
    "tokenizer there too, and give DIR."
)
# Endings of class names whose models do not continue a text.
OTHER_HEADS = {
    "ForMaskedLM": "an encoder that fills in masked words",
    "ForTokenClassification": "a model that classifies tokens",
    "ForQuestionAnswering": "a model that finds answers in a text",
    "ForMultipleChoice": "a model for multiple choice",
    "ForNextSentencePrediction": "an encoder",
    "ForPreTraining": "a model with the heads of its pretraining",
    "ForImageClassification": "a model that classifies images",
    "ForSpeechSeq2Seq": "a speech model",
}


def check_files(source: str | Path, wanted: Wanted) -> None:
    """Raise ModelError, with what is there and what to do, if a local `source` cannot hold a model that transformers
    opens. Hub names are not looked at."""
    path = Path(source)
    if path.is_file():
        raise ModelError(f"'{source}' is a file; give the directory of a {wanted} in Hugging Face layout.")
    if not path.is_dir():
        return
    has_config = (path / "config.json").is_file()
    has_weights = any(True for pattern in WEIGHTS for _ in path.glob(pattern) if not _.name.startswith("adapter_"))
    if (path / "adapter_config.json").is_file() and not (has_config and has_weights):
        base = _read(path / "adapter_config.json").get("base_model_name_or_path")
        over = f" over '{base}'" if isinstance(base, str) else ""
        raise ModelError(f"'{source}' is a LoRA adapter{over}, not a whole {wanted}; {MERGE.format(source=source)}")
    if has_config:
        return
    what, fix = _other_layout(path)
    raise ModelError(
        f"'{source}' has no config.json{what}; {fix or f'give the directory of a {wanted} in Hugging Face layout.'}"
    )


def _other_layout(path: Path) -> tuple[str, str]:
    """-> (what a directory without config.json is, as the end of a clause; what to do), each "" if unknown."""
    if (path / "manifest.json").is_file() and (stage := _read(path / "manifest.json").get("stage")):
        return f": it is the checkpoint of the stage {stage}, which holds no model", "give one of sft, select or ppo."
    if any(path.glob("*.gguf")):
        return (
            ": it holds GGUF weights, for llama.cpp",
            "give the model that they were made from, or convert them: AutoModelForCausalLM.from_pretrained(DIR, "
            "gguf_file=FILE).save_pretrained(OTHER).",
        )
    if (path / "model_index.json").is_file():
        return ": it is an image model for diffusers", ""
    if any(path.glob("consolidated*.pth")) or (path / "params.json").is_file():
        return ": it holds weights in their publisher's own layout", "give the same model in Hugging Face layout."
    if any(path.glob("*.nemo")):
        return ": it holds a NeMo model", "convert it to Hugging Face layout and give that directory."
    trained = sorted(path.glob("checkpoint-*"), key=lambda p: (len(p.name), p.name))
    if trained:
        return (
            f": it is a trainer's output with {len(trained)} checkpoints",
            f"give one of them, such as {trained[-1]}.",
        )
    inside = [found for found in sorted(path.glob("*/config.json")) if found.parent.name != "1_Pooling"]
    if inside:
        return "", f"its folder '{inside[0].parent}' has one; give that."
    if (path / "tokenizer_config.json").is_file():
        return ": it holds only a tokenizer", ""
    if not any(path.iterdir()):
        return ": it is empty", ""
    return "", ""


def check_kind(config: PreTrainedConfig, source: str | Path, wanted: Wanted) -> None:
    """Raise ModelError if a model's config.json names a model of another kind than the `wanted` one."""
    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    what = _kind(config, names)
    if (Path(source) / "modules.json").is_file():
        what = "a sentence-transformers model, which turns texts into vectors"
    if what is None or what == f"a {wanted}":
        if wanted == "reward model" and what is None:
            named = names[0] if names else f"model of type {config.model_type}"
            raise ModelError(f"'{source}' is a {named}, not a reward model; give a sequence classifier of one label.")
        return
    if wanted == "reward model":
        raise ModelError(f"'{source}' is {what}, not a reward model; give a sequence classifier of one label.")
    if what == "a reward model":
        raise ModelError(f"'{source}' is a reward model, which cannot generate text; give a language model.")
    raise ModelError(f"'{source}' is {what}, not a {wanted}; give a language model.")


def _kind(config: PreTrainedConfig, names: list[str]) -> str | None:
    """What an architecture is, or None for one that may generate text."""
    for name in names:
        if "ForSequenceClassification" in name:
            labels = config.num_labels
            return "a reward model" if labels == 1 else f"a {name} with {labels} labels"
        if name.endswith(("RewardModel", "ForRewardModel", "ForScore")):
            return f"a {name}, which is no class of transformers"
        for ending, what in OTHER_HEADS.items():
            if name.endswith(ending) and not _also_generates(config, ending):
                return f"{what} ({name})"
    return None


def _also_generates(config: PreTrainedConfig, ending: str) -> bool:
    """GPT-2's double head and T5's pretraining class are also language models."""
    return ending == "ForPreTraining" and config.model_type in ("t5", "mt5", "gpt2")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
