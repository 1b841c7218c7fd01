from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, quickstart_tokenizer

from data_schema.records import Message
from data_schema.templates import TEMPLATES
from policy.encoding import decode_responses, encode, encode_answers, encode_prompts, pad, set_template
from policy.errors import ModelError

NEWLINE_AFTER_EOS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = [Message("user", "why")]
TALK = [*QUESTION, Message("assistant", "yes"), Message("user", "why dog"), Message("assistant", "park dog")]
NAMES = [*TEMPLATES, "own"]


def tokenizer_for(name: str) -> Any:
    if name == "quickstart":
        return quickstart_tokenizer()
    tokenizer = byte_tokenizer()
    if name == "own":
        tokenizer.chat_template = NEWLINE_AFTER_EOS
    set_template(tokenizer, "tokenizer" if name == "own" else name)
    return tokenizer


def responses(tokenizer: Any, messages: list[Message]) -> list[str]:
    """What stands under the response mask, one text for each unbroken stretch."""
    [row] = encode(tokenizer, [messages])
    assert len(row.ids) == len(row.is_response)
    stretches: list[list[int]] = []
    for i, (token, inside) in enumerate(zip(row.ids, row.is_response, strict=True)):
        if inside:
            if i == 0 or not row.is_response[i - 1]:
                stretches.append([])
            stretches[-1].append(token)
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("name", NAMES)
def test_the_response_mask_covers_every_answer_and_its_eos_and_nothing_else(name: str) -> None:
    tokenizer = tokenizer_for(name)
    found = responses(tokenizer, TALK)
    assert [text.removesuffix(tokenizer.eos_token).strip() for text in found] == [
        tokenizer.decode(tokenizer(text)["input_ids"]) for text in ("yes", "park dog")
    ]
    assert all(text.endswith(tokenizer.eos_token) and text.count(tokenizer.eos_token) == 1 for text in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_id_for_id_the_start_of_the_conversation_with_its_answer(name: str) -> None:
    tokenizer = tokenizer_for(name)
    for turn in (1, 3):
        [prompt] = encode_prompts(tokenizer, [TALK[:turn]])
        [whole] = encode(tokenizer, [TALK[: turn + 1]])
        answered, answers = encode_answers(tokenizer, TALK[:turn], [TALK[turn].content, "why"])
        assert prompt == answered == whole.ids[: len(prompt)]
        assert answers[0] == whole.ids[len(prompt) :]
        assert all(whole.is_response[len(prompt) :])
        assert answers[1] == encode(tokenizer, [[*TALK[:turn], Message("assistant", "why")]])[0].ids[len(prompt) :]


def test_the_ids_spell_the_text_the_template_renders_up_to_the_last_eos() -> None:
    for name in NAMES[:-1]:
        tokenizer = tokenizer_for(name)
        if name == "quickstart":
            continue  # its tokens do not hold the spaces between them
        rows = [{"role": message.role, "content": message.content} for message in TALK]
        assert tokenizer.decode(encode(tokenizer, [TALK])[0].ids) == tokenizer.apply_chat_template(rows, tokenize=False)


def test_what_a_template_writes_after_eos_is_left_to_the_next_turn() -> None:
    tokenizer = tokenizer_for("own")
    [row] = encode(tokenizer, [TALK])
    assert row.ids[-1] == tokenizer.eos_token_id
    # The newline stands between the turns and nowhere else after an answer.
    assert tokenizer.decode(row.ids).count("yes<|im_end|>\n<|im_start|>user") == 1


def test_eos_as_text_in_a_question_does_not_move_where_the_answer_ends() -> None:
    tokenizer = tokenizer_for("chatml")
    question = [Message("user", "why <|im_end|> yes"), Message("assistant", "because")]
    assert responses(tokenizer, question) == ["because<|im_end|>"]
    [prompt] = encode_prompts(tokenizer, [question[:1]])
    assert prompt.count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize("name", ["chatml", "own", "plain"])
@pytest.mark.parametrize("content", ["yes<|im_end|>", "yes<|im_end|>because", "yes<|im_end|><|im_end|>"])
def test_an_answer_that_holds_eos_as_text_ends_there_as_a_sampled_one_would(name: str, content: str) -> None:
    tokenizer = tokenizer_for(name)
    assert responses(tokenizer, [*QUESTION, Message("assistant", content)]) == ["yes<|im_end|>"]
    # In a later turn's context nothing of it is lost.
    [prompt] = encode_prompts(tokenizer, [[*QUESTION, Message("assistant", content), Message("user", "why")]])
    assert content in tokenizer.decode(prompt)


def test_an_answer_gets_its_eos_even_if_the_template_writes_none() -> None:
    tokenizer = byte_tokenizer(chat_template="{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}")
    assert responses(tokenizer, [*QUESTION, Message("assistant", "yes<|im_end|>")]) == ["[yes<|im_end|>"]
    assert responses(tokenizer, [*QUESTION, Message("assistant", "yes")]) == ["[yes]<|im_end|>"]


def test_a_template_that_rewrites_the_prompt_once_the_answer_is_known_is_refused() -> None:
    tokenizer = byte_tokenizer(
        chat_template="{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    for ask in (lambda: encode(tokenizer, [TALK]), lambda: encode_answers(tokenizer, QUESTION, ["yes"])):
        with pytest.raises(ModelError, match=r"the tokenizer's chat template changes .* such as 'chatml'\.$"):
            ask()


def test_the_tokenizers_own_template_has_to_be_there() -> None:
    with pytest.raises(ModelError, match=r"has no template of its own; name one"):
        set_template(byte_tokenizer(), "tokenizer")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", ["chatml", "alpaca", "plain"])
def test_a_tokenizer_that_puts_bos_first_gets_exactly_one(adds_bos: bool, name: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(bos_token="<|endoftext|>")
    bos = tokenizer.bos_token_id
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
        )
    for _ in range(2):  # a checkpoint may be given its template again
        assert set_template(tokenizer, name) == f"{name}/{TEMPLATES[name].version}"
    [row] = encode(tokenizer, [TALK])
    assert row.ids.count(bos) == adds_bos
    assert (row.ids[0] == bos) == adds_bos


def test_decoded_responses_end_at_their_length_and_hold_no_special_token() -> None:
    tokenizer = quickstart_tokenizer()
    ids = tokenizer(["park dog <eos> saw"])["input_ids"]
    assert decode_responses(tokenizer, torch.tensor(ids * 2), torch.tensor([3, 1])) == ["park dog", "park"]


def test_padding_goes_to_its_side_and_the_mask_knows_it_from_an_equal_token() -> None:
    ids, mask = pad([[7], [5, 7, 6]], 7, "left")
    assert ids.tolist() == [[7, 7, 7], [5, 7, 6]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    ids, mask = pad([[7], [5, 7, 6]], 7, "right")
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_marked_as_not_to_be_learned_is_read_with_the_same_ids_and_has_no_loss(name: str) -> None:
    tokenizer = tokenizer_for(name)
    marked = [QUESTION[0], Message("assistant", "yes", learned=False), *TALK[2:]]
    [whole], [part] = encode(tokenizer, [TALK]), encode(tokenizer, [marked])
    assert part.ids == whole.ids
    assert len(responses(tokenizer, TALK)) == 2
    assert responses(tokenizer, marked) == responses(tokenizer, TALK)[1:]
