"""Checks before a pipeline's first stage: the model and tokenizer of every stage to run, and all rows of its data. An
error found here costs no training time.

A dry run makes the same checks, but downloads nothing and runs no code of the user's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkpoint_store import CheckpointStore
from data_schema import DataError
from data_schema.errors import printable
from pipeline.architecture import reads_with_encoder
from pipeline.gate.limits import CHECKS, View
from pipeline.gate.models import check_adapters, check_base, check_reward_text, check_role
from pipeline.gate.rows import Rows, TooFew
from pipeline.gate.trunk import check_trainable_layers
from pipeline.inputs import functions
from pipeline.plan import StagePlan
from stages.errors import ConfigError
from stages.judging import load_function
from stages.ppo.reward_settings import reward_role

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger("triptych.gate")
UNLIMITED = 2**31


class Model(NamedTuple):
    """What is known of a stage's model before it is made."""

    source: str  # directory or hub name of the model it comes from
    tokenizer: PreTrainedTokenizerBase | None = None  # None if it cannot be looked at
    positions: int = UNLIMITED
    answers: int = UNLIMITED  # tokens of prompt and answer up to which answers can be sampled exactly
    layers: int | None = None
    pairs: bool = False  # an encoder-decoder


def check_stages(
    plans: Sequence[StagePlan],
    to_run: Collection[str],
    store: CheckpointStore,
    seed: int,
    dry_run: bool = False,
    check_model: bool = False,
) -> list[str]:
    """Raises ConfigError, DataError or ModelError, in one line, for the first error that a stage to run would hit.
    Returns the warnings, each once; they are also logged. `check_model` also loads the weights of the base model."""
    rows = Rows(seed, run_code=not dry_run)
    models: dict[str, Model] = {}  # key or directory -> model
    seen: dict[str, set[str]] = {}  # key -> hashes of the prompts that its model is trained on
    for plan in plans:
        if plan.stage in to_run:
            for _, setting, path in functions(plan.config) if not dry_run else ():
                load_function(path, setting)
            view = look_at(plan, models, store, rows, seen, download=not dry_run)
            seen[plan.key] = check_rows(plan, view)
            if plan.stage == "select":
                seen[plan.key] |= seen.get(plan.parents.get("sft", ""), set())
            if check_model and plan.stage == "sft":
                check_weights(plan.config.base_model, plan.config.pad_token)
    for line in rows.warnings:
        logger.warning("warning: %s", printable(line))
    if rows.not_seen:
        why = "a dry run runs no code and downloads nothing" if dry_run else "not in the local cache"
        logger.info("not checked (%s): %s", why, ", ".join(dict.fromkeys(rows.not_seen)))
    return rows.warnings


def check_rows(plan: StagePlan, view: View) -> set[str]:
    """Check a stage's rows. Python functions are read to their end only if their first rows seem too few."""
    rows = view.rows
    rows.whole = rows.cut = False
    try:
        return CHECKS[plan.stage](view)
    except (TooFew, DataError):
        if not rows.cut:
            raise
    rows.whole = True
    return CHECKS[plan.stage](view)


def look_at(
    plan: StagePlan,
    models: dict[str, Model],
    store: CheckpointStore,
    rows: Rows,
    seen: dict[str, set[str]],
    download: bool,
) -> View:
    """Load tokenizer and config of the stage's models, if they can be had, and check them."""
    read = {**plan.parents, **{role: str(path) for role, path in plan.outside.items()}}
    if plan.stage == "sft":
        model = base_model(plan, rows, download)
    else:
        for role, where in read.items():
            directory = store.path(where) if store.exists(where) else Path(where)
            check_role(plan.stage, role, directory)
            if where not in models:
                models[where] = existing_model(plan, role, directory, rows)
        model = models[read["sft"]] if "sft" in read else Model("")
        apart = {reward_role(i) for i, part in enumerate(getattr(plan.config, "rewards", [])) if part.text_crosses_over}
        rooms = [models[where].positions for role, where in read.items() if role not in apart]
        model = model._replace(positions=min([*rooms, UNLIMITED]))  # those apart have their own tokens
    if plan.stage == "reward_model":
        check_reward_class(model.source)
    if model.tokenizer is not None:
        check_adapters(plan.config, model.source)
        check_trainable_layers(plan.config, model.source)
        there = {role: store.path(where) if store.exists(where) else Path(where) for role, where in read.items()}
        check_reward_text(plan.config, model.tokenizer, model.source, there)
        if plan.stage == "evaluate" and plan.config.base_model is not None and is_here(plan.config.base_model):
            check_base(plan.config.base_model, model.tokenizer)
    models[plan.key] = model
    before = {hash_ for where in read.values() for hash_ in seen.get(where, ())} | stored_hashes(read.values(), store)
    return View(
        plan.config,
        model.tokenizer,
        model.pairs,
        model.positions,
        min(model.positions, model.answers),
        model.layers,
        rows,
        frozenset(before),
    )


def base_model(plan: StagePlan, rows: Rows, download: bool) -> Model:
    """The model that SFT starts from, with the tokenizer as SFT will publish it."""
    from policy.encoding import set_template
    from policy.kinds import check_kind
    from policy.language_model import load_config, load_tokenizer, positions
    from policy.seq2seq import set_seq2seq_template
    from stages.data_checks.tokenizer_checks import special_token_findings

    config = plan.config
    if not download and not is_here(config.base_model):
        rows.not_seen.append(f"sft.base_model '{config.base_model}'")
        return Model(config.base_model)
    described = load_config(config.base_model)
    pairs = bool(described.is_encoder_decoder)
    if not pairs:
        check_kind(described, config.base_model, "language model")
        check_writes_answers(config.base_model, described)
    tokenizer = load_tokenizer(config.base_model)
    check_vocabulary(config.base_model, described, tokenizer, rows)
    if config.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": config.pad_token})
    own_template = tokenizer.chat_template
    (set_seq2seq_template if pairs else set_template)(tokenizer, config.template)
    if own_template not in (None, tokenizer.chat_template):
        rows.warn(
            f"sft.template '{config.template}' replaces the chat template of '{config.base_model}'; tokenizer "
            "keeps the model's own"
        )
    if pairs:
        for finding in special_token_findings(tokenizer):
            rows.take("sft", finding)
    else:
        check_tokenizer("sft", tokenizer, rows)
    answers = UNLIMITED if pairs else check_reading(config.base_model, described)
    return Model(config.base_model, tokenizer, positions(described), answers, layers(described), pairs)


def existing_model(plan: StagePlan, role: str, directory: Path, rows: Rows) -> Model:
    """A model that is there already, in the store or in a directory outside it. One that is missing, or whose stage
    publishes no model, limits nothing: the runner reports what is missing."""
    from policy.language_model import load_config, load_tokenizer, positions

    if not (directory / "config.json").is_file() or reads_with_encoder(str(directory)):
        return Model(str(directory))
    described = load_config(directory)
    if role != "sft":  # the tokenizer of a reward model is checked against the SFT model's by the stage
        return Model(str(directory), None, positions(described), layers=layers(described))
    check_writes_answers(str(directory), described)
    tokenizer = load_tokenizer(directory)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{plan.stage}.sft: '{directory}' has no chat template; add a file chat_template.jinja, or run sft with "
            "base_model set to it and a template"
        )
    check_vocabulary(str(directory), described, tokenizer, rows)
    check_tokenizer(plan.stage, tokenizer, rows)
    answers = check_reading(str(directory), described)
    return Model(str(directory), tokenizer, positions(described), answers, layers(described))


def check_tokenizer(stage: str, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> None:
    from stages.data_checks.tokenizer_checks import tokenizer_findings

    for finding in tokenizer_findings(tokenizer, own_template=False):
        rows.take(stage, finding)


def check_writes_answers(source: str, config: PreTrainedConfig) -> None:
    """Raise ConfigError for a model that cannot write an answer: an encoder, or one without a language model's head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or (
        kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    ):
        raise ConfigError(
            f"'{source}' is a model of type '{config.model_type}', which cannot write an answer: it is an encoder, or "
            "has no causal language model in transformers; give a decoder-only language model"
        )


def check_reading(source: str, config: PreTrainedConfig) -> int:
    """Try how the model is read (policy/reading/ways.py) and say so if it is in a slower way. Returns the most tokens
    of prompt and answer. Raises ConfigError if the model cannot be read exactly."""
    from policy.errors import ModelError
    from policy.reading.ways import announce, longest_answer, readings_of_config

    try:
        readings = readings_of_config(config)
    except ModelError as error:
        raise ConfigError(f"'{source}' cannot be used: {error}") from None
    if readings is not None:
        announce(config.model_type, readings)
    return longest_answer(config)


def check_weights(source: str, pad_token: str | None) -> None:
    """Raise ConfigError unless the weights are finite and give a text the logits of the model's own forward pass."""
    from reward.conformance import model_facts, refused

    if not is_here(source) or reads_with_encoder(source):
        logger.info("weights not checked (an encoder-decoder, or not downloaded): %s", printable(source))
        return
    facts = model_facts(source, pad_token, with_weights=True)
    if (why := refused(facts)) is not None:
        raise ConfigError(f"'{source}' cannot be used: {why}")
    logger.info("%s: %s", printable(source), "; ".join(fact.found for fact in facts[-2:]))


def check_reward_class(source: str) -> None:
    """Raise ModelError if no reward model can be built on the model at `source`."""
    from policy.language_model import load_config
    from reward.classes import scalar_class

    if is_here(source):
        scalar_class(load_config(source))


def check_vocabulary(source: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> None:
    """Warn of tokens that the model has no embedding for; they get new rows, which are not trained yet."""
    from policy.special_tokens import vocabulary_size

    n_rows = getattr(config.get_text_config(), "vocab_size", None)
    missing = vocabulary_size(tokenizer) - n_rows if n_rows else 0
    if missing > 0:
        last = tokenizer.convert_ids_to_tokens(vocabulary_size(tokenizer) - 1)
        rows.warn(
            f"the tokenizer of '{source}' has {missing} more ids than the model has embeddings ({n_rows}), the last is "
            f"'{last}'; the model gets an untrained embedding for each: check that model and tokenizer belong together"
        )


def layers(config: PreTrainedConfig) -> int | None:
    found: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    return found


def stored_hashes(places: Iterable[str], store: CheckpointStore) -> set[str]:
    """The hashes of the prompts that existing checkpoints were trained on."""
    from stages.job import read_seen_prompts

    return read_seen_prompts(store.path(place) if store.exists(place) else Path(place) for place in places)


def is_here(source: str) -> bool:
    """Whether a model is a directory, or has been downloaded from the hub."""
    if Path(source).expanduser().is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError:
        return True  # loading it gives the error
