"""What a directory or a config.json holds: a language model, a reward model, or something that is neither.

transformers opens many of these without an error, for example a reward model as a language model with a random head, so
every loader asks first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig
from transformers import __version__ as transformers_version

from policy.errors import ModelError

Wanted = Literal["language model", "reward model", "tokenizer"]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model*.bin.index.json")
LFS_POINTER = b"version https://git-lfs"
DEQUANTIZED = ("mxfp4", "fp8", "fbgemm_fp8")  # published so; transformers can turn them into floats
# Weights of a layer of text, in the names of most architectures; not the buffers that old checkpoints also have.
LAYER = re.compile(
    r"((model|transformer|gpt_neox|backbone|decoder|language_model)\.)*(layers|h|blocks|block)\.\d+\..*"
    r"(weight|(?<!attn\.)(?<!attention\.)(?<!masked_)bias)$"
)
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


def unreadable(source: str | Path, error: str) -> str | None:
    """Why transformers cannot load a model, with what to do, as the end of a sentence about it; None if only the error
    itself says so."""
    path = Path(source)
    for file in sorted(path.glob("*")) if path.is_dir() else ():
        if file.is_file() and file.stat().st_size < 1000 and file.read_bytes().startswith(LFS_POINTER):
            return f"was cloned without its large files: {file.name} is a pointer of git-lfs; run 'git lfs pull' there."
    if "trust_remote_code" in error or (
        "not recognize this architecture" in error and _read(path / "config.json").get("auto_map")
    ):
        return (
            "comes with Python code of its own (auto_map in its config), which triptych does not run; give a model "
            "whose architecture is part of transformers, or a copy of it converted to one."
        )
    if "not recognize this architecture" in error:
        kind = _read(path / "config.json").get("model_type")
        named = f" '{kind}'" if isinstance(kind, str) else ""
        return (
            f"is of a model type{named} that transformers {transformers_version} does not know; install a newer "
            "transformers, or give another model."
        )
    if "ignore_mismatched_sizes" in error:
        return (
            "has weights of other shapes than its config.json says; compare vocab_size, hidden_size and the other "
            "sizes there with the weights, or download the model again."
        )
    return None


def check_all_is_used(unused: Collection[str], source: str | Path) -> None:
    """Raise ModelError if a checkpoint has weights of further layers, or adapters, which the model would be without."""
    if adapters := sorted(name for name in unused if "lora_" in name):
        raise ModelError(
            f"'{source}' has the weights of adapters among its own ({adapters[0]}), which would be left out; merge "
            "them first: merge_and_unload() and save_pretrained(DIR), and give DIR."
        )
    if layers := sorted(name for name in unused if LAYER.match(name)):
        raise ModelError(
            f"'{source}' has weights for more than its config.json describes ({len(layers)}, such as {layers[0]}), so "
            "the model would lack layers or parts of them; correct num_hidden_layers and the like in config.json."
        )


def check_kind(config: PreTrainedConfig, source: str | Path, wanted: Wanted) -> None:
    """Raise ModelError if a model's config.json names a model of another kind than the `wanted` one."""
    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    quantization = getattr(config, "quantization_config", None) or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else str(quantization)
    if quantization and method not in DEQUANTIZED:
        how = f" by {getattr(method, 'value', method)}" if method else ""
        raise ModelError(
            f"'{source}' has weights that were quantized{how}, which cannot be trained; give the model that they were "
            "made from. To keep frozen weights in 4 bits, set sft.quantization: nf4 (docs/sft.md)."
        )
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
            return f"a {name}, which is not a class of transformers"
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
