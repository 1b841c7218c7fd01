"""What a language model thinks of the answers and of plain text: its loss, in nats per token.

The loss of the base model on the answers is high for text that is no longer language, and falls if a policy only says
what is likely anyway. The policy's own loss on plain text shows what PPO made it forget.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from policy.errors import ModelError
from policy.language_model import check_decoder_only, fit_special_tokens, load_tokenizer, load_weights
from policy.pretraining import pretraining_loss
from policy.sampling.rollout import as_rollout, response_logprobs

BATCH = 16  # rows of plain text read at a time


@torch.no_grad()
def nll_of_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_size: int
) -> float | None:
    """Mean -log p(token) over the tokens of all answers, each after its prompt; None if there is no token. The answers
    are given without stop tokens: a base model does not know how a template ends an answer."""
    order = sorted((i for i, ids in enumerate(answers) if ids), key=lambda i: len(prompts[i]) + len(answers[i]))
    if not order:
        return None
    total = 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        rollout = as_rollout([prompts[i] for i in rows], [answers[i] for i in rows], 0, model.device)
        total -= response_logprobs(model, rollout, 1.0).logprobs.double().sum().item()
    return total / sum(map(len, answers))


@torch.no_grad()
def nll_of_text(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Mean next-token loss on rows (n, length) of plain text."""
    losses = [pretraining_loss(model, part).item() * len(part) for part in rows.split(BATCH)]
    return sum(losses) / len(rows)


def load_base(source: str | Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """Load a base model as a reader of the SFT model's ids. `tokenizer`: the SFT model's. Raises ModelError as
    `check_base_tokenizer`, and if it is no language model."""
    check_base_tokenizer(source, tokenizer)
    check_decoder_only(source)
    model = load_weights(AutoModelForCausalLM, source)
    return fit_special_tokens(model, tokenizer, source, device, None).model.eval()


def check_base_tokenizer(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if the base model's tokens do not have the same ids in the SFT model's tokenizer."""
    ids = tokenizer.get_vocab()
    moved = sum(ids.get(token) != number for token, number in load_tokenizer(source).get_vocab().items())
    if moved:
        raise ModelError(
            f"evaluate.base_model '{source}' has {moved} tokens with other ids than the SFT model's tokenizer gives "
            "them, so it cannot read the answers; give the model that SFT started from, or leave it out"
        )
