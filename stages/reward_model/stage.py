"""Stage 2, the reward model (InstructGPT 3.5 eq. 1, C.2), on Hugging Face's Trainer.

All answers to a prompt are scored once, and all their pairs are one batch element; every prompt has the same weight.
After training the scale is set and stored in the model's config: demonstrations score 0 on average, or the SFT model's
own answers have mean 0 and standard deviation 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainingArguments

from data_schema import Comparison, Demonstration, load_all, read_records
from policy.adapters import add_lora, describe_reach, reach
from policy.encoding import encode, encode_answers
from policy.language_model import (
    bare,
    choose_device,
    disable_dropout,
    load_config,
    load_tokenizer,
    positions,
    save_checkpoint,
)
from policy.memory.checkpointing import checkpointed
from reward.adapter import CARD as ADAPTER_CARD
from reward.adapter import write_adapter
from reward.frozen_layers import cut_after
from reward.normalisation import RewardNormalisation, from_demonstrations, from_reference_samples
from reward.ranking_loss import ranked_pairs
from reward.scalar_model import from_language_model, store_normalisation
from reward.scoring import score_responses
from stages.comparisons.stage import HELD_OUT_FILE, TRAIN_FILE
from stages.doubts import held_out_pairs, rows_lost, same_score, warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account, keep_back, write_seen_prompts
from stages.optimizer import make_optimizer
from stages.reward_model.card import write_reward_card
from stages.reward_model.ensemble import judge_members, member_seed, publish_members, set_scales, train_others
from stages.reward_model.frozen import fit_frozen
from stages.reward_model.measures import judge_pairs
from stages.reward_model.settings import LabelConfig, RewardModelConfig
from stages.reward_model.trainer import (
    Ranking,
    RankingCollator,
    RankingModule,
    RankingTrainer,
    merge_labelers,
    shares_prompts,
)
from stages.trainer import RecordCallback, count_steps, trainer_arguments, training_precision

logger = logging.getLogger("triptych.reward_model")


def run(config: RewardModelConfig, job: Job) -> StageResult:
    """Train the model and its scalar head on rankings; the output loads with AutoModelForSequenceClassification."""
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    tokenizer = load_tokenizer(job.parents["sft"])
    train, held_out, data = load_rankings(config, job, tokenizer)
    train = prepare_labels(train, config.labels)
    steps = 0 if config.frozen_layers else count_steps("reward_model", len(train), config.batch_prompts, config.epochs)

    model: Any = from_language_model(job.parents["sft"], device, job.seed)
    disable_dropout(model)
    adapters: dict[str, Any] = {}
    if config.frozen_layers:
        cut_after(model, config.frozen_layers)
    if config.lora:
        model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "SEQ_CLS")
        adapters = {"lora": reach(model)}
        logger.info(describe_reach("reward_model", adapters["lora"]))
    share_prompts = shares_prompts(bare(model), train)
    collator = RankingCollator(
        tokenizer.pad_token_id, model.config.hidden_size, share_prompts, config.micro_batch_tokens, config.labels
    )
    folds: dict[str, float] = {}
    if config.frozen_layers:
        folds = fit_frozen(model, train, collator, config, job)
    else:
        fit(model, train, collator, config, job, steps)
    members = []
    if config.ensemble > 1:
        settings = model.peft_config["default"]
        members = train_others(
            model, partial(fit, model, train, collator, config, job, steps), config.ensemble, job.seed
        )

    if config.lora:  # before merging
        write_adapter(job.output, model, job.parents["sft"])
    scorer: PreTrainedModel = model.merge_and_unload() if config.lora else model
    scorer.eval()
    normalisation, account = normalise(scorer, config, job, tokenizer, train)
    store_normalisation(scorer, normalisation)
    scale = {"reward_gain": normalisation.gain, "reward_bias": normalisation.bias}
    judged = judge_pairs(scorer, held_out, tokenizer.pad_token_id)
    setting = "reward_model.held_out" if config.data else "comparisons.held_out_prompts"
    warn(job.tracker, held_out_pairs(judged, setting))
    shown = scale | {f"held_out/{name}": value for name, value in judged.items() if isinstance(value, float)}
    job.tracker.log({f"reward_model/{name}": value for name, value in shown.items()}, step=steps * config.ensemble)
    precision = "float32" if config.frozen_layers else training_precision(device)
    metrics = {
        "precision": precision,
        "steps": steps,
        "share_prompts": share_prompts,
        **adapters,
        **folds,
        **scale,
        **judged,
    }
    save_checkpoint(scorer, tokenizer, job.output)
    write_reward_card(job.output, scorer, tokenizer, config.normalise_on, judged, ADAPTER_CARD if config.lora else "")
    if members:
        members = set_scales(scorer, members, lambda: normalise(scorer, config, job, tokenizer, train)[0])
        metrics["ensemble"] = judge_members(scorer, normalisation, members, held_out, tokenizer.pad_token_id)
        publish_members(job.output, scorer, members, settings)
    return StageResult(metrics, data | account)


def fit(
    model: Any,
    train: list[Ranking],
    collator: RankingCollator,
    config: RewardModelConfig,
    job: Job,
    steps: int,
    member: int = 0,
) -> None:
    """Train the model's trainable parameters. Each `member` of an ensemble has its own metrics and order of data."""
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
        args=arguments,
        train_dataset=train,
        data_collator=collator,
        optimizers=make_optimizer(model.parameters(), config.optimizer, steps),
    )
    trainer.remove_callback(ProgressCallback)
    prefix = f"reward_model/member_{member}" if member else "reward_model"
    trainer.add_callback(RecordCallback(job.tracker, prefix, member * steps))
    with checkpointed(config.gradient_checkpointing, model):
        trainer.train()


def load_rankings(
    config: RewardModelConfig, job: Job, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Ranking], list[Ranking], dict[str, Any]]:
    """-> (training rankings, held-out rankings, counts for the manifest). Rankings whose answers all tie, or which are
    too long, are dropped and counted."""
    train: Sequence[Comparison]
    held_out: Sequence[Comparison]
    if config.data:
        records = load_all(config.data, Comparison, job.seed)
        train, held_out = keep_back(records, config.held_out, job.seed, "reward_model.held_out")
        account = data_account(records)
    else:
        collected = job.parents["comparisons"]
        train = list(read_records(collected / TRAIN_FILE, Comparison))
        held_out_file = collected / HELD_OUT_FILE
        held_out = list(read_records(held_out_file, Comparison)) if held_out_file.exists() else []
        account = {"format": "records", "records": len(train) + len(held_out), "dropped": {}}
    dropped = account["dropped"]
    total = len(train) + len(held_out) + sum(dropped.values())
    longest = longest_text(config, job.parents["sft"])
    write_seen_prompts(job.output, train)
    rankings = []
    for part in (train, held_out):
        kept = []
        for comparison in part:
            prompt, responses = encode_answers(tokenizer, comparison.prompt, comparison.responses)
            if not ranked_pairs(comparison.ranks):
                dropped["all answers tie"] = dropped.get("all answers tie", 0) + 1
            elif len(prompt) + max(map(len, responses)) > longest:
                dropped["too long"] = dropped.get("too long", 0) + 1
            else:
                kept.append(Ranking(prompt, responses, comparison.ranks, comparison.margin))
        rankings.append(kept)
    if dropped:
        logger.warning(
            "reward_model: dropped %s", ", ".join(f"{count} ({reason})" for reason, count in dropped.items())
        )
    fixes = {
        "too long": f"raise reward_model.max_length (here {longest} tokens), up to the model's context",
        "all answers tie": "give comparisons with a preference",
    }
    warn(job.tracker, rows_lost("reward_model.data" if config.data else "reward_model", total, dropped, fixes))
    return rankings[0], rankings[1], {"comparisons": account}


def longest_text(config: RewardModelConfig, source: Path) -> int:
    """Maximum length of prompt with answer, in tokens: max_length, or the model's context if that is shorter."""
    room = positions(load_config(source))
    if config.max_length > room:
        logger.warning("reward_model: max_length is %d, but the model has positions for %d", config.max_length, room)
    return min(config.max_length, room)


def prepare_labels(train: list[Ranking], labels: LabelConfig) -> list[Ranking]:
    """The training rankings as the loss reads them: merged over labelers if the recipe asks for it."""
    if labels.margins and not any(ranking.margin for ranking in train):
        raise ConfigError("reward_model.labels.margins is set, but no comparison has a margin; leave it out")
    if not labels.merge_labelers:
        return train
    merged = merge_labelers(train)
    logger.info("reward_model: merged %d comparisons into %d", len(train), len(merged))
    return merged


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
    longest = min(config.max_length, positions(model.config))
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
