"""The causal language models of transformers that `scripts/architectures.py` tries, each as a config of usual size.

The default config of an architecture is tried, and variants of it, because what an architecture computes can depend on
its settings. Scales and caps that are 1 or absent by default are set to values that change the result.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# What a config lacks by default and cannot be built without, or not with all of its kinds of layers.
NEEDED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 20,
        "num_hidden_layers": 40,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None},
    },
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "num_hidden_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        }
    },
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
NEEDED["qwen4_exp_text"] = NEEDED["qwen4_exp"]["text_config"]

# Settings that are neutral by default, and values that are not.
LOUD: dict[str, float] = {
    "logits_scaling": 8.0,
    "final_logit_softcapping": 5.0,
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
}

_LLAMA_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + i / 4 for i in range(48)]}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, grouped queries": ("llama", {"num_key_value_heads": 8, "attention_bias": True}),
    "llama, eager attention": ("llama", {"attn_implementation": "eager"}),
    "llama, llama3 rope": ("llama", {"rope_parameters": _LLAMA_ROPE | {"original_max_position_embeddings": 8192}}),
    "llama, dynamic rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "qwen2, yarn": (
        "qwen2",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    ),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 14}),
    "mistral, eager attention": ("mistral", {"attn_implementation": "eager"}),
    "phi3, window": ("phi3", {"sliding_window": 2047}),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
    ),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8}),
    "mpt, learned positions": ("mpt", {"attn_config": {"alibi": False}}),
    "opt, post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 512}),
    "gemma2, eager attention": ("gemma2", {"attn_implementation": "eager"}),
    "gemma3_text, with cap": ("gemma3_text", {"final_logit_softcapping": 5.0}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    "bloom, eager attention": ("bloom", {"attn_implementation": "eager"}),
    "olmo, clipped": ("olmo", {"clip_qkv": 1.0}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "bert, as a decoder": ("bert", {"is_decoder": True}),
    "roberta, as a decoder": ("roberta", {"is_decoder": True}),
}


# Not language models over a text's tokens, or not to be built here.
NOT_TRIED: dict[str, str] = {
    "blt": "reads bytes, in patches that another model finds",
    "gemma3n": "needs timm, a library for images; gemma3n_text is the same language model",
    "gemma4_assistant": "drafts tokens for another model",
    "gemma4_unified_assistant": "drafts tokens for another model",
    "moshi": "speech",
    "musicgen": "music",
    "musicgen_melody": "music",
}


def names() -> list[str]:
    """All architectures and variants, sorted."""
    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def config_of(name: str) -> PreTrainedConfig:
    """The config of an architecture (a key of transformers' mapping for causal language models) or of a variant."""
    kind, settings = VARIANTS.get(name, (name, {}))
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**NEEDED.get(kind, {}) | settings)
    text = config.get_text_config(decoder=True)
    for setting, value in LOUD.items():
        if setting not in settings and getattr(text, setting, 0) in (None, 1.0):
            setattr(text, setting, value)
    return config
