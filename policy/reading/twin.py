"""Builds a tiny twin of a model: the same architecture with the same switches, all sizes shrunken, random weights.

What an architecture computes (scales and caps of logits, windows, kinds of layers, rope, tied embeddings) does not
depend on its sizes. So an assumption about a large model can be tested on its twin in milliseconds, with texts beyond
the window, which is shrunken too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY, POSITIONS, WINDOW, ORIGINAL = 97, 64, 8, 12  # tokens; ORIGINAL: a rope's length before it was extended
HIDDEN, HEADS, HEAD, INNER = 32, 4, 8, 48

# The names that configs have for their sizes, and the largest value that a twin has. A size that is smaller stays.
_NAMES: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size encoder_hash_byte_group_vocab"),
    (POSITIONS, "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length"),
    (POSITIONS, "max_target_positions position_bias_max_distance relative_max_distance log_scaling_n_floor"),
    (WINDOW, "sliding_window sliding_window_size attention_window_size local_attention window_size rel_extent"),
    (WINDOW, "attention_chunk_size floor_scale keep_window_size index_topk indexer_budget block_size chunk_size"),
    (WINDOW, "mamba_chunk_size local_attn_chunk_length lsh_attn_chunk_length prompt_length mem_len"),
    (28, "image_size"),
    (4, "mm_tokens_per_image"),
    (ORIGINAL, "original_max_position_embeddings"),
    (HIDDEN, "hidden_size n_embd d_model embedding_size embedding_dim emb_dim word_embed_proj_dim lru_width"),
    (HIDDEN, "out_hidden_size projection_dim hidden_size_global"),
    (HIDDEN, "input_embedding_size output_embedding_size hidden_size_per_layer_input ple_embed_dim router_hidden_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
    (HEADS, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads"),
    (HEADS, "linear_num_value_heads linear_num_heads num_experts n_routed_experts num_local_experts moe_num_experts"),
    (HEADS, "index_block_size num_buckets indexer_compress_ratio"),
    (32, "index_n_heads indexer_n_heads"),  # their scores are cut off at 0: with few of them, tokens tie
    (HEAD, "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim swa_head_dim swa_v_head_dim d_head"),
    (HEAD, "global_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim kv_channels dim_head"),
    (HEAD, "attention_head_size rotary_dim q_lora_rank kv_lora_rank o_lora_rank laurel_rank d_rel gated_norm_rank"),
    (HEAD, "hc_lowrank adapter_rank mamba_d_state state_size ssm_state_size time_step_rank mamba_dt_rank"),
    (HEAD, "indexer_head_dim mamba_n_heads mamba_num_heads n_mamba_heads position_bias_num_buckets"),
    (2 * HEAD, "qk_head_dim attention_head_dim"),
    (INNER, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner ffn_hidden_size dff dim_ff"),
    (INNER, "intermediate_size_mlp shared_intermediate_size dense_intermediate_size feed_forward_size"),
    (INNER, "prefix_dense_intermediate_size"),
    (INNER // 2, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size"),
    (INNER // 2, "expert_ffn_hidden_size moe_shared_expert_intermediate_size"),
    (2 * HIDDEN, "mamba_d_ssm attention_hidden_size"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k num_shared_experts n_shared_experts n_group"),
    (2, "num_expert_group moe_num_shared_experts zero_expert_num num_codebooks linear_num_key_heads n_groups"),
    (2, "attn_layer_period expert_layer_period interleave_moe_layer_step decoder_sparse_step moe_layer_interval"),
    (2, "global_attn_every_n_layers layer_group_size index_topk_blocks mamba_n_groups mamba_ngroups altup_num_inputs"),
    (2, "hc_mult hc_count o_groups num_layers_per_stack hc_sinkhorn_iters num_random_blocks"),
    (2, "n_layers_per_attn_res_block moe_top_k"),
    (1, "topk_group attn_layer_offset expert_layer_offset"),
]
SIZES: dict[str, int] = {name: size for size, names in _NAMES for name in names.split()}
KEY_HEADS = [
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "kv_n_heads",
    "swa_num_key_value_heads",
    "num_query_groups",
]
LAYERS = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_blocks",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "depth",
]
# Settings that hold the numbers of the layers of one kind, and settings that hold how many layers at the start are.
LISTED = [
    "mlp_only_layers",
    "moe_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "cross_attention_layers",
    "attn_layer_indices",
]
FIRST = ["num_dense_layers", "first_k_dense_replace", "max_window_layers", "moe_layer_start_index"]
MIXERS = (("mamba_n_heads", "mamba_d_head"), ("n_mamba_heads", "mamba_headdim"), ("num_heads", "head_dim"))
MOST_LAYERS = 8
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # its cache rounds half of it up to a multiple of 64
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16)},
    "dots3_note_text": {"head_dim": 24},  # the sum of two other sizes of its layers with a window
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8, "H_cycles": 2, "L_cycles": 3},  # 1 * 2 * (3 + 1)
}


def tiny_twin(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny causal language model of a config's architecture, in eval mode, on the CPU. Its weights come from `seed`
    and are so large that its distributions are far from uniform. Global random generators stay as they were.

    Raises ValueError if transformers cannot build the architecture this small."""
    try:
        small = tiny_config(config)
        # The caller may be building a model on another device.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPU's
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                small, dtype=dtype, attn_implementation=config._attn_implementation
            )
            _draw_weights(model)
    except Exception as error:  # a config that this table does not know fails in ways that cannot be listed
        raise ValueError(f"no tiny {config.model_type}: {' '.join(str(error).split())}") from error
    return model.eval()


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a config with small sizes: hidden 32, 4 heads, vocabulary 97, windows of 8 tokens, 64 positions, and
    one layer of each kind (at least 2). All switches and scales stay. Configs inside it are shrunken as well."""
    config = copy.deepcopy(config)
    for name in ("quantization_config", "_name_or_path"):
        if name in vars(config):
            delattr(config, name)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _shrink(part)
    _shrink(config)
    return config


def _shrink(config: PreTrainedConfig) -> None:
    values = vars(config)
    own = _take_overrides(config)
    before = dict(values)
    kept = _choose_layers(config, own)
    heads = next((values[name] for name in SIZES if name in values and ("heads" in name or name == "n_head")), 1)
    for name in KEY_HEADS:
        if _is_size(count := values.get(name)):
            setattr(config, name, min(HEADS, heads) if count == heads else min(2, count))
    for name, size in SIZES.items():
        if _is_size(value := values.get(name)) and value > size:
            setattr(config, name, size)
    _fit_mixers(config, before)
    for name, value in EXCEPTIONS.get(config.model_type, {}).items():
        setattr(config, name, value)
    _shrink_rope(config)
    _shrink_token_ids(config)
    if own:
        fitted = {new: _fit_override(own.get(old, {}), before, values) for new, old in enumerate(kept)}
        config.per_layer_config = {layer: sizes for layer, sizes in fitted.items() if sizes}


def _take_overrides(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """What single layers have of their own, by layer; taken out of the config, whose other values can then be read."""
    spec = vars(config).get("_heterogeneity_spec")
    config.per_layer_config = None
    return dict(spec.per_layer_overrides) if spec else {}


def _fit_override(own: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A layer's own sizes: twice or half of the tiny config's, as they were above or below the given config's."""
    fitted = dict(own)
    for name, value in own.items():
        if _is_size(value) and _is_size(usual := before.get(name)):
            fitted[name] = after[name] * 2 if value > usual else max(1, after[name] // 2)
    return fitted


def _fit_mixers(config: PreTrainedConfig, before: dict[str, Any]) -> None:
    """Make the widths of state-space layers, which are products of other sizes, fit together again."""
    values = vars(config)
    if _is_size(width := before.get("attention_hidden_size")):
        config.attention_hidden_size = width // before["hidden_size"] * values["hidden_size"]
    expand = values.get("mamba_expand", values.get("expand"))
    if expand:
        inner = values.get("mamba_d_ssm") or int(expand * values["hidden_size"])
        for heads, head in MIXERS:
            if _is_size(values.get(heads)) and _is_size(values.get(head)):
                setattr(config, head, inner // values[heads])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choose_layers(config: PreTrainedConfig, own: dict[int, dict[str, Any]]) -> list[int]:
    """Keep the first layer of each kind, in order (at least two layers in all), and return which were kept."""
    values = vars(config)
    n = next((values[name] for name in LAYERS if _is_size(values.get(name))), 0)
    each = [name for name, value in values.items() if _is_row(value, n) and name not in LISTED]
    facts = [[values[name][i] for name in each] + [own.get(i)] for i in range(n)]
    for i, fact in enumerate(facts):
        fact += [i in values[name] for name in LISTED if values.get(name)]
        fact += [i < values[name] for name in FIRST if _is_size(values.get(name))]
        fact.append(i >= n - (values.get("num_kv_shared_layers") or 0))
    kinds = [repr(fact) for fact in facts]
    kept = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())[:MOST_LAYERS]
    # One more where there is only one kind, and of hybrid layers, which share weights with each other.
    kept += [i for i in range(n) if i not in kept and (len(kept) == 1 or "hybrid" in kinds[i])][:1]
    kept.sort()
    for name in each:
        setattr(config, name, type(values[name])(values[name][i] for i in kept))
    for name in LISTED:
        if values.get(name):
            setattr(config, name, [new for new, old in enumerate(kept) if old in values[name]])
    for name in FIRST:
        if _is_size(values.get(name)):
            setattr(config, name, sum(old < values[name] for old in kept))
    if shared := values.get("num_kv_shared_layers"):
        config.num_kv_shared_layers = sum(old >= n - shared for old in kept)
    for name in LAYERS:
        if _is_size(values.get(name)):
            setattr(config, name, min(values[name], max(len(kept), len(values.get("block_types") or ()))))
    return kept


def _is_row(value: Any, n: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == n > 0


def _shrink_rope(config: PreTrainedConfig) -> None:
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    kinds = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    for part in kinds:
        share = part.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
        if share is not None:  # an even number of dimensions of each head
            turned, whole = getattr(config, "qk_rope_head_dim", None), getattr(config, "head_dim", None)
            share = turned / whole if turned and whole else max(1, round(4 * share)) / 4
            part["partial_rotary_factor"] = share
            if hasattr(config, "partial_rotary_factor"):
                config.partial_rotary_factor = share
        dims = int(_head_size(config) * (share or 1))
        if "original_max_position_embeddings" in part:
            part["original_max_position_embeddings"] = min(ORIGINAL, part["original_max_position_embeddings"])
        for name in ("short_factor", "long_factor"):
            if name in part:
                part[name] = part[name][: dims // 2]
        if "mrope_section" in part:
            first = dims // 2 - 2 * (dims // 6)
            part["mrope_section"] = [first, dims // 6, dims // 6][: len(part["mrope_section"])]
        if part.get("rope_type") == "dynamic":  # its original length is the config's number of positions
            config.max_position_embeddings = min(ORIGINAL, config.max_position_embeddings)


def _head_size(config: PreTrainedConfig) -> int:
    """Dimensions of a head that rope turns."""
    for name in ("qk_rope_head_dim", "head_dim"):
        if size := getattr(config, name, None):
            return int(size)
    return int(getattr(config, "hidden_size", HIDDEN) // getattr(config, "num_attention_heads", HEADS))


def _shrink_token_ids(config: PreTrainedConfig) -> None:
    """Put token ids beyond the vocabulary into it, each at a place of its own."""
    size = getattr(config, "vocab_size", None) or VOCABULARY
    free = iter(range(size - 1, 0, -1))
    for name, value in list(vars(config).items()):
        if not name.endswith(("_token_id", "_token_index")):
            continue
        if _is_size(value) and value >= size:
            setattr(config, name, next(free))
        elif isinstance(value, Sequence) and any(token >= size for token in value):
            setattr(config, name, [next(free) if token >= size else token for token in value])


@torch.no_grad()
def _draw_weights(model: PreTrainedModel) -> None:
    """Draw new matrices with a deviation of about 1/sqrt(inputs), so that every layer matters; move vectors (norms,
    biases) a little from where the architecture starts them, so that none is without effect."""
    ends = {id(part.weight) for part in _ends(model) if hasattr(part, "weight")}
    for weight in model.parameters():
        if not weight.is_floating_point():
            continue
        if weight.dim() < 2:
            weight.add_(torch.randn_like(weight), alpha=0.1)
        else:
            weight.normal_(0.0, 0.5 if id(weight) in ends else 1.5 * weight.shape[-1] ** -0.5)


def _ends(model: PreTrainedModel) -> Iterable[torch.nn.Module]:
    return [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
