"""What each stage reads, and the limits that its rows must keep; found with the functions that the stages use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema import Comparison, Demonstration, Document, Prompt, Records, Source, dedup_prompts
from pipeline.gate.rows import Rows, TooFew, quiet
from stages.errors import ConfigError
from stages.job import Job, halves, keep_back, prompt_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANY = 0.2  # share of rows dropped as too long from which there is a warning


class View(NamedTuple):
    """A stage to run, with what its checks need."""

    config: Any
    tokenizer: PreTrainedTokenizerBase | None  # None if it cannot be looked at; then tokens are not checked
    pairs: bool  # the model is an encoder-decoder
    positions: int  # of the smallest model that reads the stage's texts
    answers: int  # most tokens of a prompt and its sampled answer
    layers: int | None  # of the model that the stage starts from, if its config says so
    rows: Rows
    seen: frozenset[str]  # hashes of the prompts that the models the stage reads were trained on

    def name(self, setting: str) -> str:
        return f"{self.config.section}.{setting}"


def check_sft(view: View) -> set[str]:
    from stages.sft.demonstrations import load_demonstrations
    from stages.trainer import count_steps, split_batch

    config, rows = view.config, view.rows
    split_batch("sft", config.batch_size, config.micro_batch_size)
    check_text(view, config.pretraining_data)
    if (data := rows.sources("sft.data", config.data, cut=config.mixture is None)) is None:
        return set()
    job: Any = Job(Path(), {}, None, rows.seed)  # type: ignore[arg-type]  # nothing is logged
    with quiet():
        read = load_demonstrations(replace(config, data=data), job)
    seen = {prompt_hash(record) for record in read.seen}
    if view.tokenizer is None:
        return seen
    kept = []
    for part in (read.train, read.held_out):
        # Rows that are dropped by their length, and the positions that a row takes of the model's.
        if view.pairs:
            pairs = rows.pair_lengths("sft.data", part, view.tokenizer)
            lengths, places = [sum(pair) for pair in pairs], [max(pair) for pair in pairs]
        else:
            lengths = places = list(rows.lengths("sft.data", part, Demonstration, view.tokenizer))
        kept.append([n for n, length in zip(places, lengths, strict=True) if length <= config.max_length])
        fit(view, "sft.data", kept[-1], 0, "sft.max_length")
        many_dropped(
            view, "sft.data", len(lengths) - len(kept[-1]), len(lengths), f"sft.max_length ({config.max_length})"
        )
    share = config.pretraining_share if config.pretraining_data else 0
    enough(lambda: count_steps("sft", len(kept[0]), config.batch_size * (1 - share), config.epochs))
    if config.held_out and not kept[1]:
        raise TooFew(
            f"sft.held_out is {config.held_out:g}, but no held-out demonstration has at most {config.max_length} "
            "tokens; raise sft.held_out or sft.max_length, or set sft.held_out to 0 to hold nothing out"
        )
    return seen


def check_comparisons(view: View) -> set[str]:
    config = view.config
    prompts = read_prompts(view)
    if prompts is None:
        return set()
    records, lengths = prompts
    fit(view, view.name("prompts"), lengths, config.sampling.max_new_tokens, None)
    if config.held_out_prompts >= len(records):
        raise TooFew(
            f"comparisons.held_out_prompts is {config.held_out_prompts}, but there are {len(records)} prompts; lower it"
        )
    return set()


def check_reward_model(view: View) -> set[str]:
    from reward.ranking_loss import ranked_pairs
    from stages.trainer import count_steps

    config, rows = view.config, view.rows
    if config.frozen_layers and view.layers and config.frozen_layers >= view.layers:
        raise ConfigError(
            f"reward_model.frozen_layers is {config.frozen_layers}, but the model has {view.layers} layers and one "
            f"must read the frozen ones; set it to at most {view.layers - 1}"
        )
    longest = min(config.max_length, view.positions)
    if config.normalise_on == "demonstrations":
        check_scale(view, longest)
    if not config.data or (data := rows.sources("reward_model.data", config.data)) is None:
        return set()
    records = rows.load(data, Comparison)
    train, held_out = keep_back(records, config.held_out, rows.seed, "reward_model.held_out")
    if config.labels.margins and not any(record.margin for record in train):
        raise TooFew("reward_model.labels.margins is set, but no comparison has a margin; leave it out")
    seen = {prompt_hash(record) for record in train}
    parts = [train, held_out]
    if config.second_half:
        parts = [*halves(train, rows.seed, "reward_model.second_half"), held_out]
    if view.tokenizer is None:
        return seen
    kept = []
    for part in parts:
        lengths = rows.lengths("reward_model.data", part, Comparison, view.tokenizer)
        fits = [length <= longest for length in lengths]
        kept.append(sum(fit and bool(ranked_pairs(row.ranks)) for row, fit in zip(part, fits, strict=True)))
        limit = f"reward_model.max_length or the model's positions ({longest})"
        many_dropped(view, "reward_model.data", len(fits) - sum(fits), len(fits), limit)
    if not config.frozen_layers:
        enough(lambda: count_steps("reward_model", min(kept[:-1]), config.batch_prompts, config.epochs))
    if not all(kept[:-1]) or (config.held_out and not kept[-1]):
        which = "training" if not all(kept[:-1]) else "held-out"
        cure = "" if not all(kept[:-1]) else "raise reward_model.held_out, or set it to 0 to measure no accuracy; or "
        raise TooFew(
            f"reward_model.data: no {which} comparison is left that has a better answer and at most {longest} tokens; "
            f"{cure}raise reward_model.max_length, or give more comparisons"
        )
    return seen


def check_scale(view: View, longest: int) -> None:
    """The demonstrations whose mean reward is set to 0."""
    config, rows = view.config, view.rows
    data = rows.sources("reward_model.demonstrations", config.demonstrations)
    if data is None:
        return
    records = rows.load(data, Demonstration)
    if view.tokenizer is None:
        return
    first = records.select(range(min(config.normalise_rows, len(records))))
    lengths = rows.lengths("reward_model.demonstrations", first, Demonstration, view.tokenizer)
    if not any(length <= longest for length in lengths):
        raise TooFew(
            f"reward_model.demonstrations: none of the first {len(first)} has at most {longest} tokens; give shorter "
            "ones, or set reward_model.normalise_on to policy_samples"
        )


def check_ppo(view: View) -> set[str]:
    config = view.config
    if config.mixes_text:
        check_text(view, config.pretraining_data)
    prompts = read_prompts(view)
    if prompts is None:
        return set()
    records, lengths = prompts
    kept = within(view, lengths)
    if len(kept) < config.rollout_batch:
        raise TooFew(
            f"ppo: {len(kept)} of {len(lengths)} prompts have at most {config.max_prompt_length} tokens, fewer than "
            f"one batch of {config.rollout_batch}; add prompts, lower ppo.rollout_batch or raise ppo.max_prompt_length"
        )
    return {prompt_hash(records[i]) for i in kept}


def check_answered(view: View) -> set[str]:
    """`select` and `evaluate`: prompts that no stage was trained on."""
    config = view.config
    if config.section == "evaluate":
        check_text(view, config.text, "text")
    prompts = read_prompts(view) if config.prompts else None
    if prompts is None:
        return set()
    records, lengths = prompts
    known = [prompt_hash(record) in view.seen for record in records]
    kept = [i for i in within(view, lengths) if not known[i]]
    counts = f"{sum(known)} are also trained on"
    too_long = sum(length > config.max_prompt_length for length in lengths)
    if len(kept) < 2:
        raise TooFew(
            f"{view.name('prompts')}: {len(kept)} of {len(records)} prompts are left: {counts}, {too_long} are longer "
            f"than {config.max_prompt_length} tokens; give prompts that no other stage uses"
        )
    if any(known):
        example = records[known.index(True)].id
        view.rows.warn(
            f"{view.name('prompts')}: {counts} and will be left out of {len(records)} ({example}); give prompts that "
            "no other stage uses"
        )
    return {prompt_hash(records[i]) for i in kept[: config.n_prompts]}


def read_prompts(view: View) -> tuple[Records[Prompt], Sequence[int]] | None:
    """(distinct prompts, their lengths in tokens); None if they or the tokenizer cannot be looked at."""
    setting = view.name("prompts")
    data = view.rows.sources(setting, view.config.prompts)
    if data is None:
        return None
    records = view.rows.load(data, Prompt)
    if view.config.section != "comparisons":
        records = dedup_prompts(records)
    if view.tokenizer is None:
        return None
    return records, view.rows.lengths(setting, records, Prompt, view.tokenizer)


def within(view: View, lengths: Sequence[int]) -> list[int]:
    """The indices of the prompts that are short enough. Raises ConfigError if the model lacks positions for them."""
    config, setting = view.config, view.name("prompts")
    kept = [i for i, length in enumerate(lengths) if length <= config.max_prompt_length]
    limit = view.name("max_prompt_length")
    fit(view, setting, [lengths[i] for i in kept], config.sampling.max_new_tokens, limit)
    many_dropped(view, setting, len(lengths) - len(kept), len(lengths), f"{limit} ({config.max_prompt_length})")
    return kept


def check_text(view: View, sources: Sequence[Source], name: str = "pretraining_data") -> None:
    """Plain text and the length of its rows; `name` is the setting that lists it."""
    if not sources:
        return
    limit = f"{name.removesuffix('_data')}_length"
    setting, length = view.name(name), getattr(view.config, limit)
    if length > view.positions:
        raise ConfigError(
            f"{view.name(limit)} is {length}, but the model has positions for {view.positions} tokens; lower it"
        )
    data = view.rows.sources(setting, sources)
    if data is None:
        return
    documents = view.rows.load(data, Document)
    if view.tokenizer is None:
        return
    tokens = sum(view.rows.lengths(setting, documents, Document, view.tokenizer))
    if tokens < length:
        raise TooFew(f"{setting} has {tokens} tokens, less than one row of {length}; give more text")


def fit(view: View, setting: str, lengths: Sequence[int], answer: int, limit: str | None) -> None:
    """Raise ConfigError if a row with an answer of that many tokens needs more positions than the model has. `limit` is
    the setting that would drop such rows."""
    most = view.answers if answer else view.positions
    room = most - answer
    count = sum(length > room for length in lengths)
    if not count:
        return
    with_answer = f", and answers may have {answer} more ({view.name('sampling.max_new_tokens')})" if answer else ""
    cures = [f"lower {limit} to {room}, so that they are dropped"] if limit and room > 0 else []
    cures += [f"lower {view.name('sampling.max_new_tokens')}"] if answer else []
    cures += [] if limit else ["shorten or remove those prompts"]
    has = "has positions for" if most == view.positions else "can only sample answers up to"
    raise ConfigError(
        f"{setting}: {count} of {len(lengths)} rows are too long for the model, which {has} {most} tokens: the longest "
        f"has {max(lengths)}{with_answer}; {', or '.join(cures)}"
    )


def many_dropped(view: View, setting: str, count: int, n: int, limit: str) -> None:
    """Warn if a large share of the rows is dropped."""
    if count >= MANY * n > 0:
        view.rows.warn(
            f"{setting}: {count} of {n} rows are longer than {limit} and will be dropped; raise it, or shorten them"
        )


def enough(count: Callable[[], int]) -> None:
    """Raise TooFew if the rows do not fill one batch."""
    try:
        count()
    except ConfigError as error:
        raise TooFew(str(error)) from None


CHECKS: dict[str, Callable[[View], set[str]]] = {
    "sft": check_sft,
    "comparisons": check_comparisons,
    "reward_model": check_reward_model,
    "select": check_answered,
    "ppo": check_ppo,
    "evaluate": check_answered,
}
