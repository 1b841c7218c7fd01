"""The reference for what triptych computes: a model's own code, one text at a time, without padding."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from reward.scalar_model import scalar_head

EXACT = 1e-3  # nats, or units of the score: rounding in float32 is below it, a fault in random weights above it
PAD, EOS = 0, 2
CPU = torch.device("cpu")
PROMPTS, ANSWERS = (13, 3, 21, 4, 3), (9, 14, 5, 3, 4)  # tokens; a tiny window has 8, its rope's original length 12


def vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for each id."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"w{PAD}", eos_token=f"w{EOS}", unk_token="w1", padding_side="left"
    )


def texts(seed: int, lengths: Sequence[int], size: int) -> list[list[int]]:
    """Random ids, without those at either end of the vocabulary, where tiny models have their special tokens."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(10, size - 10, (n,), generator=rng).tolist() for n in lengths]


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64, or the model itself if its code holds on to float32 or its choices (of experts, of tokens that
    are attended to) fall otherwise in float64."""
    double = copy.deepcopy(model).double()
    try:
        ids = torch.tensor(texts(0, (30,), vocabulary(model)))
        with torch.no_grad():
            apart = gap(model(input_ids=ids).logits, double(input_ids=ids).logits)
    except Exception:
        return model
    return double if apart <= EXACT else model


@torch.no_grad()
def own_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) logits of the model's forward pass of one text."""
    forget(model)
    logits: Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits.double()


def forget(model: PreTrainedModel) -> None:
    """Undo what a longer text left behind: dynamic rope keeps its frequencies until a short text is read."""
    if "'dynamic'" in str(getattr(model.config, "rope_parameters", "")):
        model(input_ids=torch.tensor([[5, 6, 7]]))


def own_logprobs(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], temperature: float) -> Tensor:
    """(answer, vocabulary) log-probabilities at the answer's tokens."""
    logits = own_logits(model, [*prompt, *answer])[len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def picked(logprobs: Tensor, answer: Sequence[int]) -> Tensor:
    return logprobs.gather(1, torch.tensor(list(answer))[:, None])[:, 0]


@torch.no_grad()
def own_score(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """The scalar that the model's own forward pass gives for one text; that of the last state if transformers has no
    class for it."""
    if type(model) not in AutoModelForSequenceClassification._model_mapping.values():
        return float(own_values(model, ids)[-1])
    forget(model)
    return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


@torch.no_grad()
def own_values(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(tokens,) the head's scalar at each token's state; at the last one it is the text's score."""
    forget(model)
    states = getattr(model, model.base_model_prefix)(input_ids=torch.tensor([list(ids)])).last_hidden_state
    values: Tensor = scalar_head(model)(states[0])[:, 0]
    return values


def gap(found: Tensor, want: Tensor) -> float:
    """Largest difference, in units of the wanted value where that is above 1; infinite if one is not finite."""
    if not found.isfinite().all():
        return math.inf
    return float(((found.detach().double() - want.double()).abs() / want.double().abs().clamp(min=1)).max())
