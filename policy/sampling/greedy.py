"""Greedy decoding: answers for metrics that compare texts.

Greedy decoding uses no randomness, so Hugging Face's `generate` is sufficient, for decoder-only and encoder-decoder
models alike. The checkpoint's own generation settings (beams, penalties, forced tokens) are switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from policy.encoding import decode_responses, pad
from policy.maths.masks import truncate_after_token
from policy.sampling.engines import generating_with
from policy.special_tokens import ids_without_token, stop_ids


class GreedyAnswer(NamedTuple):
    text: str  # without special tokens, stripped
    ended: bool  # whether the model wrote a stop token


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[GreedyAnswer]:
    """Answer prompts given as ids, in their order. The tokenizer must have an EOS."""
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    side = "right" if model.config.is_encoder_decoder else "left"
    stops = stop_ids(tokenizer)
    plain = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stops),
        pad_token_id=pad_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        suppress_tokens=list(ids_without_token(model, tokenizer)) or None,
    )
    answers = [GreedyAnswer("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, mask = (part.to(model.device) for part in pad([prompts[i] for i in rows], pad_id, side))
        with generating_with(model, plain):
            written = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=plain)
        begin = 1 if model.config.is_encoder_decoder else ids.shape[1]
        cut = truncate_after_token(written[:, begin:], stops, pad_id)
        texts = decode_responses(tokenizer, cut.responses, cut.lengths)
        for i, text, ended in zip(rows, texts, cut.found.tolist(), strict=True):
            answers[i] = GreedyAnswer(text, ended)
        progress(len(rows))
    return answers
