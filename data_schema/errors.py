"""DataError, the one error of the data layer, and the spelling suggestions in its messages."""

import re
from collections.abc import Iterable


class DataError(ValueError):
    """A fault in the user's data or settings: one line that says where it is, what was found and how to fix it.

    `field` is the field at fault, if there is one. Dropped rows are counted by `reason`; by default it is the message
    without positions and without the part after ", found " or "; "."""

    def __init__(self, message: str, *, field: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason or re.split(r", found |; ", re.sub(r"\[\d+\]", "", message))[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or "" if none is close."""
    import difflib  # imported late, like the other slow modules of this package, to keep `import data_schema` fast

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
