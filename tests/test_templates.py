"""Every template keeps the prefix promise under the renderer that Hugging Face tokenizers use."""

import re
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_schema import TEMPLATES, DataError, template

EOS = "</s>"
TALK = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A wren."},
    {"role": "user", "content": "Another?\n\nOne that swims."},
    {"role": "assistant", "content": "  A duck:\n- brown\n"},
    {"role": "user", "content": "Thanks {{ user }}"},
    {"role": "assistant", "content": "Any time."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
WITH_SYSTEM = [name for name in TEMPLATES if name != "quickstart"]


class Generation(Extension):
    """Marks what stands in {% generation %} with «», so that a test can see it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"«{caller()}»"


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def render_marked(name: str, messages: list[dict[str, str]], prompt: bool = False) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
    environment.globals["raise_exception"] = raise_exception
    compiled = environment.from_string(template(name).chat_template)
    return compiled.render(messages=messages, eos_token=EOS, add_generation_prompt=prompt)


def render(name: str, messages: list[dict[str, str]], prompt: bool = False) -> str:
    return render_marked(name, messages, prompt).replace("«", "").replace("»", "")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("start", [[], [SYSTEM]], ids=["plain", "system"])
def test_the_prompt_with_generation_prompt_is_a_prefix_of_the_text_with_the_answer(name: str, start: list) -> None:
    if start and name not in WITH_SYSTEM:
        pytest.skip("has no system messages")
    for k in range(1, len(TALK), 2):
        prompt = render(name, start + TALK[:k], prompt=True)
        assert render(name, start + TALK[: k + 1]).startswith(prompt)
        assert render(name, start + TALK[: k + 2]).startswith(render(name, start + TALK[: k + 1]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_generation_mark_holds_exactly_what_follows_the_generation_prompt(name: str) -> None:
    for k in range(1, len(TALK), 2):
        marked = re.findall("«(.*?)»", render_marked(name, TALK[: k + 1]), re.DOTALL)
        answer = render(name, TALK[: k + 1]).removeprefix(render(name, TALK[:k], prompt=True))
        assert marked[-1] == answer
        assert len(marked) == (k + 1) // 2
        assert answer.endswith(EOS)
        assert answer.removesuffix(EOS).strip() == TALK[k]["content"].strip()


@pytest.mark.parametrize("name", TEMPLATES)
def test_reading_a_generated_answer_back_as_a_message_gives_the_same_text(name: str) -> None:
    text = render(name, TALK[:2])
    generated = text.removeprefix(render(name, TALK[:1], prompt=True)).removesuffix(EOS).strip()
    assert render(name, [TALK[0], {"role": "assistant", "content": generated}]) == text


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_role_that_the_template_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="tool"):
        render(name, [*TALK[:1], {"role": "tool", "content": "7"}])


GOLDEN = {
    "plain": "Hi?\n\nYes.</s>\n\nBye?\n\n",
    "instructgpt": "User: Hi?\n\nAssistant: Yes.</s>\n\nUser: Bye?\n\nAssistant:",
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi?\n\n### Response:Yes.</s>\n\n### Instruction:\nBye?\n\n### Response:"
    ),
    "hh": "\n\nHuman: Hi?\n\nAssistant: Yes.</s>\n\nHuman: Bye?\n\nAssistant:",
    "chatml": (
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.</s>"
        "\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "quickstart": "<user> Hi? <assistant> Yes. </s> <user> Bye? <assistant> ",
}


def test_each_template_has_a_golden_text() -> None:
    assert set(GOLDEN) == set(TEMPLATES)
    assert all(key == value.name for key, value in TEMPLATES.items())


@pytest.mark.parametrize("name", GOLDEN)
def test_two_turns_look_as_the_format_says(name: str) -> None:
    messages = [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Bye?"},
    ]
    assert render(name, messages, prompt=True) == GOLDEN[name]


def test_a_system_message_replaces_the_sentence_that_opens_an_alpaca_prompt() -> None:
    assert render("alpaca", [SYSTEM, TALK[0]], prompt=True) == (
        "Be brief.\n\n### Instruction:\nName a bird.\n\n### Response:"
    )


def test_a_misspelt_template_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no template 'chat_ml'. Did you mean 'chatml'\? There are: plain"):
        template("chat_ml")
