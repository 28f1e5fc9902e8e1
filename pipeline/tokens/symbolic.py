"""A chat template run once for all conversations that it treats alike: symbolic execution (King 1976,
doi 10.1145/360248.360252).

A template is a program, and most of what it does with a message's content is to print it. So it is run on symbols in place
of the contents. A symbol can be printed, joined to other text and stripped; it answers a few questions (is it empty, does it
begin with `<think>`), each of which is written down with its answer: the path's conditions. Whatever else would look at a
content raises `Inspected`, which no template can catch. A run that comes to its end has thus shown what the template prints
for every conversation with the same roles whose contents give the same answers: pieces of its own text, and contents between
them.

Whether the run was that of the tokenizer's own template is checked once a path, by the rendering that it stands for. Where a
path cannot be run on symbols, and for messages with more than a role and a content, the tokenizer renders each conversation.

A symbol is no `str`: what is written in C then refuses it, where it would read a subclass's text without asking.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, nodes
from jinja2.compiler import Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.filters import do_trim
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.corpus.samples import Message
from pipeline.tokens.bounded import bounded

MOST_PATHS = 16  # of one order of roles
MOST_ORDERS = 4096
MOST_PIECES = 256  # a message: a template that prints a content over and over makes a long text of a longer one
ANSWERS: Mapping[str, Callable[[str, Any], bool]] = {
    "holds": operator.contains,
    "is": operator.eq,
    "begins": str.startswith,
    "ends": str.endswith,
    "is_some": lambda text, _: bool(text),
}
STRIPS: Mapping[str, Callable[[str, str | None], str]] = {
    "strip": str.strip,
    "lstrip": str.lstrip,
    "rstrip": str.rstrip,
}


class Inspected(BaseException):
    """A template looked at a content in a way that no condition says. No Exception, so that jinja2 does not catch it."""


class Place(NamedTuple):
    """Where a text comes from: the content of a message, stripped in some ways."""

    message: int
    strips: tuple[tuple[str, str | None], ...] = ()

    def of(self, contents: Sequence[str]) -> str:
        text = contents[self.message]
        for name, characters in self.strips:
            text = STRIPS[name](text, characters)
        return text


class Condition(NamedTuple):
    """A question that a template asks of a content, and the answer on this path."""

    place: Place
    question: str
    argument: Any
    answer: bool

    def holds(self, contents: Sequence[str]) -> bool:
        return ANSWERS[self.question](self.place.of(contents), self.argument) == self.answer


class Path:
    """One way through a template.

    Args:
        pieces: what it prints; None where it cannot be run on symbols.
    """

    def __init__(self, conditions: tuple[Condition, ...], pieces: Sequence[str | Place] | None):
        self.conditions = conditions
        self.texts = None if pieces is None else [piece if isinstance(piece, str) else "" for piece in pieces]
        self.places = [(i, piece) for i, piece in enumerate(pieces or ()) if isinstance(piece, Place)]

    def taken(self, contents: Sequence[str]) -> bool:
        return not self.conditions or all(condition.holds(contents) for condition in self.conditions)

    def text(self, contents: Sequence[str]) -> str | None:
        if self.texts is None:
            return None
        texts = self.texts.copy()
        for i, place in self.places:
            texts[i] = place.of(contents) if place.strips else contents[place.message]
        return "".join(texts)


class SymbolicTemplate:
    """One template with its variables.

    Args:
        source: the template.
        variables: what it can read beside the messages.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]):
        self.source, self.variables = source, dict(variables)
        self._paths: dict[tuple[bool, tuple[str, ...]], list[Path]] = {}

    def render(self, messages: Sequence[Message], generation: bool, own: Callable[[], str]) -> str:
        """The rendering of a conversation; `own` is the tokenizer's, and what it raises."""
        if max(map(len, messages)) > 2:  # role and content, which each has
            return own()
        contents = [message["content"] for message in messages]
        paths = self._paths.setdefault((generation, tuple([message["role"] for message in messages])), [])
        for path in paths:
            if path.taken(contents):
                text = path.text(contents)
                return own() if text is None else text
        if len(paths) >= MOST_PATHS or len(self._paths) > MOST_ORDERS:
            return own()
        path = self._run(messages, generation)
        paths.append(path)
        try:
            text = own()
        except BaseException:
            paths[-1] = Path(path.conditions, None)
            raise
        if path.text(contents) not in (None, text):
            paths[:] = [Path((), None)]
        return text

    def _run(self, messages: Sequence[Message], generation: bool) -> Path:
        """The path that a conversation takes."""
        return bounded(_run, self.source, self.variables, messages, generation)


def _run(source: str, variables: Mapping[str, Any], messages: Sequence[Message], generation: bool) -> Path:
    conditions: dict[tuple[Place, str, Any], bool] = {}
    symbols = [
        {"role": message["role"], "content": Symbolic((Place(i),), message["content"], conditions)}
        for i, message in enumerate(messages)
    ]
    given = {"messages": symbols, "tools": None, "documents": None, "add_generation_prompt": generation}
    pieces: tuple[str | Place, ...] | None = None
    try:
        template = _compiled(source)
        printed = _joined(template.root_render_func(template.new_context({**given, **variables})))
        pieces = (printed,) if isinstance(printed, str) else printed._pieces
        if len(pieces) > MOST_PIECES * len(messages):
            pieces = None
    except (Exception, Inspected):  # it refuses the conversation, or reads a content
        pass
    return Path(tuple(Condition(*asked, answer) for asked, answer in conditions.items()), pieces)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return _Environment().from_string(source)


class Symbolic:
    """Text that is not known: pieces of a template's text, and places whose text is any. What jinja2 does to a `str` is
    either defined here as a `str` has it, or raises."""

    __slots__ = ("_conditions", "_pieces", "_value")

    def __init__(self, pieces: tuple[str | Place, ...], value: str, conditions: dict[tuple[Place, str, Any], bool]):
        self._pieces = pieces
        self._value = value  # the text on the path that is run
        self._conditions = conditions

    def __add__(self, other: Any) -> Symbolic:
        return _concatenated([self, other]) if type(other) in (str, Symbolic) else NotImplemented

    def __radd__(self, other: Any) -> Symbolic:
        return _concatenated([other, self]) if type(other) is str else NotImplemented

    def strip(self, characters: str | None = None) -> Symbolic:
        return self._stripped("strip", characters)

    def lstrip(self, characters: str | None = None) -> Symbolic:
        return self._stripped("lstrip", characters)

    def rstrip(self, characters: str | None = None) -> Symbolic:
        return self._stripped("rstrip", characters)

    def startswith(self, prefix: str) -> bool:
        return self._ask("begins", prefix)

    def endswith(self, suffix: str) -> bool:
        return self._ask("ends", suffix)

    def __contains__(self, part: Any) -> bool:
        return self._ask("holds", part)

    def __eq__(self, other: Any) -> bool:
        return self._ask("is", other) if isinstance(other, str | Symbolic) else False

    def __bool__(self) -> bool:
        return any(isinstance(piece, str) for piece in self._pieces) or self._ask("is_some", "")

    def _place(self) -> Place:
        """Raises Inspected for text of several pieces."""
        if len(self._pieces) != 1 or isinstance(self._pieces[0], str):
            raise Inspected
        return self._pieces[0]

    def _stripped(self, how: str, characters: Any) -> Symbolic:
        place = self._place()
        if characters is not None and type(characters) is not str:
            raise Inspected
        stripped = Place(place.message, (*place.strips, (how, characters)))
        return Symbolic((stripped,), STRIPS[how](self._value, characters), self._conditions)

    def _ask(self, question: str, argument: Any) -> bool:
        place = self._place()
        if type(argument) is not str:
            raise Inspected
        answer = ANSWERS[question](self._value, argument)
        self._conditions[place, question, argument] = answer
        return answer

    def _inspected(self, *arguments: Any) -> NoReturn:
        raise Inspected

    # What a `str` can do and what asks whether a value is of another kind; some of it is asked with every Exception caught.
    __getattr__ = __str__ = __repr__ = __format__ = __hash__ = __len__ = __iter__ = __getitem__ = _inspected
    __int__ = __float__ = __index__ = __complex__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __mul__ = _inspected


def _concatenated(parts: Iterable[str | Symbolic]) -> Symbolic:
    """At least one of the parts is symbolic."""
    pieces: list[str | Place] = []
    values, conditions = [], None
    for part in parts:
        if isinstance(part, Symbolic):
            pieces += part._pieces
            values.append(part._value)
            conditions = part._conditions
        elif part:
            pieces.append(part)
            values.append(part)
    assert conditions is not None
    return Symbolic(tuple(pieces), "".join(values), conditions)


def _joined(values: Iterable[Any]) -> str | Symbolic:
    """What is printed, or a macro's value: jinja2's `concat`."""
    parts = [value if isinstance(value, Symbolic) else str(value) for value in values]
    return _concatenated(parts) if any(isinstance(part, Symbolic) for part in parts) else "".join(parts)  # type: ignore[arg-type]


def _trim(value: Any, characters: str | None = None) -> Any:
    return value.strip(characters) if isinstance(value, Symbolic) else do_trim(value, characters)


def _json(value: Any, **options: Any) -> str:
    """transformers' `tojson`, which raises for a symbol."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: Any) -> NoReturn:
    raise TemplateError


class _Generated(Extension):
    """transformers' block around what an assistant wrote, which prints what is inside."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Printing(NativeCodeGenerator):
    """Prints values, not their `str`, and joins them with the environment's `concat`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:
        raise Inspected  # it escapes what it prints

    visit_ScopedEvalContextModifier = visit_EvalContextModifier


class _Environment(ImmutableSandboxedEnvironment):
    """As transformers has it, for symbols. Without `sameas`, which would tell one from a `str`, and without chance."""

    code_generator_class = _Printing
    concat = staticmethod(_joined)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generated, "jinja2.ext.loopcontrols"])
        self.filters.update(trim=_trim, tojson=_json)
        self.tests["string"] = lambda value: isinstance(value, str | Symbolic)
        self.globals["raise_exception"] = _refuse
        del self.tests["sameas"], self.filters["random"], self.globals["lipsum"]

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, Symbolic):
            raise Inspected
        return super().getitem(obj, argument)
