from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama, tiny_t5

from data_schema.records import Message
from policy.encoding import decode_responses, encode, pad
from policy.language_model import LanguageModel, load_language_model, load_tokenizer, save_checkpoint
from policy.sampling.engines import RolloutEngine, transformers_rollout
from policy.sampling.generate import sample_responses
from policy.sampling.greedy import greedy_answers
from policy.sampling.rollout import collect_rollout, response_logprobs
from policy.seq2seq import load_seq2seq_model
from policy.special_tokens import cut_after_stop, stop_ids

CPU = torch.device("cpu")
PROMPTS = [[50, 60, 70], [80], [90, 100, 110, 120]]
END, TURN, PAD = 0, 2, 3  # <|endoftext|>, <|im_end|> (EOS) and <|pad|> of byte_tokenizer
# What published checkpoints have in their generation_config.json, or in the config.json of older ones.
LEFTOVERS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 0.3,
    "top_p": 0.5,
    "top_k": 2,
    "min_p": 0.2,
    "typical_p": 0.4,
    "num_beams": 3,
    "num_return_sequences": 2,
    "early_stopping": True,
    "length_penalty": 2.0,
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 9.0,
    "min_length": 30,
    "min_new_tokens": 20,
    "max_length": 9,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 8,
    "suppress_tokens": [50, 60],
    "begin_suppress_tokens": [70],
    "bad_words_ids": [[90]],
    "exponential_decay_length_penalty": [1, 1.5],
    "guidance_scale": 2.0,
    "renormalize_logits": True,
}


def write_model(directory: Path, spare: int = 0, **configs: dict[str, Any]) -> Path:
    """A tiny model whose generation_config.json and config.json are changed as given; `spare` rows without a token."""
    tokenizer = byte_tokenizer()
    save_checkpoint(tiny_llama(tokenizer, vocab_size=len(tokenizer) + spare), tokenizer, directory)
    for name, changes in configs.items():
        path = directory / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def saved_configs(directory: Path) -> list[dict[str, Any]]:
    return [json.loads((directory / name).read_text()) for name in ("config.json", "generation_config.json")]


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_nothing_of_the_base_models_way_of_generating_is_published(tmp_path: Path, place: str) -> None:
    source = write_model(tmp_path / "base", **{place: LEFTOVERS | {"do_sample": True}})
    save_checkpoint(*load_language_model(source, CPU), tmp_path / "saved")
    config, generation = saved_configs(tmp_path / "saved")
    assert generation.keys() - {"transformers_version"} == {"eos_token_id", "pad_token_id"}
    assert not LEFTOVERS.keys() & config.keys()


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_an_encoder_decoder_is_published_without_leftovers_and_with_its_start_token(tmp_path: Path, place: str) -> None:
    tokenizer = byte_tokenizer()
    save_checkpoint(tiny_t5(tokenizer), tokenizer, tmp_path / "base")
    path = tmp_path / "base" / f"{place}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | LEFTOVERS))
    save_checkpoint(*load_seq2seq_model(tmp_path / "base", CPU), tmp_path / "saved")
    config, generation = saved_configs(tmp_path / "saved")
    kept = {"eos_token_id": TURN, "pad_token_id": PAD, "decoder_start_token_id": PAD}
    assert {name: value for name, value in generation.items() if name != "transformers_version"} == kept
    assert not LEFTOVERS.keys() & config.keys()


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_leftovers_do_not_change_how_answers_are_sampled(tmp_path: Path, place: str) -> None:
    clean = load_language_model(write_model(tmp_path / "clean"), CPU)
    dirty = load_language_model(write_model(tmp_path / "dirty", **{place: LEFTOVERS}), CPU)
    from transformers import GenerationConfig

    dirty.model.generation_config = GenerationConfig(**LEFTOVERS)  # as a model that was loaded elsewhere has it
    settings = {"max_new_tokens": 6, "temperature": 1.0, "batch_size": 2, "stop_ids": [TURN], "pad_id": PAD}
    for engine in (collect_rollout, transformers_rollout):
        drawn = [engine(lm.model, PROMPTS, rng=torch.Generator().manual_seed(0), **settings) for lm in (clean, dirty)]
        assert all(torch.equal(a, b) for a, b in zip(*(each[:5] for each in drawn), strict=True))
    plain, poisoned = (greedy_answers(*lm, PROMPTS, max_new_tokens=6, batch_size=2) for lm in (clean, dirty))
    assert plain == poisoned
    assert dirty.model.generation_config.min_length == 30  # given back as it was


@pytest.mark.parametrize(
    "configs, stops",
    [
        ({}, (TURN,)),
        ({"generation_config": {"eos_token_id": [TURN, END]}}, (TURN, END)),
        ({"generation_config": {"eos_token_id": END}}, (TURN, END)),
        ({"config": {"eos_token_id": [END, TURN]}}, (TURN, END)),
        ({"config": {"eos_token_id": [1, TURN]}, "generation_config": {"eos_token_id": [END]}}, (TURN, END, 1)),
        ({"generation_config": {"eos_token_id": [TURN, 99_999, END]}}, (TURN, END)),  # the tokenizer has no such id
        ({"generation_config": {"eos_token_id": [TURN, PAD]}}, (TURN, PAD)),
        ({"generation_config": {"eos_token_id": [TURN, 77]}}, (TURN, 77)),
        ({"generation_config": {"eos_token_id": 77}}, (TURN,)),  # an ordinary token
        ({"generation_config": {"eos_token_id": None}}, (TURN,)),
        ({"generation_config": {"eos_token_id": "2"}}, (TURN,)),
    ],
)
def test_every_stop_token_is_kept_and_published(
    tmp_path: Path, configs: dict[str, Any], stops: tuple[int, ...]
) -> None:
    model, tokenizer = load_language_model(write_model(tmp_path / "base", **configs), CPU)
    assert stop_ids(tokenizer) == stops
    model.config.eos_token_id = model.generation_config.eos_token_id = 5  # as a trainer does
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    for config in saved_configs(tmp_path / "saved"):
        assert config["eos_token_id"] == (stops[0] if len(stops) == 1 else list(stops))
    assert stop_ids(load_tokenizer(tmp_path / "saved")) == stops


@pytest.mark.parametrize("engine", [collect_rollout, transformers_rollout])
def test_an_answer_ends_at_any_stop_token_and_is_decoded_without_it(tmp_path: Path, engine: RolloutEngine) -> None:
    model, tokenizer = load_language_model(write_model(tmp_path), CPU)
    settings = {"max_new_tokens": 8, "temperature": 1e-5, "batch_size": 3, "pad_id": PAD}

    def draw(stops: list[int]) -> Any:
        return engine(model, PROMPTS, stop_ids=stops, rng=torch.Generator().manual_seed(0), **settings)

    free = draw([]).responses.tolist()
    stops = [free[0][2], free[1][4]]
    found = draw(stops)
    expected = [next((i for i, token in enumerate(row) if token in stops), None) for row in free]
    assert found.ended.tolist() == [place is not None for place in expected]
    assert found.lengths.tolist() == [8 if place is None else place + 1 for place in expected]
    tokenizer.further_stop_ids = tuple(stops)  # ordinary tokens, which skip_special_tokens would leave in the text
    texts = decode_responses(tokenizer, found.responses, found.lengths)
    cut = [row[:place] for row, place in zip(free, expected, strict=True)]
    assert texts == [tokenizer.decode(row, skip_special_tokens=True).strip() for row in cut]


def test_greedy_answers_end_at_any_stop_token(tmp_path: Path) -> None:
    model, tokenizer = load_language_model(write_model(tmp_path), CPU)
    whole = sample_responses(
        model, *pad(PROMPTS, PAD, "left"), max_new_tokens=8, temperature=1e-5, stop_ids=[], pad_id=PAD, rng=generator()
    )
    tokenizer.further_stop_ids = (int(whole.tokens[0, 2]),)
    answer = greedy_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=8, batch_size=1)[0]
    first = whole.tokens[0].tolist().index(tokenizer.further_stop_ids[0])
    assert answer.ended and answer.text == tokenizer.decode(whole.tokens[0, :first], skip_special_tokens=True).strip()


def test_a_training_target_ends_with_the_templates_own_stop_token(tmp_path: Path) -> None:
    source = write_model(tmp_path, generation_config={"eos_token_id": [TURN, END]})
    tokenizer = load_tokenizer(source)
    talk = [
        Message("user", "why"),
        Message("assistant", "because"),
        Message("user", "why"),
        Message("assistant", "yes"),
    ]
    for end, name in ((TURN, "<|im_end|>"), (END, "<|endoftext|>")):
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '" + name + "\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        row = encode(tokenizer, [talk])[0]
        learned = [token for token, inside in zip(row.ids, row.is_response, strict=True) if inside]
        assert row.ids[-1] == end and learned.count(end) == 2 and learned.count(TURN) + learned.count(END) == 2
    assert cut_after_stop(tokenizer, "a<|endoftext|>b<|im_end|>") == "a<|endoftext|>"
    assert cut_after_stop(tokenizer, "a") == "a<|im_end|>"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def with_a_hole(language_model: LanguageModel, hidden: tuple[int, ...]) -> LanguageModel:
    language_model.model.hidden_ids = hidden
    return language_model


@pytest.mark.parametrize("hole", [(), (33,)])
@pytest.mark.parametrize("engine", [collect_rollout, transformers_rollout])
def test_ids_without_a_token_are_never_drawn_and_have_no_probability(
    tmp_path: Path, engine: RolloutEngine, hole: tuple[int, ...]
) -> None:
    model, tokenizer = load_language_model(write_model(tmp_path, spare=40), CPU)
    known = len(tokenizer)
    hidden = tuple(range(known, known + 40))
    assert model.hidden_ids == hidden
    model.hidden_ids = hole + hidden
    with torch.no_grad():
        model.lm_head.weight[known:] *= 3  # makes them likely
    settings = {"max_new_tokens": 40, "temperature": 2.0, "batch_size": 8, "stop_ids": [TURN], "pad_id": PAD}
    rollout = engine(model, PROMPTS, rng=generator(), answers_each=8, **settings)
    drawn = set(rollout.responses[rollout.response_mask].tolist())
    assert max(drawn) < known and not drawn & set(hole)
    found = response_logprobs(model, rollout, 2.0)
    row = torch.cat([rollout.prompts[0][rollout.prompt_mask[0]], rollout.responses[0][rollout.response_mask[0]]])
    with torch.no_grad():
        logits = model(row[None]).logits[0, len(PROMPTS[0]) - 1 : -1] / 2.0
    logits[:, list(hole + hidden)] = -torch.inf
    expected = logits.log_softmax(-1)
    n = len(logits)
    labels = rollout.responses[0, :n, None]
    torch.testing.assert_close(found.logprobs[0, :n], expected.gather(1, labels)[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropy[0, :n], torch.special.entr(expected.exp()).sum(1), atol=1e-4, rtol=1e-4)
    found = response_logprobs(model, rollout, 2.0, entropy_gradient=True)
    (found.logprobs.sum() + found.entropy.sum()).backward()
    gradient = model.lm_head.weight.grad
    assert gradient.isfinite().all() and not gradient[list(hole + hidden)].any() and gradient[:known].any()


def test_where_the_vocabularies_agree_nothing_is_hidden(tmp_path: Path) -> None:
    assert load_language_model(write_model(tmp_path), CPU).model.hidden_ids == ()


def test_greedy_answers_have_no_ids_without_a_token(tmp_path: Path) -> None:
    model, tokenizer = load_language_model(write_model(tmp_path, spare=1), CPU)
    with torch.no_grad():
        model.lm_head.weight[-1] = 0  # the largest logit of all
        model.lm_head.weight[:-1].sub_(10 * model.model.norm.weight.sign())
        model.lm_head.weight[:-1].abs_().neg_()
    free = sample_responses(
        model, *pad(PROMPTS, PAD, "left"), max_new_tokens=4, temperature=1e-5, stop_ids=[], pad_id=PAD, rng=generator()
    )
    texts = decode_responses(tokenizer, free.tokens, free.lengths)
    found = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=4, batch_size=3)
    assert [answer.text for answer in found] == texts
