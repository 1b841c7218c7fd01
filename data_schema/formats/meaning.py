"""The names of columns and of message keys that carry meaning: one table for all formats.

A format reads such a column, or `refusal` refuses the row, or the column is counted in `Records.unread`. Names are
compared in plain form: "Chosen-Rating" is "chosen_rating".
"""

import json
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal

from data_schema.errors import printable

Meaning = Literal[
    "system", "seen", "learned", "left out", "verdict", "fault", "mark", "rating", "better", "tie", "talk", "hint"
]


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """The name in lower case, with "_" between its words."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")


def names(text: str) -> frozenset[str]:
    """The words of a text, as a table of names."""
    return frozenset(text.split())


# ---- columns

NAMES: dict[Meaning, frozenset[str]] = {
    # Who speaks: becomes a system message.
    "system": names(
        "system system_prompt system_message system_instruction system_instructions system_content system_text"
        " system_msg custom_system_prompt sys sys_prompt sysprompt systemprompt"
    ),
    # What the model is meant to see, and triptych cannot show it.
    "seen": names(
        "tools functions tool_calls function_call available_tools tool_definitions function_definitions"
        " image images image_url image_urls audio audios video videos pixel_values documents attachments"
        " function_description functions_description tool_list chat_template_kwargs"
        " initial_reason_steps full_chosen full_rejected prefix prefill response_prefix assistant_prefix"
        " partial_response partial_answer"
    ),
    # What must not be learned: 0 or false, and 1 or true.
    "learned": names(
        "weight weights loss_weight sample_weight train trainable train_on train_on_turn do_train is_train loss learn"
        " learned learnable supervised include include_in_training use_for_training used_in_training loss_mask"
        " problem_is_valid question_is_valid prompt_is_valid instruction_is_valid is_valid_problem is_valid_question"
    ),
    "left out": names(
        "mask masked is_masked exclude excluded is_excluded ignore ignored ignore_loss skip skipped deleted is_deleted"
        " removed is_removed hidden do_not_train no_train dont_train is_test held_out holdout"
    ),
    # How good the answer is: always a verdict; a verdict if true means a fault; a verdict if the value is one.
    "verdict": names(
        "label labels kto_tag kto_label is_safe safe safety safety_label is_response_safe response_safe response_label"
        " response_is_safe is_correct is_right accepted is_accepted accept acceptable is_acceptable approved"
        " is_approved passed is_passed is_valid is_good is_helpful is_harmless thumbs thumbs_up thumb desirable"
        " is_desirable is_chosen is_preferred is_selected is_best is_better completion_label answer_label output_label"
        " answer_is_correct response_is_correct verdict judgment judgement is_success good_answer good_response is_true"
        " quality_label upvoted liked"
    ),
    "fault": names(
        "is_harmful harmful unsafe is_unsafe toxic is_toxic toxicity is_bad bad is_wrong wrong is_incorrect incorrect"
        " is_rejected thumbs_down disliked downvoted flagged is_flagged hallucinated hallucination is_hallucination"
        " is_spam spam failed is_failed harm harmfulness is_biased"
    ),
    "mark": names(
        "tag good valid correct correctness right helpful harmless like likes pass passes success successful win"
        " outcome result feedback user_feedback human_feedback reaction vote chosen rejected preferred selected"
        " preference human_label human_verdict gpt_label gpt4_label judge_label annotator_label user_label status"
        " review_status annotation_status record_status label_status"
    ),
    "rating": names(
        "score scores rating ratings reward rewards quality quality_score overall_score overall_rating overall"
        " helpfulness grade stars star_rating avg_rating average_rating mean_rating avg_score average_score mean_score"
        " human_score human_rating user_rating gpt_score gpt4_score gpt_4_score judge_score llm_score rm_score pm_score"
        " reward_score final_score evaluation_score response_score response_rating response_quality response_reward"
        " answer_score answer_rating answer_quality output_score output_rating completion_score completion_rating rank"
        " likert likert_score satisfaction"
    ),
    # Which of two answers is better.
    "better": names(
        "winner preference overall_preference preferred preferred_response preferred_answer preferred_output"
        " preferred_model human_preference choice chosen chosen_index chosen_idx chosen_response label labels better"
        " better_response better_response_id better_answer safer_response_id best best_response best_answer selected"
        " verdict judgment judgement decision vote human_label human_verdict preference_label which_better winner_id"
        " winner_index preference_strength preferred_index preferred_id selected_index gold_label winning_model"
        " winning_response human_choice majority_vote orig_preference"
    ),
    "tie": names("tie is_tie tied winner_tie draw is_draw equal is_equal both_bad"),
    # What was said, if the format reads other columns.
    "talk": names("messages conversations conversation dialogue dialog history turns chosen rejected"),
}
_ANSWER = "response|answer|output|completion|solution|reply|assistant"
_JUDGES = (
    r"gpt|gpt_?\d\w*|claude|llm|judge|human|user|annotator|expert|critic|avg|average|mean|overall|final|total|rm|model|"
    r"reward_model|evaluation|eval|quality|helpfulness"
)
_MODELS = r"chatgpt|gpt_?\d\w*|claude\w*|llama\w*|gemini\w*|vicuna\w*|llm|model"
PATTERNS: tuple[tuple[Meaning, re.Pattern[str]], ...] = (
    ("fault", re.compile(rf"(?:(?:{_ANSWER})_)?harm_label|(?:{_ANSWER})_(?:toxicity|safety)_label")),
    (
        "fault",
        re.compile(rf"(?:{_ANSWER}|{_JUDGES}|chatgpt|gpt_?\d\w*)_(?:is_)?(?:harmful|toxic|unsafe|wrong|incorrect)"),
    ),
    ("left out", re.compile(r"llama_?guard(?:_\d\w*)?")),
    ("verdict", re.compile(rf"(?:{_ANSWER})_(?:is_)?(?:valid|safe|correct|ok|good|accepted)")),
    ("rating", re.compile(rf"(?:(?:{_JUDGES}|{_ANSWER})_)+(?:scores?|ratings?|rewards?|grade|quality|stars)")),
    ("hint", re.compile(r".*(?:score|scores|rating|ratings|quality|reward|correct|safe|verdict|label|winner|vote)")),
    (
        "hint",
        re.compile(
            r"(?:.*_)?(?:reasoning|thinking|thoughts?|cot|chain_of_thought|rationale|thinking_trajector(?:y|ies))"
        ),
    ),
    ("hint", re.compile(r"(?:reasoning|thinking)_(?:content|trace|steps|process)|openai_moderation|extra_context")),
)
VALUES = {  # words that say themselves whether the answer is good, and those that depend on the question
    **dict.fromkeys(
        names(
            "good chosen accepted accept acceptable safe positive correct right pass passed helpful harmless unharmful"
            " benign win preferred desirable approve approved like liked up upvote thumbs_up thumbsup thumb_up valid"
            " not_harmful non_toxic nontoxic non_harmful supported best"
        ),
        "good",
    ),
    **dict.fromkeys(
        names(
            "bad rejected reject unacceptable unsafe negative incorrect wrong fail failed unhelpful harmful toxic lose"
            " loss undesirable disapprove disapproved dislike disliked down downvote thumbs_down thumbsdown thumb_down"
            " invalid not_safe worse worst discarded discard denied"
        ),
        "bad",
    ),
    **dict.fromkeys(("true", "yes", "y", "t", "1", "1.0", "+1"), "yes"),
    **dict.fromkeys(("false", "no", "n", "f", "0", "0.0", "-1", "-1.0"), "no"),
    **dict.fromkeys(("\N{THUMBS UP SIGN}", "\N{WHITE HEAVY CHECK MARK}"), "good"),
    **dict.fromkeys(("\N{THUMBS DOWN SIGN}", "\N{CROSS MARK}"), "bad"),
}
LONGEST_VERDICT = 60  # characters; a longer text is prose
HISTORIES = (
    "history", "chat_history", "conversation_history", "dialog_history", "dialogue_history", "message_history",
    "previous_turns", "previous_messages", "past_messages", "prior_messages",
)  # fmt: skip
TIES = names("tie tied draw equal same neither both bothbad both_bad both_good tie_bothbad tie_both_bad no_preference")


@lru_cache(maxsize=4096)
def meanings(column: str) -> frozenset[Meaning]:
    """What a column of this name may say. Empty for a name that is not in the table."""
    name = plain(column)
    found = {meaning for meaning, known in NAMES.items() if name in known}
    found |= {meaning for meaning, pattern in PATTERNS if pattern.fullmatch(name)}
    return frozenset(found)


@lru_cache(maxsize=1024)
def named(columns: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with one of the names, in the order of the names."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(plain(column), []).append(column)
    return tuple(column for name in wanted for column in by_name.get(name, ()))


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace() or (value[0] in "[{n \t\r\n" and value.strip() in ("[]", "{}", "null"))
    return value is None or (isinstance(value, list | dict) and not value)


def filled(row: Mapping[str, Any], wanted: tuple[str, ...]) -> list[str]:
    """The row's columns with one of the names that have content."""
    return [column for column in named(tuple(row), wanted) if not is_empty(row[column])]


# ---- verdicts


def word(value: object) -> str | None:
    """A verdict's value as "good", "bad", "yes" or "no", whichever way it is written; None for any other value."""
    if isinstance(value, str):
        if len(value) > LONGEST_VERDICT:
            return None
        text = value.strip().lower()
        return VALUES.get(text) or VALUES.get(plain(text))
    if isinstance(value, bool | int | float):
        return "yes" if value == 1 else "no" if value in (0, -1) else None
    return None


def number(value: object) -> float | None:
    """A number, also if it is written as text, as in CSV."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return float(value)


def verdict_of(column: str, value: object) -> bool | None:
    """Whether a column says that the answer is good. None if it gives no verdict, or an unclear one."""
    means = meanings(column)
    said = word(value) if means & {"verdict", "fault", "mark", "rating"} else None
    if said is None:
        return None
    if plain(column) == "rejected":
        return {"yes": False, "no": True}.get(said)
    if "rating" in means and not means & {"verdict", "fault"} and number(value) is not None:
        return None
    if plain(column) == "tag" and not (isinstance(value, bool) or said in ("good", "bad") or str(value).isalpha()):
        return None  # numbers there are rather topics
    if plain(column).endswith("status") and said not in ("good", "bad"):
        return None  # a code, of which 0 may be the good one
    if said in ("yes", "no"):
        return (said == "yes") != ("fault" in means)
    return said == "good"


def rating_of(column: str, value: object) -> float | None:
    """How good a column says the answer is, on a scale that is the column's own; None if it does not say."""
    return number(value) if "rating" in meanings(column) else None


def verdicts(row: Mapping[str, Any], used: Collection[str] = ()) -> dict[str, bool]:
    """{column: whether it calls the row's answer good}, of all columns but those `used`."""
    found = {column: verdict_of(column, value) for column, value in row.items() if column not in used}
    return {column: good for column, good in found.items() if good is not None}


def ratings(row: Mapping[str, Any], used: Collection[str] = ()) -> dict[str, float]:
    found = {column: rating_of(column, value) for column, value in row.items() if column not in used}
    return {column: rating for column, rating in found.items() if rating is not None}


@lru_cache(maxsize=1024)
def marks(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns or keys that may say that an answer must not be learned, or how good it is."""
    telling = {"learned", "left out", "verdict", "fault", "mark", "rating"}
    return tuple(column for column in columns if meanings(column) & telling)


def is_tie(row: Mapping[str, Any]) -> str | None:
    """The column that says that neither answer is better, if there is one."""
    for column, value in row.items():
        if "tie" in meanings(column) and word(value) == "yes":
            return column
        told = plain(column) in ("status", "winner", "preference", "verdict") and isinstance(value, str)
        if told and plain(value) in TIES:
            return column
    return None


# ---- what must not be learned


def unlearned(values: Mapping[str, Any]) -> str | None:
    """Why a row or message must not be learned, by its own marks ("'weight' is 0"); None if it may be."""
    for key, value in values.items():
        means = meanings(key)
        if "learned" in means and not is_empty(value):
            said = word(value)
            if said in ("no", "bad"):
                return f"'{key}' is {shown(value)}"
            if "valid" in plain(key) and said is None:
                return f"'{key}' is {shown(value)}"
            if "weight" in plain(key) and said is None:
                return f"'{key}' is {shown(value)}, and only weights of 0 and 1 are supported"
        if "left out" in means and word(value) in ("yes", "bad"):
            return f"'{key}' is {shown(value)}"
    return None


def shown(value: object) -> str:
    """A value in one short line, as JSON."""
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 40 else f"{text[:37]}..."
