"""Control tokens inside a corpus's text: what a person typed must not end a turn.

Text of messages, tools and tool calls is marked before it is rendered: a control token in it is put between two characters of
private use, so that the template's own can be told from it. `encoding` cuts marked ones as the plain text that they are.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from pipeline.corpus.samples import Message
from pipeline.errors import RowError
from pipeline.tokens.templates import ChatTemplate, Tools
from pipeline.tokens.thoughts import MARKERS

OPEN, CLOSE = "\U0010fffc", "\U0010fffd"  # of private use, at the very end of Unicode
MARKED = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
PROBE_CALL = {"type": "function", "function": {"name": "q7Zx9KpW", "arguments": {"w3Yv8LqT": "1"}}}


class ControlTokens:
    """The control tokens of one tokenizer under one template.

    Args:
        special: the texts of the tokenizer's special tokens.
        added: those of all its added tokens.
    """

    def __init__(self, template: ChatTemplate, special: Iterable[str], added: Iterable[str]):
        self.template = template
        written = _literals(template.source)
        self.all = {*special} | {text for text in added if not text.isspace() and any(text in each for each in written)}
        self.all.discard("")

    @cached_property
    def markers(self) -> set[str]:
        """Those that the template writes within an assistant's turn and nowhere else: of thoughts and tools. There an
        assistant's text may hold them."""
        user: Message = {"role": "user", "content": "q"}
        plain: Message = {"role": "assistant", "content": "a"}
        outside = self._in(self._rendered([user, plain, user], True)) | self._in(self._rendered([user], True))
        within: set[str] = set()
        for beside in ({}, {"reasoning_content": "t"}, {"tool_calls": [PROBE_CALL]}):
            try:
                rendering = self.template.place([user], {**plain, **beside}, None)  # type: ignore[typeddict-item]
            except RowError:
                continue  # a template that shows no such thing
            text = rendering.lead + rendering.text
            ends = {token for token in self.all if text.rstrip().endswith(token)}  # of the turn, after tool calls
            within |= self._in(text) - ends
        return (within - outside) | (self.all & {marker for pair in MARKERS for marker in pair})

    def _rendered(self, messages: list[Message], generation: bool) -> str:
        try:
            return self.template.render(messages, None, generation)
        except RowError:
            return ""

    def _in(self, text: str) -> set[str]:
        return {token for token in self.all if token in text}

    @cached_property
    def _anywhere(self) -> re.Pattern[str]:
        return _pattern(self.all)

    @cached_property
    def _in_assistants(self) -> re.Pattern[str]:
        return _pattern(self.all - self.markers)

    def first_in(self, message: Message) -> str | None:
        """The first control token that a message's text holds and may not. Raises RowError for our own marks in it."""
        texts = [message["content"]] if len(message) == 2 else list(_texts(dict(message)))
        if any([OPEN in text or CLOSE in text for text in texts]):
            raise RowError(
                "control_tokens", "the text holds U+10FFFC or U+10FFFD, which mark control tokens; take them out"
            )
        pattern = self._in_assistants if message["role"] == "assistant" else self._anywhere
        for text in texts:
            if hit := pattern.search(text):
                return hit.group()
        return None

    def marked(self, message: Message) -> Message:
        """The message with its control tokens marked."""
        pattern = self._in_assistants if message["role"] == "assistant" else self._anywhere
        return {"role": message["role"], **_mark({k: v for k, v in message.items() if k != "role"}, pattern)}  # type: ignore[typeddict-item]

    def marked_tools(self, tools: Tools) -> Tools:
        """The tools with the control tokens in their texts marked."""
        marked: Tools = _mark(tools, self._anywhere)
        return marked


def unmarked(text: str) -> str:
    """The text as it was before it was marked."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def _pattern(tokens: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _mark(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda hit: f"{OPEN}{hit.group()}{CLOSE}", value)
    if isinstance(value, dict):
        return {key: _mark(each, pattern) for key, each in value.items()}
    return [_mark(each, pattern) for each in value] if isinstance(value, list) else value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _literals(template: str) -> list[str]:
    """The texts that a template writes: what stands between its blocks, and its string constants."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        )
        data = [node.data for node in tree.find_all(nodes.TemplateData)]
        return data + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    except (TemplateSyntaxError, RecursionError):  # it is refused where it is rendered
        return [template]
