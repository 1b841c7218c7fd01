"""Stage 2, the reward model (InstructGPT 3.5 eq. 1, C.2), on Hugging Face's Trainer.

All answers to a prompt are scored once, and all their pairs are one batch element; every prompt has the same weight.
After training the scale is set and stored in the model's config: demonstrations score 0 on average, or the SFT model's
own answers have mean 0 and standard deviation 1. With `second_half`, all of this happens twice, on two halves of the
prompts.
"""

from __future__ import annotations

import gc
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainingArguments

from data_schema import Demonstration, load_all
from policy.adapters import add_lora, describe_reach, reach
from policy.encoding import encode
from policy.language_model import bare, choose_device, disable_dropout, load_tokenizer, save_checkpoint
from policy.memory.checkpointing import checkpointed
from policy.precision import Precision, cast_frozen, computing_in
from policy.reading.freezing import freeze_below, names_above
from reward.adapter import CARD as ADAPTER_CARD
from reward.adapter import write_adapter
from reward.calibration import Floats
from reward.frozen_layers import cut_after
from reward.normalisation import RewardNormalisation, from_demonstrations, from_reference_samples
from reward.scalar_model import from_language_model, scalar_head, store_normalisation
from reward.scoring import score_responses
from stages.doubts import held_out_pairs, same_score, warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account
from stages.optimizer import make_optimizer
from stages.reward_model.card import write_reward_card
from stages.reward_model.ensemble import judge_members, member_seed, publish_members, set_scales, train_others
from stages.reward_model.frozen import fit_frozen
from stages.reward_model.measures import answer_scores, judge_pairs
from stages.reward_model.rankings import load_rankings, longest_text, with_mismatched
from stages.reward_model.second import SECOND, describe_second, score_correlations
from stages.reward_model.settings import RewardModelConfig
from stages.reward_model.trainer import Ranking, RankingCollator, RankingModule, RankingTrainer, shares_prompts
from stages.trainer import RecordCallback, count_steps, on_one_device, trainer_arguments, training_precision

logger = logging.getLogger("triptych.reward_model")


class Share(NamedTuple):
    """What one of the stage's models is trained on, and where it goes."""

    rankings: list[Ranking]
    seed: int
    output: Path  # directory of the checkpoint
    name: str = "reward_model"  # prefix of its metrics
    steps_before: int = 0  # of the stage, in its curves


class Trained(NamedTuple):
    """What is left of a model once it is published."""

    metrics: dict[str, Any]
    account: dict[str, Any]  # counts of the data that its scale was set on, for the manifest
    scores: Floats  # (answers,) of the held-out answers


def run(config: RewardModelConfig, job: Job) -> StageResult:
    """Train the model and its scalar head on rankings; the output loads with AutoModelForSequenceClassification."""
    tokenizer = load_tokenizer(job.parents["sft"])
    rankings, data = load_rankings(config, job, tokenizer)
    first = train_model(config, job, tokenizer, Share(rankings.train, job.seed, job.output), rankings.held_out)
    metrics = first.metrics
    if config.second_half:
        gc.collect()  # the Trainer and its model refer to each other; this frees the first model
        seed, output = member_seed(job.seed, 1), job.output / SECOND
        share = Share(rankings.second, seed, output, f"reward_model/{SECOND}", first.metrics["steps"])
        second = train_model(config, job, tokenizer, share, rankings.held_out)
        correlations = score_correlations(first.scores, second.scores, rankings.held_out)
        metrics["second"] = second.metrics | correlations
        describe_second(job.output, metrics["second"])
    return StageResult(metrics, data | first.account)


def train_model(
    config: RewardModelConfig, job: Job, tokenizer: PreTrainedTokenizerBase, share: Share, held_out: list[Ranking]
) -> Trained:
    """Train one model of the stage, with its ensemble if there is one, measure it, and write its checkpoint."""
    torch.manual_seed(share.seed)
    device = choose_device(config.device)
    frozen = config.frozen_layers is not None
    precision = "float32" if frozen else training_precision(config.precision, device, job.parents["sft"])
    job = job._replace(seed=share.seed)
    train = share.rankings  # the scale is set on these alone
    steps = 0 if frozen else count_steps(share.name, len(train), config.batch_prompts, config.epochs)

    model: Any = from_language_model(job.parents["sft"], device, job.seed)
    disable_dropout(model)
    if config.mismatched_answers:
        share = share._replace(rankings=with_mismatched(train, longest_text(config, model.config), job.seed))
    adapters: dict[str, Any] = {}
    if config.frozen_layers:
        cut_after(model, config.frozen_layers)
    above = None
    if config.trainable_layers:
        above = names_above(model, freeze_below(model, config.trainable_layers))
        scalar_head(model).requires_grad_(True)
    if config.lora:
        model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "SEQ_CLS", within=above)
        adapters = {"lora": reach(model)}
        logger.info(describe_reach(share.name, adapters["lora"]))
    share_prompts = shares_prompts(bare(model), share.rankings)
    collator = RankingCollator(
        tokenizer.pad_token_id, model.config.hidden_size, share_prompts, config.micro_batch_tokens, config.labels
    )
    folds: dict[str, float] = {}
    if config.frozen_layers:
        folds = fit_frozen(model, share.rankings, collator, config, job, share.name)
    else:
        fit(model, share, collator, config, job, steps, precision)
    members = []
    if config.ensemble > 1:
        settings = model.peft_config["default"]
        train_member = partial(fit, model, share, collator, config, job, steps, precision)
        members = train_others(model, train_member, config.ensemble, job.seed)

    if config.lora:  # before merging
        write_adapter(share.output, model, job.parents["sft"])
    scorer: PreTrainedModel = model.merge_and_unload() if config.lora else model
    scorer.eval()
    normalisation, account = normalise(scorer, config, job, tokenizer, train)
    store_normalisation(scorer, normalisation)
    scale = {"reward_gain": normalisation.gain, "reward_bias": normalisation.bias}
    scores = answer_scores(scorer, held_out, tokenizer.pad_token_id)
    judged = judge_pairs(scores, held_out)
    setting = "reward_model.held_out" if config.data else "comparisons.held_out_prompts"
    warn(job.tracker, held_out_pairs(judged, setting, share.name))
    shown = scale | {f"held_out/{name}": value for name, value in judged.items() if isinstance(value, float)}
    step = share.steps_before + steps * config.ensemble
    job.tracker.log({f"{share.name}/{name}": value for name, value in shown.items()}, step=step)
    metrics = {
        "precision": precision,
        "steps": steps,
        "share_prompts": share_prompts,
        **adapters,
        **folds,
        **scale,
        **judged,
    }
    save_checkpoint(scorer, tokenizer, share.output)
    write_reward_card(share.output, scorer, tokenizer, config.normalise_on, judged, ADAPTER_CARD if config.lora else "")
    if members:
        members = set_scales(scorer, members, lambda: normalise(scorer, config, job, tokenizer, train)[0])
        metrics["ensemble"] = judge_members(scorer, normalisation, members, held_out, tokenizer.pad_token_id)
        publish_members(share.output, scorer, members, settings)
    return Trained(metrics, account, scores)


def fit(
    model: Any,
    share: Share,
    collator: RankingCollator,
    config: RewardModelConfig,
    job: Job,
    steps: int,
    precision: Precision,
    member: int = 0,
) -> None:
    """Train the model's trainable parameters. Each `member` of an ensemble has its own metrics and order of data.

    The Trainer casts nothing: the body alone is read in `precision`, the head and the loss are float32."""
    arguments = TrainingArguments(
        **trainer_arguments(
            job.directory,
            bare(model).device,
            member_seed(job.seed, member),
            config.batch_prompts,
            1,
            steps,
            config.optimizer.max_grad_norm,
        )
    )
    trainer = RankingTrainer(
        model=RankingModule(model),
        args=on_one_device(arguments),
        train_dataset=share.rankings,
        data_collator=collator,
        optimizers=make_optimizer(model.parameters(), config.optimizer, steps),
    )
    trainer.remove_callback(ProgressCallback)
    prefix = f"{share.name}/member_{member}" if member else share.name
    trainer.add_callback(RecordCallback(job.tracker, prefix, share.steps_before + member * steps))
    body = bare(model)
    with checkpointed(config.gradient_checkpointing, model), computing_in(body, precision), cast_frozen(body):
        trainer.train()


def normalise(
    model: PreTrainedModel,
    config: RewardModelConfig,
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Ranking],
) -> tuple[RewardNormalisation, dict[str, Any]]:
    """-> (gain and bias of the model's scores, counts of the data they were set on, for the manifest)."""
    n = config.normalise_rows
    if config.normalise_on == "policy_samples":
        rows = [(ranking.prompt, response) for ranking in train[:n] for response in ranking.responses][:n]
        prompts, responses = zip(*rows, strict=True)
        scores = score_responses(model, prompts, responses, tokenizer.pad_token_id, normalised=False)
        if doubt := same_score("reward_model", scores.tolist()):  # no gain can spread them, but the model is trained
            warn(job.tracker, doubt)
            return from_demonstrations(scores), {}
        return from_reference_samples(scores), {}
    records = load_all(config.demonstrations, Demonstration, job.seed)
    encoded = encode(tokenizer, [records[i].messages for i in range(min(n, len(records)))])
    longest = longest_text(config, model.config)
    pairs = [_last_answer(row.ids, row.is_response) for row in encoded if len(row.ids) <= longest]
    if not pairs:
        raise ConfigError(f"reward_model.demonstrations: none fits in max_length ({longest} tokens); give shorter ones")
    prompts, responses = zip(*pairs, strict=True)
    scores = score_responses(model, prompts, responses, tokenizer.pad_token_id, normalised=False)
    return from_demonstrations(scores), {"demonstrations": data_account(records)}


def _last_answer(ids: list[int], is_response: list[bool]) -> tuple[list[int], list[int]]:
    start = len(ids)
    while start > 0 and is_response[start - 1]:
        start -= 1
    return ids[:start], ids[start:]
