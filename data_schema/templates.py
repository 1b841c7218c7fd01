"""Chat templates, which turn messages into one text.

Every template keeps one promise: a conversation with the generation prompt is a prefix of the same conversation with
the answer added. So it ends an assistant turn with `eos_token` and nothing after it (the separator between two turns
belongs to the later one), and opens an assistant turn with the generation prompt itself. The assistant's words and EOS
are inside `{% generation %}`, the tag by which Hugging Face tokenizers mark assistant tokens.

The renderer drops the newline after a block tag, so newlines are written as Jinja strings. The templates have no BOS:
none of these formats has one, and a tokenizer that needs one adds it.

A name that ends in .jinja or contains a "/" is the path of a user's template, whose version is a digest of its text.
"""

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_schema.errors import DataError, did_you_mean

# Seconds of processor time to fill a template once. A template is a program that others wrote, and nested loops over
# short lists need not end within a lifetime; an honest one takes a millisecond.
LONGEST_RENDERING = 10.0


@dataclass(frozen=True)
class Template:
    name: str
    version: str  # changes with every change of the rendered text
    chat_template: str  # Jinja in the form `tokenizer.chat_template` takes
    description: str


def _chat_template(*, user: str, opening: str, answer: str, system: str, preamble: str = "") -> str:
    """Build a Jinja template from the form of each role's turn. `opening` starts an assistant turn and is the
    generation prompt; `answer` is the text that the model writes, up to EOS."""
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
# The space between label and answer belongs to the answer: byte-level BPE joins it to the first word. Existing spaces
# are stripped, so that a generated answer that is read back as a message does not get a second one.
SPACED_CONTENT = "{{ ' ' + message['content'].lstrip() }}"
BLANK_LINE = "{{ '\\n\\n' }}"
BLANK_LINE_UNLESS_FIRST = "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"

PLAIN = Template(
    "plain",
    "1",
    _chat_template(system=CONTENT, user=BLANK_LINE_UNLESS_FIRST + CONTENT, opening=BLANK_LINE, answer=CONTENT),
    "No labels: the prompt, an empty line, the answer.",
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
    "User: and Assistant: labels. The paper prints no template; these labels are this project's neutral choice.",
)

ALPACA = Template(
    "alpaca",
    "2",
    _chat_template(
        preamble=(
            "{% if messages[0]['role'] != 'system' %}Below is an instruction that describes a task"
            "{% if '\\n\\n' in messages[0]['content'].strip() %}, paired with an input that provides further context"
            "{% endif %}. Write a response that appropriately completes the request.{% endif %}"
        ),
        system=CONTENT,
        user="{{ '\\n\\n### Instruction:\\n' }}"
        "{{ message['content'].strip().replace('\\n\\n', '\\n\\n### Input:\\n', 1) }}",
        opening="{{ '\\n\\n### Response:' }}",
        answer=CONTENT,
    ),
    "Stanford Alpaca's two prompts: the text after a message's first empty line is its input. Later turns repeat the"
    " blocks; a system message replaces the opening sentence.",
)

FLAN = Template(
    "flan",
    "1",
    _chat_template(
        system=CONTENT,
        user="{% if not loop.first %}{{ '\\n\\n\\n' }}{% endif %}Q: " + CONTENT,
        opening="{{ '\\nA:' }}",
        answer=SPACED_CONTENT,
    ),
    "Q: and A:, like many of FLAN's patterns; earlier turns look like its exemplars, two empty lines apart. FLAN's own"
    " rows already contain their pattern: use plain for them.",
)

TLDR = Template(
    "tldr",
    "1",
    _chat_template(
        system=CONTENT,
        # Published prompts end with TL;DR:, others do not.
        user=BLANK_LINE_UNLESS_FIRST + "{% set post = message['content'].rstrip() %}"
        "{{ (post[:-6] if post.endswith('TL;DR:') else post).rstrip() }}",
        opening="{{ '\\n\\nTL;DR:' }}",
        answer=SPACED_CONTENT,
    ),
    "Summaries of Reddit posts (Stiennon et al. 2020; Huang et al. 2024): the message (SUBREDDIT, TITLE and POST,"
    " separated by empty lines) and TL;DR:.",
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
    "ChatML. The tokenizer's EOS should be <|im_end|>, which then closes every turn.",
)

QUICKSTART = Template(
    "quickstart",
    "1",
    _chat_template(
        system="{{ raise_exception('the quickstart template has no system messages') }}",
        user="{% if not loop.first %}{{ ' ' }}{% endif %}{{ '<user> ' + message['content'] }}",
        # The answer starts without a space: a space is not a token here, and the assistant mask begins at a token.
        opening="{{ ' <assistant> ' }}",
        answer="{{ message['content'] + ' ' }}",
    ),
    "Word-level tokens with single spaces between them, for the tiny model of the quickstart.",
)

TEMPLATES = {t.name: t for t in (PLAIN, INSTRUCTGPT, ALPACA, FLAN, HH, TLDR, CHATML, QUICKSTART)}


@contextmanager
def time_limit(what: str) -> Iterator[None]:
    """Raise DataError if filling a template, which `what` describes with its row, takes too long.

    Python delivers the timer's signal to the main thread only, so there is no limit in other threads or on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    late = False

    def stop(*_: object) -> None:
        nonlocal late
        late = True
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(
        signal.ITIMER_VIRTUAL, LONGEST_RENDERING, 1.0
    )  # again each second: a callback may swallow an error
    try:
        yield
    except Exception:
        if not late:  # Jinja may have made another error of it
            raise
        raise DataError(
            f"{what} takes more than {LONGEST_RENDERING:g} seconds; its loops may never end: use another template",
            field="template",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def template(name: str) -> Template:
    """The template with that name, or in that file. Raises DataError for an unknown name or a missing file."""
    if is_template_file(name):
        return _template_file(Path(name).expanduser())
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES)
        raise DataError(
            f"unknown template '{name}'.{hint} Choose one of {', '.join(TEMPLATES)}, or a file such as {name}.jinja.",
            field="template",
        )
    return TEMPLATES[name]


def is_template_file(name: str) -> bool:
    """Whether `name` is the path of a file, not the name of one of our templates."""
    return name.endswith(".jinja") or "/" in name


def _template_file(path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")  # added by an editor, not part of the template
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.jinja")])
        raise DataError(f"no template file {path}.{near} Check the path.", field="template") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{path} cannot be read as a template ({reason}); give a file of UTF-8 text") from None
    return Template(path.stem, hashlib.sha256(text.encode()).hexdigest()[:12], text, f"The file {path}.")
