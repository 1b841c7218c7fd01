"""DataError, the one error of the data layer; the count of dropped rows; how messages suggest a spelling and show
characters that cannot be printed."""

import re
from collections import Counter
from collections.abc import Iterable

# Characters that a terminal obeys or that change what a reader sees: control characters except tab and newline, marks
# that have no width or change the direction of writing, separators of lines, halves of surrogate pairs, tags.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


class DataError(ValueError):
    """A fault in the user's data or settings: one line that says where it is, what was found and how to fix it.

    `field` is the field at fault, if there is one. Dropped rows are counted by `reason`; by default it is the message
    without positions and without the part after ", found " or "; "."""

    def __init__(self, message: str, *, field: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason or re.split(r", found |; ", re.sub(r"\[\d+\]", "", message))[0]


class Drops(Counter[str]):
    """Numbers of dropped rows by reason, and the place of the first row of each reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def add(self, reason: str, place: str) -> None:
        self[reason] += 1
        self.first.setdefault(reason, place)

    def described(self) -> str:
        """The reasons with their counts and first rows, in the order of the alphabet."""
        places = {reason: f" (first: {place})" for reason, place in self.first.items()}
        return ", ".join(f"{reason}: {count}{places.get(reason, '')}" for reason, count in sorted(self.items()))


def printable(text: str) -> str:
    """The text with each character of `UNPRINTABLE` as an escape such as \\x1b or \\u202e. Everything that shows data
    or a user's value passes through this: text can otherwise move the cursor, hide lines or read backwards."""
    return text if text.isascii() and text.isprintable() else UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or "" if none is close."""
    import difflib  # imported late, like the other slow modules of this package, to keep `import data_schema` fast

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
