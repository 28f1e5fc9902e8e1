"""What one value of a column says: text, messages, several responses. Every wrong value is a RowError with its reason.

    value of a response column          responses
    "text"                              one
    {"role": ..., "content": ...}       one (ShareGPT's "from" and "value" too, here and below)
    [message, ...]                      one; several if there are more than one and the assistant wrote them all
    {"role": [...], "content": [...]}   one: how `datasets` stores a list of structs
    [response, ...]                     several: texts, message lists
    {"name": response, ...}             several, each with its name

Nothing but text can be labelled: pictures and tool calls are errors.
"""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import RowError
from pipeline.samples import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
KEYS = (("role", "content"), ("from", "value"))
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


def to_text(value: Any, where: str) -> str:
    """Text that tokenizers and Arrow can hold. Raises `null`, `not_text`, `lone_surrogate`."""
    if value is None:
        raise RowError("null", f"{where} is null; text is due")
    if not isinstance(value, str):
        raise RowError("not_text", f"{where} is {_kind(value)}; text is due")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "lone_surrogate",
            f"{where} holds half a character (\\u{ord(value[error.start]):04x}), which is no valid text",
        ) from None
    return value


def to_message(value: Any, where: str) -> Message:
    """One turn. Raises `bad_message`, `bad_role` and what `to_text` raises."""
    if not isinstance(value, dict):
        raise RowError("null" if value is None else "bad_message", f"{where} is {_kind(value)}; a message is due")
    for role_key, content_key in KEYS:
        if value.get(role_key) is not None:
            role = ROLES.get(str(value[role_key]).lower())
            if role is None:
                raise RowError(
                    "bad_role", f"{where} has the unknown role {value[role_key]!r} (known: {' '.join(ROLES)})"
                )
            if content_key not in value:
                raise RowError("bad_message", f"{where} has no {content_key!r}, only {', '.join(map(repr, value))}")
            return Message(role=role, content=_content(value[content_key], f"{where}'s {content_key}"))
    raise RowError("bad_message", f"{where} is no message: it has no 'role' and no 'from'")


def _content(value: Any, where: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        other = next((part["type"] for part in value if part["type"] != "text"), None)
        if other is not None:
            raise RowError("not_text", f"{where} holds a part of type {other!r}; only text can be labelled")
        return "".join(to_text(part.get("text"), where) for part in value)
    return to_text(value, where)


def to_messages(value: Any, where: str) -> list[Message]:
    """A list of turns, from a list, a struct of lists or one message. Raises what `to_message` raises."""
    if value is None:
        raise RowError("null", f"{where} is null; messages are due")
    value = _unstruct(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError("bad_message", f"{where} is {_kind(value)}; a list of messages is due")
    return [to_message(message, f"message {i} of {where}") for i, message in enumerate(value)]


def to_prompt(value: Any, where: str) -> tuple[list[Message], bool]:
    """A prompt and whether it came as messages. Empty text is an empty prompt."""
    if not isinstance(value, list | dict):
        text = to_text(value, where)
        return ([Message(role="user", content=text)] if text else []), False
    return to_messages(value, where), True


def to_response(value: Any, where: str) -> tuple[list[Message], bool]:
    """One response up to its last assistant message, and whether it came as messages.

    Raises `no_assistant_turn`, and what `to_text` and `to_message` raise.
    """
    if not isinstance(value, list | dict):
        return [Message(role="assistant", content=to_text(value, where))], False
    messages = to_messages(value, where)
    spots = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not spots:
        raise RowError("no_assistant_turn", f"{where} has no message of the assistant, so there is nothing to score")
    return messages[: spots[-1] + 1], True


def to_transcript(value: str, where: str) -> list[Message]:
    r"""Anthropic's "\n\nHuman: ... \n\nAssistant: ..." as turns, up to the last of the assistant; white space around a
    turn is dropped. Raises `no_prompt` and `no_assistant_turn`."""
    head, *parts = TRANSCRIPT_TURN.split("\n\n" + to_text(value, where).lstrip())
    if head or not parts:
        raise RowError(
            "no_prompt", f"{where} is text, no transcript that begins with '\\n\\nHuman:', and no column holds a prompt"
        )
    turns = [
        {"role": name.lower(), "content": text.strip()} for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return to_response(turns, where)[0]


def alternatives(value: Any) -> Iterator[tuple[str | None, Any]]:
    """The responses one value holds, each with its name where it has one (see the table above)."""
    value = _unstruct(value)
    if isinstance(value, dict) and not _is_message(value):
        yield from ((str(name), each) for name, each in value.items())
    elif isinstance(value, list) and not _is_one(value):
        yield from ((None, each) for each in value)
    else:
        yield None, value


def _is_one(messages: list[Any]) -> bool:
    """Whether a list is one response in messages, not several responses."""
    if not all(map(_is_message, messages)):
        return any(map(_is_message, messages))  # a broken message among good ones
    roles = [ROLES.get(str(message.get("role") or message.get("from")).lower()) for message in messages]
    return len(roles) == 1 or roles.count("assistant") < len(roles)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key, _ in KEYS)


def _unstruct(value: Any) -> Any:
    """A struct of lists as a list of structs."""
    if isinstance(value, dict):
        for keys in KEYS:
            columns = [value.get(key) for key in keys]
            if all(isinstance(column, list) for column in columns):
                return [dict(zip(keys, each, strict=False)) for each in zip(*columns, strict=False)]
    return value


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
