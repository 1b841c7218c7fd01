"""Templates of promptsource (T0's prompts), applied to the raw rows of their data set.

A template file is YAML: `templates`, each with `name`, `jinja` (input and target, separated by "|||") and
`answer_choices` (also Jinja, separated by "|||"; None if there are none). The results are rows of format `p3`.
We differ from promptsource: (1) nothing is cut, while its default cuts every variable to 2,048 characters; (2) a
variable that the row lacks is an error, not empty; (3) `choice` is seeded by the row, so each reading gives the same.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from data_schema.errors import DataError, did_you_mean
from data_schema.formats.parts import NumberedRows, Row
from data_schema.locations import places
from data_schema.templates import time_limit

SEPARATOR = "|||"
# Replaces a separator inside the data while a template is filled: a code point that is not a character.
PROTECTED = "\ufdd0\ufdd0\ufdd0"
LARGEST_PRODUCT = 10**7  # characters of a repeated text, bits of a power
DRAW = "_draw"  # the variable that holds the row's random generator


class PromptTemplate(NamedTuple):
    name: str
    jinja: str
    answer_choices: str | None


def find_templates(where: str) -> tuple[Path, str | None]:
    """(file, template name if any) of "file.yaml#name". Raises DataError if the file does not exist."""
    path, _, name = where.partition("#")
    for candidate in places(path):
        if candidate.is_file():
            return candidate, name or None
    raise DataError(f"{path}: no such promptsource template file; check the path", field="promptsource")


def read_templates(where: str) -> list[PromptTemplate]:
    """The template named by "file.yaml#name", or all of "file.yaml". Raises DataError naming file and fix."""
    import yaml

    path, wanted = find_templates(where)

    class Loader(yaml.SafeLoader):
        """Ignores tags such as !Template, which say nothing that the keys do not."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_mapping(node, deep=True))
    try:
        content = yaml.load(path.read_text("utf-8"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a number too long
        told = " ".join(str(error).split())
        raise DataError(f"{path}: not YAML ({told}); fix it", field="promptsource") from None
    found = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: has no 'templates'; give a templates.yaml of promptsource", field="promptsource")
    templates: dict[str, PromptTemplate] = {}
    for key, entry in found.items():
        name, jinja = (entry.get("name"), entry.get("jinja")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(jinja, str):
            raise DataError(f"{path}: template {key} needs text in 'name' and 'jinja'; fix it", field="promptsource")
        templates[name] = PromptTemplate(name, jinja, entry.get("answer_choices") or None)
    if wanted is None:
        return list(templates.values())
    if wanted not in templates:
        hint = did_you_mean(wanted, templates)
        names = ", ".join(templates)
        raise DataError(f"{path}: no template '{wanted}'.{hint} There are: {names}", field="promptsource")
    return [templates[wanted]]


def prompted(rows: Callable[[], NumberedRows], where: str, stem: str) -> NumberedRows:
    """Rows of format `p3`: one for each of `rows` and each template of `where`; those of one row share a group."""
    templates = read_templates(where)

    def filled() -> NumberedRows:
        for number, row in rows():
            if isinstance(row, DataError):
                yield number, row
            else:
                yield from ((number, fill(template, row, f"{stem}:{number}")) for template in templates)

    return filled()


def fill(template: PromptTemplate, row: Row, group: str) -> Row | DataError:
    """The row that `template` makes of `row`, which may have empty texts. A DataError if the template does not fit."""
    seed = json.dumps([template.name, row], sort_keys=True, default=str)
    values: dict[str, Any] = {key: _replaced(value, SEPARATOR, PROTECTED) for key, value in row.items()}
    values[DRAW] = random.Random(seed)
    choices: list[str] | None = None
    try:
        with time_limit(f"filling template '{template.name}' with row {group}"):
            if template.answer_choices:
                choices = [part.strip() for part in _rendered(template.answer_choices, values).split(SEPARATOR)]
            parts = _rendered(template.jinja, values | {"answer_choices": choices}).split(SEPARATOR)
    except DataError:
        raise
    except Exception as error:  # a template is a program, which can raise any error
        return DataError(
            f"template '{template.name}' cannot be filled ({error or type(error).__name__}){_lacking(template, row)}",
            field="promptsource",
            reason=f"template '{template.name}' cannot be filled",
        )
    if len(parts) > 2:
        return DataError(
            f"template '{template.name}' gives {len(parts)} parts, not input and target; fix it",
            field="promptsource",
            reason=f"template '{template.name}' does not give input and target",
        )
    texts = [_replaced(part, PROTECTED, SEPARATOR).strip() for part in (*parts, "")]
    return {
        "inputs_pretokenized": texts[0],
        "targets_pretokenized": texts[1],
        "answer_choices": _replaced(choices, PROTECTED, SEPARATOR),
        "template": template.name,
        "group": group,
    }


@cache
def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Sandbox(ImmutableSandboxedEnvironment):
        """Gives templates, which are not trusted, access to the row only, and refuses sizes that fill the memory."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            texts = [value for value in (left, right) if hasattr(value, "__len__")]
            numbers = [value for value in (left, right) if isinstance(value, int)]
            size = len(texts[0]) * numbers[0] if texts and numbers else 0
            if operator == "**" and len(numbers) == 2:
                size = left.bit_length() * right
            if size > LARGEST_PRODUCT:
                raise SecurityError(f"'{operator}' would give a result of more than {LARGEST_PRODUCT}")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(undefined=jinja2.StrictUndefined)
    del environment.globals["lipsum"]  # text of any length
    environment.globals["zip"] = zip
    environment.filters["choice"] = jinja2.pass_context(lambda context, items: context[DRAW].choice(items))
    environment.filters["most_frequent"] = _most_frequent
    return environment


@cache
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


def _lacking(template: PromptTemplate, row: Row) -> str:
    """'; the row lacks ..' with the template's columns that are missing from the row, or ''."""
    from jinja2 import meta

    names: set[str] = set()
    try:
        for source in (template.jinja, template.answer_choices or ""):
            names |= meta.find_undeclared_variables(_environment().parse(source))
    except Exception:  # it cannot be read, as the error says already
        return ""
    lacking = names - row.keys() - {"answer_choices", "zip"}
    return f"; the row lacks {', '.join(sorted(lacking))}" if lacking else ""


def _rendered(source: str, values: dict[str, Any]) -> str:
    return str(_compiled(source).render(values))


def _most_frequent(items: list[Any]) -> list[Any]:
    counts = Counter(items)
    return [item for item in counts if counts[item] == max(counts.values())]


def _replaced(value: Any, old: str, new: str) -> Any:
    """`value` with `old` replaced by `new` in every text inside it."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    return value
