"""Chat templates run in a process beside this one, and for so long: a template is somebody else's program.

jinja2's sandbox keeps a template from files and from code. It does not keep it from loops without end, from powers that are
computed with the interpreter's lock held, or from texts of any size. `label` prepares its shards in such a process as a whole,
under a bound of its own, and renders right there.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.apart import Apart, Died, TimedOut
from pipeline.errors import RunError
from pipeline.killers import DEATHS

Value = TypeVar("Value")

WITHIN_S = 60.0  # a conversation takes milliseconds
MEMORY = 4 << 30  # bytes of address space: beyond, the template refuses the conversation
MOST = 64 << 20  # characters of one conversation, which have to be cut into tokens
WITHOUT = ("torch",)  # transformers imports it for its configurations, which neither tokenizers nor templates need
QUIET = {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}  # it would warn that there is none

_beside = Apart(MEMORY, WITHOUT, QUIET)
_here = False


def render_here() -> None:
    """From now on templates run in this process: it stands beside another, which bounds it."""
    global _here
    _here = True


@contextlib.contextmanager
def rendering_in(process: Apart) -> Iterator[None]:
    """While the block runs, templates run in a process that stands beside this one for something else, under its bounds."""
    global _beside
    own, _beside = _beside, process
    try:
        yield
    finally:
        _beside = own


def bounded(function: Callable[..., Value], *arguments: Any) -> Value:
    """`function(*arguments)`, which runs a chat template.

    Raises:
        RunError: where it does not come to an end, or ends its process each time.
        Exception: what the function raised.
    """
    if _here:
        return function(*arguments)
    for _ in range(DEATHS):  # what ended it may have been meant for another
        try:
            return _beside.call(function, *arguments, timeout_s=WITHIN_S)
        except TimedOut:
            raise _hostile(f"does not come to an end: {WITHIN_S:g} s were not enough for one conversation") from None
        except Died as death:
            how = death.how
    raise _hostile(f"ended the process that renders one conversation {DEATHS} times, the last by {how}")


def _hostile(how: str) -> RunError:
    return RunError(f"the chat template {how}; take another one (tokens.template), another model or other labels")


class Applied:
    """A tokenizer's `apply_chat_template`, bounded: for text, and of a template that is given. So of the tokenizer it needs
    the special tokens alone."""

    def __init__(self, special_tokens: Mapping[str, Any]):
        self.special_tokens = dict(special_tokens)

    def __call__(self, messages: Sequence[Any], **options: Any) -> str:
        return bounded(_applied, self.special_tokens, messages, options)


class _Bare:
    def __init__(self, special_tokens: Mapping[str, Any]):
        self.special_tokens_map = special_tokens

    def get_chat_template(self, template: str, tools: Any = None) -> str:
        return template


def _applied(special_tokens: Mapping[str, Any], messages: Sequence[Any], options: Mapping[str, Any]) -> str:
    from transformers import PreTrainedTokenizerBase

    apply: Any = PreTrainedTokenizerBase.apply_chat_template
    text: str = apply(_Bare(special_tokens), messages, **options)
    if len(text) > MOST:
        raise ValueError(f"it makes {len(text):,} characters of it, and at most {MOST:,} can be")
    return text
