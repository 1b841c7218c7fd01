"""Checks whether a tokenizer and its template are fit for training: special tokens, and a short test conversation.

Padding that is EOS, an EOS that is never trained, a template that rewrites the prompt, and a doubled BOS each give a
model that answers badly or never stops, although its loss looks normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from data_schema import Message
from policy.errors import ModelError
from stages.data_checks.findings import Finding, Severity, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from policy.encoding import Encoded

OWN_TEMPLATES = "use one of triptych's templates, such as 'chatml'"
PROBE = (
    Message("user", "where is the fox"),
    Message("assistant", "the fox is here"),
    Message("user", "where is the dog"),
    Message("assistant", "the dog is there"),
)


def tokenizer_findings(tokenizer: PreTrainedTokenizerBase, own_template: bool) -> list[Finding]:
    """Findings on a tokenizer whose chat template is set; `own_template`: the template is the tokenizer's own."""
    found = special_token_findings(tokenizer)
    if tokenizer.eos_token_id is None:
        return found  # the checks below need an EOS token
    [single] = encode_rows(tokenizer, [PROBE[:2]])
    if isinstance(single, str):
        return [*found, refusal("error", "a question with its answer", single)]
    found += _eos_findings(tokenizer, single) + _bos_findings(tokenizer, single, own_template)
    found += _lost_text(tokenizer)
    [double] = encode_rows(tokenizer, [PROBE])
    if isinstance(double, str):
        found.append(refusal("warning", "a conversation of two turns", double))
    return found


def special_token_findings(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Findings unless the tokenizer has both EOS and a padding token, and they differ."""
    if tokenizer.eos_token_id is None:
        text = "the tokenizer has no EOS token, so no answer could ever end"
        return [Finding("error", "eos", text, "set eos_token in the tokenizer")]
    if tokenizer.eos_token_id == tokenizer.unk_token_id and tokenizer.eos_token != tokenizer.unk_token:
        text = f"the tokenizer's EOS is {tokenizer.eos_token!r}, but its vocabulary has no such token"
        return [Finding("error", "eos", text, "set eos_token to a token of the vocabulary, or add it")]
    cure = "set sft.pad_token to a token of its own, for example '<|pad|>' (it is added if the vocabulary lacks it)"
    if tokenizer.pad_token_id is None:
        return [Finding("error", "pad", "the tokenizer has no padding token", cure)]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        text = f"the tokenizer pads with its EOS {tokenizer.eos_token!r}, so masking the padding would mask EOS too"
        return [Finding("error", "pad_is_eos", text, cure)]
    return []


class Reading(NamedTuple):
    """A conversation as a model reads it."""

    pieces: list[tuple[str, bool]]  # as `segments` renders it
    encoded: Encoded


def read_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[Reading | str]:
    """Render and encode conversations. One that cannot be encoded gives the reason instead."""
    from policy.encoding import encode_segments, segments

    rendered: list[list[tuple[str, bool]] | str] = []
    for messages in conversations:
        try:
            rendered.append(segments(tokenizer, messages))
        except ModelError as error:
            rendered.append(one_line(error))
    good = [pieces for pieces in rendered if not isinstance(pieces, str)]
    try:
        encoded = iter(encode_segments(tokenizer, good))
    except ModelError as error:  # about one of the texts: find out which
        if len(conversations) == 1:
            return [one_line(error)]
        return [reading for messages in conversations for reading in read_conversations(tokenizer, [messages])]
    return [pieces if isinstance(pieces, str) else Reading(pieces, next(encoded)) for pieces in rendered]


def encode_rows(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded | str]:
    """As `encode`, but a conversation that cannot be encoded gives the reason instead."""
    readings = read_conversations(tokenizer, conversations)
    return [reading if isinstance(reading, str) else reading.encoded for reading in readings]


def refusal(
    severity: Severity, what: str, reason: str, count: int | None = None, examples: tuple[str, ...] = ()
) -> Finding:
    """The finding for a reason that `encode_rows` returned."""
    text, _, cure = reason.partition("; ")
    check = "template_prefix" if "changes a prompt's text" in reason else "template_refuses"
    shown = f"{what} cannot be encoded: {text.rstrip('.')}"
    return Finding(severity, check, shown, cure.rstrip(".") or OWN_TEMPLATES, count, examples)


def _eos_findings(tokenizer: PreTrainedTokenizerBase, probe: Encoded) -> list[Finding]:
    from policy.encoding import render
    from policy.special_tokens import stop_ids

    eos = str(tokenizer.eos_token)
    if probe.ids[-1] not in stop_ids(tokenizer):
        text = f"EOS {eos!r} is never trained: an answer's last token is {_shown(tokenizer, probe.ids[-1])}, not EOS"
        cure = "make eos_token a special token that the tokenizer recognises in any place"
        return [Finding("error", "eos_not_trained", text, cure)]
    prompt = render(tokenizer, PROBE[:1], opening=True)
    answer = render(tokenizer, PROBE[:2], opening=False)[len(prompt) :]
    if probe.ids[-1] == tokenizer.eos_token_id and eos not in answer:
        text = (
            f"the template writes no EOS {eos!r} after an answer, so training on its text never trains EOS;"
            " triptych adds one to every answer"
        )
        return [
            Finding("warning", "eos_not_trained", text, f"let the template end an answer with EOS, or {OWN_TEMPLATES}")
        ]
    return []


def _bos_findings(tokenizer: PreTrainedTokenizerBase, probe: Encoded, own_template: bool) -> list[Finding]:
    from policy.encoding import render

    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if bos_id is None:
        return []
    if probe.ids[:2] == [bos_id, bos_id]:
        text = f"every row begins with BOS {bos!r} twice"
        return [Finding("error", "double_bos", text, f"remove one from the chat template, or {OWN_TEMPLATES}")]
    # triptych's templates write BOS only if the tokenizer wants one; their text is tokenized without adding any.
    again = tokenizer(render(tokenizer, PROBE[:1], opening=True))["input_ids"][:2]
    if own_template and again == [bos_id, bos_id]:
        text = (
            f"the template writes BOS {bos!r} and the tokenizer adds another; triptych tokenizes without adding any,"
            " but other programs that tokenize the rendered text get two"
        )
        cure = "tokenize with add_special_tokens=False, or remove BOS from the template or the tokenizer"
        return [Finding("warning", "double_bos", text, cure)]
    return []


def _lost_text(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    from policy.encoding import render

    whole = render(tokenizer, PROBE[:2], opening=False)
    lost = [message.role for message in PROBE[:2] if message.content not in whole]
    if not lost:
        return []
    text = f"the template leaves out or rewrites what the {' and the '.join(lost)} said"
    return [Finding("error", "template_text", text, OWN_TEMPLATES)]


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(token))
