"""Puts the answers to one prompt in one row: [prompt | answer | answer | ...], so that the prompt is read only once.

Each answer attends to the prompt and itself, its positions continue from the prompt's end, and its score is read at its
last token, so scores equal those of K separate rows. (One forward pass for all K answers: InstructGPT 3.5.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from policy.precision import autocast, reads_model
from policy.reading.body import states
from policy.reading.packing import one_a_row, pack_lengths
from policy.reading.states import states_of_sequences
from policy.reading.trials import ANY, EXACT
from policy.reading.twin import tiny_twin
from policy.reading.ways import architecture_key, reach_of, readings_of_config
from reward.scalar_model import scalars


class PackedAnswers(NamedTuple):
    """Prompts, each followed by its answers, packed into rows; answers keep the order in which they were given."""

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width) position of a token in its own text
    segments: Tensor  # (rows, width) number of the prompt or answer in the row, from 1; 0 is padding
    prompts: Tensor  # (rows, width) the segment of the token's prompt
    row: Tensor  # (answers,) row of each answer's last token
    column: Tensor  # (answers,) its column


def pack_answers(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    hidden_size: int,
    share: bool = True,
) -> PackedAnswers:
    """Pack ids: `answers[i]` are the answers to `prompts[i]`. With `share` false every answer has its own row."""
    texts: list[_Text] = []
    for prompt, own in zip(prompts, answers, strict=True):
        for k, answer in enumerate(own):
            n = len(texts[-1].ids) if k else 0
            joined = _cost(n + len(answer), hidden_size) - _cost(n, hidden_size)
            if k == 0 or not share or joined > _cost(len(prompt) + len(answer), hidden_size):
                texts.append(_Text(list(prompt), list(range(len(prompt))), [0] * len(prompt), []))
            text = texts[-1]
            text.ids.extend(answer)
            text.positions.extend(range(len(prompt), len(prompt) + len(answer)))
            text.segments.extend([len(text.ends) + 1] * len(answer))
            text.ends.append(len(text.ids) - 1)
    lengths = [len(text.ids) for text in texts]
    places = (pack_lengths if share else one_a_row)(lengths)
    laid = torch.zeros(4, places.n_rows, places.width, dtype=torch.long)
    laid[0] = pad_id
    used = [0] * places.n_rows  # segments of a row so far
    row: list[int] = []
    column: list[int] = []
    for text, at, begin in zip(texts, places.row, places.column, strict=True):
        segments = torch.tensor(text.segments) + used[at] + 1
        parts = torch.tensor(text.ids), torch.tensor(text.positions), segments, segments[:1].expand(len(segments))
        laid[:, at, begin : begin + len(segments)] = torch.stack(parts)
        used[at] += len(text.ends) + 1
        row += [at] * len(text.ends)
        column += [begin + end for end in text.ends]
    return PackedAnswers(laid[0], laid[1], laid[2], laid[3], torch.tensor(row), torch.tensor(column))


class _Text(NamedTuple):
    """A prompt and answers to it, not yet placed in a row."""

    ids: list[int]
    positions: list[int]
    segments: list[int]  # 0 on the prompt, k on the k-th answer
    ends: list[int]  # index of each answer's last token


def _cost(width: int, hidden_size: int) -> float:
    """Cost of a row, in tokens: attention costs 4 * width * hidden per token and layer, everything else about
    24 * hidden^2. An answer joins a row only if the wider attention is cheaper than reading the prompt again."""
    return width * (1 + width / (6 * hidden_size))


def packed_scores(model: PreTrainedModel, packed: PackedAnswers, normalised: bool = True) -> Tensor:
    """(answers,) float32 r(prompt, answer), each read at the answer's last token."""
    return scalars(model, packed_states(model, packed), normalised)


@reads_model
def packed_states(model: PreTrainedModel, packed: PackedAnswers) -> Tensor:
    """(answers, hidden) states at each answer's last token."""
    if len(packed.row) > len(packed.ids):
        hidden = states(model, packed.ids, attention_mask=_mask(model, packed), position_ids=packed.positions)
        return hidden[packed.row, packed.column]
    # One answer per row: read as this architecture needs it, without the padding.
    lengths = packed.column + 1
    real = torch.arange(packed.ids.shape[1], device=lengths.device) < lengths[:, None]
    return states_of_sequences(model, packed.ids[real], lengths, lengths - 1, lengths, packed=False)


def _mask(model: PreTrainedModel, packed: PackedAnswers) -> Tensor | None:
    """(rows, 1, width, width) attention mask: each token sees its own segment up to itself, and its prompt. None with
    one answer per row, where causal attention does the same (only padding sees the padding on the right)."""
    if len(packed.row) == len(packed.ids):
        return None
    causal = torch.ones(2 * [packed.ids.shape[1]], dtype=torch.bool, device=packed.ids.device).tril()
    key = packed.segments[:, None, :]
    mask = (((packed.segments[:, :, None] == key) | (packed.prompts[:, :, None] == key)) & causal).unsqueeze(1)
    if model.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


def can_share_prompt(model: PreTrainedModel, longest: int) -> bool:
    """Whether packed rows get the same scores as separate ones for texts of at most `longest` tokens (prompt and one
    answer)."""
    try:
        return longest <= longest_shared(model.config, model.device)
    except ValueError:  # no twin can be built, and the model's own window is too long for a trial
        return longest <= min(_tried(model), reach_of(model.config) or ANY)


def longest_shared(config: PreTrainedConfig, device: torch.device | None = None) -> int:
    """Tokens of prompt and answer up to which the prompt can be shared by its answers; `ANY` if there is no limit, 0 if
    it cannot. Tried once per architecture, on its twin, with texts beyond its window and within it.

    Models whose attention does not accept a mask (recurrent states, flash kernels) fail the trial. Raises ValueError if
    no twin can be built."""
    if config._attn_implementation not in ("eager", "sdpa", None):
        return 0
    device = device or torch.device("cpu")
    key = architecture_key(config, device)
    if key not in _longest:
        found = _tried(tiny_twin(config).to(device))
        readings = readings_of_config(config, device)
        if found and readings is not None and readings[1].rows not in ("packed", "padded"):
            found = WITHIN  # beyond its reach, what follows a text changes what is read
        _longest[key] = reach_of(config) if found == WITHIN else found
    return _longest[key]


def _tried(model: PreTrainedModel) -> int:
    if _is_exact(model, *LONG):
        return ANY
    return WITHIN if _is_exact(model, *SHORT) else 0


_longest: dict[str, int] = {}
WITHIN = 1  # only within the architecture's reach
# Tokens of the trial's prompts and of the answers to each; a twin's window has 8 tokens.
LONG = ((13, 4), ((7, 5), (6, 9)))
SHORT = ((3, 4), ((4, 2), (2, 3)))


@torch.no_grad()
def _is_exact(model: PreTrainedModel, prompts: Sequence[int], answers: Sequence[Sequence[int]]) -> bool:
    rng = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings

    def text(length: int) -> list[int]:
        found: list[int] = torch.randint(min(10, size // 2), size, (length,), generator=rng).tolist()
        return found

    asked, answered = [text(n) for n in prompts], [[text(n) for n in each] for each in answers]
    packed = pack_answers(asked, answered, 0, hidden_size=10**6)
    packed = PackedAnswers(*(part.to(model.device) for part in packed))
    was_training = model.training
    model.eval()
    try:
        apart = [
            states(model, torch.tensor([prompt + answer], device=model.device))[0, -1]
            for prompt, own in zip(asked, answered, strict=True)
            for answer in own
        ]
        with autocast(model.device, enabled=False):
            together = packed_states(model, packed)
    except Exception:  # what an architecture does not support fails in ways that cannot be listed
        return False
    finally:
        model.train(was_training)
    want = torch.stack(apart)
    return bool((together - want).abs().max() <= EXACT * want.abs().max())
