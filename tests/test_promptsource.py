"""Templates of promptsource, invented here, turn raw rows into P3's inputs, targets and answer choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import DataError, Demonstration, Prompt, Source, fingerprint, load

TEMPLATES = """
dataset: weather
subset: null
templates:
  1a-2b: !Template
    answer_choices: Dry ||| Wet
    id: 1a-2b
    jinja: "Report: {{text}}\\nIs it {{ answer_choices | join(' or ') }}? |||\\n{{ answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: dry or wet
    reference: ''
  3c-4d: !Template
    answer_choices: null
    id: 3c-4d
    jinja: '{% if label == 1 %}{{ ["Why wet?", "How wet?"] | choice }} {{text}} ||| {{reason}}{% endif %}'
    metadata: !TemplateMetadata {}
    name: why
    reference: ''
  5e-6f: !Template
    answer_choices: '{{text.split() | join("|||")}}'
    id: 5e-6f
    jinja: '{{text}} {% for a, b in zip([1], [2]) %}{{a}}{{b}}{% endfor %}
      ||| {{ [label, 0, 0] | most_frequent | first }}'
    name: words
"""
ROWS = [
    {"text": "Sun, all day", "label": 0, "reason": "none"},
    {"text": "Rain ||| then rain", "label": 1, "reason": "A front."},
]


@pytest.fixture
def templates(tmp_path: Path) -> str:
    path = tmp_path / "templates.yaml"
    path.write_text(TEMPLATES)
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "weather.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def texts(records: Any) -> list[tuple[str, str]]:
    return [(record.messages[0].content, record.messages[1].content) for record in records]


def test_a_named_template_makes_input_target_and_choices(rows: str, templates: str) -> None:
    records = load(Source(rows, promptsource=f"{templates}#dry or wet"), Demonstration)
    assert texts(records) == [
        ("Report: Sun, all day\nIs it Dry or Wet?", "Dry"),
        ("Report: Rain ||| then rain\nIs it Dry or Wet?", "Wet"),  # a separator in the data is no separator
    ]
    assert records[0].meta == {"answer_choices": ["Dry", "Wet"], "template": "dry or wet"}
    assert (records.format, records[0].id) == ("p3", "weather:1:dry or wet")
    prompts = load(Source(rows, promptsource=f"{templates}#dry or wet"), Prompt)
    assert [(p.prompt[0].content, p.meta) for p in prompts] == [(r.messages[0].content, r.meta) for r in records]


def test_what_a_template_leaves_empty_is_dropped_and_counted(rows: str, templates: str) -> None:
    records = load(Source(rows, promptsource=f"{templates}#why"), Demonstration)
    ((question, answer),) = texts(records)
    assert question in ("Why wet? Rain ||| then rain", "How wet? Rain ||| then rain") and answer == "A front."
    assert records.dropped == {"empty input or target": 1}
    assert "answer_choices" not in records[0].meta
    assert texts(load(Source(rows, promptsource=f"{templates}#why"), Demonstration)) == [(question, answer)]


def test_without_a_name_every_template_words_every_row_and_a_row_s_wordings_share_a_group(
    rows: str, templates: str
) -> None:
    records = load(Source(rows, promptsource=templates), Demonstration)
    assert [(r.meta["template"], r.group) for r in records] == [
        ("dry or wet", "weather:1"),
        ("words", "weather:1"),
        ("dry or wet", "weather:2"),
        ("why", "weather:2"),
        ("words", "weather:2"),
    ]
    assert records[1].messages[0].content == "Sun, all day 12" and records[1].messages[1].content == "0"
    assert records[4].meta["answer_choices"] == ["Rain", "|||", "then", "rain"]
    assert [r.id for r in load(Source(rows, promptsource=templates, skip=3), Demonstration)] == [
        r.id for r in records[2:]
    ]


def test_a_row_that_a_template_does_not_fit_is_named(tmp_path: Path, rows: str, templates: str) -> None:
    (tmp_path / "weather.jsonl").write_text('{"text": "Sun"}\n{"text": "Sun", "label": 0}\n')
    source = Source(rows, promptsource=f"{templates}#dry or wet")
    with pytest.raises(
        DataError, match=r"weather.jsonl:1: template 'dry or wet' cannot be filled .*; the row lacks label; fix"
    ):
        load(source, Demonstration)
    dropped = load(Source(rows, promptsource=source.promptsource, on_bad_row="drop"), Demonstration).dropped
    assert dropped == {"template 'dry or wet' cannot be filled": 1}


@pytest.mark.parametrize(
    ("jinja", "error"),
    [
        ("{{ text.__class__.__mro__ }} ||| x", "cannot be filled .*unsafe"),
        ("{{ text ||| x", "cannot be filled"),
        ("a ||| b ||| c", "gives 3 parts, not input and target"),
        ("{{ text + 1 }} ||| x", "cannot be filled"),
        ("{{ text | dictsort }} ||| x", "cannot be filled"),
        ("{% for a in range(10**9) %}{% endfor %}", "cannot be filled .Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot be filled .maximum recursion depth"),
        ("{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "cannot be filled .too many statically nested"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "cannot be filled .maximum recursion depth"),
        ("{{ text * 10**10 }} ||| x", r"cannot be filled .'\*' would give a result of more than"),
        ("{{ 9 ** (9 ** 9) }} ||| x", r"cannot be filled .'\*\*' would give a result of more than"),
        ("{{ lipsum(n=10**6) }}", "cannot be filled .*lipsum"),
    ],
    ids=lambda value: value[:25],
)
def test_a_template_that_is_wrong_is_told_in_one_line(tmp_path: Path, rows: str, jinja: str, error: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({"templates": {"x": {"name": "bad", "jinja": jinja}}}))
    with pytest.raises(DataError, match=error) as caught:
        load(Source(rows, promptsource=str(path)), Demonstration)
    assert "\n" not in str(caught.value)


def test_a_template_file_that_cannot_be_used_is_refused_with_the_cure(
    tmp_path: Path, rows: str, templates: str
) -> None:
    for where, error in {
        f"{templates}#dry and wet": "no template 'dry and wet'. Did you mean 'dry or wet'",
        f"{tmp_path}/none.yaml#x": "no such promptsource template file",
        str(tmp_path / "rows.yaml"): "has no 'templates'",
        str(tmp_path / "broken.yaml"): "not YAML",
        str(tmp_path / "nameless.yaml"): "template x needs text in 'name' and 'jinja'",
    }.items():
        (tmp_path / "rows.yaml").write_text("- a\n")
        (tmp_path / "broken.yaml").write_text("a: [\n")
        (tmp_path / "nameless.yaml").write_text("templates: {x: {jinja: a}}")
        with pytest.raises(DataError, match=error) as caught:
            load(Source(rows, promptsource=where), Demonstration)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="promptsource produces rows of format p3, not alpaca; leave format out"):
        Source(rows, "alpaca", promptsource=templates)


def test_the_fingerprint_follows_the_templates_and_the_name(tmp_path: Path, rows: str, templates: str) -> None:
    plain, named, all_of_them = (
        Source(rows),
        Source(rows, promptsource=f"{templates}#why"),
        Source(rows, promptsource=templates),
    )
    before = [fingerprint(source) for source in (plain, named, all_of_them)]
    assert len(set(before)) == 3
    Path(templates).write_text(TEMPLATES.replace("How wet", "How very wet"))
    after = [fingerprint(source) for source in (plain, named, all_of_them)]
    assert after[0] == before[0] and not {*after[1:]} & {*before}


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in t %}{% for b in t %}{% for c in t %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    ],
    ids=["ranges", "texts", "recursion"],
)
@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_a_template_that_never_ends_stops_with_its_name_and_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jinja: str, on_bad_row: Any
) -> None:
    monkeypatch.setattr("data_schema.templates.LONGEST_RENDERING", 0.1)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"t": "x" * 2000}) + "\n")
    (tmp_path / "endless.yaml").write_text(json.dumps({"templates": {"x": {"name": "round", "jinja": jinja}}}))
    source = Source(str(tmp_path / "rows.jsonl"), promptsource=str(tmp_path / "endless.yaml"), on_bad_row=on_bad_row)
    with pytest.raises(DataError, match=r"filling template 'round' with row rows:1 takes more than 0.1 seconds"):
        load(source, Demonstration)


def test_ordinary_sums_and_repetitions_are_filled(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "sums.yaml"
    jinja = "{{ 2 ** 3 * 4 }} {{ '-' * 5 }} {{ 4 ** 0.5 }} {{ [1] * 2 }} ||| x"
    path.write_text(json.dumps({"templates": {"x": {"name": "sums", "jinja": jinja}}}))
    records = load(Source(rows, promptsource=str(path)), Demonstration)
    assert records[0].messages[0].content == "32 ----- 2.0 [1, 1]"
