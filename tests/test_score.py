from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain
from transformers import AutoModelForSequenceClassification

from data_schema import Message
from pipeline.__main__ import main
from policy.encoding import encode_answers
from policy.language_model import load_tokenizer
from stages.reward_model.card import CARD_FILE
from workbench.judge import score

ASK = "repeat these words : fox owl"
TURNS = [
    {"role": "user", "content": ASK},
    {"role": "assistant", "content": "fox owl ."},
    {"role": "user", "content": "sort these words : owl fox"},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(chain: Chain, rows: list[dict[str, Any]], folder: Path, *words: str) -> list[dict[str, Any]]:
    file = write_rows(folder / "rows.jsonl", rows)
    out = folder / "result.jsonl"
    command = [
        "score",
        "small/reward_model",
        str(file),
        "--out",
        str(out),
        "--root",
        str(chain.root),
        "--device",
        "cpu",
    ]
    assert main([*command, *words]) == 0
    return read(out)


def by_transformers(chain: Chain, messages: list[dict[str, str]]) -> float:
    """One text, no padding, plain transformers; the scale from config.json."""
    directory = chain.checkpoint("reward_model")
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    turns = [Message(**message) for message in messages]
    prompt, (answer,) = encode_answers(load_tokenizer(directory), turns[:-1], [turns[-1].content])
    with torch.no_grad():
        logit = model(input_ids=torch.tensor([prompt + answer])).logits[0, 0].item()
    return float(model.config.reward_gain * logit + model.config.reward_bias)


def conversation(answer: str, before: list[dict[str, str]] | None = None) -> list[dict[str, str]]:
    return [*(before or [{"role": "user", "content": ASK}]), {"role": "assistant", "content": answer}]


def test_every_kind_of_row_gets_its_scores_in_order_and_keeps_its_columns(chain: Chain, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": 0, "prompt": ASK, "response": "fox owl ."},
        {"n": 1, "prompt": TURNS, "responses": ["fox owl .", "owl ."]},
        {"n": 2, "messages": conversation("fox .")},
        {"n": 3, "messages": conversation("fox .", TURNS), "label": False},
        {"n": 4, "prompt": ASK, "chosen": "fox owl .", "rejected": "dog ."},
        {"n": 5, "instruction": ASK, "input": "", "output": "dog ."},
        {"n": 6, "prompt": ASK, "completion": "dog ."},
        {"n": 7, "chosen": conversation("fox owl ."), "rejected": conversation("hen .")},
        {"n": 8, "instruction": ASK, "output": "fox .", "chosen": "owl .", "rejected": "hen ."},
    ]
    told = scored(chain, rows, tmp_path)
    assert [{key: row[key] for key in before} for row, before in zip(told, rows, strict=True)] == rows
    expected = {
        0: [conversation("fox owl .")],
        1: [conversation("fox owl .", TURNS), conversation("owl .", TURNS)],
        2: [conversation("fox .")],
        3: [conversation("fox .", TURNS)],
        4: [conversation("fox owl ."), conversation("dog .")],
        5: [conversation("dog .")],
        6: [conversation("dog .")],
        7: [conversation("fox owl ."), conversation("hen .")],
        8: [conversation("owl ."), conversation("hen .")],
    }
    largest = max(abs(value) for row in told for value in row.get("scores", [row.get("score", 0)]))
    for n, conversations in expected.items():
        given = told[n].get("scores", [told[n].get("score")])
        wanted = [by_transformers(chain, messages) for messages in conversations]
        assert given == pytest.approx(wanted, abs=1e-5 * max(1, largest)), n
    assert told[4]["scored_responses"] == ["fox owl .", "dog ."]


def test_the_lines_on_the_model_card_give_the_same_scores(chain: Chain, tmp_path: Path) -> None:
    directory = chain.checkpoint("reward_model")
    (code,) = re.findall(r"```python\n(.*?)```", (directory / CARD_FILE).read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code.replace('directory = "."', f"directory = {str(directory)!r}"), names)
    talks = [conversation("fox owl ."), conversation("dog cat hen .", TURNS), conversation("fox . thank you !")]
    told = scored(chain, [{"messages": talk} for talk in talks], tmp_path)
    by_card = [names["score"](talk) for talk in talks]
    assert by_card == pytest.approx([row["score"] for row in told], abs=1e-5 * max(1, *map(abs, by_card)))
    assert len({round(value, 3) for value in by_card}) == 3


def test_the_card_tells_the_scale_and_the_tokens_of_this_checkpoint(chain: Chain) -> None:
    directory = chain.checkpoint("reward_model")
    card, config = (directory / CARD_FILE).read_text(), json.loads((directory / "config.json").read_text())
    assert (
        f"`reward_gain` {config['reward_gain']:.10g}" in card and f"`reward_bias` {config['reward_bias']:.10g}" in card
    )
    assert "`<eos>`" in card and "mean 0 and standard deviation 1" in card
    assert f"On {chain.summary['reward_model']['n']} held-out pairs" in card


ROWS = [{"n": i, "prompt": f"{ASK} {'dog ' * (i % 7)}", "response": f"{'fox ' * (1 + i % 5)}."} for i in range(50)]


def test_a_killed_call_goes_on_and_ends_with_the_same_bytes(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "CHUNK", 8)
    (tmp_path / "whole").mkdir()
    scored(chain, ROWS, tmp_path / "whole")
    calls = 0
    before = score.score_answers

    def stops(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return before(*given)

    file, out = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "result.jsonl"
    command = [
        "score",
        "small/reward_model",
        str(file),
        "--out",
        str(out),
        "--root",
        str(chain.root),
        "--device",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(score, "score_answers", stops)
        assert main(command) == 130
    partial = tmp_path / "result.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 24 and not out.exists()
    partial.write_bytes(partial.read_bytes()[:-30])  # a kill may tear the last line
    asked: list[int] = []
    monkeypatch.setattr(score, "score_answers", lambda *given: asked.append(len(given[1])) or before(*given))
    assert main(command) == 0
    assert sum(asked) == len(ROWS) - 16
    assert out.read_bytes() == (tmp_path / "whole" / "result.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["result.jsonl", "rows.jsonl"]


def test_what_another_file_left_half_done_is_not_gone_on_with(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "CHUNK", 4)
    (tmp_path / "result.jsonl.partial").write_text('{"n": -1, "score": 0.0}\n' * 8)
    (tmp_path / "result.jsonl.state.json").write_text('{"model": "another"}')
    told = scored(chain, ROWS[:10], tmp_path)
    assert [row["n"] for row in told] == list(range(10))


def test_a_row_that_cannot_be_scored_stops_the_call_or_stays_without_a_score(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": ASK, "response": "fox ."},
        {"prompt": ASK, "response": ""},
        {"messages": TURNS},
        {"prompt": ASK, "response": "fox " * 300},
        {"colour": "red"},
        {"messages": [{"role": "system", "content": "be brief"}, *conversation("fox .")]},
        {"prompt": ASK, "response": "fox \ud800"},
        {"prompt": ASK, "response": "fox .", "note": "owl \ud800"},
    ]
    told = scored(chain, rows, tmp_path, "--on-bad-row", "null")
    assert [row["score"] is None for row in told] == [False, True, True, True, True, True, True, False]
    assert "half a surrogate pair" in told[6]["score_error"] and told[7]["note"] == "owl \ud800"
    assert told[1]["score_error"] == "'response' is empty" and told[3]["score_error"] == "too long"
    assert told[5]["score_error"] == "the chat template refuses it (the quickstart template has no system messages)"
    capsys.readouterr()
    assert main(["score", "small/reward_model", str(tmp_path / "rows.jsonl"), "--root", str(chain.root)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rows.jsonl:2: 'response' is empty; fix or delete the row, or set --on-bad-row null" in error


def test_a_row_that_its_format_knows_as_unusable_has_no_score_and_a_reason(chain: Chain, tmp_path: Path) -> None:
    start = "\n\nHuman: dog\n\nAssistant:"
    rows = [{"chosen": f"{start} fox .", "rejected": f"{start} owl ."}, {"chosen": start, "rejected": f"{start} owl ."}]
    told = scored(chain, rows, tmp_path)
    assert len(told[0]["scores"]) == 2
    assert (told[1]["score"], told[1]["score_error"]) == (None, "empty answer")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rows.txt"], "rows.txt: no such file"),
        (["rows.jsonl", "--out", "rows.jsonl"], "rows.jsonl is the input file"),
        (["rows.jsonl", "--out", "rows.csv"], "scores are written as JSON lines"),
        (["rows.jsonl", "--batch-size", "0"], "--batch-size is 0"),
        (["rows.jsonl", "--format", "hhh"], "unknown format 'hhh'"),
    ],
)
def test_a_call_that_cannot_work_is_told_in_one_line(
    chain: Chain,
    tmp_path: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    assert main(["score", "small/reward_model", *words, "--root", str(chain.root)]) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
