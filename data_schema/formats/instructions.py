"""One prompt, one answer: Dolly, GPTeacher, Self-Instruct, FLAN and its chains of thought, P3, Super-Natural
Instructions.

Further right answers, answer choices, task names and the like stay in `meta`, where evaluation finds them.
"""

import string
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.alpaca import ALPACA_OPTIONAL, instruction_readers
from data_schema.formats.general.columns import history_of, spoken
from data_schema.formats.general.transcripts import answer_after
from data_schema.formats.parts import (
    Drop,
    Format,
    Origin,
    Outcome,
    Reader,
    Row,
    item_of,
    prompt_of,
    rest,
    spread,
    text_of,
    with_input,
)
from data_schema.records import Demonstration, Message, Prompt, check_text, describe

# ---- a column for the question and one for the answer


def pair_readers(question: str, answer: str) -> dict[type, Reader]:
    """Readers of rows with a question in one column and its answer in another."""

    def asked(row: Row) -> tuple[Message, ...]:
        said = prompt_of(row) if question == "prompt" else spoken(text_of(row, question), question)
        return (*history_of(row), *said)

    def demonstration(row: Row, origin: Origin) -> Outcome:
        said = text_of(row, answer)
        if isinstance(row[question], str):
            said = answer_after(row[question], said)
        messages = (*asked(row), Message("assistant", said))
        return Demonstration(*origin, messages=messages, meta=rest(row, question, answer, "history"))

    def prompt(row: Row, origin: Origin) -> Outcome:
        return Prompt(*origin, prompt=asked(row), meta=rest(row, question, answer, "history"))

    return {Demonstration: demonstration, Prompt: prompt}


# ---- Self-Instruct: an instruction and its instances


def _optional_text(values: Row, column: str, inside: str = "") -> str:
    value = values.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'{inside}{column}' must be text, found {describe(value)}", field=inside + column)
    return value or ""


def self_instruct_prompt(row: Row, origin: Origin) -> Prompt:
    name, instance, at = item_of(row, "instances", origin)
    question = with_input(text_of(row, "instruction"), _optional_text(instance, "input", f"{name}."))
    if whole := _optional_text(instance, "instruction_with_input", f"{name}."):  # Unnatural Instructions
        question = with_input(whole, _optional_text(instance, "constraints", f"{name}."))
    return Prompt(*at, prompt=(Message("user", question),), group=origin.id, meta=rest(row, "instruction", "instances"))


def self_instruct_demonstration(row: Row, origin: Origin) -> Outcome:
    asked = self_instruct_prompt(row, origin)
    name, instance, _ = item_of(row, "instances", origin)
    return _answered(asked, check_text(instance.get("output"), f"{name}.output"))


def _answered(asked: Prompt, answer: str) -> Demonstration:
    messages = (*asked.prompt, Message("assistant", answer))
    return Demonstration(asked.id, asked.source, messages, asked.group, asked.meta)


# ---- Super-NaturalInstructions: a task file, its definition, examples and instances


def _first_text(value: object, name: str) -> str:
    return check_text(value[0] if isinstance(value, list) and value else value, name)


def _references(instance: dict[str, Any], name: str) -> list[str]:
    """All right answers. Most tasks list them; a few have a single text."""
    output = instance.get("output", [])
    return [check_text(text, f"{name}.output") for text in (output if isinstance(output, list) else [output])]


def _defined(definition: str, question: str) -> str:
    return f"{definition}\n\n{question}" if question.strip() else definition


def _superni_prompt(row: Row, origin: Origin, few_shot: bool) -> Prompt:
    name, instance, at = item_of(row, "Instances", origin)
    definition = _first_text(row["Definition"], "Definition")
    question = _optional_text(instance, "input", f"{name}.")
    content = _few_shot(row, definition, question) if few_shot else _defined(definition, question)
    meta = rest(row, "Definition", "Instances", "Positive Examples", "Negative Examples", "Contributors", "URL")
    meta |= {"instance": instance.get("id"), "references": _references(instance, name)}
    # The file name is the task; a subset is called task7_name.train, for example.
    task = origin.id.rpartition(":")[0].partition(".")[0]
    return Prompt(*at, prompt=(Message("user", content),), group=task, meta=meta)


def _few_shot(row: Row, definition: str, question: str) -> str:
    """The encoding of Tk-Instruct: definition, two positive examples, the instance."""
    examples = row.get("Positive Examples")
    blocks = [f"Definition: {definition.strip()}"]
    for i, example in enumerate(examples[:2] if isinstance(examples, list) else []):
        name = f"Positive Examples[{i}]"
        if not isinstance(example, dict):
            raise DataError(f"'{name}' must be an object, found {describe(example)}", field=name)
        shown = _optional_text(example, "input", f"{name}.").strip()
        answer = _first_text(example.get("output"), f"{name}.output").strip()
        blocks.append(f"Positive Example {i + 1} -\nInput: {_stopped(shown)}\nOutput: {_stopped(answer)}")
    blocks.append(f"Now complete the following example -\nInput: {_stopped(question.strip())}\nOutput:")
    return "\n\n".join(blocks)


def _stopped(text: str) -> str:
    return text if not text or text[-1] in string.punctuation else text + "."


def superni_readers(few_shot: bool) -> dict[type, Reader]:
    def prompt(row: Row, origin: Origin) -> Outcome:
        return _superni_prompt(row, origin, few_shot)

    def demonstration(row: Row, origin: Origin) -> Outcome:
        asked = _superni_prompt(row, origin, few_shot)
        if not asked.meta["references"]:
            raise DataError("an instance has no 'output'", field="Instances")
        return _answered(asked, asked.meta["references"][0])

    return {Demonstration: demonstration, Prompt: prompt}


def natural_instructions_prompt(row: Row, origin: Origin) -> Prompt:
    """The flat form on the hub, where each row is one instance with one of its answers."""
    content = _defined(_first_text(row["definition"], "definition"), _optional_text(row, "inputs"))
    meta = rest(row, "definition", "inputs", "targets")
    return Prompt(*origin, prompt=(Message("user", content),), group=row.get("task_name"), meta=meta)


def natural_instructions_demonstration(row: Row, origin: Origin) -> Outcome:
    return _answered(natural_instructions_prompt(row, origin), text_of(row, "targets"))


# ---- FLAN's chains of thought: input, target, rationale


def _cot_cell(row: Row, column: str) -> str:
    return text_of(row, column).replace("\\n", "\n")  # the files write a newline as backslash and n


def cot_prompt(row: Row, origin: Origin) -> Prompt:
    cells = {column: _cot_cell(row, column) for column in ("target", "rationale")}
    meta = rest(row, "input") | cells
    return Prompt(*origin, prompt=(Message("user", _cot_cell(row, "input")),), meta=meta)


def cot_demonstration(row: Row, origin: Origin) -> Outcome:
    """The rationale, then the answer in FLAN's words."""
    asked = cot_prompt(row, origin)
    return _answered(asked, f"{asked.meta['rationale'].rstrip()} The answer is {asked.meta['target'].strip()}.")


def cot_direct_demonstration(row: Row, origin: Origin) -> Outcome:
    asked = cot_prompt(row, origin)
    return _answered(asked, asked.meta["target"])


# ---- P3, T0's data: as on the hub, and as promptsource.py makes it


def p3_prompt(row: Row, origin: Origin) -> Prompt | Drop:
    if row.get("is_correct") is False:
        return Drop("a wrong answer choice")  # the subsets for scoring contain every choice
    question, answer = (row[column] for column in ("inputs_pretokenized", "targets_pretokenized"))
    for column, text in (("inputs_pretokenized", question), ("targets_pretokenized", answer)):
        if not isinstance(text, str):
            raise DataError(f"'{column}' must be text, found {describe(text)}", field=column)
    if not question.strip() or not answer.strip():
        return Drop("empty input or target")  # templates with a condition exclude rows this way
    at = Origin(f"{origin.id}:{row['template']}", origin.source) if row.get("template") else origin
    meta = rest(row, "inputs", "targets", "inputs_pretokenized", "targets_pretokenized", "group")
    return Prompt(*at, prompt=(Message("user", question.strip()),), group=row.get("group"), meta=meta)


def p3_demonstration(row: Row, origin: Origin) -> Outcome:
    asked = p3_prompt(row, origin)
    return asked if isinstance(asked, Drop) else _answered(asked, row["targets_pretokenized"].strip())


# ---- which format is which


def _any(row: Row) -> bool:
    return True


def reads_history(columns: tuple[str, ...]) -> tuple[str, ...]:
    return ("history",)


COT_COLUMNS = ("input", "target", "rationale")

INSTRUCTION_FORMATS: dict[str, Format] = {
    "dolly": Format(
        frozenset({"instruction", "context", "response"}),
        lambda row: row["context"] is None or isinstance(row["context"], str),
        instruction_readers("context", "response"),
        always_reads=reads_history,
    ),
    "gpteacher": Format(
        frozenset({"instruction", "response"}),
        _any,
        instruction_readers("input", "response"),
        always_reads=lambda columns: ALPACA_OPTIONAL,
    ),
    "self_instruct": Format(
        frozenset({"instruction", "instances"}),
        _any,
        {Demonstration: self_instruct_demonstration, Prompt: self_instruct_prompt},
        gather=spread("instances"),
    ),
    "superni": Format(
        frozenset({"Definition", "Instances"}), _any, superni_readers(few_shot=False), gather=spread("Instances")
    ),
    "superni_few_shot": Format(
        frozenset({"Definition", "Instances"}), _any, superni_readers(few_shot=True), gather=spread("Instances")
    ),
    "natural_instructions": Format(
        frozenset({"definition", "inputs", "targets"}),
        _any,
        {Demonstration: natural_instructions_demonstration, Prompt: natural_instructions_prompt},
    ),
    "p3": Format(
        frozenset({"inputs_pretokenized", "targets_pretokenized"}),
        _any,
        {Demonstration: p3_demonstration, Prompt: p3_prompt},
        reads=lambda row: ("is_correct", "inputs", "targets", "template", "group"),
        judges=True,
    ),
    "flan": Format(
        frozenset({"inputs", "targets"}), _any, pair_readers("inputs", "targets"), always_reads=reads_history
    ),
    "flan_cot": Format(
        frozenset(COT_COLUMNS), _any, {Demonstration: cot_demonstration, Prompt: cot_prompt}, header=COT_COLUMNS
    ),
    "flan_cot_direct": Format(
        frozenset(COT_COLUMNS), _any, {Demonstration: cot_direct_demonstration, Prompt: cot_prompt}, header=COT_COLUMNS
    ),
    "open_orca": Format(
        frozenset({"system_prompt", "question", "response"}), _any, pair_readers("question", "response")
    ),
}
