"""Trials of the ways to read a model, against its own forward pass of one text without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.encoding import Padded, pad
from policy.errors import ModelError
from policy.reading.body import body_of, call, head_of, logits_of_states, states
from policy.reading.packing import states_in_rows, states_of_equals
from policy.sampling.decoder import CachedDecoder, states_after_prompts

EXACT = 1e-4  # rounding error allowed in float32, relative to the largest value
# Tokens of the trials' texts and of their prompts. A twin's window has 8 tokens, its rope is extended after 12: long
# texts go beyond both, one of them while it is sampled, and short ones stay within.
LONG, SHORT = ((21, 13, 16, 4, 21), (16, 7, 13, 3, 15)), ((7, 3, 6, 2, 7), (3, 1, 4, 1, 2))
ANY = 2**31  # tokens or texts: no limit


class Reading(NamedTuple):
    """How a model is read; the first value of each field is the fastest."""

    logits: Literal["head", "own forward"] = "head"
    """head: the output embedding times the states. own forward: what the model itself makes of the states."""
    rows: Literal["packed", "padded", "equal", "single", "refused"] = "packed"
    """How texts share a forward pass: several in a row, one per row, only texts of equal length, or not at all.
    refused: what is read depends on what was read before."""
    cache: Literal["padded", "equal", "none", "refused"] = "padded"
    """How answers are sampled: from a cache for all prompts, for prompts of equal length, or by reading the whole text
    for every token. refused: a token's probability depends on how long the text becomes."""
    prefix: bool = True
    """Whether several tokens can be read at once after a cached prompt."""


def try_readings(model: PreTrainedModel, lengths: Sequence[int], prompts: Sequence[int]) -> Reading:
    """Try every way on this model (in eval mode, without gradients) with texts of these lengths, whose first `prompts`
    tokens are a prompt; fastest first. Raises ModelError if none is exact.

    The reference is the model's own forward pass of one text."""
    device = model.device
    rng = torch.Generator().manual_seed(0)  # leaves the run's own generators unchanged
    size = model.get_input_embeddings().num_embeddings
    first, last = size // 10, size - size // 10  # special tokens and placeholders of images are at the ends
    texts = [torch.randint(first, last, (n,), generator=rng).to(device) for n in lengths]
    name = type(model).__name__
    own, logits = zip(*(_own_reading(model, text) for text in texts), strict=True)
    changed = torch.cat([texts[0][:-1], texts[0][:1]])
    if not _same(states(model, changed[None])[0, :-1], own[0][:-1]):
        raise ModelError(
            f"{name} reads text in both directions, as encoders such as BERT do, so it cannot write an answer; give a "
            "decoder-only language model."
        )
    head = _first_exact({"head": partial(_through_head, model, own), "own forward": partial(_own, model, own)}, logits)
    if head is None:
        raise ModelError(
            f"the logits of {name} cannot be computed from its last hidden states, which PPO and the losses need; use "
            "another architecture (docs/models.md)."
        )
    stop = torch.tensor(lengths, device=device)
    whole = model, torch.cat(texts), stop, torch.zeros_like(stop), stop
    rows = _first_exact(
        {
            "packed": lambda: states_in_rows(*whole, packed=True).split(list(lengths)),
            "padded": lambda: states_in_rows(*whole, packed=False).split(list(lengths)),
            "equal": lambda: states_of_equals(*whole, at_once=ANY).split(list(lengths)),
            "single": lambda: states_of_equals(*whole, at_once=1).split(list(lengths)),
        },
        own,
    )
    # A rope that grows with the longest text so far is not the same after a longer one.
    if rows is None or not is_exact(lambda: [states(model, texts[i][None])[0] for i in (0, 2)], [own[0], own[2]]):
        rows = "refused"
    answers = [Answer(text, own, n) for text, own, n in zip(texts, logits, prompts, strict=True)]
    same = [Answer(texts[i], logits[i], lengths[0] // 4) for i in (0, 2, 4)]  # of different lengths, prompts of one
    cache = "none"
    cuts = [(i, cut) for i in (0, 2) for cut in (lengths[i] // 2, lengths[i] - 3)]
    if not is_exact(partial(_starts, model, texts, cuts), [own[i][:cut] for i, cut in cuts]):
        cache = "refused"
        if rows in ("packed", "padded"):  # what follows a text changes it, so nothing may
            rows = "equal"
    elif is_exact(partial(_decoded, model, answers, True), [answer.drawn_from for answer in answers]):
        cache = "padded"
    elif is_exact(partial(_decoded, model, same, False), [answer.drawn_from for answer in same]):
        cache = "equal"
    want = [each[n - 1 : -1] for each, n in zip(own, prompts, strict=True)]
    prefix = cache == "padded" and is_exact(partial(_continued, model, answers), want)
    return Reading(head, rows, cache, prefix)  # type: ignore[arg-type]  # these texts are the literals of Reading


def _own_reading(model: PreTrainedModel, text: Tensor) -> tuple[Tensor, Tensor]:
    """(states, logits) of a text by one forward pass of the model, (tokens, hidden) and (tokens, vocabulary).

    Some models call a part of their body only (OPT); its states are then read in a pass of their own."""
    kept: list[Tensor] = []
    hook = body_of(model).register_forward_hook(lambda _, __, output: kept.append(output.last_hidden_state))
    try:
        logits: Tensor = call(model, text[None], use_cache=False).logits[0]
    finally:
        hook.remove()
    return kept[0][0] if kept else states(model, text[None])[0], logits


class Answer(NamedTuple):
    """A text of a trial whose first tokens are a prompt."""

    text: Tensor  # (tokens,) ids
    logits: Tensor  # (tokens, vocabulary) of the model's own forward pass
    prompt: int  # tokens

    @property
    def drawn_from(self) -> Tensor:
        """(answer tokens, vocabulary) logits that the tokens after the prompt are drawn from."""
        return self.logits[self.prompt - 1 : -1]


def _decoded(model: PreTrainedModel, answers: Sequence[Answer], masked: bool) -> list[Tensor]:
    """The logits that each answer token would be drawn from, read as sampling does: two answers to each prompt, and
    rows that have ended leave."""
    device = answers[0].text.device
    decoder = CachedDecoder(model, *_prompts(answers), masked)
    owner = torch.arange(len(answers), device=device).repeat_interleave(2)
    decoder.select(owner)
    found: list[list[Tensor]] = [[] for _ in answers]
    for step in range(max(len(answer.text) for answer in answers)):
        for i, logits in zip(owner.tolist()[::2], decoder.logits[1::2], strict=True):
            found[i].append(logits)
        if not _same(decoder.logits[::2], decoder.logits[1::2]):
            return []
        left = [k for k, i in enumerate(owner.tolist()) if answers[i].prompt + step + 1 < len(answers[i].text)]
        if not left:
            break
        if len(left) < len(owner):
            living = torch.tensor(left, device=device)
            decoder.select(living)
            owner = owner[living]
        decoder.append(torch.stack([answers[i].text[answers[i].prompt + step] for i in owner.tolist()]))
    return [torch.stack(each) for each in found]


def _continued(model: PreTrainedModel, answers: Sequence[Answer]) -> list[Tensor]:
    """The states that the answers' tokens are predicted from, read all at once after cached prompts, each twice."""
    device = answers[0].text.device
    rest = pad([answer.text[answer.prompt :].tolist() for answer in answers for _ in range(2)], 0, "right")
    rows = torch.arange(len(answers), device=device).repeat_interleave(2)
    found = states_after_prompts(model, _prompts(answers), Padded(*(part.to(device) for part in rest)), rows)
    return [own[: len(answer.text) - answer.prompt] for own, answer in zip(found[1::2], answers, strict=True)]


def _prompts(answers: Sequence[Answer]) -> Padded:
    """The answers' prompts, padded on the left, on the model's device."""
    prompts = pad([answer.text[: answer.prompt].tolist() for answer in answers], 0, "left")
    return Padded(*(part.to(answers[0].text.device) for part in prompts))


def _starts(model: PreTrainedModel, texts: Sequence[Tensor], cuts: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The states of the first tokens of texts (index, number of tokens), read without the others."""
    return [states(model, texts[i][None, :cut])[0] for i, cut in cuts]


def _through_head(model: PreTrainedModel, own: Sequence[Tensor]) -> list[Tensor]:
    head = head_of(model)
    return [each @ head.T if isinstance(head, Tensor) else head(each) for each in own]


def _own(model: PreTrainedModel, own: Sequence[Tensor]) -> list[Tensor]:
    return [logits_of_states(model, each) for each in own]


def _first_exact(ways: dict[str, Callable[[], Sequence[Tensor]]], want: Sequence[Tensor]) -> str | None:
    return next((name for name, way in ways.items() if is_exact(way, want)), None)


def is_exact(way: Callable[[], Sequence[Tensor]], want: Sequence[Tensor]) -> bool:
    """Whether a way of reading gives the wanted tensors; one that fails in any other manner does not."""
    try:
        found = way()
    except torch.OutOfMemoryError:  # says nothing about the way
        raise
    except Exception:  # what an architecture does not support fails in ways that cannot be listed
        return False
    return len(found) == len(want) and all(map(_same, found, want))


def _same(found: Tensor, want: Tensor) -> bool:
    if found.shape != want.shape:
        return False
    return not want.numel() or bool((found - want).abs().max() <= EXACT * want.abs().max())
