"""Quantise a frozen base model to 4 bits per weight (NF4, Dettmers et al. 2023) to train adapters on it; and undo it.

Weights are quantised in place, after the model has been loaded and checked like any other; layers move to a GPU one by
one. The published model contains the same rounded weights, so it is exactly the model that was trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policy.errors import ModelError


def quantize_nf4(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Quantise every linear layer except the output head to NF4, scales included, and move the model to the device.

    Raises ModelError without bitsandbytes, or if there is no layer to quantise."""
    bnb = import_bitsandbytes()
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    head = model.get_output_embeddings()
    layers = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and m is not head]
    if not layers:
        raise ModelError(
            f"sft.quantization: {type(model).__name__} has no linear layer except its output head; remove the setting"
        )
    for name, layer in layers:
        quantized = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16 if bf16 else torch.float32,
            quant_type="nf4",
            device="meta",
        )
        quantized.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized)
        quantized.bias = layer.bias
        _replace(model, name, quantized.to(device))
    return model.to(device)


def is_quantized(model: nn.Module) -> bool:
    return any(type(layer).__name__ == "Linear4bit" for layer in model.modules())


def dequantize(model: nn.Module) -> None:
    """Replace a model's 4-bit layers, including those inside adapters, by plain float32 layers, in place."""
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Linear4bit":
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            weight = _weight(layer).to(torch.float32)
            plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
            plain.bias = layer.bias
            _replace(model, name, plain)


def import_bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModelError(
            "sft.quantization needs the library bitsandbytes, which is not installed: run pip install -e '.[qlora]' "
            "in triptych's folder, or remove sft.quantization"
        ) from error
    return bitsandbytes


def _weight(layer: Any) -> torch.Tensor:
    state: dict[str, Any] = {}
    layer._save_to_state_dict(state, "", False)  # undoes the change of weight layout that some CPUs' forward makes
    weight: torch.Tensor = import_bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)
