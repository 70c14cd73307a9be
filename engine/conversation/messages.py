"""Messages: read from the forms that data sets have, and checked.

{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
{"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}
{"instruction": "Add.", "input": "2 2", "output": "4"}
{"prompt": "2 + 2?", "completion": "4"}          also question and answer
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from engine.errors import UserError, did_you_mean
from engine.text.roles import ROLES

# Fields that hold a list of turns: what a turn's role and text are called there.
LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
# Fields that hold a question and its answer.
PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
OTHER_NAMES = {"human": "user", "gpt": "assistant"}  # of roles, in the second kind of list


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def is_conversation(names: Collection[str]) -> bool:
    """Whether a record with these fields is a conversation in one of the known forms."""
    return any(name in names for name in LISTS) or any(set(pair) <= set(names) for pair in PAIRS)


def read_conversation(record: Any, where: str) -> list[Message]:
    """The messages of a record, checked. Raises UserError that names the first mistake."""
    if not isinstance(record, dict) or not is_conversation(record):
        forms = ", ".join([*LISTS, *(" and ".join(pair) for pair in PAIRS)])
        raise UserError(f"{where} is no conversation; one has the fields {forms}")
    field = next((name for name in LISTS if name in record), None)
    if field is not None:
        messages = [
            _message(turn, *LISTS[field], f"{where}, turn {number}")
            for number, turn in enumerate(_list(record[field], f"{where}: {field}"), start=1)
        ]
    else:
        asked, answered = next(pair for pair in PAIRS if set(pair) <= record.keys())
        question = _text(record[asked], f"{where}: {asked}")
        if asked == "instruction" and record.get("input"):
            question += "\n\n" + _text(record["input"], f"{where}: input")
        answer = _text(record[answered], f"{where}: {answered}")
        messages = [Message("user", question), Message("assistant", answer)]
    check_messages(messages, where)
    return messages


def read_turns(value: Any, role: str, where: str) -> list[Message]:
    """A list of messages; or a text, which is one turn of `role`. Raises UserError."""
    if not isinstance(value, list):
        return [Message(role, _text(value, where))]
    names = LISTS["messages"]
    return [_message(turn, *names, f"{where}, turn {number}") for number, turn in enumerate(value, start=1)]


def read_question(turns: Any, where: str) -> list[Message]:
    """The messages of a conversation that waits for an answer, in the form of OpenAI's API, checked.

    A content may be a list of texts; the role developer means system. Raises UserError.
    """
    messages = [
        _message(_plain(turn), "role", "content", f"{where}, turn {number}")
        for number, turn in enumerate(_list(turns, where), start=1)
    ]
    check_order(messages, where)
    if not messages or messages[-1].role not in ("user", "tool"):
        raise UserError(f"{where}: the last turn must be the user's, so that there is something to answer")
    return messages


def _plain(turn: Any) -> Any:
    """A turn of the API, with a content that is a list of texts joined to one text."""
    if not isinstance(turn, dict):
        return turn
    content = turn.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    return turn | {"content": content} | ({"role": "system"} if turn.get("role") == "developer" else {})


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{what} must be a list of turns")
    return value


def _message(turn: Any, role_name: str, content_name: str, where: str) -> Message:
    if not isinstance(turn, dict) or role_name not in turn or content_name not in turn:
        raise UserError(f"{where} must have the fields {role_name} and {content_name}")
    role = turn[role_name]
    if role_name == "from":
        role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        meant = did_you_mean(str(role), ROLES)
        raise UserError(f"{where}: the role {role!r} is unknown; there are {', '.join(ROLES)}{meant}")
    return Message(role, _text(turn[content_name], f"{where}: {content_name}"))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} is no text")
    if not value or value.isspace():
        raise UserError(f"{what} is empty")
    return value


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Raise UserError if the turns are not a conversation to learn from."""
    check_order(messages, where)
    if not any(role == "assistant" for role, _ in messages):
        raise UserError(f"{where} has no assistant turn, so nothing to learn from")


def check_order(messages: Sequence[Message], where: str) -> None:
    """Raise UserError if the roles of the turns are out of order.

    The order is: at most one system message, then user and assistant in turn. A turn of the assistant that
    calls a tool is followed by one of the tool, and that by another one of the assistant.
    """
    allowed = {
        None: ("system", "user"), "system": ("user",), "user": ("assistant",),
        "assistant": ("user", "tool"), "tool": ("assistant",),
    }  # fmt: skip
    before = None
    for number, (role, _) in enumerate(messages, start=1):
        if role not in allowed[before]:
            if role == before:
                raise UserError(f"{where}, turn {number}: two {role} turns in a row")
            place = "at the beginning" if before is None else f"after one of the {before}"
            raise UserError(f"{where}, turn {number}: a turn of the {role} {place}")
        before = role


def to_json(messages: Sequence[Message]) -> str:
    """Messages as one text, the same for the same conversation in any form."""
    return json.dumps([[role, content] for role, content in messages], ensure_ascii=False)


def from_json(text: str) -> list[Message]:
    """The messages that `to_json` wrote."""
    return [Message(role, content) for role, content in json.loads(text)]
