"""Chat templates: how messages become one text.

Every template keeps one promise: the text of a conversation's start with the generation prompt is a prefix of the
text with the answer added. So it ends an assistant turn with `eos_token` and nothing after it (what separates two
turns belongs to the later one), and opens an assistant turn with the generation prompt itself. The assistant's
words and EOS stand inside `{% generation %}`, the tag by which Hugging Face tokenizers mark assistant tokens.

The renderer drops the newline after a block tag, so newlines are written as Jinja strings. There is no BOS here:
none of these formats has one, and a tokenizer that wants one adds it.
"""

from dataclasses import dataclass

from data_schema.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Template:
    name: str
    version: str  # changes with every change of the rendered text
    chat_template: str  # Jinja in the form `tokenizer.chat_template` takes
    description: str


def _chat_template(*, user: str, opening: str, answer: str, system: str, preamble: str = "") -> str:
    """One Jinja template from what a turn of each role looks like. `opening` starts an assistant turn and is the
    generation prompt; `answer` is what the model writes, up to EOS."""
    return (
        preamble
        + "{% for message in messages %}"
        + "{% if message['role'] == 'system' %}" + system
        + "{% elif message['role'] == 'user' %}" + user
        + "{% elif message['role'] == 'assistant' %}" + opening
        + "{% generation %}" + answer + "{{ eos_token }}{% endgeneration %}"
        + "{% else %}{{ raise_exception('this template knows the roles system, user and assistant, not '"
        + " + message['role']) }}{% endif %}"
        + "{% endfor %}"
        + "{% if add_generation_prompt %}" + opening + "{% endif %}"
    )  # fmt: skip


CONTENT = "{{ message['content'] }}"
# The space between label and answer is the answer's: byte-level BPE joins it to the first word. Stripping what is
# already there keeps a generated answer, read back as a message, from getting a second one.
SPACED_CONTENT = "{{ ' ' + message['content'].lstrip() }}"
BLANK_LINE = "{{ '\\n\\n' }}"
BLANK_LINE_UNLESS_FIRST = "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"

PLAIN = Template(
    "plain",
    "1",
    _chat_template(
        system=CONTENT,
        user=BLANK_LINE_UNLESS_FIRST + CONTENT,
        opening=BLANK_LINE,
        answer=CONTENT,
    ),
    "No marks at all: the prompt, an empty line, the answer.",
)

INSTRUCTGPT = Template(
    "instructgpt",
    "1",
    _chat_template(
        system=CONTENT,
        user=BLANK_LINE_UNLESS_FIRST + "User: " + CONTENT,
        opening=BLANK_LINE + "Assistant:",
        answer=SPACED_CONTENT,
    ),
    "User: and Assistant: labels. The paper prints no template; the labels are the neutral choice of this project.",
)

ALPACA = Template(
    "alpaca",
    "1",
    _chat_template(
        preamble=(
            "{% if messages[0]['role'] != 'system' %}Below is an instruction that describes a task."
            " Write a response that appropriately completes the request.{% endif %}"
        ),
        system=CONTENT,
        user="{{ '\\n\\n### Instruction:\\n' + message['content'] }}",
        opening="{{ '\\n\\n### Response:' }}",
        answer=CONTENT,
    ),
    "Stanford Alpaca's prompt without an input block; later turns repeat the blocks, a system message replaces the"
    " opening sentence.",
)

HH = Template(
    "hh",
    "1",
    _chat_template(
        system=CONTENT,
        user="{{ '\\n\\nHuman: ' + message['content'] }}",
        opening="{{ '\\n\\nAssistant:' }}",
        answer=SPACED_CONTENT,
    ),
    "The transcripts of Anthropic's HH-RLHF: an empty line before Human: and Assistant:.",
)

CHATML = Template(
    "chatml",
    "1",
    _chat_template(
        system="{{ '<|im_start|>system\\n' + message['content'] + '<|im_end|>' }}",
        user="{% if not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>' }}",
        opening="{{ '\\n<|im_start|>assistant\\n' }}",
        answer=CONTENT,
    ),
    "ChatML. The tokenizer's EOS should be <|im_end|>, which then closes all turns alike.",
)

QUICKSTART = Template(
    "quickstart",
    "1",
    _chat_template(
        system="{{ raise_exception('the quickstart template has no system messages') }}",
        user="{% if not loop.first %}{{ ' ' }}{% endif %}{{ '<user> ' + message['content'] }}",
        # No space starts the answer: it is no token here, and the tokenizer's assistant mask begins at a token.
        opening="{{ ' <assistant> ' }}",
        answer="{{ message['content'] + ' ' }}",
    ),
    "Word-level tokens with single spaces between them, for the tiny model of the quickstart.",
)

TEMPLATES = {t.name: t for t in (PLAIN, INSTRUCTGPT, ALPACA, HH, CHATML, QUICKSTART)}


def template(name: str) -> Template:
    """The template of that name. Raises DataError for an unknown one."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES)
        raise DataError(f"no template '{name}'.{hint} There are: {', '.join(TEMPLATES)}.", field="template")
    return TEMPLATES[name]
