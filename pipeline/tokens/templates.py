"""Chat templates: where in a rendering the prompt ends, what the model writes, and what the template puts behind it.

A template is a program; its output is final, and nothing is added to it. It is asked for the prompt alone with the generation
prompt behind it and for the conversation with a stand-in for an answer, once a prompt, and for each conversation itself. The
stand-in shows which text is the template's own; the real rendering has to be that text with the answer in the stand-in's
place, or the answer is not shown as it is and the row is an error.

    ...<|im_start|>assistant\\n | <think>\\n\\n</think>\\n\\n | Paris. | <|im_end|> | \\n
    before                      lead                          text     end        (not scored)

White space around an answer that the template itself takes away or makes anew is the template's; anything else that it
changes, moves out of an answer or leaves out is a RowError.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.corpus.samples import Message
from pipeline.errors import RowError, RunError
from pipeline.tokens.bounded import Applied
from pipeline.tokens.pictures import content_parts, in_parts
from pipeline.tokens.symbolic import SymbolicTemplate
from pipeline.tokens.thoughts import CLOSED, OPENED

STAND_IN = "q7Zx9KpW"  # an answer that no template changes and no conversation holds
THOUGHTS = "w3Yv8LqT"  # likewise, for the thoughts before it
ASKS_FOR_DATE = "strftime_now"
REMEDY = "set tokens.template to a template that shows it"

Tools = list[dict[str, Any]] | None


class Rendering(NamedTuple):
    """A conversation as text: `before + lead + text + tail`. A prompt that is only asked has no text."""

    before: str  # up to where the model begins to write
    lead: str  # what the template puts before this answer: an empty block of thoughts, the name of a channel
    text: str  # the answer as rendered, thoughts and tool calls included
    tail: str  # what stands behind it
    rewritten: bool = False  # whether white space within it is the template's

    @property
    def prompt(self) -> str:
        """What stands before the answer."""
        return self.before + self.lead


class ChatTemplate:
    """One template with its settings.

    Args:
        apply: the tokenizer's `apply_chat_template`.
        text: the template.
        kwargs: `tokens.template_kwargs`.
        day: what the template gets when it asks for today's date.
    """

    def __init__(self, apply: Callable[..., str], text: str, kwargs: Mapping[str, Any], day: date):
        self.apply, self.kwargs = apply, dict(kwargs)
        self.asks_for_date = ASKS_FOR_DATE in text
        self.source = _dated(text, day) if self.asks_for_date else text
        self._symbolic: SymbolicTemplate | None = None
        if (special_tokens := _special_tokens(apply)) is not None:
            self.apply = Applied(special_tokens)
            self._symbolic = SymbolicTemplate(self.source, {**special_tokens, **self.kwargs})

    def render(self, messages: Sequence[Message], tools: Tools, generation: bool = False) -> str:
        """Raises RowError `template_error` where the template refuses, and RunError where it does not come to an end."""
        if not messages:
            return ""
        options = {"tools": tools} if tools else {}

        def own() -> str:
            return self.apply(
                in_parts([_named_as_gpt_oss(message) for message in messages], self.takes_parts),
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
                **self.kwargs,
                **options,
            )

        try:
            symbolic = None if tools or self.takes_parts else self._symbolic
            return own() if symbolic is None else symbolic.render(messages, generation, own)
        except RunError:
            raise
        except Exception as error:  # a template is a program: jinja2 and whatever it calls
            parsed = _with_objects(messages)
            if parsed != list(
                messages
            ):  # it wants the arguments of tool calls as objects, and the corpus has them as JSON
                return self.render(parsed, tools, generation)
            raise RowError(
                "template_error", f"the chat template refuses this conversation: {str(error) or type(error).__name__}"
            ) from None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it shows a text only as one of a content's parts, as those of some vision-language models do."""
        if "type" not in self.source:
            return False
        text: Message = {"role": "user", "content": STAND_IN}
        return not self._shows(text) and self._shows({**text, "content": content_parts(text)})

    def _shows(self, message: Any) -> bool:
        try:
            return STAND_IN in self.apply([message], chat_template=self.source, tokenize=False, **self.kwargs)
        except RunError:
            raise
        except Exception:  # as above
            return False

    def place(self, messages: Sequence[Message], answer: Message, tools: Tools) -> Rendering:
        """Where an answer to these messages stands in its rendering. Raises RowError."""
        return Conversation(self, messages, tools).place(answer)

    def require_tools(self, messages: Sequence[Message], tools: Tools) -> None:
        """Raises RowError where the template leaves out tools, or tool calls of these messages: it renders the same without
        them. Their names prove nothing, which may stand in another text."""
        calling = [number for number, message in enumerate(messages) if message.get("tool_calls")]
        if not messages or not (tools or calling):
            return
        whole = self.render(messages, tools)
        if tools and self._renders(messages, None, whole):
            names = ", ".join(str(tool.get("function", tool).get("name", "")) for tool in tools)
            raise RowError(
                "template_error",
                f"the chat template does not show the tools {names}; set tokens.template to a template that takes tools",
            )
        for number in calling:
            without: Message = {k: v for k, v in messages[number].items() if k != "tool_calls"}  # type: ignore[assignment]
            if self._renders([*messages[:number], without, *messages[number + 1 :]], tools, whole):
                raise RowError(
                    "template_error",
                    f"the chat template does not show the tool calls of message {number} of the prompt; {REMEDY}",
                )

    def _renders(self, messages: Sequence[Message], tools: Tools, text: str) -> bool:
        try:
            return self.render(messages, tools) == text
        except RowError:  # it looks for what is not there
            return False

    def thoughts(self, answer: Message, rendering: Rendering) -> Rendering:
        """The same with the answer's thoughts in `lead`: given, not scored. Raises RowError for thoughts alone."""
        spot = 0
        if answer.get("reasoning_content"):
            content = answer["content"].strip()
            spot = rendering.text.rfind(content) if content else -1
        elif ends := list(CLOSED.finditer(rendering.text)):
            spot = ends[-1].end()
        elif OPENED.match(answer["content"]):
            spot = -1
        if spot < 0 or not rendering.text[spot:].strip():
            raise RowError(
                "no_answer", "the response has thoughts and no answer behind them; set tokens.thoughts = score"
            )
        if not spot:
            return rendering
        return rendering._replace(lead=rendering.lead + rendering.text[:spot], text=rendering.text[spot:])


class Conversation:
    """A prompt through a template. What of it does not depend on an answer is rendered once for all answers, when it is
    first asked for; so each attribute raises RowError where the template refuses."""

    def __init__(self, chat: ChatTemplate, messages: Sequence[Message], tools: Tools):
        self.chat, self.messages, self.tools = chat, messages, tools

    @cached_property
    def bare(self) -> str:
        """The messages alone."""
        return self.chat.render(self.messages, self.tools)

    @cached_property
    def generation(self) -> str:
        """The messages, and the generation prompt behind them."""
        return self.chat.render(self.messages, self.tools, True)

    @cached_property
    def around(self) -> tuple[str, str]:
        """What the template puts before and behind an answer without thoughts and tool calls."""
        return self._around({"role": "assistant", "content": STAND_IN})

    def _around(self, stand_in: Message) -> tuple[str, str]:
        head, shown, tail = self.chat.render([*self.messages, stand_in], self.tools).partition(STAND_IN)
        if not shown:
            raise RowError("template_error", f"the chat template does not show the response; {REMEDY}")
        return head, tail

    def asked(self) -> Rendering:
        """What a policy is asked with: the messages and the template's generation prompt. Raises RowError."""
        asked = self.generation
        if asked == self.bare:  # it has none; the name of the speaker stands before every answer
            head = self.around[0].rstrip(" ")
            asked = head if head.startswith(asked) else asked
        return Rendering(asked, "", "", "")

    def place(self, answer: Message) -> Rendering:
        """Where an answer to these messages stands in its rendering. Raises RowError."""
        whole = self.chat.render([*self.messages, answer], self.tools)
        generation, (head, tail) = self.generation, self.around
        beside = {"reasoning_content", "tool_calls"} & answer.keys()
        if beside:
            return self._structured(answer, whole)
        content = answer["content"]
        for text in (content, content.strip()):
            if whole == head + text + tail:
                before = self._begin(head)
                return Rendering(before, head[len(before) :], text, tail)
        return _inline(whole, head, tail, generation, content)

    def _begin(self, head: str) -> str:
        """What of `head` stands before the model's own writing. Raises RowError."""
        generation = self.generation
        if head.startswith(generation):
            return generation
        shared = common_prefix(generation, head)
        if len(shared) >= len(common_prefix(self.bare, generation)):
            return shared
        if head.startswith(self.bare):
            return self.bare
        raise RowError("template_error", "the chat template renders the prompt differently once a response follows")

    def _structured(self, answer: Message, whole: str) -> Rendering:
        """An answer with thoughts or tool calls beside its text: each has to be shown. Raises RowError."""
        thoughts, content, calls = answer.get("reasoning_content", ""), answer["content"], answer.get("tool_calls")
        stand_in: Message = {**answer, "content": STAND_IN if content else ""}
        if thoughts:
            stand_in["reasoning_content"] = THOUGHTS
        model = self.chat.render([*self.messages, stand_in], self.tools)
        for what, mark, value in (("thoughts", THOUGHTS, thoughts), ("text", STAND_IN, content)):
            if value.strip() and model.count(mark) != 1:
                raise RowError(
                    "template_error", f"the chat template does not show the {what} of the response; {REMEDY}"
                )
        if calls:
            without: Message = {k: v for k, v in stand_in.items() if k != "tool_calls"}  # type: ignore[assignment]
            _require_calls(calls, model, self.chat.render([*self.messages, without], self.tools))
        fitting = [
            model.replace(THOUGHTS, form(thoughts)).replace(STAND_IN, form(content)) for form in (str, str.strip)
        ]
        rewritten = whole not in fitting
        if rewritten and _squeezed(whole) != _squeezed(fitting[0]):
            raise RowError("template_error", f"the chat template does not show the response as it is; {REMEDY}")
        marks = [model.find(mark) for mark in (THOUGHTS, STAND_IN) if mark in model]
        head = model[: min([*marks, len(common_prefix(model, whole))])]
        before = self._begin(head)
        text, tail = _ended(whole[len(before) :], self.around[1])
        return Rendering(before, "", text, tail, rewritten)


def _special_tokens(apply: Callable[..., str]) -> dict[str, Any] | None:
    """Those that a tokenizer gives a template to read; None for one that renders in a way of its own."""
    from transformers import PreTrainedTokenizerBase

    if getattr(apply, "__func__", None) is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    return dict(apply.__self__.special_tokens_map)  # type: ignore[attr-defined]


def _inline(whole: str, head: str, tail: str, generation: str, content: str) -> Rendering:
    """An answer whose text holds its thoughts, where the template knows what they are. Raises RowError."""
    body = whole.removesuffix(tail)
    squeezed = _squeezed(body)
    own = squeezed.removesuffix(_squeezed(content))  # the template's: a part of what stands before every answer
    if not whole.endswith(tail) or len(own) == len(squeezed) or not _squeezed(head).startswith(own):
        raise RowError("template_error", f"the chat template does not show the response as it is; {REMEDY}")
    before = generation if body.startswith(generation) else common_prefix(generation, head, body)
    return Rendering(before, "", body[len(before) :], tail, content.strip() not in body)


def _ended(text: str, tail: str) -> tuple[str, str]:
    """What follows the prompt, as answer and tail; after tool calls a template may end a turn in another way."""
    if tail and text.endswith(tail):
        return text.removesuffix(tail), tail
    return text, ""


def _require_calls(calls: Sequence[Mapping[str, Any]], shown: str, without: str) -> None:
    """Raises RowError where a template does not show the tool calls."""
    names = [str(call.get("function", call).get("name", "")) for call in calls]
    if shown == without or not all(name in shown for name in names):
        raise RowError("template_error", f"the chat template does not show the tool calls of the response; {REMEDY}")


def _named_as_gpt_oss(message: Message) -> Message:
    """Thoughts under the name that gpt-oss's template reads, too. transformers does so itself from 5.21 on."""
    thoughts = message.get("reasoning_content")
    return message if thoughts is None else {"thinking": thoughts, **message}  # type: ignore[typeddict-unknown-key]


def _with_objects(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as objects, where they are the JSON of one, as OpenAI has them."""

    def parsed(call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        try:
            arguments = json.loads(function["arguments"])
        except (KeyError, TypeError, ValueError):
            return call
        function = {**function, "arguments": arguments if isinstance(arguments, dict) else function["arguments"]}
        return {**call, "function": function} if "function" in call else function

    return [
        {**message, "tool_calls": [parsed(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def common_prefix(*texts: str) -> str:
    """What all these texts begin with."""
    low, high = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:size]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _dated(template: str, day: date) -> str:
    """The template with a function of its own in place of the tokenizer's, which would give today's date.

    A format such as `%d %b %Y` is read as strftime reads it: two letters where the first is `-`, else one, behind each `%`.
    """
    letters = "aAbBcdHIjmMpSUwWxXyYzZFDeTRuVGhnt%"
    table = {letter: day.strftime(f"%{letter}") for letter in letters}
    table |= {f"-{letter}": day.strftime(f"%-{letter}") for letter in "dmHIMSj"}
    entries = ", ".join(f"{key!r}: {value!r}" for key, value in table.items())
    return (
        "{%- macro strftime_now(format) -%}{%- set known = {" + entries + "} -%}{%- set parts = format.split('%') -%}"
        "{{- parts[0] -}}{%- for part in parts[1:] -%}{%- set size = 2 if part[:1] == '-' else 1 -%}"
        "{{- known[part[:size]] ~ part[size:] -}}{%- endfor -%}{%- endmacro %}{{ '' }}" + template
    )
