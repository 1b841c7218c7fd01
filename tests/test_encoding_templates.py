"""Templates on real tokenizers: what is said comes back exactly, and the generation mark is the response mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer, quickstart_tokenizer

from data_schema import TEMPLATES, DataError, Message
from policy.encoding import encode, encode_prompts, render, set_template
from policy.errors import ModelError

SMOLLM2 = Path(__file__).parent.parent / "models" / "smollm2-135m"
TEXTS = [
    "Name a bird that swims.\n\nA duck: brown, quick.\n### Response:",
    "Q: Why?\nA: Because.",
    "User: Hi\n\nAssistant: Hello there, said the wren of the lake",
] * 3
TALK = [
    Message("user", "Name a bird."),
    Message("assistant", "A wren."),
    Message("user", "Another?\n\nOne that swims."),
    Message("assistant", "A duck:\n- brown\n\n  quick (鳥)"),
]
WORD_TALK = [Message("user", "echo this : fox"), Message("assistant", "fox .")] * 2
KINDS = ["merging bytes", "bytes", "words", "pieces", "smollm2"]
NAMES = [name for name in TEMPLATES if name != "quickstart"]


def make_tokenizer(kind: str) -> Any:
    """merging bytes: tokens may cross from label to answer; bytes: GPT-2's way, with BOS; pieces: Llama's way."""
    if kind == "words":
        return quickstart_tokenizer()
    if kind == "merging bytes":
        return byte_tokenizer()
    if kind == "smollm2":
        if not SMOLLM2.is_dir():
            pytest.skip("no SmolLM2 here: scripts/fetch_smollm2.py")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(SMOLLM2)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "pieces"))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        metaspace = decoders.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([metaspace, decoders.ByteFallback(), decoders.Fuse()])
        alphabet = [chr(i) for i in range(32, 127)] + ["\n"]
        special += [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "bytes":
        marks["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def stretches(tokenizer: Any, ids: Sequence[int], mask: Sequence[int | bool]) -> list[str]:
    """What stands under the mask, one text for each unbroken stretch."""
    found: list[list[int]] = []
    for i, (token, inside) in enumerate(zip(ids, mask, strict=True)):
        if inside:
            if i == 0 or not mask[i - 1]:
                found.append([])
            found[-1].append(token)
    return [tokenizer.decode(stretch, clean_up_tokenization_spaces=False) for stretch in found]


def cases() -> list[Any]:
    pairs = [(kind, name) for kind in KINDS if kind != "words" for name in NAMES] + [("words", "quickstart")]
    return [pytest.param(kind, name, id=f"{kind}-{name}") for kind, name in pairs]


@pytest.mark.parametrize(("kind", "name"), [*cases(), pytest.param("smollm2", "tokenizer", id="smollm2-own")])
def test_prompt_and_answers_come_back_from_the_ids_exactly(kind: str, name: str) -> None:
    tokenizer, talk = make_tokenizer(kind), WORD_TALK if kind == "words" else TALK
    set_template(tokenizer, name)
    [row] = encode(tokenizer, [talk])
    eos = tokenizer.eos_token
    said = stretches(tokenizer, row.ids, row.is_response)
    assert all(text.endswith(eos) for text in said)
    assert [text.removesuffix(eos).strip() for text in said] == [message.content for message in talk[1::2]]

    [prompt] = encode_prompts(tokenizer, [talk[:3]])
    assert row.ids[: len(prompt)] == prompt
    if "bytes" in kind or kind == "smollm2":
        assert tokenizer.decode(prompt, clean_up_tokenization_spaces=False) == render(tokenizer, talk[:3], opening=True)


@pytest.mark.parametrize(("kind", "name"), cases())
def test_the_generation_mark_of_hugging_face_is_the_response_mask(kind: str, name: str) -> None:
    tokenizer, talk = make_tokenizer(kind), WORD_TALK if kind == "words" else TALK
    set_template(tokenizer, name)
    [ours] = encode(tokenizer, [talk])
    rows = [{"role": message.role, "content": message.content} for message in talk]
    theirs = tokenizer.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = theirs["input_ids"], theirs["assistant_masks"]
    if kind in ("merging bytes", "pieces"):
        # Tokenized as one text, the last letters of a label can be in one token with the answer's first: the mask takes
        # that token whole. Ours keeps them apart, and so ends the same and begins where the answer does.
        pairs = zip(stretches(tokenizer, ids, mask), stretches(tokenizer, ours.ids, ours.is_response), strict=True)
        assert all(whole.endswith(answer.strip()) for whole, answer in pairs)
        return
    assert stretches(tokenizer, ids, mask) == stretches(tokenizer, ours.ids, ours.is_response)
    if (kind, name) != ("smollm2", "plain"):  # there the empty line is two tokens before a word and one at an end
        assert list(ids) == ours.ids
        assert [bool(inside) for inside in mask] == ours.is_response


OPENING = "{% if add_generation_prompt %}{{ 'A>' }}{% endif %}"
GOOD = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A>' + m['content'] + eos_token }}{% else %}"
    "{{ 'U>' + m['content'] }}{% endif %}{% endfor %}" + OPENING
)
BAD = {
    "no opening": (GOOD.removesuffix(OPENING), r"'.*bad\.jinja' alters .* answers .* became 'A>Here\. A>Now\.'"),
    "no end": (GOOD.replace(" + eos_token", ""), "changes a prompt's text when the answer is added: under add_g"),
    "counts turns": ("{{ messages | length }}" + GOOD, "changes a prompt's text when the answer is added: under"),
    "no answer": (GOOD.replace("m['content'] + eos", "eos"), "the answers 'Here. Now.' became"),
    "no Jinja": ("{% for", "is not a working Jinja chat template: "),
}


def test_a_template_of_ones_own_that_keeps_the_promise_is_taken_and_named_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "good.jinja"
    path.write_text(GOOD)
    tokenizer = byte_tokenizer()
    name, version = set_template(tokenizer, str(path)).split("/")
    assert (name, len(version)) == ("good", 12)
    [row] = encode(tokenizer, [TALK])
    assert stretches(tokenizer, row.ids, row.is_response) == [f"{message.content}<|im_end|>" for message in TALK[1::2]]


def test_a_template_that_writes_bos_itself_gets_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "good.jinja"
    path.write_text("{{ bos_token }}" + GOOD)
    tokenizer = make_tokenizer("bytes")
    set_template(tokenizer, str(path))
    [row] = encode(tokenizer, [TALK])
    assert row.ids.count(tokenizer.bos_token_id) == 1


def test_the_template_in_the_documents_is_one_that_is_taken(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "sweep.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```jinja\n(.*?)^```", page, re.M | re.S)
    path = tmp_path / "my.jinja"
    path.write_text(text)
    tokenizer = byte_tokenizer()
    set_template(tokenizer, str(path))
    assert render(tokenizer, TALK[:2], opening=False) == "USER: Name a bird.\nBOT: A wren.<|im_end|>"


@pytest.mark.parametrize("case", BAD)
def test_a_template_of_ones_own_that_breaks_the_promise_is_refused_when_it_is_set(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    path = tmp_path / "bad.jinja"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        set_template(byte_tokenizer(), str(path))


def test_a_template_that_never_ends_stops_and_names_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_schema.templates.LONGEST_RENDERING", 0.1)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"conversation that begins with 'Name a bird', takes more than 0.1 seconds"):
        render(tokenizer, [Message("user", "Name a bird")], opening=True)
