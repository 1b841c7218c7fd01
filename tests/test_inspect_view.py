from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console
from tiny_models import byte_tokenizer

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record, Records
from data_schema.errors import printable
from policy.encoding import set_template
from stages.data_checks.inspection import Report, Tokens, examine
from workbench.inspect.view import html_page, print_report, views

ASKED = Message("user", "name <b>one</b> wörd")
DEMONSTRATION = Demonstration(
    "d1", "s", (ASKED, Message("assistant", "wren"), Message("user", "and"), Message("assistant", "今天"))
)
COMPARISON = Comparison("c1", "s", DEMONSTRATION.messages[:3], ("a gull", "a tree"), (1, 2))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    tokenizer = byte_tokenizer()
    return Tokens(tokenizer, "bytes", set_template(tokenizer, "chatml"))


def report_of(record: Record) -> Report:
    return examine(Records.of(type(record), [record]), ["rows"])


def printed(record: Record, tokens: Tokens | None, **console: Any) -> str:
    screen = io.StringIO()
    options = {"file": screen, "width": 500, "highlight": False} | console
    print_report(report_of(record), list(views([record], tokens)), Console(**options))
    return screen.getvalue()


def learned(record: Record, tokens: Tokens | None) -> list[str]:
    """What is marked as learned, one text for each row that is shown."""
    return ["".join(piece.text for piece in view.pieces if piece.trained) for view in views([record], tokens)]


def test_every_answer_of_a_demonstration_is_learned_with_its_eos_and_nothing_else(tokens: Tokens) -> None:
    assert learned(DEMONSTRATION, tokens) == ["wren<|im_end|>今天<|im_end|>"]
    assert learned(COMPARISON, tokens) == ["a gull<|im_end|>", "a tree<|im_end|>"]
    assert learned(Prompt("p", "s", (ASKED,)), tokens) == [""]
    assert learned(Document("t", "s", "running text"), tokens) == ["running text<|im_end|>"]
    assert learned(COMPARISON, None) == ["assistant: a gull\n", "assistant: a tree\n"]


def test_the_pieces_spell_the_row_and_carry_its_ids(tokens: Tokens) -> None:
    """A character of three bytes is shown once, whole, though it is three tokens."""
    [view] = views([DEMONSTRATION], tokens)
    rows = [{"role": m.role, "content": m.content} for m in DEMONSTRATION.messages]
    assert "".join(piece.text for piece in view.pieces) == tokens.tokenizer.apply_chat_template(rows, tokenize=False)
    assert tokens.tokenizer.decode([piece.token for piece in view.pieces]) == "".join(p.text for p in view.pieces)
    assert sum(piece.is_eos and piece.trained for piece in view.pieces) == 2


def test_without_a_terminal_there_are_brackets_and_no_colours(tokens: Tokens) -> None:
    shown = printed(DEMONSTRATION, tokens)
    assert "\x1b" not in shown
    marked = re.findall("⟦(.*?)⟧", shown.partition("d1")[2], re.S)
    assert [text.replace("|", "") for text in marked[:2]] == ["wren<im_end>", "今天<im_end>"]


def test_on_a_terminal_colours_stand_for_the_brackets(tokens: Tokens) -> None:
    shown = printed(DEMONSTRATION, tokens, force_terminal=True, color_system="standard")
    assert "\x1b[" in shown and "⟦wren" not in shown


def test_a_row_s_control_characters_reach_neither_terminal_nor_browser() -> None:
    record = Demonstration("d1", "s", (Message("user", "\x1b[2Jclear \u202eback"), Message("assistant", "a\x07b\nc")))
    assert not {"\x1b", "\x07", "\u202e"} & set(printed(record, None))
    assert "\\x1b[2Jclear \\u202eback" in printed(record, None)
    assert "\\x1b[2Jclear" in html_page(report_of(record), list(views([record], None)))
    assert printable("plain ümläut\n今天") == "plain ümläut\n今天"


class Page(HTMLParser):
    """Which tags a page has, with what attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_fetches_nothing_and_escapes_the_rows(tokens: Tokens) -> None:
    page = Page(html_page(report_of(DEMONSTRATION), list(views([DEMONSTRATION], tokens))))
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"b", "script", "link", "img", "iframe"}
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & attrs.keys()]
    assert "name <b>one</b> wörd" in page.text
    eos = str(tokens.tokenizer.eos_token_id)
    assert ("span", {"class": "e", "title": eos}) in page.tags  # learned
    assert ("span", {"class": "r", "title": eos}) in page.tags  # the user's turns end with it too


def test_a_long_row_is_cut_and_says_so(tokens: Tokens) -> None:
    record = Document("t", "s", "wren " * 2000)
    [view] = views([record], tokens)
    assert view.left_out > 0 and f"... {view.left_out} more" in printed(record, tokens)


def test_a_row_that_the_template_refuses_says_why(tokens: Tokens) -> None:
    tokenizer = byte_tokenizer(chat_template="{{ raise_exception('no such talk') }}")
    [view] = views([DEMONSTRATION], Tokens(tokenizer, "odd", "tokenizer"))
    assert "no such talk" in view.pieces[0].text and not view.pieces[0].trained
