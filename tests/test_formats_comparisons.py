"""Each published form of comparison data, by an invented row, becomes the ranking that people or judges meant."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Message, Prompt, Records, Source, load, split
from data_schema.formats.comparisons import COMPARISON_FORMATS
from data_schema.formats.parts import Drop, Origin
from data_schema.formats.table import FORMATS, reader_for, recognise

AT = Origin("file:1", "file.jsonl")
Row = dict[str, Any]


def turns(*contents: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))


def read(row: Row, kind: Any = Comparison, name: str | None = None) -> Any:
    return reader_for(name or recognise(row), kind)(row, AT)


def gather(name: str, rows: list[Row]) -> list[Row | DataError]:
    collect = FORMATS[name].gather
    assert collect is not None
    return [row if isinstance(row, DataError) else dict(row) for _, row in collect(iter(enumerate(rows, start=1)))]


ARTICLE = {"article": "Rain fell.", "site": "cnn", "title": "Rain", "id": "a1"}
POST = {"id": "t3", "subreddit": "pets", "title": "Cat", "post": "My cat ran off."}
TLDR = {
    "info": POST,
    "summaries": [{"text": " Cat ran.", "policy": "ref"}, {"text": " Pets.", "policy": "sup1"}],
    "choice": 0,
    "worker": "w1",
    "split": "train",
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is ice slippery?"},
    "quotes_0": {"title": ["T"], "extract": ["E"]},
    "tokens_0": {"prefix": [1], "completion": [2]},
    "answer_0": "It is cold.",
    "score_0": -0.5,
    "answer_1": "A thin layer melts [1].",
    "score_1": 0.5,
}
SHP = {
    "post_id": "p1", "domain": "baking", "history": "Why flat?", "labels": 1, "upvote_ratio": 0.9,
    "c_root_id_A": "a", "human_ref_A": "Old yeast.", "score_A": 20,
    "c_root_id_B": "b", "human_ref_B": "Dunno.", "score_B": 4,
}  # fmt: skip
HELPSTEER = {"prompt": "Define ice.", "response": "Frozen water.", "helpfulness": 4, "verbosity": 1}
HELPSTEER2 = {"prompt": "Define ice.", "response_1": "Cold.", "response_2": "Frozen water.", "preference_strength": 2}
ULTRAFEEDBACK = {
    "source": "web",
    "instruction": "Say hi.",
    "completions": [
        {"model": "m1", "response": "Hi!", "overall_score": 10.0, "annotations": {"helpfulness": {"Rating": "2"}}},
        {"model": "m2", "response": "Hello, you!", "overall_score": 6.0,
         "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "N/A"}}},
        {"model": "m3", "response": "Hey.", "fine-grained_score": 2.0},
        {"model": "m4", "response": "Um.", "annotations": {"honesty": {"Rating": "1"}, "helpfulness": {"Rating": "3"}}},
    ],
}  # fmt: skip
NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tip?\n\nAssistant: ",
    "answers": [{"answer": "No.", "model": "x", "rank": 2.0}, {"answer": "Rest.", "model": "y", "rank": 1.0}],
    "num_responses": 2,
}
QA = {
    "question": "Who sang\nit?",
    "passages": [["Song", "Ann sang it.", "It was loud."], ["Ann", "A singer."]],
    "prediction 1": "Bob.", "prediction 2": "Ann.", "prediction 3": "Ann sang it.", "prediction 4": "Nobody.",
    "preference": [2, 2, 0, 2, 1, 1],
}  # fmt: skip
ALPACA_EVAL = {
    "instruction": "Say yes.", "input": "In French.", "output_1": "no", "output_2": "Oui", "preference": 2,
    "annotator": "judge",
}  # fmt: skip
LLMBAR = {"input": "Say yes.", "output_1": "Yes.", "output_2": "No.", "label": 1}
PANDALM = {
    "idx": 4, "instruction": "Say yes.", "input": "", "response1": "No.", "response2": "Yes.",
    "annotator1": 2, "annotator2": 0, "annotator3": 2,
}  # fmt: skip
AUTOJ = {"scenario": "chat", "label": 1, "prompt": "Say yes.", "response 1": "No.", "response 2": "Yes."}
TULU_HUMAN = {
    "prompt": "Say yes.", "completion_a": "No.", "completion_b": "Yes.", "preference": "b-is-slightly-better",
    "evaluator": "ann", "comment": "fine",
}  # fmt: skip
BPO = {"prompt": "Say yes.", "optimized_prompt": "Say yes, please.", "good_res": "Yes.", "bad_res": "No."}
BPO_CONTEXT = {"instruction": "Say it.", "context": "yes", "good_res": "Yes.", "bad_res": "No.", "source": "x"}
STACK = {"qid": 7, "question": "How?", "response_j": "So.", "response_k": "No."}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Tip?"},
    ],
    "chosen": {"from": "gpt", "value": "Rest."},
    "rejected": {"from": "gpt", "value": "No."},
}
SCORED = {"prompt": "Tip?", "chosen": "Rest.", "rejected": "No.", "metadata": {"score_chosen": 8, "score_rejected": 6}}
TALK = {
    "chosen": [{"role": "user", "content": "Tip?"}, {"role": "assistant", "content": "Rest."}],
    "rejected": [{"role": "user", "content": "Tip?"}, {"role": "assistant", "content": "No."}],
}
REWARD_BENCH = {"prompt": "Tip?", "chosen": "Rest.", "rejected": "No.", "subset": "chat", "id": 3}
REWARD_BENCH_2 = {"prompt": "Tip?", "chosen": ["Rest."], "rejected": ["No.", "Um."], "subset": "Ties"}


def reply(text: str, rank: int | None, *replies: Row, **more: Any) -> Row:
    return {"message_id": text, "role": "assistant", "text": text, "rank": rank, "replies": list(replies)} | more


def ask(text: str, *replies: Row) -> Row:
    return {"message_id": text, "role": "prompter", "text": text, "lang": "en", "replies": list(replies)}


TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": ask(
        "Hi?",
        reply("What.", 1, ask("Tip?", reply("Rest.", 0), reply("No.", 2), reply("Um.", None), reply("Go.", 1))),
        reply("Hello!", 0, ask("Why?", reply("So.", None))),
    ),
}

RANKINGS: dict[str, tuple[Row, str, tuple[Message, ...], tuple[str, ...], tuple[int, ...]]] = {
    "TL;DR": (
        TLDR, "tldr_comparisons",
        turns("SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat ran off.\n\nTL;DR:"), ("Cat ran.", "Pets."), (1, 2),
    ),
    "CNN/DM": (
        TLDR | {"info": ARTICLE, "choice": 1}, "tldr_comparisons",
        turns("Article:\n\nRain fell.\n\nTL;DR:"), ("Cat ran.", "Pets."), (2, 1),
    ),
    "WebGPT": (
        WEBGPT, "webgpt", turns("Why is ice slippery?"), ("It is cold.", "A thin layer melts [1]."), (2, 1)
    ),
    "SHP alone": (SHP, "shp", turns("Why flat?"), ("Old yeast.", "Dunno."), (1, 2)),
    "HelpSteer2": (HELPSTEER2, "helpsteer2_preference", turns("Define ice."), ("Cold.", "Frozen water."), (2, 1)),
    "HelpSteer2 talk": (
        HELPSTEER2 | {"prompt": "Hi<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nTip?"}, "helpsteer2_preference",
        turns("Hi", "Hello.", "Tip?"), ("Cold.", "Frozen water."), (2, 1),
    ),
    "UltraFeedback": (
        ULTRAFEEDBACK, "ultrafeedback", turns("Say hi."), ("Hi!", "Hello, you!", "Hey.", "Um."), (2, 1, 2, 2)
    ),
    "Nectar": (NECTAR, "nectar", turns("Hi", "Hello.", "Tip?"), ("No.", "Rest."), (2, 1)),
    "Nectar text": (NECTAR | {"prompt": "Tip?"}, "nectar", turns("Tip?"), ("No.", "Rest."), (2, 1)),
    "QA-Feedback": (
        QA, "qa_feedback",
        turns(
            "question: Who sang it? context: wikipage: Song text: Ann sang it. It was loud. "
            "wikipage: Ann text: A singer. answer:"
        ),
        ("Bob.", "Ann.", "Ann sang it.", "Nobody."), (3, 2, 1, 3),
    ),
    "AlpacaFarm": (ALPACA_EVAL, "alpaca_eval", turns("Say yes.\n\nIn French."), ("no", "Oui"), (2, 1)),
    "AlpacaEval 2": (ALPACA_EVAL | {"preference": 1.02}, "alpaca_eval", turns("Say yes.\n\nIn French."),
                     ("no", "Oui"), (1, 2)),
    "LLMBar": (LLMBAR, "llmbar", turns("Say yes."), ("Yes.", "No."), (1, 2)),
    "PandaLM": (PANDALM, "pandalm", turns("Say yes."), ("No.", "Yes."), (2, 1)),
    "Auto-J": (AUTOJ, "autoj", turns("Say yes."), ("No.", "Yes."), (2, 1)),
    "Tulu": (TULU_HUMAN, "tulu_human", turns("Say yes."), ("No.", "Yes."), (2, 1)),
    "BPO": (BPO, "bpo", turns("Say yes."), ("Yes.", "No."), (1, 2)),
    "BPO context": (BPO_CONTEXT, "bpo_instruction", turns("Say it.\n\nyes"), ("Yes.", "No."), (1, 2)),
    "StackExchange": (STACK, "stack_exchange_paired", turns("How?"), ("So.", "No."), (1, 2)),
    "LLaMA-Factory": (
        SHAREGPT, "sharegpt_preference",
        (Message("system", "Be kind."), *turns("Hi", "Hello.", "Tip?")), ("Rest.", "No."), (1, 2),
    ),
    "UltraFeedback binarized": (SCORED, "scored_preference", turns("Tip?"), ("Rest.", "No."), (1, 2)),
    "the hub's": (TALK | {"score_chosen": 8.0, "score_rejected": 7.5}, "scored_preference", turns("Tip?"),
                  ("Rest.", "No."), (1, 2)),
    "messages that repeat the prompt": (
        TALK | {"prompt": "Tip?", "id": "x", "source": "y"}, "preference", turns("Tip?"), ("Rest.", "No."), (1, 2)
    ),
    "RewardBench": (REWARD_BENCH, "preference", turns("Tip?"), ("Rest.", "No."), (1, 2)),
    "RewardBench 2": (REWARD_BENCH_2, "reward_bench_2", turns("Tip?"), ("Rest.", "No.", "Um."), (1, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", RANKINGS)
def test_a_row_is_recognised_and_gives_its_ranking_its_best_answer_and_its_prompt(case: str) -> None:
    row, name, prompt, responses, ranks = RANKINGS[case]
    assert recognise(row) == name
    comparison = read(row)
    assert (comparison.prompt, comparison.responses, comparison.ranks) == (prompt, responses, ranks)
    assert (comparison.id, comparison.source) == AT
    assert read(row, Demonstration).messages == (*prompt, Message("assistant", responses[ranks.index(1)]))
    assert read(row, Prompt).prompt == prompt


def test_groups_labelers_and_what_else_a_row_says_are_kept() -> None:
    assert (read(TLDR).group, read(TLDR).labeler) == ("t3", "w1")
    assert read(TLDR).meta == {"split": "train", "policies": ["ref", "sup1"]}
    assert (read(WEBGPT).group, read(STACK).group, read(SHP).group) == ("q1", "7", "p1")
    assert "tokens_0" not in read(WEBGPT).meta and read(WEBGPT).meta["quotes_0"]["title"] == ["T"]
    assert read(TULU_HUMAN).labeler == "ann" and read(TULU_HUMAN).meta["preference"] == "b-is-slightly-better"
    assert read(QA).meta["preference"] == QA["preference"]
    assert read(PANDALM).meta == {"idx": 4, "annotator1": 2, "annotator2": 0, "annotator3": 2}
    assert read(REWARD_BENCH).meta == {"subset": "chat", "id": 3}
    assert read(NECTAR).meta == {"models": ["x", "y"], "ranks": [2.0, 1.0]}
    assert read(ULTRAFEEDBACK).meta["scores"] == [2.0, 5.0, 2.0, 2.0]
    assert read(SCORED | {"margin": 2}).margin == 2.0


def test_answers_without_ratings_are_ranked_by_their_overall_scores_alone() -> None:
    rated = {"response": "A", "overall_score": 3, "annotations": {"honesty": {"Rating": "5"}}}
    row = {"instruction": "Hi", "completions": [rated, {"response": "B", "overall_score": 7.5}]}
    assert read(row).ranks == (2, 1)


def test_text_that_cannot_be_decoded_stays_as_it_is() -> None:
    assert read(AUTOJ | {"response 2": "Ye\N{REPLACEMENT CHARACTER}."}).responses[1] == "Ye\N{REPLACEMENT CHARACTER}."


# ---- what nobody can use is dropped by name

UNDECIDED = {
    "WebGPT": WEBGPT | {"score_0": 0, "score_1": 0},
    "HelpSteer2": HELPSTEER2 | {"preference_strength": 0},
    "AlpacaEval": ALPACA_EVAL | {"preference": 0},
    "AlpacaEval's draw as a number": ALPACA_EVAL | {"preference": 1.5},
    "PandaLM": PANDALM | {"annotator1": 0},
    "Auto-J": AUTOJ | {"label": 2},
    "Tulu": TULU_HUMAN | {"preference": "tie"},
    "UltraFeedback binarized": SCORED | {"metadata": {"score_chosen": 6, "score_rejected": 6.0}},
    "QA-Feedback": QA | {"preference": [0] * 6},
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_a_tie_compares_nothing_and_shows_no_best_answer_but_still_asks(case: str) -> None:
    assert read(UNDECIDED[case]) == read(UNDECIDED[case], Demonstration) == Drop("tie")
    assert isinstance(read(UNDECIDED[case], Prompt), Prompt)


DROPPED: dict[str, tuple[Row, str]] = {
    "true as an answer": (PANDALM | {"response1": True}, "response is not text"),
    "an empty answer": (LLMBAR | {"output_2": " "}, "empty response"),
    "an answer of null": (BPO | {"bad_res": None}, "empty response"),
    "two empty answers": (AUTOJ | {"response 1": "", "response 2": ""}, "empty response"),
    "an empty answer in the messages": (
        TALK | {"chosen": [*TALK["chosen"][:1], {"role": "assistant", "content": ""}]}
        | {"score_chosen": 2, "score_rejected": 1}, "empty response",
    ),
    "an empty last turn": (SHAREGPT | {"rejected": {"from": "gpt", "value": ""}}, "empty response"),
    "equal texts": (LLMBAR | {"output_2": "Yes. "}, "equal texts"),
    "equal chosen and rejected": (
        {"instruction": "Hi", "output": "A", "chosen": "A", "rejected": "A"}, "equal texts"
    ),
    "two equal texts in a ranked list": ({"instruction": "Hi", "output": ["A", "A "]}, "equal texts"),
    "labelers who all differ": (PANDALM | {"annotator1": 1}, "no majority"),
    "a judge who said nothing": (ALPACA_EVAL | {"preference": None}, "no verdict"),
    "a judge who said no number": (ALPACA_EVAL | {"preference": float("nan")}, "no verdict"),
    "verdicts in a circle": (QA | {"preference": [1, 2, 0, 1, 0, 0]}, "verdicts fit no order"),
    "scores against the choice": (
        SCORED | {"metadata": {"score_chosen": 5, "score_rejected": 6}}, "scores contradict the choice"
    ),
    "one completion": (ULTRAFEEDBACK | {"completions": ULTRAFEEDBACK["completions"][:1]}, "fewer than two responses"),
    "a transcript that skips a turn": (NECTAR | {"prompt": "\n\nHuman: A\n\nHuman: B"}, "turns do not alternate"),
    "marks that skip a turn": (HELPSTEER2 | {"prompt": "A<extra_id_1>User\nB"}, "turns do not alternate"),
    "a tree that is not done": (TREE | {"tree_state": "growing"}, "tree not ready for export"),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPPED)
def test_a_known_trap_is_dropped_once_and_by_name(case: str) -> None:
    row, reason = DROPPED[case]
    assert read(row) == Drop(reason)


def test_a_prompt_needs_no_clear_verdict() -> None:
    for case in ("labelers who all differ", "a judge who said nothing", "verdicts in a circle"):
        row, reason = DROPPED[case]
        assert isinstance(read(row, Prompt), Prompt)
        assert read(row, Demonstration) == Drop(reason)


def test_of_several_answers_only_the_bad_ones_are_left_out() -> None:
    answers = [("A", 1), ("", 2), (True, 3), ("A ", 4), ("B", 5), ("C", 6), ("B", 5)]
    row = {"prompt": "Hi", "answers": [{"answer": text, "rank": rank} for text, rank in answers]}
    comparison, *dropped = read(row)
    assert (comparison.responses, comparison.ranks) == (("B", "C"), (1, 2))
    assert sorted(drop.reason for drop in dropped) == [
        "empty response", "equal texts", "equal texts", "repeated response", "response is not text"
    ]  # fmt: skip


BAD: dict[str, tuple[Row, str, str, str]] = {
    "no such label": (LLMBAR | {"label": 3}, "llmbar", "label", r"'label' must be one of 1, 2, found a number \(3\)"),
    "a boolean label": (AUTOJ | {"label": True}, "autoj", "label", "one of 0, 1, 2, found a boolean"),
    "no such grade": (TULU_HUMAN | {"preference": "z"}, "tulu_human", "preference", "one of a-is-better, .*text"),
    "preference beyond 2": (ALPACA_EVAL | {"preference": 3}, "alpaca_eval", "preference", "0 or from 1 to 2, found 3"),
    "a vote beyond 2": (PANDALM | {"annotator2": 7}, "pandalm", "annotator2", "'annotator2' must be one of"),
    "no post": (TLDR | {"info": {"subreddit": "a", "title": "b"}}, "tldr_comparisons", "info", "no text 'post'"),
    "three summaries": (TLDR | {"summaries": TLDR["summaries"] * 2}, "tldr_comparisons", "summaries", "two, found 4"),
    "five verdicts": (QA | {"preference": [1] * 5}, "qa_feedback", "preference", "must be 6 of 0, 1, 2"),
    "a passage of text": (QA | {"passages": ["A."]}, "qa_feedback", "passages", r"'passages\[0\]' must be a title"),
    "a rank of text": (NECTAR | {"answers": [{"answer": "A", "rank": "x"}] * 2}, "nectar", "rank", "a finite number"),
    "an answer without text": (NECTAR | {"answers": [{"rank": 1}] * 2}, "nectar", "answer", "'answer' is missing"),
    "no score": ({key: SHP[key] for key in SHP if key != "score_B"}, "shp", "score_B", "'score_B' is missing"),
    "an answer from the user": (
        SHAREGPT | {"chosen": {"from": "human", "value": "A"}}, "sharegpt_preference", "chosen", "must be gpt"
    ),
    "a row without scores": (REWARD_BENCH, "scored_preference", "score_chosen", "are missing"),
    "nobody's message": (TREE | {"prompt": ask("Hi?") | {"role": "bot"}}, "oasst_tree", "role", "prompter or"),
    "a mark of text": (
        {"prompt": "A", "completion": "B", "label": "maybe"}, "kto", "label", "must be true or false, found .maybe."
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_that_names_the_field(case: str) -> None:
    row, name, field, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        read(row, name=name)
    assert caught.value.field == field and "\n" not in str(caught.value)


# ---- forms of their own


def test_a_tree_gives_the_ranked_replies_of_each_message_and_counts_those_without_a_rank() -> None:
    first, second, dropped = read(TREE)
    assert (first.prompt, first.responses, first.ranks) == (turns("Hi?"), ("What.", "Hello!"), (2, 1))
    assert (second.prompt, second.responses) == (turns("Hi?", "What.", "Tip?"), ("Rest.", "No.", "Go."))
    assert (second.ranks, second.group, first.group) == ((1, 3, 2), "t1", "t1")
    assert dropped == Drop("response without a rank") and first.id != second.id
    assert second.meta == {"message_id": "Tip?", "lang": "en"}


def test_messages_of_a_tree_that_were_deleted_or_failed_their_review_are_left_out() -> None:
    bad = [reply("Um.", 2, deleted=True), reply("No.", 3, review_result=False), reply("", 4)]
    tree = TREE | {"prompt": ask("Hi?", reply("A", 0), reply("B", 1, synthetic=True), *bad)}
    comparison, *dropped = read(tree)
    assert comparison.responses == ("A", "B")
    assert {drop.reason for drop in dropped} == {"deleted message", "message failed its review", "empty response"}


def test_a_tree_from_a_table_of_messages_compares_as_the_tree_does() -> None:
    table: list[Row] = []

    def lay_out(message: Row, parent: str | None) -> None:
        for below in message["replies"]:
            lay_out(below, message["message_id"])
        row = {key: value for key, value in message.items() if key != "replies"}
        table.append(row | {"parent_id": parent, "message_tree_id": "Hi?"})

    lay_out(TREE["prompt"], None)
    assert recognise(table[0]) == "oasst_messages"
    (tree,) = gather("oasst_messages", table)

    def rankings(found: list[Any]) -> set[Any]:
        parts = [part for part in found if isinstance(part, Comparison)]
        return {(part.prompt, frozenset(zip(part.responses, part.ranks, strict=True))) for part in parts}

    assert rankings(read(dict(tree), name="oasst_messages")) == rankings(read(TREE))


def test_each_labeler_of_pandalm_can_give_a_comparison() -> None:
    first, tie, third = read(PANDALM, name="pandalm_votes")
    assert tie == Drop("tie")
    assert [(c.labeler, c.ranks) for c in (first, third)] == [("annotator1", (2, 1)), ("annotator3", (2, 1))]
    assert first.id != third.id


def test_pairs_of_one_post_become_one_ranking_by_votes() -> None:
    third = {"c_root_id_B": "c", "human_ref_B": "No salt.", "score_B": 4}
    other = SHP | {"post_id": "p2", "history": "Why brown?"}
    both, alone = gather("shp", [SHP, other, SHP | third, SHP])
    comparison = read(dict(both))
    assert (comparison.responses, comparison.ranks) == (("Old yeast.", "Dunno.", "No salt."), (1, 2, 2))
    assert read(dict(alone)).group == "p2"


def test_answers_to_one_prompt_become_one_ranking_by_helpfulness() -> None:
    worse = HELPSTEER | {"response": "Cold.", "helpfulness": 1}
    rows = [HELPSTEER, worse | {"prompt": "Else?"}, worse, worse]
    first, single = gather("helpsteer", rows)
    comparison, repeated = read(dict(first))
    assert (comparison.responses, comparison.ranks) == (("Frozen water.", "Cold."), (1, 2))
    assert repeated == Drop("repeated response")
    assert [rating["helpfulness"] for rating in comparison.meta["ratings"]] == [4, 1, 1]
    assert read(dict(single)) == Drop("fewer than two responses")


KTO_ROWS: dict[str, tuple[str, Any]] = {
    "instruction": ("kto_alpaca", lambda q, a, good: {"instruction": q, "output": a, "tag": good}),
    "completion": ("kto", lambda q, a, good: {"prompt": q, "completion": a, "label": good}),
    "completion in messages": (
        "kto",
        lambda q, a, good: {
            "prompt": [{"role": "user", "content": q}],
            "completion": [{"role": "assistant", "content": a}],
            "label": good,
        },
    ),
    "marks of text, as in CSV": ("kto", lambda q, a, good: {"prompt": q, "completion": a, "label": str(good)}),
    "messages": (
        "kto_messages",
        lambda q, a, good: {
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
            "label": good,
        },
    ),
    "ShareGPT": (
        "kto_sharegpt",
        lambda q, a, good: {
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
            "kto_tag": good,
        },
    ),
}


@pytest.mark.parametrize("case", KTO_ROWS)
def test_single_answers_marked_good_and_bad_pair_up_by_prompt(case: str) -> None:
    name, make = KTO_ROWS[case]
    rows = [make("Tip?", "No.", False), make("Why?", "So.", True), make("Tip?", "Rest.", True), make("Tip?", "", True)]
    assert {recognise(row) for row in rows} == {name}
    tip, why = gather(name, rows)
    comparison, empty = read(dict(tip), name=name)
    assert (comparison.prompt, comparison.responses, comparison.ranks) == (turns("Tip?"), ("No.", "Rest."), (2, 1))
    assert empty == Drop("empty response") and comparison.meta == {}
    assert read(dict(why), name=name) == Drop("unpaired answer")
    bad, good, empty = read(dict(tip), Demonstration, name=name)
    assert (bad, empty) == (Drop("answer marked bad"), Drop("empty response"))
    assert good.messages == turns("Tip?", "Rest.")
    assert read(dict(why), Demonstration, name=name)[0].messages == turns("Why?", "So.")


def test_a_bad_row_among_rows_that_are_gathered_keeps_its_place() -> None:
    broken = DataError("broken")
    rows: list[Any] = [HELPSTEER, broken, HELPSTEER | {"helpfulness": "much"}, HELPSTEER | {"response": "Ice."}]
    first, error, bad = gather("helpsteer", rows)
    assert error is broken
    assert read(dict(first), Prompt).prompt == turns("Define ice.")
    with pytest.raises(DataError, match="'helpfulness' must be a finite number"):
        read(dict(bad))


# ---- in a file


def load_rows(path: Path, rows: list[Row]) -> Records[Comparison]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(Source(str(path)), Comparison)


def test_repeated_rows_of_pairs_stay_with_ids_of_their_own_and_in_one_part_of_a_split(tmp_path: Path) -> None:
    rows = [LLMBAR | {"input": f"Say {i}."} for i in range(20)]
    records = load_rows(tmp_path / "pairs.jsonl", rows + rows)
    assert len({record.id for record in records}) == len(records) == 40
    parts = [
        {record.prompt for record in part} for part in split(records, {"train": 0.5, "test": 0.5}, seed=0).values()
    ]
    assert parts[0] and parts[1] and not parts[0] & parts[1]


def test_pairs_that_lie_apart_in_a_file_are_gathered_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Say {i % 3}.", "output": f"{i % 3}{' not' if i < 3 else ''}", "tag": i >= 3} for i in range(6)
    ]
    records = load_rows(tmp_path / "kto.jsonl", [*rows, {"instruction": "Alone", "output": "A", "tag": True}])
    assert [record.responses for record in records] == [(f"{i} not", str(i)) for i in range(3)]
    assert [record.ranks for record in records] == [(2, 1)] * 3
    assert records.dropped == {"unpaired answer": 1}


def test_a_row_without_a_column_is_one_line_with_file_row_and_column(tmp_path: Path) -> None:
    short = {key: value for key, value in AUTOJ.items() if key != "response 2"}
    with pytest.raises(DataError, match=r"pairs.jsonl:2: 'response 2' is missing; the row has scenario") as caught:
        load_rows(tmp_path / "pairs.jsonl", [AUTOJ, short])
    assert caught.value.field == "response 2" and "\n" not in str(caught.value)


def test_every_format_of_comparisons_is_recognised_by_some_row_here() -> None:
    rows = [row for row, *_ in RANKINGS.values()] + [HELPSTEER]
    rows += [make("Q", "A", True) for _, make in KTO_ROWS.values()]
    elsewhere = {"pandalm_votes", "prometheus", "safe_rlhf", "safe_rlhf_better", "safe_rlhf_safer"}
    assert {recognise(row) for row in rows} >= set(COMPARISON_FORMATS) - elsewhere
