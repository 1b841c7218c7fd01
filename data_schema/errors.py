"""The one error a user of the data layer can cause, and the spelling help that goes with it."""

import re
from collections.abc import Iterable


class DataError(ValueError):
    """Something is wrong with the user's data or its description: one line with place, finding and cure.

    `field` is the field at fault, if there is one. `reason` is what dropped rows are counted by: the message without
    positions and without what was found, unless it is given.
    """

    def __init__(self, message: str, *, field: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason or re.split(r", found |; ", re.sub(r"\[\d+\]", "", message))[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the nearest known name, or '' when none is near."""
    import difflib  # late, as are the other slow imports here: `import data_schema` should cost next to nothing

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
