"""What template and tokenizer make of rows: nothing is lost or changed without a finding, and none is a false alarm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from test_encoding_templates import KINDS, NAMES, make_tokenizer
from tiny_models import byte_tokenizer, quickstart_tokenizer

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record
from data_schema.templates import TEMPLATES
from policy.encoding import set_template
from stages.data_checks.row_tokens import token_lengths

QUESTION = Message("user", "why is it so")
DEMONSTRATION = Demonstration("d", "s", (QUESTION, Message("assistant", "because, yes")))
COMPARISON = Comparison("c", "s", (QUESTION,), ("no", "perhaps it is so"), (1, 2))
CHATML = TEMPLATES["chatml"].chat_template
ONLY_AFTER_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'].split('</think>')[-1] }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def found(rows: Sequence[Record], tokenizer: Any) -> dict[str, tuple[str, int | None, tuple[str, ...]]]:
    findings = token_lengths(rows, type(rows[0]), tokenizer)[1]
    assert all("\n" not in finding.text and finding.cure for finding in findings)
    return {finding.check: (finding.severity, finding.count, finding.examples) for finding in findings}


def talk(*texts: str, name: str = "t", system: str | None = None) -> Demonstration:
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Demonstration(name, "s", ((Message("system", system), *turns) if system else tuple(turns)))


def test_tokens_are_counted_as_they_are_spelled_with_template_and_eos() -> None:
    tokenizer = byte_tokenizer()
    set_template(tokenizer, "chatml")
    n = {text: len(tokenizer(text)["input_ids"]) for text in ("<|im_start|>user\nwhy is it so<|im_end|>", "no")}
    opening = len(tokenizer("\n<|im_start|>assistant\n")["input_ids"])
    prompt = n["<|im_start|>user\nwhy is it so<|im_end|>"] + opening
    lengths, findings = token_lengths([COMPARISON], Comparison, tokenizer)
    longer = len(tokenizer("perhaps it is so")["input_ids"])
    assert list(lengths.answers) == [n["no"] + 1, longer + 1]
    # Prompt and opening are one piece of text, in which tokens may join.
    assert prompt - 3 <= lengths.whole[0] - longer - 1 <= prompt
    assert findings == []


def test_rows_that_a_template_refuses_or_that_say_nothing_are_found() -> None:
    tokenizer = byte_tokenizer(
        chat_template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + ('' if m['role'] == 'user' else eos_token) }}{% endfor %}"
    )
    empty, system = talk("why", "<|im_end|>", name="e"), talk("why", "yes", name="y", system="be kind")
    rows = [DEMONSTRATION, empty, system, system]
    assert len(token_lengths(rows, Demonstration, tokenizer)[0].whole) == 2
    assert found(rows, tokenizer) == {
        "empty_target": ("warning", 1, ("e",)),
        "special_token_in_text": ("warning", 1, ("e",)),
        "template_refuses": ("error", 2, ("y", "y")),
    }


def test_a_template_that_fails_on_one_row_of_many_is_an_error_that_names_the_row() -> None:
    fails = "{% for m in messages %}{% if 'x' in m['content'] %}{{ m['content'] + 1 }}{% endif %}{% endfor %}"
    rows = [talk("why", "yes", name=f"r:{i}") for i in range(1, 41)] + [talk("why x", "yes", name="r:41")]
    assert found(rows, byte_tokenizer(chat_template=fails + CHATML)) == {"template_refuses": ("error", 1, ("r:41",))}


def test_a_word_that_a_tokenizer_cannot_read_is_an_error_that_names_the_row() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"why": 0, "yes": 1, "</s>": 2, "<pad>": 3}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    set_template(tokenizer, "plain")
    rows = [talk("why", "yes", name="a"), talk("why", "perhaps", name="b"), talk("why", "yes", name="c")]
    lengths, _ = token_lengths(rows, Demonstration, tokenizer)
    assert list(lengths.whole) == [3, 3]
    assert found(rows, tokenizer) == {"template_refuses": ("error", 1, ("b",))}


def test_an_answer_that_the_template_cuts_is_a_warning_and_one_that_it_drops_an_error() -> None:
    tokenizer = byte_tokenizer(chat_template=ONLY_AFTER_THINKING)
    rows = [talk("2 + 2", "<think>two</think>4", name="a"), talk("2 + 2", "4", name="b")]
    assert found(rows, tokenizer) == {"answer_altered": ("warning", 1, ("a",))}
    upper = byte_tokenizer(chat_template=CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}"))
    assert found([talk("why", "yes", name="a")], upper)["answer_lost"] == ("error", 1, ("a",))


def test_an_answer_with_eos_in_its_middle_is_a_warning() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    assert found([talk("why", "yes<|im_end|>because", name="a")], tokenizer) == {
        "answer_altered": ("warning", 1, ("a",)),
        "special_token_in_text": ("warning", 1, ("a",)),
    }


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (CHATML.replace("message['role'] == 'system'", "false"), None),  # raises for system messages
        ("{% set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}" + CHATML, "dropped"),
        (CHATML.replace("message['content']", "message['content'] | replace('kind', 'rude')"), "rewritten"),
        (CHATML.replace("message['content']", "message['content'] | trim"), "trimmed"),
    ],
)
def test_a_system_message_that_a_template_drops_or_rewrites_is_found(template: str, row: str | None) -> None:
    told = found([talk("why", "yes", name="a", system=" be kind\n")], byte_tokenizer(chat_template=template))
    expected = {
        None: {"template_refuses": ("error", 1, ("a",))},
        "dropped": {"prompt_altered": ("warning", 1, ("a",))},
        "rewritten": {"prompt_altered": ("warning", 1, ("a",))},
        "trimmed": {},
    }[row]
    assert told == expected


def test_a_system_message_that_a_template_puts_into_the_users_turn_is_kept() -> None:
    merged = (
        "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + (first if loop.first else '') + m['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert found([talk("why", "yes", system="be kind")], byte_tokenizer(chat_template=merged)) == {}


def test_a_template_that_writes_the_date_is_a_warning_and_one_that_depends_on_chance_an_error() -> None:
    rows = [talk("why", "yes")]
    dated = byte_tokenizer(chat_template="{{ strftime_now('%d %B %Y') }}" + CHATML)
    assert found(rows, dated) == {"template_date": ("warning", None, ())}
    optional = "{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% endif %}{{ d }}"
    assert found(rows, byte_tokenizer(chat_template=optional + CHATML)) == {"template_date": ("warning", None, ())}
    chance = "{{ range(90000) | random if not add_generation_prompt else '' }}"
    told = found(rows, byte_tokenizer(chat_template=CHATML + chance))
    assert told == {"template_chance": ("error", None, ())}


def test_a_tokenizer_that_changes_text_is_a_warning() -> None:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    rows = [talk("why", "yes", name="a"), talk("why", "Yes", name="b")]
    assert found(rows, tokenizer) == {"tokens_altered": ("warning", 1, ("b",))}


def test_special_tokens_in_a_text_are_counted_in_documents_too() -> None:
    documents = [Document("a", "s", "one <|endoftext|> two"), Document("b", "s", "three <|im_end|> four")]
    told = found(documents, byte_tokenizer())
    assert told == {"special_token_in_text": ("warning", 1, ("b",))}


TEXTS = [
    "A wren.",
    "- one\n\n  two (鳥)\n\n\nthree  four\tfive",
    "def f(x):\n    return x  # naïve façade ½ 👩‍🚀",
    " leading and trailing \n",
    "I'm here , don't you see ? \"yes\" .",
    "<think>two</think>4",
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_a_false_alarm_on_any_kind_of_tokenizer(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    texts = ["dog fox .", "echo this : fox", "fox  dog"] if kind == "words" else TEXTS
    rows = [talk(a, b, b, a, name=str(i)) for i, (a, b) in enumerate(pairwise(texts))]
    for name in ["quickstart"] if kind == "words" else NAMES:
        set_template(tokenizer, name)
        told = found(rows, tokenizer)
        assert told.keys() <= {"unknown_tokens"}, name


def test_the_quickstarts_own_rows_are_no_false_alarm() -> None:
    from data_schema import Source, load

    source = Source("python:data_schema.quickstart.data:demonstrations", limit=300)
    assert found(list(load(source, Demonstration, 0)), quickstart_tokenizer()) == {}


def test_prompts_and_published_ways_of_writing_them_are_no_false_alarm() -> None:
    prompts = [
        ("alpaca", "Translate it.\n\nThe bird.\n\nTwo paragraphs."),
        ("tldr", "SUBREDDIT: r/birds\n\nPOST: a wren TL;DR:"),
        ("tldr", "SUBREDDIT: r/birds\n\nPOST: a wren\n\nTL;DR:"),
    ]
    for template, text in prompts:
        tokenizer = byte_tokenizer()
        set_template(tokenizer, template)
        assert found([Prompt("p", "s", (Message("user", text),))], tokenizer) == {}
