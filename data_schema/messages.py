"""Messages: one turn of a conversation, and how published ones are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.meaning import is_empty, marks, meanings, names, plain, unlearned, verdict_of, word

ROLES = ("system", "user", "assistant")


def check_text(value: object, name: str) -> str:
    """Return `value` if it is text and not blank. Raises DataError naming field `name`."""
    if not isinstance(value, str):
        raise DataError(f"'{name}' must be text, found {describe(value)}", field=name)
    if not value or value.isspace():
        raise DataError(f"'{name}' is empty", field=name)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can encode half a surrogate pair; UTF-8 cannot
            raise DataError(f"'{name}' contains half a surrogate pair, which is not a character", field=name) from None
    return value


def describe(value: object) -> str:
    """A short description of a value of the wrong type, in JSON's terms."""
    if value is None:
        return "nothing (null)"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{names.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


@dataclass(frozen=True)
class Message:
    role: str  # one of ROLES
    content: str
    learned: bool = field(default=True, compare=False)  # False: an earlier answer that SFT reads but does not learn

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            known = isinstance(self.role, str) and self.role.isprintable()
            found = f"'{self.role}'" if known else describe(self.role)
            raise DataError(f"'role' must be one of {', '.join(ROLES)}, found {found}", field="role")
        check_text(self.content, "content")


def check_list(value: object, name: str) -> list[Any]:
    """Return `value` if it is a list. Raises DataError naming field `name`."""
    if not isinstance(value, list):
        raise DataError(f"'{name}' must be a list, found {describe(value)}", field=name)
    return value


# ---- messages as published

MESSAGE_ROLES = {  # other names of ROLES
    "developer": "system", "human": "user", "prompter": "user", "model": "assistant", "chatbot": "assistant",
    "ai": "assistant", "bot": "assistant", "gpt": "assistant",
}  # fmt: skip
TOOL_ROLES = ("tool", "function", "tool_call", "tool_calls", "tool_response", "observation", "function_call", "ipython")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id", "tool_responses", "tool_results")
# Keys that change nothing in what is said: who and where, and what a filter found.
HARMLESS_KEYS = names(
    "name id message_id msg_id uuid index turn turn_identifier turn_id order position language lang lang_code"
    " timestamp created_at create_time created_date date time model model_name token_count num_tokens n_tokens tokens"
    " redacted hashed_ip ip header state country user_id user author speaker_id openai_moderation detoxify_moderation"
    " moderation toxic_chat_tag type cache_control end_turn source origin metadata meta annotations refusal"
    " role content from value sender"
)


PART_KEYS = ("text", "type", "cache_control", "annotations", "index", "id")  # of a part of type text


def check_plain_message(item: Mapping[str, Any], place: str, spoken: Sequence[str] = ("role", "content")) -> None:
    """Raise DataError for tool calls, pictures and other things that a Message cannot store, and for keys that nobody
    knows, unless they are empty."""
    for key, value in item.items():
        if key in spoken or is_empty(value):
            continue
        if key in TOOL_KEYS:
            raise DataError(f"'{place}' also has '{key}'; tool calls are not supported, remove the row", field=place)
        means = meanings(key)
        known = plain(key) in HARMLESS_KEYS or means & {"learned", "left out"} or ("fault" in means and word(value))
        if "seen" in means or not known:
            raise DataError(
                f"'{place}' also has '{key}', which a message cannot contain; move it to another column", field=place
            )


def message_text(content: object, name: str) -> object:
    """The text of a message's content; parts of type text are joined. Raises DataError for other parts."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(text := part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            found = f"'{kind}'" if isinstance(kind, str) else describe(part)
            raise DataError(f"'{name}[{i}]' must be a part of type text, found {found}; remove the row", field=name)
        others = [key for key, value in part.items() if key not in PART_KEYS]
        if filled := [key for key in others if not is_empty(part[key])]:
            raise DataError(f"'{name}[{i}]' also has '{filled[0]}'; only text is supported", field=name)
        texts.append(text)
    return "".join(texts)


def parse_messages(value: object, name: str) -> tuple[Message, ...]:
    """Messages from [{"role": .., "content": ..}, ..]. Raises DataError naming field `name` and the position.

    Content may be parts of type text; the role developer is system. See `check_plain_message` for other keys."""
    messages = []
    for i, item in enumerate(check_list(value, name)):
        if not isinstance(item, dict):
            raise DataError(f"'{name}[{i}]' must be an object, found {describe(item)}", field=name)
        if _is_usual(item) and item["role"] in ROLES and isinstance(item["content"], str):
            role, content = item["role"], item["content"]
            learned = role != "assistant" or item.get("learned") is not False
        else:
            role, content = _role_and_content(item, f"{name}[{i}]", name)
            learned = role != "assistant" or is_learned(item, f"{name}[{i}]")
        if role == "system" and is_empty(content):
            continue  # no system prompt
        try:
            messages.append(Message(role, content, learned))
        except DataError as error:
            reason = f"a message of '{name}': {error.reason}"
            raise DataError(f"'{name}[{i}]': {error}", field=f"{name}[{i}].{error.field}", reason=reason) from None
    return tuple(messages)


USUAL_KEYS = {"role", "content"}
STORED_KEYS = {*USUAL_KEYS, "learned"}  # of a record's table, which has a column for all that a message may have


def _is_usual(item: Mapping[str, Any]) -> bool:
    """Whether a message needs no further questions: it has nothing beyond its text, or what our own records add."""
    keys = item.keys()
    return keys == USUAL_KEYS or (
        keys == STORED_KEYS and (item["learned"] is None or isinstance(item["learned"], bool))
    )


def _role_and_content(item: Mapping[str, Any], place: str, name: str) -> tuple[Any, Any]:
    """Of a message with other keys, an unusual role or parts. Raises DataError for one that cannot be read."""
    if isinstance(item.get("role"), str) and item["role"].lower() in TOOL_ROLES:
        raise DataError(
            f"'{place}' has the role {item['role']}; tool calls are not supported, remove the row", field=name
        )
    if any(item.get(key) for key in TOOL_KEYS):
        check_plain_message(item, place)
    for key in ("role", "content"):
        if key not in item:
            raise DataError(f"'{place}' has no '{key}', only {', '.join(item) or 'nothing'}", field=name)
    check_plain_message(item, place)
    role = item["role"]
    if isinstance(role, str) and (lower := role.lower()) in (*ROLES, *MESSAGE_ROLES):
        role = MESSAGE_ROLES.get(lower, lower)
    return role, message_text(item["content"], f"{place}.content")


def is_learned(answer: Mapping[str, Any], place: str) -> bool:
    """Whether an answer may be learned, by its own marks, such as OpenAI's `weight`. Raises DataError for a weight
    other than 0 and 1."""
    found = {key: answer[key] for key in marks(tuple(answer)) if not is_empty(answer[key])}
    if not found:
        return True
    if (why := unlearned(found)) and why.endswith("supported"):
        raise DataError(f"'{place}': {why}", field=place)
    return why is None and not any(verdict_of(key, value) is False for key, value in found.items())


ASKING = ("user", "human", "prompter", "system", "developer")


def check_learned(value: object, name: str) -> None:
    """Raise DataError if the last answer of a conversation is marked as one that must not be learned, such as by
    OpenAI's `weight: 0`. Earlier answers may be: they are read and not learned (`is_learned`)."""
    last: Mapping[str, Any] = {}
    for turn in reversed(value) if isinstance(value, list) else ():
        if isinstance(turn, dict) and str(turn.get("role", turn.get("from"))).lower() not in ASKING:
            last = turn
            break
    if not marks(tuple(last)) or (_is_usual(last) and last.get("learned") is not False):
        return
    if why := unlearned(last):
        raise DataError(f"the last answer of '{name}' is marked as not to be learned: {why}", field=name)
    if bad := next((key for key, content in last.items() if verdict_of(key, content) is False), None):
        raise DataError(f"the last answer of '{name}' is marked as bad by '{bad}'", field=name)
