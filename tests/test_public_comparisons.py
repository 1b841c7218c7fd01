"""Public comparison data, where it is there, parses as it stands: every row becomes a record or is counted.

The bounds hold for any sample of a set's rows, not only for the one at hand.
"""

import gzip
import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Prompt, Records, Source, load


def find_files() -> dict[str, Path]:
    candidates = [os.environ.get("TRIPTYCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    folder = next((Path(c) / "pref" for c in candidates if c and (Path(c) / "pref").is_dir()), None)
    return {path.name.removesuffix(".gz"): path for path in sorted(folder.iterdir())} if folder else {}


FILES = find_files()

# Beginning of a file's name -> format, share of the rows that become comparisons at least, reasons for the others.
EXPECTED: dict[str, tuple[str, float, set[str]]] = {
    "alpaca_eval": ("alpaca_eval", 0.9, {"tie", "no verdict", "equal texts", "empty response"}),
    "autoj": ("autoj", 0.5, {"tie", "equal texts", "empty response"}),
    "bpo_test": ("bpo", 0.9, {"empty response", "equal texts"}),
    "bpo_val": ("bpo_instruction", 0.9, {"empty response", "equal texts"}),
    "hh_": ("hh", 0.9, {"prompts differ", "empty answer", "turns do not alternate", "empty turn"}),
    "kto_mix": ("kto_alpaca", 0.4, {"equal texts", "unpaired answer", "empty response", "repeated response"}),
    "lf_dpo": ("sharegpt_preference", 0.9, {"equal texts", "empty response"}),
    "llmbar": ("llmbar", 0.9, {"equal texts", "empty response"}),
    "oaast_rm": ("alpaca_ranking", 0.9, {"equal texts"}),
    "oasst": ("oasst_tree", 1.0, {"response without a rank", "equal texts", "empty response"}),
    "pandalm": ("pandalm", 0.6, {"tie", "no majority", "response is not text", "empty response", "equal texts"}),
    "qa_feedback": ("qa_feedback", 0.8, {"tie", "verdicts fit no order", "equal texts"}),
    "raschka": ("alpaca_preference", 0.9, {"equal texts"}),
    "stack_exchange": ("stack_exchange_paired", 0.9, set()),
    "tulu1_human": ("tulu_human", 0.5, {"tie", "equal texts", "empty response"}),
    "tulu3": ("preference", 0.9, set()),
    "ultrafeedback": ("scored_preference", 0.7, {"tie", "equal texts", "empty response"}),
}
NAMES = [name for name in FILES if not name.startswith("lf_kto")]

pytestmark = pytest.mark.skipif(not FILES, reason="no public data; name its folder in TRIPTYCH_DATA")


def raw_rows(name: str) -> list[dict[str, Any]]:
    data = FILES[name].read_bytes()
    text = (gzip.decompress(data) if FILES[name].suffix == ".gz" else data).decode()
    rows: list[dict[str, Any]] = (
        [json.loads(line) for line in text.split("\n") if line] if ".jsonl" in name else json.loads(text)
    )
    return rows


def comparisons(name: str) -> Records[Comparison]:
    return load(Source(str(FILES[name])), Comparison)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_file_is_recognised_and_each_row_is_a_comparison_or_is_counted(name: str) -> None:
    form, share, reasons = next(value for start, value in EXPECTED.items() if name.startswith(start))
    records = comparisons(name)
    assert records.format == form
    assert set(records.dropped) <= reasons
    counted = len(records) + sum(records.dropped.values())
    n_rows = counted if name.endswith(".csv") else len(raw_rows(name))
    assert len(records) >= share * n_rows
    if form not in ("oasst_tree", "kto_alpaca", "alpaca_ranking"):  # the others drop whole rows only
        assert counted == n_rows
    for record in records:
        assert min(record.ranks) == 1 and max(record.ranks) == len(set(record.ranks)) > 1
    for kind in (Demonstration, Prompt):
        assert len(load(Source(str(FILES[name])), kind)) >= 0.4 * n_rows


def files(start: str) -> Iterator[str]:
    return (name for name in FILES if name.startswith(start))


def test_kto_s_unpaired_answers_compare_nothing_and_the_good_ones_demonstrate() -> None:
    for name in files("lf_kto"):
        rows = raw_rows(name)
        prompts = [json.dumps(row["messages"][:-1]) for row in rows]
        if len(set(prompts)) == len(rows):
            with pytest.raises(DataError, match=f"unpaired answer: {len(rows)}"):
                comparisons(name)
        demonstrations = load(Source(str(FILES[name])), Demonstration)
        assert demonstrations.dropped["answer marked bad"] == sum(not row["label"] for row in rows)


def test_oasst_ranks_are_those_of_the_siblings() -> None:
    def ranked(message: dict[str, Any]) -> Iterator[dict[str, int]]:
        texts = {reply["text"]: reply["rank"] for reply in message["replies"] if reply.get("rank") is not None}
        if len(texts) > 1:
            yield texts
        for reply in message["replies"]:
            yield from ranked(reply)

    for name in files("oasst"):
        expected = [texts for row in raw_rows(name) for texts in ranked(row["prompt"])]
        found = comparisons(name)
        pairs = [
            {(a, b) for a, b in combinations(texts, 2) if texts[a] < texts[b]}
            | {(b, a) for a, b in combinations(texts, 2) if texts[b] < texts[a]}
            for texts in expected
        ]
        of_records = []
        for record in found:
            rank = dict(zip(record.responses, record.ranks, strict=True))
            of_records.append({(a, b) for a in rank for b in rank if rank[a] < rank[b]})
        assert sorted(map(sorted, pairs)) == sorted(map(sorted, of_records))
        assert {record.group for record in found} <= {row["message_tree_id"] for row in raw_rows(name)}


def test_qa_feedback_s_ranks_agree_with_every_verdict() -> None:
    for name in files("qa_feedback"):
        for record in comparisons(name):
            for (i, j), verdict in zip(combinations(range(4), 2), record.meta["preference"], strict=True):
                difference = record.ranks[j] - record.ranks[i]
                assert verdict == (0 if difference == 0 else 1 if difference > 0 else 2)


def test_pandalm_gives_as_many_decided_votes_as_its_rows_hold() -> None:
    for name in files("pandalm"):
        votes = load(Source(str(FILES[name]), format="pandalm_votes"), Comparison)
        texts = [row for row in raw_rows(name) if all(isinstance(row[f"response{i}"], str) for i in (1, 2))]
        usable = [
            row for row in texts
            if row["response1"].strip() and row["response2"].strip()
            and row["response1"].strip() != row["response2"].strip()
        ]  # fmt: skip
        decided = sum(row[f"annotator{i}"] != 0 for row in usable for i in (1, 2, 3))
        assert len(votes) == decided
        assert {record.labeler for record in votes} == {"annotator1", "annotator2", "annotator3"}
