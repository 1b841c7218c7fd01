"""SentencePiece writes a blank in front of a text: within a conversation, no piece may get one."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import byte_tokenizer

from data_schema import Message
from policy.encoding import encode, encode_answers, encode_prompts, render, set_template

TALK = [
    Message("user", "Name a bird."),
    Message("assistant", "A wren."),
    Message("user", "Another?"),
    Message("assistant", "duck"),
]
ZEPHYR = (
    "{% for m in messages %}{{ '<|user|>\n' if m['role'] == 'user' else '<|assistant|>\n' }}{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TEXTS = ["Name a bird that swims. A duck: brown, quick.", "Hello there, said the wren of the lake"] * 3
SCHEMES = ["first", "always", "never", "normalizer"]  # where a Llama tokenizer of some version puts the blank


def pieces_tokenizer(scheme: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<s>", "</s>", "<pad>", "<unk>", "<|assistant|>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=[*map(chr, range(33, 127)), "\u2581"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize("template", ["chatml", "alpaca", "plain", "zephyr"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_conversation_has_the_ids_of_its_text_as_a_whole(scheme: str, template: str) -> None:
    tokenizer = pieces_tokenizer(scheme)
    if template == "zephyr":
        tokenizer.chat_template = ZEPHYR
    else:
        set_template(tokenizer, template)

    def whole(messages: list[Message], opening: bool) -> Any:
        return tokenizer(render(tokenizer, messages, opening), add_special_tokens=False)["input_ids"]

    [row] = encode(tokenizer, [TALK])
    assert row.ids == whole(TALK, False)
    [prompt] = encode_prompts(tokenizer, [TALK[:3]])
    assert prompt == whole(TALK[:3], True)
    read, answers = encode_answers(tokenizer, TALK[:3], ["duck", "hen"])
    assert read == prompt and answers[0] == row.ids[len(prompt) :]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_code_in_a_reward_models_card_reads_the_same_ids(scheme: str) -> None:
    from policy.encoding import adds_blank, segments
    from stages.reward_model.card import TOKENS, TOKENS_WITHOUT_BLANK

    tokenizer = pieces_tokenizer(scheme)
    tokenizer.chat_template = ZEPHYR
    assert adds_blank(tokenizer) == (scheme != "never")
    names: dict[str, Any] = {"tokenizer": tokenizer}
    exec(TOKENS_WITHOUT_BLANK if adds_blank(tokenizer) else TOKENS, names)
    ids, done = [], ""
    for text, _ in segments(tokenizer, TALK):
        ids += names["tokens"](done, text)
        done += text
    assert ids == encode(tokenizer, [TALK])[0].ids


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_answer_after_a_newline_does_not_begin_with_a_blank(scheme: str) -> None:
    tokenizer = pieces_tokenizer(scheme)
    tokenizer.chat_template = ZEPHYR
    [row] = encode(tokenizer, [TALK[:2]])
    first = row.is_response.index(True)
    assert not tokenizer.convert_ids_to_tokens(row.ids[first]).startswith("\u2581")


def test_a_text_whose_first_token_would_join_with_what_stands_before_is_read_apart() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    )
    [row] = encode(tokenizer, [[Message("user", "why\n"), Message("assistant", "\nbecause")]])
    answer = [i for i, learned in zip(row.ids, row.is_response, strict=True) if learned]
    assert tokenizer.decode(answer).strip() == "because<|im_end|>"
