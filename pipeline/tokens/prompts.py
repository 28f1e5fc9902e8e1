"""A prompt's messages before they are rendered, and whether a rendering shows all of them."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pipeline.corpus.samples import Message
from pipeline.errors import RowError
from pipeline.tokens.control import OPEN, unmarked
from pipeline.tokens.pictures import pictures_of, texts_of
from pipeline.tokens.templates import ChatTemplate, Conversation, Tools
from pipeline.tokens.texts import speaker
from pipeline.tokens.thoughts import CLOSED


def transcript(messages: list[Message], conversational: bool) -> str:
    """A base model's prompt. Bare prompts stay as they are; conversations become a transcript."""
    if not conversational:
        return "\n\n".join(m["content"] for m in messages)
    return "".join(f"\n\n{speaker(m['role'])}: {m['content']}" for m in messages) + "\n\nAssistant:"


def with_system(prompt: list[Message], rubric: str | None) -> list[Message]:
    """The rubric as the system message; a system message of the row's own follows it. An empty one is none."""
    prompt = [m for m in prompt if m["role"] != "system" or m["content"].strip()]
    if not rubric:
        return prompt
    if prompt and prompt[0]["role"] == "system":
        own: Message = {"role": "system", "content": f"{rubric}\n\n{prompt[0]['content']}"}
        return [_with_pictures(own, prompt[:1]), *prompt[1:]]
    return [{"role": "system", "content": rubric}, *prompt]


def folded(prompt: list[Message], rubric: str | None) -> list[Message]:
    """The rubric, and the row's own system message after it, before the first user message."""
    own = [m for m in prompt if m["role"] == "system" and m["content"].strip()]
    rest = [m for m in prompt if m["role"] != "system"]
    instructions = "\n\n".join([*([rubric] if rubric else []), *(m["content"] for m in own)])
    if rest and rest[0]["role"] == "user":
        first: Message = {**rest[0], "content": f"{instructions}\n\n{rest[0]['content']}"}
        return [_with_pictures(first, [*own, rest[0]]), *rest[1:]]
    return [_with_pictures({"role": "user", "content": instructions}, own), *rest]


def _with_pictures(message: Message, of: list[Message]) -> Message:
    """The message with the pictures of those whose text it has."""
    pictures = list(pictures_of(of))
    return {**message, "pictures": pictures} if pictures else message


def require_plain(prompt: list[Message], beside: Mapping[str, Any], tools: Tools) -> None:
    """Raises RowError for what only a chat template can show."""
    calls = any("tool_calls" in message or message["role"] == "tool" for message in prompt)
    if beside or tools or calls or any("reasoning_content" in message for message in prompt):
        raise RowError(
            "no_template", "thoughts beside the text, tools and tool calls need a chat template; set tokens.template"
        )


class ShownPrompt(Conversation):
    """A prompt through a template that has to show all of it."""

    def __init__(self, chat: ChatTemplate, messages: list[Message], tools: Tools):
        super().__init__(chat, messages, tools)
        self._shown: set[str] = set()

    @cached_property
    def unmarked(self) -> list[Message]:
        """The messages as they were before they were marked."""
        return [unmarked_message(message) for message in self.messages]

    @cached_property
    def system(self) -> str:
        """The text of the system message, empty where there is none."""
        return next((m["content"].strip() for m in self.messages if m["role"] == "system"), "")

    def shows_system(self, text: str) -> bool:
        """Whether a text before an answer, which the template made, holds the system message."""
        first = next((m for m in self.messages if m["role"] == "system"), None)
        return first is None or all(part.strip() in text for part in texts_of(first))

    def require_shown(self, text: str) -> None:
        """Raises RowError where a text before an answer, which the template made, leaves out a part of the prompt."""
        if text not in self._shown:
            require_shown(self.messages, self.tools, text)
            self.chat.require_tools(self.messages, self.tools)
            self._shown.add(text)


class PromptUnder:
    """A prompt under one rubric, for all the responses to it: its messages and tools marked, and its renderings."""

    def __init__(self, chat: ChatTemplate, prompt: list[Message], rubric: str | None, tools: Tools, typed: int):
        self.prompt, self.rubric, self.typed = prompt, rubric, typed  # how many of its messages hold control tokens
        self.chat, self.tools = chat, tools

    @cached_property
    def own(self) -> ShownPrompt:
        return ShownPrompt(self.chat, with_system(self.prompt, self.rubric), self.tools)

    @cached_property
    def folded(self) -> ShownPrompt:
        """The system message before the first user message."""
        return ShownPrompt(self.chat, folded(self.prompt, self.rubric), self.tools)


def require_shown(messages: Sequence[Message], tools: Tools, text: str) -> None:
    """Raises RowError for a part of the prompt that the template leaves out. A part has to be there as often as the messages
    hold it: that it stands in another one (a tool's `12`, asked for as `is it 12?`) does not show it."""
    parts = [(number, part) for number, message in enumerate(messages) for part in _parts(message) if part]
    each = {} if _in_order([part for _, part in parts], text) else {part: (number, part) for number, part in parts}
    for number, part in each.values():
        if text.count(part) >= sum(other.count(part) for _, other in parts):
            continue
        due = sum(_squeezed(other).count(_squeezed(part)) for _, other in parts)
        forms = {_squeezed(form) for form in (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])}
        if sum(_count(form, _squeezed(text)) for form in forms) < due:
            raise RowError(
                "template_error",
                f"the chat template does not show message {number} ({messages[number]['role']}) of the prompt whole; set "
                "tokens.template to a template that does",
            )
    for tool in tools or []:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise RowError(
                "template_error",
                f"the chat template does not show the tool {name!r}; set tokens.template to a template that takes tools",
            )


def _in_order(parts: Sequence[str], text: str) -> bool:
    """Whether a text holds all parts, one behind the other, so that what one of them holds is there apart from the others."""
    end = 0
    for part in parts:
        begin = text.find(part, end)
        if begin < 0:
            return False
        end = begin + len(part)
    return True


def _parts(message: Message) -> list[str]:
    """What of a message has to be shown; an earlier turn's thoughts need not be."""
    contents = texts_of(message)
    if message["role"] == "assistant":
        contents[-1:] = [CLOSED.split(contents[-1])[-1]]
    names = (str(call.get("function", call).get("name")) for call in message.get("tool_calls", []))
    return [part.strip() for part in (*contents, *names)]


def _count(part: str, text: str) -> int:
    """How often a part stands in a text, overlapping ones too."""
    return len(re.findall(f"(?={re.escape(part)})", text))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def unmarked_message(message: Message) -> Message:
    if message.keys() == {"role", "content"} and OPEN not in message["content"]:
        return message
    rest = {key: value for key, value in message.items() if key != "pictures"}
    bare: Message = json.loads(unmarked(json.dumps(rest, ensure_ascii=False)))
    return _with_pictures(bare, [message])
