"""Published formats: functions that turn a row into one kind of record, and the table by which formats are recognised.

To add a format: write `name_kind(row, origin)` and add a row to PUBLISHED. A function returns a record, a `Drop` for a
known flaw of the format (always dropped and counted), or a list of these if one row contains several records (a tree,
a task file). It raises DataError for everything else that is wrong. Columns without a field go into `meta`.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from data_schema.errors import DataError, did_you_mean
from data_schema.formats import alpaca, dialogues, instructions, preference, rankings
from data_schema.formats.comparisons import COMPARISON_FORMATS, GENERAL_COMPARISONS
from data_schema.formats.dialogues import DIALOGUE_FORMATS
from data_schema.formats.general import single
from data_schema.formats.general.choices import always_read_by_choice, read_by_choice
from data_schema.formats.general.columns import history_of, question_columns, turn_columns
from data_schema.formats.general.framed import framed
from data_schema.formats.general.transcripts import answer_after
from data_schema.formats.instructions import INSTRUCTION_FORMATS
from data_schema.formats.parts import Drop, Format, Origin, Outcome, Reader, Row, prompt_of, rest, text_of
from data_schema.formats.ranking_parts import readers
from data_schema.messages import check_learned
from data_schema.records import (
    KIND_NAMES,
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    R,
    parse_messages,
    prompt_messages,
)
from data_schema.table import from_row

# ---- our own records


def _is_own(row: Row) -> bool:
    optional = {"group", "meta", "labeler", "margin"}
    own = [{"messages"}, {"prompt", "responses", "ranks"}, {"prompt"}, {"text"}]
    named = isinstance(row["id"], str) and isinstance(row["source"], str) and not isinstance(row.get("prompt"), str)
    return named and set(row) - {"id", "source"} - optional in own


def _own(kind: type[R]) -> Reader:
    return lambda row, origin: from_row(kind, row)


def _own_prompt(row: Row, origin: Origin) -> Outcome:
    """A prompt, or that of a demonstration or comparison."""
    if "messages" not in row and "responses" not in row:
        return from_row(Prompt, row)
    whole = from_row(Demonstration, row) if "messages" in row else from_row(Comparison, row)
    return Prompt(whole.id, whole.source, prompt_messages(whole), whole.group, whole.meta)


# ---- conversations, completions, prompts, ranked lists, plain text


def messages_demonstration(row: Row, origin: Origin) -> Outcome:
    check_learned(row["messages"], "messages")
    messages = parse_messages(row["messages"], "messages")
    return Demonstration(*origin, messages=messages, meta=rest(row, "messages"))


def messages_prompt(row: Row, origin: Origin) -> Outcome:
    """The conversation up to its last user message."""
    messages = parse_messages(row["messages"], "messages")
    prompt = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    return Prompt(*origin, prompt=prompt, meta=rest(row, "messages"))


GPT3_END = "<|endoftext|>"


def _is_gpt3(row: Row) -> bool:
    """Whether the row is in GPT-3's fine-tuning form ("question\\n\\n", " answer<|endoftext|>")."""
    return isinstance(row.get("completion"), str) and row["completion"].rstrip().endswith(GPT3_END)


def prompt_completion_demonstration(row: Row, origin: Origin) -> Outcome:
    """A completion in GPT-3's form loses its white space and end mark, since templates add their own."""
    if isinstance(row["completion"], list):
        answer = parse_messages(row["completion"], "completion")
    else:
        text = text_of(row, "completion")
        if _is_gpt3(row):
            text = text.rstrip().removesuffix(GPT3_END).strip()
            if not text:
                return Drop("empty completion")  # some of P3's templates exclude rows this way
        if isinstance(row["prompt"], str):
            text = answer_after(row["prompt"], text)
        answer = (Message("assistant", text),)
    return Demonstration(*origin, messages=(*_asked(row), *answer), meta=rest(row, "prompt", "completion", "history"))


def _asked(row: Row) -> tuple[Message, ...]:
    asked = prompt_of({**row, "prompt": text_of(row, "prompt").strip()} if _is_gpt3(row) else row)
    return (*history_of(row), *asked)


def prompt_only(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=_asked(row), meta=rest(row, "prompt", "completion", "history"))


def text_document(row: Row, origin: Origin) -> Outcome:
    return Document(*origin, text=text_of(row, "text"), meta=rest(row, "text"))


# ---- which format is which


def _is_messages(row: Row) -> bool:
    turns = row["messages"]
    if not (isinstance(turns, list) and turns and isinstance(turns[0], dict)):
        return True
    return "role" in turns[0] and ("content" in turns[0] or not isinstance(turns[0].get("text"), str))


def _is_hh(row: Row) -> bool:
    return isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:") and "prompt" not in row


def _is_text_pair(row: Row) -> bool:
    return all(row[column] is None or isinstance(row[column], str) for column in ("chosen", "rejected"))


def _any(row: Row) -> bool:
    return True


# The first format that fits a row wins, so those that need more columns come before those that need fewer.
PREFERENCE_READERS: dict[type, Reader] = {
    Comparison: preference.preference_comparison,
    Demonstration: preference.preference_demonstration,
    Prompt: preference.preference_prompt,
}
OWN = Format(frozenset({"id", "source"}), _is_own, {**{kind: _own(kind) for kind in KIND_NAMES}, Prompt: _own_prompt})
PUBLISHED: dict[str, Format] = {
    "hh": Format(
        frozenset({"chosen", "rejected"}),
        _is_hh,
        {
            Comparison: preference.hh_comparison,
            Demonstration: preference.hh_demonstration,
            Prompt: preference.hh_prompt,
        },
        judges=True,
        may_be=lambda columns: "prompt" not in columns,
    ),
    **COMPARISON_FORMATS,
    "alpaca_preference": Format(
        frozenset({"instruction", "chosen", "rejected"}),
        _is_text_pair,
        {Comparison: alpaca.alpaca_preference, Demonstration: alpaca.alpaca_chosen, Prompt: alpaca.alpaca_prompt},
        always_reads=lambda columns: (*alpaca.ALPACA_OPTIONAL, "output", "margin"),
        judges=True,
    ),
    "preference": Format(
        frozenset({"prompt", "chosen", "rejected"}),
        lambda row: row["prompt"] is not None,
        PREFERENCE_READERS,
        reads=read_by_choice,
        always_reads=always_read_by_choice,
        judges=True,
    ),
    "preference_implicit": Format(
        frozenset({"chosen", "rejected"}),
        lambda row: isinstance(row["chosen"], list) and not question_columns(row),
        PREFERENCE_READERS,
        reads=read_by_choice,
        always_reads=always_read_by_choice,
        judges=True,
    ),
    "ranked": Format(
        frozenset({"prompt", "responses", "ranks"}),
        _any,
        {Comparison: rankings.ranked_comparison, Prompt: rankings.ranked_prompt},
        always_reads=lambda columns: ("margin", "labeler", "group"),
        judges=True,
    ),
    **GENERAL_COMPARISONS,
    **DIALOGUE_FORMATS,
    "messages": Format(
        frozenset({"messages"}), _is_messages, {Demonstration: messages_demonstration, Prompt: messages_prompt}
    ),
    "conversation": Format(
        frozenset(), single.is_talk, single.TALK_READERS, reads=single.read_by_talk, may_be=turn_columns
    ),
    "alpaca_ranking": Format(
        frozenset({"instruction", "output"}),
        lambda row: isinstance(row["output"], list),
        readers(alpaca.alpaca_ranking),
        always_reads=lambda columns: alpaca.ALPACA_OPTIONAL,
        judges=True,
    ),
    "alpaca": Format(
        frozenset({"instruction", "output"}),
        _any,
        alpaca.instruction_readers("input", "output"),
        always_reads=lambda columns: alpaca.ALPACA_OPTIONAL,
    ),
    **INSTRUCTION_FORMATS,
    "prompt_completion": Format(
        frozenset({"prompt", "completion"}), _any, {Demonstration: prompt_completion_demonstration, Prompt: prompt_only}
    ),
    "prompt_response": Format(
        frozenset({"prompt", "response"}),
        _any,
        instructions.pair_readers("prompt", "response"),
        always_reads=instructions.reads_history,
    ),
    "pair": Format(frozenset(), single.is_pair, single.PAIR_READERS, reads=single.read_by_single),
    "prompt": Format(frozenset({"prompt"}), _any, {Prompt: prompt_only}, always_reads=instructions.reads_history),
    "question": Format(frozenset(), single.is_question, single.QUESTION_READERS, reads=single.read_by_question),
    "alpaca_text": Format(
        frozenset({"text"}),
        alpaca.is_alpaca_text,
        {Demonstration: alpaca.alpaca_text_demonstration, Prompt: alpaca.alpaca_text_prompt},
    ),
    "guanaco_text": Format(
        frozenset({"text"}),
        dialogues.is_guanaco_text,
        {Demonstration: dialogues.guanaco_demonstration, Prompt: dialogues.guanaco_prompt},
    ),
    "transcript": Format(frozenset({"text"}), single.is_transcript, single.TRANSCRIPT_READERS),
    "text": Format(frozenset({"text"}), _any, {Document: text_document}),
}
FORMATS: dict[str, Format] = {"records": OWN, **{name: framed(form) for name, form in PUBLISHED.items()}}


def check_format_name(name: str) -> None:
    """Raises DataError unless `name` is "auto" or in FORMATS."""
    if name != "auto" and name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise DataError(f"unknown format '{name}'.{hint} Choose one of auto, {', '.join(FORMATS)}.", field="format")


def recognise(row: Row) -> str:
    """The name of the format that a row is in. Raises DataError if no format matches."""
    for name, form in FORMATS.items():
        if form.columns <= row.keys() and form.looks_right(row):
            return name
    headless = [name for name, form in FORMATS.items() if form.header and len(form.header) == len(row)]
    hint = f" ({' or '.join(headless)} for a .tsv without a header line)" if headless else ""
    shown = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in row)
    near = sorted(
        FORMATS, key=lambda name: -len(FORMATS[name].columns & row.keys()) / max(1, len(FORMATS[name].columns or row))
    )[:3]
    wanted = "; ".join(f"{name}: {', '.join(sorted(FORMATS[name].columns))}" for name in near)
    raise DataError(
        f"no known format has the columns {shown or '(none)'} with such values; rename them to match a format of"
        f" docs/data_formats.md (closest: {wanted}), or set the format{hint}",
        field="format",
    )


def recognise_most(rows: Sequence[Row]) -> str:
    """The format of most rows; of equally frequent ones the first to occur. Raises DataError if no row has one."""
    found: Counter[str] = Counter()
    for row in rows:
        with suppress(DataError):
            found[recognise(row)] += 1
    return found.most_common(1)[0][0] if found else recognise(rows[0])


def recognise_cells(cells: Sequence[str]) -> str | None:
    """The format of a .tsv without a header line, by the cells of its first row; None if they may be a header.

    Questions and explanations have many words, while column names have few."""
    if not cells or min(len(cell.split()) for cell in (cells[0], cells[-1])) < 3:
        return None
    return next((name for name, form in FORMATS.items() if form.header and len(form.header) == len(cells)), None)


def reader_for(name: str, kind: type[R]) -> Reader:
    """The function that reads rows of format `name` as `kind`. Raises DataError if the format does not provide it."""
    able_to = FORMATS[name].readers
    if kind not in able_to:
        able = [other for other, form in FORMATS.items() if kind in form.readers]
        raise DataError(
            f"format '{name}' gives {' or '.join(KIND_NAMES[k] for k in able_to)}, not {KIND_NAMES[kind]};"
            f" use one of {', '.join(able)}",
            field="format",
        )
    return able_to[kind]
