"""What one value of a column says: text, messages, several responses. Every wrong value is a RowError with its reason.

    value of a response column          responses
    "text"                              one
    {"role": ..., "content": ...}       one (ShareGPT's "from" and "value" too, here and below)
    [message, ...]                      one; several if there are more than one and the assistant wrote them all
    {"role": [...], "content": [...]}   one: how `datasets` stores a list of structs
    [response, ...]                     several: texts, message lists
    {"name": response, ...}             several, each with its name

A message keeps its thoughts (`reasoning_content`, `reasoning`, `thinking`) and its tool calls; whether a chat template
shows them is known where it is rendered. Messages may have come as JSON text (`decoded`), a conversation as Anthropic's
transcript. Of a picture the message has the value that the part holds, or None where a column has it
(`pipeline.corpus.placing`); a response with one is an error, and so is anything but text and pictures.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.corpus.pictures import PLACEHOLDER
from pipeline.corpus.samples import Message
from pipeline.corpus.sources import PARTS, inline_of
from pipeline.errors import RowError

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_call": "assistant",
}  # fmt: skip
TEXTS = ("text", "input_text", "output_text")  # types of content parts
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
KEYS = (("role", "content"), ("from", "value"))
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# How summarize-from-feedback (arXiv 2009.01325) asks for a summary, of a post and of an article.
TLDR = (("subreddit", "SUBREDDIT: r/{}"), ("title", "TITLE: {}"), ("post", "POST: {}"))
TLDR_END = "TL;DR:"
STEP_END = "\n\n"
LIST_AS_TEXT = re.compile(r"[\[\s]*\{\s*['\"]")  # how messages begin that came as text


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
            if str(value[role_key]).lower() == "function_call":
                call = from_json(value[content_key], f"{where}'s {content_key}")
                return Message(role=role, content="", tool_calls=_tool_calls(call, where))
            beside = _beside(value, where) if len(value) > 2 else {}
            content = value[content_key]
            if content is None and "tool_calls" in beside:
                content = ""
            if value.get("pictures"):
                raise RowError(
                    "not_text",
                    f"{where} has 'pictures' as a label store has them; write them as content parts, such as "
                    '{"type": "image", "path": ...}',
                )
            text, pictures = _content(content, f"{where}'s {content_key}")
            message: Message = {"role": role, "content": text, **beside}  # type: ignore[typeddict-item]
            if pictures:
                if role == "assistant":
                    raise RowError("not_text", f"{where} is the assistant's and holds a picture; only text is scored")
                message["pictures"] = pictures
            return message
    raise RowError("bad_message", f"{where} is no message: it has no 'role' and no 'from'")


def _beside(value: dict[str, Any], where: str) -> dict[str, Any]:
    """What a message has beside role and content. Raises `bad_message` and what `to_text` raises."""
    beside: dict[str, Any] = {}
    thoughts = next((key for key in THOUGHTS if value.get(key)), None)
    if thoughts:
        beside["reasoning_content"] = to_text(value[thoughts], f"{where}'s {thoughts}")
    calls = value.get("tool_calls") or value.get("function_call")  # the second as OpenAI had it before there were tools
    if calls:
        beside["tool_calls"] = _tool_calls(calls, where)
    for key in ("tool_call_id", "name"):
        if value.get(key) is not None:
            beside[key] = to_text(value[key], f"{where}'s {key}")
    return beside


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    value = from_json(value, f"{where}'s tool_calls")
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("bad_message", f"{where} calls a tool without a name: {str(call)[:60]}")
    return list(without_nulls(calls))


def to_tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools that a conversation may call: JSON schemas, in a list or as JSON. None where there are none.

    Raises `bad_tools`.
    """
    if value is None:
        return None
    value = from_json(value, where, "bad_tools") if value != "" else []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("bad_tools", f"{where} is {_kind(value)}; a list of tools is due, each a JSON schema")
    return without_nulls(value) or None


def from_json(value: Any, where: str, reason: str = "bad_message") -> Any:
    """A value that may have come as JSON text. Raises `reason`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(reason, f"{where} is text and no JSON ({error}): {value[:60]!r}") from None


def without_nulls(value: Any) -> Any:
    """Less what is null: a column of structs holds, for each of its keys, a null in the rows that do not have it."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _content(value: Any, where: str) -> tuple[str, list[Any]]:
    """A message's text, and the pictures that it holds a placeholder for: their values, None where a column has them."""
    if not (isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value)):
        return to_text(value, where), []
    texts: list[str] = []
    pictures: list[Any] = []
    for part in value:
        if part["type"] in PARTS:
            pictures.append(inline_of(part))
            texts.append(PLACEHOLDER)
        elif part["type"] in TEXTS:
            texts.append(to_text(part.get("text"), where))
        else:
            raise RowError(
                "not_text", f"{where} holds a part of type {part['type']!r}; only text and pictures are read"
            )
    text = "".join(texts)
    if pictures and text.count(PLACEHOLDER) > len(pictures):
        raise RowError(
            "bad_message", f"{where} holds pictures, and in its text U+FFFC, which stands for one; drop that sign"
        )
    return text, pictures


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
    return _up_to_last_answer(to_messages(value, where), where), True


def _up_to_last_answer(messages: list[Message], where: str) -> list[Message]:
    """Raises `no_assistant_turn`."""
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"), None)
    if last is None:
        raise RowError("no_assistant_turn", f"{where} has no message of the assistant, so there is nothing to score")
    return messages[: last + 1]


def summary_question(info: Any, where: str) -> str:
    """summarize-from-feedback's question about a post or an article. Raises RowError."""
    if not isinstance(info, dict):
        raise RowError("not_text", f"{where} is no object with a post or an article")
    if info.get("post"):
        parts = [form.format(to_text(info[key], f"{where}'s {key}")) for key, form in TLDR if info.get(key)]
        return "\n\n".join([*parts, TLDR_END])
    if info.get("article"):
        return f"Article:\n{to_text(info['article'], where)}\n\n{TLDR_END}\n"
    raise RowError("null", f"{where} has neither a post nor an article to summarise")


def crossed(groups: Any, responses: Any, asked: str, given: str) -> Iterator[tuple[str, list[Message]]]:
    """Every response behind every prompt, each with its name: `group.prompt.key`, counted from 0.

    Args:
        groups: lists of prompts, texts.
        responses: objects with `key` and `text`.

    Raises RowError.
    """
    if not isinstance(responses, list) or not all(isinstance(each, dict) for each in responses):
        raise RowError("not_text", f"{given} is {_kind(responses)}; a list of objects with key and text is due")
    texts = {str(each.get("key")): to_text(each.get("text"), f"a text of {given}") for each in responses}
    if len(texts) < len(responses):
        raise RowError("bad_message", f"two responses of {given} have the same key; give each its own")
    for number, prompts in enumerate(groups if isinstance(groups, list) else [groups]):
        for place, prompt in enumerate(prompts if isinstance(prompts, list) else [prompts]):
            user = to_text(prompt, asked)
            if not user.strip():
                raise RowError("empty_prompt", f"a prompt of {asked} is empty")
            for key, text in texts.items():
                yield (
                    f"{number}.{place}.{key}",
                    [Message(role="user", content=user), Message(role="assistant", content=text)],
                )


def joined(steps: Any, where: str) -> tuple[str, list[int]]:
    """A response in steps as one text, with an empty line between two, and the character at which each begins. Raises
    RowError.

    >>> joined(["1 + 1 = 2.", "So it is 2."], "steps")
    ('1 + 1 = 2.\\n\\nSo it is 2.', [0, 12])
    """
    if not isinstance(steps, list) or not steps:
        raise RowError("not_text", f"{where} is {_kind(steps)}; a list of steps is due")
    texts = [to_text(step, f"a step of {where}") for step in steps]
    starts = [sum(len(text) + len(STEP_END) for text in texts[:number]) for number in range(len(texts))]
    return STEP_END.join(texts), starts


def up_to_turn(messages: list[Message], turn: Any, where: str) -> list[Message]:
    """A conversation up to the assistant's `turn`-th answer, from 1. Raises `bad_message` where it has no such."""
    spots = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    number = int(float(turn)) if isinstance(turn, int | float | str) and str(turn).removesuffix(".0").isdecimal() else 0
    if not 1 <= number <= len(spots):
        raise RowError(
            "bad_message",
            f"column 'turn' says {turn!r} and {where} has {len(spots)} answers of the assistant; mend one of them",
        )
    return messages[: spots[number - 1] + 1]


def to_transcript(value: str, where: str) -> list[Message]:
    r"""Anthropic's "\n\nHuman: ... \n\nAssistant: ..." as turns, up to the last of the assistant; white space around a
    turn is dropped. Raises `no_prompt` and `no_assistant_turn`."""
    turns = _transcript_turns(to_text(value, where))
    if not turns:
        raise RowError(
            "no_prompt", f"{where} is text, no transcript that begins with '\\n\\nHuman:', and no column holds a prompt"
        )
    return _up_to_last_answer(turns, where)


def _transcript_turns(text: str) -> list[Message]:
    """White space around a turn dropped; nothing where the text is no transcript."""
    head, *parts = TRANSCRIPT_TURN.split("\n\n" + text.lstrip())
    if head:
        return []
    names = {"Human": "user", "Assistant": "assistant"}
    return [Message(role=names[name], content=text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def is_transcript(value: Any) -> bool:
    """Whether text is a whole transcript: it begins with the person's turn, and the assistant has one."""
    return isinstance(value, str) and value.startswith(HUMAN) and ASSISTANT in value


def is_transcript_prompt(value: Any) -> bool:
    """Whether text is a transcript up to where the assistant's next turn begins."""
    return is_transcript(value) and value.rstrip().endswith(ASSISTANT)


def to_transcript_prompt(value: str, where: str) -> list[Message]:
    """The turns of a transcript that ends where the assistant's next turn begins. Raises what `to_text` raises."""
    return _transcript_turns(to_text(value, where))[:-1]


def continued(prompt: str, response: str, where: str) -> list[Message]:
    """What follows a transcript's prompt: the turns of both together, less those of the prompt. Raises what
    `to_transcript` raises."""
    begun = len(_transcript_turns(prompt)) - 1
    return to_transcript(prompt.rstrip() + " " + to_text(response, where), where)[begun:]


def decoded(value: Any, where: str) -> Any:
    """Messages that came as JSON text, one conversation or several, as they were before; anything else as it is.

    Raises `bad_message` for text that begins as messages do and cannot be read.
    """
    if not isinstance(value, str) or not LIST_AS_TEXT.match(value):
        return value
    if not any(all(re.search(rf"(['\"]){key}\1\s*:", value) for key in keys) for keys in KEYS):
        return value
    try:
        messages = json.loads(value)
    except ValueError as error:
        raise RowError(
            "bad_message",
            f"{where} is text that begins as a list of messages does and is no JSON ({error}): {value[:60]!r}; write the "
            "messages as a list, or as JSON with double quotes",
        ) from None
    return messages if _are_messages(messages) else value


def several(value: Any) -> Any:
    """The texts of a column whose name says that it holds several, where they came as a JSON list; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith('["'):
        return value
    try:
        texts = json.loads(value)
    except ValueError:
        return value
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value


def _are_messages(value: Any) -> bool:
    """One message, messages, or lists of messages."""
    if isinstance(value, list):
        return bool(value) and all(map(_are_messages, value))
    return isinstance(value, dict) and any(role in value and content in value for role, content in KEYS)


def to_history(value: Any, where: str) -> list[Message]:
    """Turns before a prompt: `[[user, assistant], ...]` as LLaMA-Factory has them, or messages. Raises `bad_message` and
    what `to_message` raises."""
    if value is None or value == "" or value == []:
        return []
    value = from_json(value, where)
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return [
            Message(role=role, content=to_text(text, where))
            for pair in value
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return to_messages(value, where)


def interleaved(prompts: Any, answers: Any, where: str) -> list[Message]:
    """A conversation from its user turns and its assistant turns, each a list of texts, perhaps as JSON text.

    Raises `bad_message`, and what `to_text` raises.
    """
    users, assistants = from_json(prompts, "the prompt column"), from_json(answers, where)
    if not isinstance(users, list) or not isinstance(assistants, list):
        raise RowError(
            "bad_message", f"{where} is {_kind(assistants)} and its prompt {_kind(users)}; lists of texts are due"
        )
    if len(users) != len(assistants) or not users:
        raise RowError(
            "bad_message", f"{where} has {len(assistants)} turns for {len(users)} of the prompt column; as many are due"
        )
    pairs = zip(users, assistants, strict=True)
    texts = [(("user", user), ("assistant", assistant)) for user, assistant in pairs]
    return [Message(role=role, content=to_text(text, where)) for pair in texts for role, text in pair]


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
