"""A template run on symbols: the very renderings that the tokenizer gives, whatever the template does with contents."""

from datetime import date
from typing import Any

import pytest
from chat_templates import HEAD, TAIL, TEMPLATES, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, tokenizer

from pipeline.corpus.samples import Message
from pipeline.errors import RowError
from pipeline.tokens.templates import ChatTemplate

PARTS = ["a", " ", "\n", "<think>", "</think>", "<b>", "5", "user", "append", "{{ m }}", "é", "<|im_end|>"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=4).map("".join)
ROLES = st.sampled_from(
    [("user",), ("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant")]
)
PRINTED = (
    "chatml",
    "tools",
    "dated",
    "channels",
    "spaced",
    "ended",
    "talk",
)  # of which each content is printed as it is


class Counted:
    """A template, how often its tokenizer renders, and what that gives."""

    def __init__(self, template: str, tok: Any, **kwargs: Any):
        self.own = ChatTemplate(tok.apply_chat_template, template, kwargs, date(2024, 7, 26))
        self.made = ChatTemplate(tok.apply_chat_template, template, kwargs, date(2024, 7, 26))
        self.calls = 0
        apply, self.own._symbolic, self.made.apply = self.made.apply, None, self.counted
        self._apply = apply

    def counted(self, *args: Any, **options: Any) -> str:
        self.calls += 1
        return self._apply(*args, **options)

    def same(self, messages: list[Message], generation: bool = False) -> str:
        """What both give; they must agree."""
        answers = []
        for chat in (self.made, self.own):
            try:
                answers.append(chat.render(messages, None, generation))
            except RowError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
        return answers[0]


def conversation(*contents: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


COUNTED: dict[str, Counted] = {}


@pytest.mark.parametrize("name", TEMPLATES)
@given(rows=st.lists(st.tuples(ROLES, st.lists(TEXTS, min_size=4, max_size=4), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_renders_as_the_tokenizer(name: str, rows: list[tuple[tuple[str, ...], list[str], bool]]) -> None:
    template = COUNTED.setdefault(name, Counted(TEMPLATES[name], chat_tokenizer(name)))
    for roles, contents, generation in rows:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        template.same(messages, generation)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRINTED)
def test_contents_that_are_printed_are_rendered_once_an_order_of_roles(name: str) -> None:
    template = Counted(TEMPLATES[name], chat_tokenizer(name))
    for i in range(20):
        template.same(conversation(f"q {i}", f" a\n{i}</think> "))
    assert template.calls == 1


def test_an_answer_to_a_question_is_a_path_of_its_own() -> None:
    template = Counted(TEMPLATES["thinking"], chat_tokenizer("thinking"))
    for i in range(10):
        template.same(conversation(f"q {i}", f"a {i}"))
    assert template.calls == 1
    for i in range(10):  # its content is split, which no condition says
        template.same(conversation(f"q {i}", f"<think>{i}</think> a"))
    assert template.calls == 11
    template.same(conversation("q", "a"))
    assert template.calls == 11


SPYING = {  # what a template may do with a content `c`, all of which must come out as it does on text
    "length": "{% if c | length > 1 %}long {% endif %}{{ c }}",
    "letter": "{{ c }}{{ c[0] }}",
    "is iterable": "{{ c is iterable }}{{ c is sequence }}{{ c is mapping }}{{ c is string }}{{ c is number }}",
    "sameas": "{{ c is sameas c }}",
    "a number": "{{ c | int }}{{ c | float }}",
    "a key": "{{ {'a': 1}[c] }}{{ [1][c] is defined }}",
    "a namespace's": "{% set n = namespace(a='b') %}{{ n[c] }}",
    "an attribute": "{{ 'text' | attr(c) is defined }}",
    "a method": "{{ c.split is defined }}{{ c.upper() }}",
    "within text": "{{ c in 'a 5 user' }}{{ c in ['a', '5'] }}",
    "compared": "{{ c == 'a' }}{{ 'a' != c }}{{ c < 'b' }}",
    "none": "{{ c is none }}{{ c == none }}{{ c is defined }}{{ c == 5 }}",
    "joined": "{{ ['a', c] | join('-') }}{{ 'x' ~ c ~ 1 }}{{ '%s' % c }}{{ '%s' | format(c) }}{{ '{}'.format(c) }}",
    "as JSON": "{{ c | tojson }}{{ m | tojson }}",
    "the message": "{{ m }}",
    "escaped": "{{ c | e }}{{ ('&' | e) + c }}{{ c + ('&' | e) }}",
    "escaped around": "{% autoescape true %}{{ c }}{% endautoescape %}",
    "safe": "{{ c | safe }}",
    "trimmed with more": "{{ (' ' ~ c ~ ' ') | trim }}|{{ ('x' + c).strip() }}",
    "trimmed of letters": "{{ c | trim }}{{ c.strip('a') }}{{ c.rstrip().lstrip('<') }}",
    "trimmed, then asked": "{% if c.strip() %}{{ c }}{% else %}none{% endif %}{{ c.strip().endswith('5') }}",
    "from a place on": "{{ c.startswith('a', 1) }}",
    "one of several": "{{ c.startswith(('a', '5')) }}",
    "or": "{{ c or 'empty' }}{{ c | default('empty', true) }}{{ 'x' if c else 'y' }}",
    "a macro": "{% macro f(x) %}{% if x is string %}{{ x }}{% endif %}{% endmacro %}{{ f(c) | trim }}{{ f(' ' + c) | trim }}",
    "a block": "{% set x %}{{ c }}{% endset %}{{ x | trim }}{% set y | trim %} {{ c }}{% endset %}{{ y }}",
    "a filtered block": "{% filter upper %}{{ c }}{% endfilter %}",
    "generated": "{% generation %}{{ c }}{% endgeneration %}",
    "its like": "{{ loop.changed(c) }}{{ c == messages[0]['content'] }}{{ messages.index(m) }}",
    "all of them": "{{ messages | map(attribute='content') | list }}{{ messages | rejectattr('content', 'eq', 'a') | first }}",
    "called": "{{ c() }}",
    "stopped at": "{% if 'a' in c %}{% break %}{% endif %}{{ c }}",
    "refused": "{% if c == '5' %}{{ raise_exception('no ' + c) }}{% endif %}{{ c }}",
    "reversed": "{{ c | reverse }}{{ c | first }}{{ c | replace('a', 'b') }}",
}  # fmt: skip
CONTENTS = ["a", "", " ", "5", "<a>&", "append", " a ", "ab\n", "user", "b", "a5"]


@pytest.mark.parametrize("name", SPYING)
def test_a_template_cannot_tell_a_symbol_from_a_text(name: str) -> None:
    source = HEAD + "<|im_start|>{% set c = m['content'] %}" + SPYING[name] + TAIL
    template = Counted(source, _tokenizer)
    for first in CONTENTS:
        for second in CONTENTS[:3]:
            template.same(conversation(first, second))
            template.same(conversation(second, first))
    parts = SPYING[name].replace("}}{{", "}}\0{{").split("\0")
    for part in parts if len(parts) > 1 else ():  # each alone, as the first may end the run
        alone = Counted(HEAD + "{% set c = m['content'] %}" + part + TAIL, _tokenizer)
        for content in CONTENTS:
            alone.same(conversation(content))


_tokenizer = tokenizer(CHATML)


def test_another_environment_than_ours_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Counted(CHATML, _tokenizer)
    symbolic = template.made._symbolic
    assert symbolic is not None
    symbolic.source = CHATML.replace("<|im_end|>", "<|end|>")
    for i in range(3):
        template.same(conversation(f"q{i}", "a"))
    assert template.calls == 3


def test_a_tokenizer_that_renders_in_its_own_way_renders_each() -> None:
    own = ChatTemplate(lambda messages, **options: str(len(messages[0]["content"])), CHATML, {}, date(2024, 7, 26))
    assert [own.render(conversation(text), None) for text in ("a", "ab")] == ["1", "2"]
