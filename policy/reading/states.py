"""The body's states of texts, read as `policy/reading/ways.py` found to be exact for the model."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from policy.precision import reads_model
from policy.reading.packing import states_in_rows, states_of_equals
from policy.reading.trials import ANY
from policy.reading.trunk import WHOLE, Part
from policy.reading.ways import reading_of


@reads_model
def states_of_sequences(
    model: PreTrainedModel,
    ids: Tensor,
    lengths: Tensor,
    start: Tensor,
    stop: Tensor,
    packed: bool = True,
    part: Part = WHOLE,
    rows: str | None = None,
) -> Tensor:
    """Return (sum of stop - start, hidden): the body's last states at tokens [start, stop) of each sequence, in order.

    ids (tokens,) are the concatenated sequences and `lengths` (sequences,) their lengths. start and stop (sequences,)
    count within each sequence. `packed` false: no two sequences share a row, even if that is exact. `part`: the layers
    that are run; its states below, if any, are (tokens, hidden). `rows`: how texts share a pass (Reading.rows); None:
    as was found to be exact."""
    rows = rows or reading_of(model, int(lengths.max())).rows
    if rows in ("packed", "padded"):
        return states_in_rows(model, ids, lengths, start, stop, packed=packed and rows == "packed", part=part)
    return states_of_equals(model, ids, lengths, start, stop, at_once=1 if rows == "single" else ANY, part=part)
