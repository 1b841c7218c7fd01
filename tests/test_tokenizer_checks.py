from __future__ import annotations

from typing import Any

import pytest
from tiny_models import byte_tokenizer, quickstart_tokenizer
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from data_schema import Message
from data_schema.templates import TEMPLATES
from policy.encoding import set_template
from stages.data_checks.tokenizer_checks import encode_rows, tokenizer_findings

CHATML = TEMPLATES["chatml"].chat_template
COUNTING = "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
FORGETFUL = (
    "{% for m in messages %}{{ 'A: ' if m['role'] == 'assistant' else 'Q: ' }}"
    "{{ m['content'] + eos_token if m['role'] == 'assistant' else '...' }}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
WITHOUT_EOS = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def found(tokenizer: Any, own_template: bool = True) -> set[tuple[str, str]]:
    findings = tokenizer_findings(tokenizer, own_template)
    assert all("\n" not in finding.text and finding.cure for finding in findings)
    return {(finding.severity, finding.check) for finding in findings}


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_is_wrong_with_our_templates_on_a_sound_tokenizer(name: str) -> None:
    tokenizer: Any = quickstart_tokenizer() if name == "quickstart" else byte_tokenizer()
    set_template(tokenizer, name)
    assert found(tokenizer, own_template=False) == set()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pad_token": "<|im_end|>"}, ("error", "pad_is_eos")),
        ({"pad_token": None}, ("error", "pad")),
        (
            {"eos_token": None, "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
            ("error", "eos"),
        ),
        ({"chat_template": COUNTING}, ("error", "template_prefix")),
        ({"chat_template": FORGETFUL}, ("error", "template_text")),
        ({"chat_template": "{{ raise_exception('not today') }}"}, ("error", "template_refuses")),
        ({"bos_token": "<|endoftext|>", "chat_template": "{{ bos_token * 2 }}" + CHATML}, ("error", "double_bos")),
        ({"eos_token": AddedToken("<|end|>", single_word=True)}, ("error", "eos_not_trained")),
        ({"chat_template": WITHOUT_EOS}, ("warning", "eos_not_trained")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_each_broken_tokenizer_is_found_out(settings: dict[str, Any], expected: tuple[str, str]) -> None:
    tokenizer = byte_tokenizer(**{"chat_template": CHATML} | settings)
    assert expected in found(tokenizer)
    assert not {finding for finding in found(tokenizer) if finding[0] == "error"} - {expected}


def test_an_eos_that_is_not_in_the_vocabulary_is_an_error() -> None:
    tokenizer: Any = quickstart_tokenizer()
    tokenizer.eos_token = "<nowhere>"
    assert tokenizer.eos_token_id == tokenizer.unk_token_id
    assert ("error", "eos") in found(tokenizer, own_template=False)


def test_a_second_bos_from_the_tokenizer_itself_is_a_warning_and_one_bos_is_none() -> None:
    tokenizer = byte_tokenizer(bos_token="<|endoftext|>", chat_template="{{ bos_token }}" + CHATML)
    assert found(tokenizer) == set()
    bos = ("<|endoftext|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    assert found(tokenizer) == {("warning", "double_bos")}
    set_template(tokenizer, "chatml")  # ours, which gets a BOS because this tokenizer wants one
    assert found(tokenizer, own_template=False) == set()


def test_a_template_for_one_turn_alone_is_a_warning() -> None:
    once = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
    [finding] = tokenizer_findings(byte_tokenizer(chat_template=once), own_template=True)
    assert (finding.severity, finding.check) == ("warning", "template_refuses")
    assert "one turn only" in finding.text


def test_a_refused_row_stands_as_its_reason_among_the_others() -> None:
    tokenizer: Any = quickstart_tokenizer()
    good = [Message("user", "sort these words : fox dog"), Message("assistant", "dog fox .")]
    rows = encode_rows(tokenizer, [good, [Message("system", "be kind"), *good], good])
    assert rows[0] == rows[2] and not isinstance(rows[0], str)
    assert isinstance(rows[1], str) and "no system messages" in rows[1]
