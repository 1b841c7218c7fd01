"""Every template keeps the prefix promise under the renderer that Hugging Face tokenizers use."""

import re
import signal
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_schema import TEMPLATES, DataError, template, templates

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
    "flan": "Q: Hi?\nA: Yes.</s>\n\n\nQ: Bye?\nA:",
    "tldr": "Hi?\n\nTL;DR: Yes.</s>\n\nBye?\n\nTL;DR:",
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


WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n### Instruction:\nName the odd one.\n\n### Input:\nred,"
    " blue, seven\n\nNot green.\n\n### Response:"
)


def test_what_follows_the_first_empty_line_is_the_input_of_an_alpaca_prompt() -> None:
    asked = {"role": "user", "content": "Name the odd one.\n\nred, blue, seven\n\nNot green."}
    assert render("alpaca", [asked], prompt=True) == WITH_INPUT
    assert render("alpaca", [SYSTEM, asked], prompt=True).startswith("Be brief.\n\n### Instruction:\nName the odd one.")
    padded = {"role": "user", "content": asked["content"] + "\n\n"}
    assert render("alpaca", [padded], prompt=True) == WITH_INPUT


@pytest.mark.parametrize("end", ["", "\n\nTL;DR:", "\n\nTL;DR: ", "\n"])
def test_a_post_gets_one_tldr_mark_whether_it_has_one_or_not(end: str) -> None:
    post = "SUBREDDIT: r/birds\n\nTITLE: A wren\n\nPOST: It sang."
    text = render("tldr", [{"role": "user", "content": post + end}, {"role": "assistant", "content": " Wren sang."}])
    assert text == post + "\n\nTL;DR: Wren sang.</s>"


# One turn of each format up to EOS, written down anew: what a reader would take a text apart by.
TURNS = {
    "plain": r"(?:\n\n)?(?P<user>.*?)\n\n(?P<answer>.*)",
    "instructgpt": r"(?:\n\n)?User: (?P<user>.*)\n\nAssistant: (?P<answer>.*)",
    "alpaca": r"(?:Below[^#]*request\.)?\n\n### Instruction:\n(?P<user>.*?)(?:\n\n### Input:\n(?P<input>.*))?"
    r"\n\n### Response:(?P<answer>.*)",
    "flan": r"(?:\n\n\n)?Q: (?P<user>.*)\nA: (?P<answer>.*)",
    "tldr": r"(?:\n\n)?(?P<user>.*)\n\nTL;DR: (?P<answer>.*)",
    "hh": r"\n\nHuman: (?P<user>.*)\n\nAssistant: (?P<answer>.*)",
    "chatml": r"\n?<\|im_start\|>user\n(?P<user>.*)<\|im_end\|>\n<\|im_start\|>assistant\n(?P<answer>.*)",
    "quickstart": r" ?<user> (?P<user>.*) <assistant> (?P<answer>.*) ",
}
WORDS = st.text("ab é鳥.:-\n", min_size=1, max_size=12).map(str.strip).filter(bool)


def test_each_template_has_a_reader() -> None:
    assert set(TURNS) == set(TEMPLATES)


@pytest.mark.parametrize("name", TURNS)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_the_messages_can_be_read_back_from_the_text(name: str, texts: list[tuple[str, str]]) -> None:
    if name == "plain":  # has no marks: an empty line within a question looks like the end of it
        texts = [(user.replace("\n\n", "\n"), answer) for user, answer in texts]
        texts = [(re.sub("\n+", "\n", user), answer) for user, answer in texts]
    roles = ("user", "assistant")
    rows = [{"role": role, "content": text} for pair in texts for role, text in zip(roles, pair, strict=True)]
    *turns, rest = render(name, rows).split(EOS)
    assert rest == ""
    found = []
    for turn in turns:
        match = re.fullmatch(TURNS[name], turn, re.DOTALL)
        assert match
        parts = match.groupdict()
        inner = parts.get("input")
        found.append((parts["user"] + (f"\n\n{inner}" if inner is not None else ""), parts["answer"]))
    assert found == texts


def test_a_misspelt_template_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown template 'chat_ml'. Did you mean 'chatml'\? Choose one of plain"):
        template("chat_ml")


def test_a_template_file_is_named_by_its_file_and_versioned_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}\n")
    first = template(str(path))
    assert (first.name, first.chat_template) == ("mine", "{{ messages }}")
    path.write_text("{{ messages }} ")
    assert template(str(path)).version != first.version
    assert len(first.version) == 12


def test_a_template_file_that_is_not_there_names_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    with pytest.raises(DataError, match=r"no template file .*/mien\.jinja\. Did you mean 'mine\.jinja'\?"):
        template(str(tmp_path / "mien.jinja"))
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"latin\.jinja cannot be read as a template \(not UTF-8\); give a file of UTF-8 text"
    ):
        template(str(tmp_path / "latin.jinja"))


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_an_error_that_says_which_and_a_short_one_leaves_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "LONGEST_RENDERING", 0.1)
    with (
        pytest.raises(DataError, match=r"^filling it with row 7 takes more than 0.1 seconds; its loops may never end"),
        templates.time_limit("filling it with row 7"),
    ):
        jinja2.Template(LOOPS).render()
    before = signal.getsignal(signal.SIGVTALRM)
    with templates.time_limit("a short one"):
        assert jinja2.Template("{{ 1 + 1 }}").render() == "2"
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
