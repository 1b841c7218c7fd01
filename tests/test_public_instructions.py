"""Real files in their published formats: every row becomes a record or is counted, whichever rows the files hold."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_schema import Demonstration, Document, Prompt, Source, load


def find_public_data() -> Path | None:
    candidates = [os.environ.get("TRIPTYCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    return next((Path(c) for c in candidates if c and (Path(c) / "sft").is_dir()), None)


PUBLIC = find_public_data()
pytestmark = pytest.mark.skipif(PUBLIC is None, reason="no public data; name its folder in TRIPTYCH_DATA")

# pattern: (setting `format`, the format it is read as, how the column or list that answers is called)
DEMONSTRATIONS: dict[str, tuple[str, str, str]] = {
    "sft/alpaca_*.json*": ("auto", "alpaca", "output"),
    "sft/code_alpaca_*.json": ("auto", "alpaca", "output"),
    "sft/lima.json.gz": ("auto", "alpaca", "output"),
    "sft/dolly_eval_*.json": ("auto", "dolly", "response"),
    "sft/dolly_hhrlhf_*.jsonl": ("auto", "prompt_response", "response"),
    "sft/gpteacher_*.json.gz": ("auto", "gpteacher", "response"),
    "sft/self_instruct_*.jsonl": ("auto", "self_instruct", "instances"),
    "sft/flan_cot_*.tsv": ("auto", "flan_cot", "rationale"),
    "sft/t0_*.jsonl.gz": ("auto", "prompt_completion", "completion"),
    "sft/superni/*.json": ("auto", "superni", "Instances"),
    "sft/oasst1_*guanaco.jsonl.gz": ("auto", "guanaco", "output"),
    "sft/tulu3_sft_*.jsonl": ("auto", "records", "messages"),
}


def raw_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, read without the package."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    if ".tsv" in path.name:
        names = ["input", "target", "rationale"]
        lines = (line for line in text.split("\n") if line)
        return list(csv.DictReader(lines, names, delimiter="\t", quoting=csv.QUOTE_NONE))
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    content = json.loads(text)
    return content if isinstance(content, list) else [content]


def answers(path: Path, column: str) -> list[str]:
    """What the file's rows answer, as the file has it."""
    found: list[str] = []
    for row in raw_rows(path):
        for item in row[column] if column in ("instances", "Instances") else [row]:
            answer = item[column] if column in item else item["output"]
            if column == "messages":
                answer = answer[-1]["content"]
            found.append(answer[0] if isinstance(answer, list) else answer)
    return found


@pytest.mark.parametrize("pattern", DEMONSTRATIONS)
def test_every_row_of_a_public_file_is_a_demonstration_unless_its_answer_is_empty(pattern: str) -> None:
    assert PUBLIC is not None
    form, name, column = DEMONSTRATIONS[pattern]
    paths = sorted(PUBLIC.glob(pattern))
    if not paths:
        pytest.skip(f"no {pattern}")
    for path in paths:
        records = load(Source(str(path), form, on_bad_row="drop"), Demonstration)
        expected = answers(path, column)
        bare = [answer.strip().removesuffix("<|endoftext|>") for answer in expected]
        n_empty = sum(not answer.strip() for answer in bare)
        assert records.format == name
        assert sum(records.dropped.values()) == n_empty and len(records) == len(expected) - n_empty, records.dropped
        assert all("empty" in reason for reason in records.dropped)
        assert len(load(Source(str(path), form), Prompt)) == len(expected)
        for record, answer in zip(records[:300], [answer for answer in bare if answer.strip()][:300], strict=True):
            assert record.messages[-1].content.strip().startswith(answer.strip().replace("\\n", "\n")[:40])


def test_no_prompt_of_a_public_file_holds_a_template_an_end_mark_or_an_escaped_newline() -> None:
    assert PUBLIC is not None
    marks = {"sft/dolly_hhrlhf_*.jsonl": "###", "sft/t0_*.jsonl.gz": "<|endoftext|>", "sft/flan_cot_*.tsv": "\\n"}
    for pattern, mark in marks.items():
        for path in PUBLIC.glob(pattern):
            form = DEMONSTRATIONS[pattern][0]
            for record in load(Source(str(path), form, on_bad_row="drop"), Demonstration):
                assert not any(mark in message.content for message in record.messages), record.id
    for path in PUBLIC.glob("sft/oasst1_*guanaco.jsonl.gz"):
        for record in load(Source(str(path)), Demonstration):
            assert not any("### Human:" in message.content for message in record.messages)


def test_the_task_files_of_a_folder_are_one_source_with_a_group_for_each_task() -> None:
    assert PUBLIC is not None
    paths = sorted((PUBLIC / "sft" / "superni").glob("*.json"))
    if not paths:
        pytest.skip("no task files")
    records = list(load(Source(str(PUBLIC / "sft" / "superni")), Demonstration))
    assert len(records) == sum(len(answers(path, "Instances")) for path in paths)
    assert {record.group for record in records} == {path.name.split(".")[0] for path in paths}
    n_references = sum(len(record.meta["references"]) for record in records)
    outputs = (instance["output"] for path in paths for instance in raw_rows(path)[0]["Instances"])
    assert n_references == sum(len(output) if isinstance(output, list) else 1 for output in outputs)


def test_a_tree_of_replies_gives_threads_along_the_best_ones() -> None:
    assert PUBLIC is not None
    for path in PUBLIC.glob("pref/oasst_*_tree.jsonl.gz"):
        trees = {row["message_tree_id"]: row["prompt"] for row in raw_rows(path)}
        records = load(Source(str(path)), Demonstration)
        human = [tree for tree in trees.values() if not tree.get("synthetic")]
        assert records.dropped["deleted, synthetic or not passed"] == len(trees) - len(human)
        assert len({record.group for record in records}) == len(human)
        for record in records:
            node = trees[str(record.group)]
            for question, answer in zip(record.messages[0::2], record.messages[1::2], strict=True):
                assert node["text"] == question.content
                written = [reply for reply in node["replies"] if not reply["synthetic"]]
                best = [reply for reply in written if reply["text"] == answer.content]
                assert best[0].get("rank") in (None, min((r["rank"] for r in written if "rank" in r), default=None))
                following = [reply for reply in best[0]["replies"]]
                node = next((r for r in following if any(r["text"] == m.content for m in record.messages)), {})


def test_the_texts_of_an_archive_are_documents_and_those_in_another_encoding_are_counted() -> None:
    assert PUBLIC is not None
    for path in PUBLIC.glob("text/*.zip"):
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist() if name.endswith(".txt")]
        n_utf8 = sum(content.decode("utf-8", "ignore").encode() == content for content in contents)
        records = load(Source(str(path), on_bad_row="drop"), Document)
        assert len(records) == n_utf8
        assert records.dropped["not UTF-8"] == len(contents) - n_utf8
