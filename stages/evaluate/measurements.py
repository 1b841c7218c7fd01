"""Samples and scores both models' answers, with as few models in memory at a time as possible."""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema import Document, Records, load_all
from policy.errors import ModelError
from policy.language_model import choose_device, load_language_model
from policy.pretraining import pack_documents
from policy.special_tokens import without_last_stop
from reward.sources import Part
from stages.answering import Unseen
from stages.doubts import warn
from stages.evaluate.answers import Answers, answer, model_parts, score_with, with_other_prompts
from stages.evaluate.collapse import measure_collapse
from stages.evaluate.fluency import load_base, nll_of_answers, nll_of_text
from stages.evaluate.settings import EvaluateConfig
from stages.job import Job, data_account
from stages.judging import load_judge
from stages.ppo.reward_settings import RewardPart
from stages.ppo.rewards import Reader, load_rewards
from stages.reward_model.second import second_model


class Measured(NamedTuple):
    """Both models' answers, and all numbers that need a model to be in memory."""

    answers: dict[str, Answers]
    numbers: dict[str, dict[str, float]]  # by model
    base: dict[str, float]  # of the base model


def measure(config: EvaluateConfig, job: Job, asked: Unseen, data: dict[str, Any]) -> Measured:
    """Sample and score the answers. At most SFT model, policy and rewards are in memory at a time: the second reward
    model and the base model come after them. Adds the account of the plain text to `data`."""
    device = choose_device(config.device)
    judge = load_judge(config.judge, "evaluate.judge") if config.judge else None
    reference = load_language_model(job.parents["sft"], device)
    tokenizer = reference.tokenizer  # used for both models: the policy has the same one
    text = plain_text(config, job, tokenizer, data)
    reader = Reader(tokenizer, job.parents["sft"], device, config.sampling.batch_size, job.seed)
    parts = config.rewards or [RewardPart()]
    rewards = load_rewards(parts, job.parents, reader)
    answers: dict[str, Answers] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name in ("sft", "ppo"):
        model = reference if name == "sft" else load_language_model(job.parents["ppo"], device)
        answers[name] = answer(model, reference, rewards, judge, asked, config, job.seed)
        numbers[name] = measure_collapse(without_stops(answers[name], tokenizer))
        if text is not None:
            numbers[name]["text_nll"] = nll_of_text(model.model, text)
        del model
    second = second_model(job.parents["reward_model"]) if "reward_model" in job.parents else None
    first_name = "prompt_dependence" if second is None else "first_prompt_dependence"
    for name, given in answers.items():
        numbers[name] |= dependence(first_name, model_parts(rewards), asked, given, given.by_models, reader, job)
        if config.base_model is None:
            fluency = nll_of_answers(
                reference.model, asked.ids, without_stops(given, tokenizer), config.sampling.batch_size
            )
            numbers[name] |= known("sft_nll_answers", fluency)
    del reference, rewards

    if second is not None:
        gc.collect()
        crosses = any(part.is_pipelines and part.text_crosses_over for part in parts)
        judges = load_rewards([RewardPart(text_crosses_over=crosses)], {**job.parents, "reward_model": second}, reader)
        for name, given in answers.items():
            scores = score_with(judges, asked, given, tokenizer.pad_token_id, device)
            answers[name] = given._replace(second=scores)
            numbers[name] |= dependence("prompt_dependence", judges, asked, given, scores, reader, job)
        del judges
    base: dict[str, float] = {}
    if config.base_model is not None:
        gc.collect()
        model = load_base(config.base_model, tokenizer, device)
        for name, given in answers.items():
            fluency = nll_of_answers(model, asked.ids, without_stops(given, tokenizer), config.sampling.batch_size)
            numbers[name] |= known("base_nll_answers", fluency)
        base = {} if text is None else {"base_text_nll": nll_of_text(model, text)}
    return Measured(answers, numbers, base)


def dependence(
    name: str, models: list[Part], asked: Unseen, given: Answers, own: list[float], reader: Reader, job: Job
) -> dict[str, float]:
    """Mean score of the answers with their own prompt minus that with another prompt, under `name`; {} if no reward
    model scores them."""
    if not models:
        return {}
    try:
        other = score_with(
            models, with_other_prompts(asked, job.seed), given, reader.tokenizer.pad_token_id, reader.device
        )
    except ModelError as error:  # a reward model with tokens of its own may lack positions for another prompt
        warn(job.tracker, f"evaluate: {name} is left out: {error}")
        return {}
    return {name: (sum(own) - sum(other)) / len(own)}


def known(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def without_stops(answers: Answers, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of the answers themselves."""
    return [without_last_stop(tokenizer, ids) for ids in answers.ids]


def plain_text(
    config: EvaluateConfig, job: Job, tokenizer: PreTrainedTokenizerBase, data: dict[str, Any]
) -> Tensor | None:
    """(rows, length) ids of the held-out text; None without any."""
    if not config.text:
        return None
    documents: Records[Document] = load_all(config.text, Document, job.seed)
    data["text"] = data_account(documents)
    enough = config.text_rows * config.text_length  # a document has at least one token
    first = documents.select(range(min(enough, len(documents))))
    return pack_documents(tokenizer, first, config.text_length)[: config.text_rows]
