"""`triptych judge MODEL`: measure a reward model on comparisons it was not trained on, and write one page about it."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from checkpoint_store import Root, local_root, open_store
from data_schema import Comparison, DataError, Prompt, Records, Source, load_all, prompt_text, read_records
from pipeline.inputs import source_fingerprint
from pipeline.terminal.arguments import Arguments, count, seed
from pipeline.terminal.console import as_json
from policy.language_model import load_language_model
from reward.agreement import agreement
from stages.comparisons.settings import ComparisonsConfig
from stages.comparisons.stage import HELD_OUT_FILE, distinct_answers, rank_answers
from stages.errors import ConfigError
from stages.job import keep_back, prompt_hash, read_seen_prompts
from stages.judging import load_judge
from stages.progress import progress
from stages.reward_model.measures import ScoredPairs, correlation, judge_scores, quarters, scored_pairs, table
from stages.settings import SamplingConfig
from workbench.judge.page import print_judgement, write_page
from workbench.judge.scorer import Scorer, find_checkpoint, open_scorer, score_answers

logger = logging.getLogger("triptych.judge")
CHUNK = 512  # comparisons that are tokenized and scored at a time
JSON_FILE, PAGE_FILE = "judgement.json", "judgement.html"


Votes = dict[bytes, dict[str, float]]  # pair of answers -> labeler -> verdict


class Said(NamedTuple):
    """The labels of one comparison, by which results are grouped."""

    source: str
    labeler: str | None
    subset: str | None  # the column `subset`, as in RewardBench's files
    margin: float | None
    gold: Sequence[float]  # of each answer, if a judge function gave one


class Judged(NamedTuple):
    """All scored pairs, and the labels of the comparisons that they come from."""

    said: list[Said]
    pairs: ScoredPairs
    votes: Votes  # ties included
    left_out: dict[str, int]  # number of comparisons by reason


def command(words: Sequence[str]) -> None:
    """Run `triptych judge MODEL [--data SOURCE ...] [--policy MODEL --prompts SOURCE --judge module:function]`."""
    parser = Arguments("judge", __doc__)
    add = parser.add_argument
    add("model", help="reward model: a name such as quickstart/reward_model, a key, or a directory")
    add("--data", nargs="+", default=[], metavar="SOURCE", help="comparisons (default: those held out in training)")
    add("--format", default="auto", help="data format of --data (default: detected from its first rows)")
    add("--split", default="train", help="split of hub data sets and Python functions (default: train)")
    add("--limit", type=count, help="rows to read per source (default: all; of --prompts 10 times --n-prompts)")
    add("--on-bad-row", choices=("error", "drop"), default="error", help="stop at an unusable row (default) or drop it")
    add("--policy", metavar="MODEL", help="also judge on fresh answers of this policy; needs --prompts and --judge")
    add("--prompts", metavar="SOURCE", help="prompts for the policy to answer (of --split)")
    add("--judge", metavar="MODULE:FUNCTION", help="function whose gold score ranks the policy's answers")
    add("--n-prompts", type=count, default=200, help="number of prompts the policy answers (default: 200)")
    add("--answers", type=count, default=4, help="number of answers per prompt (default: 4)")
    add("--max-new-tokens", type=count, default=64, help="maximum tokens per answer (default: 64)")
    add("--seed", type=seed, default=0, help="seed for loading data and sampling answers (default: 0)")
    parser.add_root()
    add("--out", type=Path, help="directory to write the page to (default: ROOT/judgements/MODEL)")
    add("--json", action="store_true", help="print the numbers as JSON instead of tables")
    add("--batch-size", type=count, default=32, help="number of answers to score at a time (default: 32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: auto, the GPU if any)")
    options = parser.parse_args(words)
    if bool(options.policy) != bool(options.judge) or bool(options.policy) != bool(options.prompts):
        raise ConfigError("fresh answers need all three: --policy MODEL --prompts SOURCE --judge MODULE:FUNCTION")

    scorer = open_scorer(options.model, options.root, options.device)
    result = {"model": scorer.name, "fingerprint": scorer.fingerprint, **judge(scorer, options)}
    if options.policy:
        result["fresh"] = judge_fresh(scorer, options)
    name = scorer.manifest.name if scorer.manifest else scorer.directory.resolve().name
    folder = options.out or local_root(options.root) / "judgements" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(folder / PAGE_FILE, result)
    if options.json:
        print(as_json(result, indent=1))
    else:
        print_judgement(result, folder / PAGE_FILE)


def judge(scorer: Scorer, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the model on --data, or on its held-out comparisons: overall and by source, labeler, subset, margin."""
    records, account = comparisons_of(scorer, options)
    judged = score_comparisons(scorer, records, options.batch_size)
    if not len(judged.pairs.difference):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in judged.left_out.items()) or "no comparison"
        raise ConfigError(f"no pair is left to judge {scorer.name} on ({reasons}); give other comparisons with --data")
    return {"data": account, "left_out": judged.left_out, **judge_scores(judged.pairs), **by_label(judged)}


def comparisons_of(scorer: Scorer, options: argparse.Namespace) -> tuple[Iterable[Comparison], dict[str, Any]]:
    """Return (comparisons, a description of them for the report)."""
    if not options.data:
        return kept_back(scorer, options.root)
    sources = [Source(path, options.format, options.split, options.limit, options.on_bad_row) for path in options.data]
    records = load_all(sources, Comparison, options.seed)
    seen = read_seen_prompts([scorer.directory])
    fresh = records.select(i for i, record in enumerate(records) if prompt_hash(record) not in seen)
    trained_on = len(records) - len(fresh)
    if trained_on:
        logger.warning("judge: left out %d of %d comparisons, on prompts it was trained on", trained_on, len(records))
    if not len(fresh):
        raise ConfigError(f"{scorer.name} was trained on the prompts of all {len(records)} comparisons; give others")
    dropped = {**records.dropped, **({"trained on": trained_on} if trained_on else {})}
    return fresh, {"sources": options.data, "format": records.format, "dropped": dropped}


def kept_back(scorer: Scorer, root: Root) -> tuple[Iterable[Comparison], dict[str, Any]]:
    """Return the comparisons that the model's own stage held out, found through its manifest."""
    manifest = scorer.manifest
    if manifest is None:
        raise ConfigError(f"'{scorer.name}' is a directory, so its training data are unknown; give --data")
    if "comparisons" in manifest.parents:
        store = open_store(root)
        file = store.path(manifest.parents["comparisons"]) / HELD_OUT_FILE
        if file.exists():
            return read_records(file, Comparison), {"sources": ["held out in training"], "format": "records"}
    sources = [Source(**source) for source in manifest.config.get("data", [])]
    share = manifest.config.get("held_out", 0)
    if not sources or not share:
        raise ConfigError(f"{scorer.name} was trained without held-out comparisons; give some with --data")
    try:
        found = [source_fingerprint(source, manifest.seed, "reward_model.data") for source in sources]
    except DataError as error:
        raise ConfigError(f"the data of {scorer.name} cannot be read ({error}); give comparisons with --data") from None
    if found != manifest.data["data"]["fingerprint"]:
        raise ConfigError(f"the data of {scorer.name} changed since its training; give comparisons with --data")
    records: Records[Comparison] = load_all(sources, Comparison, manifest.seed)
    held_out = keep_back(records, share, manifest.seed)[1]
    return held_out, {"sources": ["held out in training"], "format": records.format, "dropped": records.dropped}


def score_comparisons(scorer: Scorer, records: Iterable[Comparison], batch_size: int) -> Judged:
    """Score chunk by chunk. Comparisons whose answers all tie or do not fit the model are left out and counted."""
    said: list[Said] = []
    prompts: list[str] = []
    ranks: list[tuple[int, ...]] = []
    scores: list[float] = []
    lengths: list[int] = []
    votes: Votes = {}
    left_out: Counter[str] = Counter()
    with progress(desc="judge", unit="comparison") as bar:
        for chunk in chunks(records, CHUNK):
            for record in chunk:
                add_votes(votes, record)
            kept = [record for record in chunk if len(set(record.ranks)) > 1]
            left_out["all answers tie"] += len(chunk) - len(kept)
            asked = [(record.prompt, record.responses) for record in kept]
            for record, scored in zip(kept, score_answers(scorer, asked, batch_size), strict=True):
                if isinstance(scored, str):
                    left_out[scored] += 1
                    continue
                said.append(what_it_says(record))
                prompts.append(prompt_text(record))
                ranks.append(record.ranks)
                scores += scored.scores
                lengths += scored.lengths
            bar.update(len(chunk))
    return Judged(said, scored_pairs(scores, lengths, ranks, prompts), votes, dict(+left_out))


def what_it_says(record: Comparison) -> Said:
    subset = record.meta.get("subset")
    return Said(
        record.source,
        record.labeler,
        None if subset is None else str(subset),
        record.margin,
        record.meta.get("gold", ()),
    )


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def by_label(judged: Judged) -> dict[str, Any]:
    """Return tables of the pairs by the labels of their comparisons. Tables with only one row are left out."""
    margins = quarters([said.margin for said in judged.said])
    columns: dict[str, list[Any]] = {
        "by_source": [said.source for said in judged.said],
        "by_labeler": [said.labeler for said in judged.said],
        "by_subset": [said.subset for said in judged.said],
        "by_margin": margins,
    }
    tables = {
        name: table(judged.pairs, [column[i] for i in judged.pairs.comparison], _span if name == "by_margin" else str)
        for name, column in columns.items()
    }
    found: dict[str, Any] = {name: rows for name, rows in tables.items() if len(rows) > 1}
    if "by_subset" in found:
        rates = [row["rate"] for row in found["by_subset"]]
        found["mean_over_subsets"] = sum(rates) / len(rates)
    if any(len(item) > 1 for item in judged.votes.values()):
        found["agreement"] = agreement(list(judged.votes.values()))
    return found


def _span(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4g}" if bounds[0] == bounds[1] else f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def add_votes(votes: Votes, record: Comparison) -> None:
    """Add the labeler's verdict on every pair of answers: 1 if the first is better, 0 for a tie, -1 if the second is.

    A hash of the texts decides which answer is first. Otherwise, in a file that always puts the better one first, all
    verdicts would be 1, and agreement by chance would be overestimated."""
    if record.labeler is None:
        return
    prompt = prompt_text(record).encode()
    marks = [hashlib.sha256(prompt + b"\0" + text.encode()).digest() for text in record.responses]
    for i, j in combinations(range(len(marks)), 2):
        first, second = (i, j) if marks[i] <= marks[j] else (j, i)
        verdict = (record.ranks[second] > record.ranks[first]) - (record.ranks[second] < record.ranks[first])
        votes.setdefault(marks[first] + marks[second], {}).setdefault(record.labeler, float(verdict))


def judge_fresh(scorer: Scorer, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the model on fresh answers of the policy, which drift away from the answers it was trained on."""
    labeler = load_judge(options.judge, "--judge")
    source = Source(options.prompts, split=options.split, limit=options.limit or 10 * options.n_prompts)
    config = ComparisonsConfig(
        prompts=[source],
        labeler=options.judge,
        answers_per_prompt=options.answers,
        sampling=SamplingConfig(max_new_tokens=options.max_new_tokens),
    )
    seen = read_seen_prompts([scorer.directory])
    unseen = (prompt for prompt in load_all([source], Prompt, options.seed) if prompt_hash(prompt) not in seen)
    prompts = list(islice(unseen, options.n_prompts))
    policy = load_language_model(find_checkpoint(options.policy, options.root)[0], scorer.model.device)
    policy.model.eval()
    rng = torch.Generator(scorer.model.device).manual_seed(options.seed)
    answers, _ = distinct_answers(prompts, policy, config, rng)
    ranked = [
        rank_answers(prompt, drawn, labeler, config, 0.0, random.Random(options.seed))
        for prompt, drawn in zip(prompts, answers, strict=True)
    ]
    comparisons = [outcome for outcome in ranked if isinstance(outcome, Comparison)]
    judged = score_comparisons(scorer, comparisons, options.batch_size)
    gold = torch.tensor([value for said in judged.said for value in said.gold], dtype=torch.float64)
    return {
        "policy": options.policy,
        "judge": options.judge,
        "left_out": {**Counter(outcome for outcome in ranked if isinstance(outcome, str)), **judged.left_out},
        "gold_correlation": correlation(judged.pairs.scores, gold.numpy()),
        **judge_scores(judged.pairs),
    }
