r"""How sure a model was of the final answer that a response gives: the mean probability of the answer's tokens (CRew, He Du et
al. 2025, arXiv 2510.13501). Made of stored log-probabilities and the texts of tokens, without the model.

    mean_{h in answer} pi(a_h | s_h), at temperature 1

Where the answer is, a span rule says; each looks behind the response's thoughts, and finds none where these do not end:

    boxed            what the last closed `\boxed{}` or `\fbox{}` holds
    after_thoughts   all that stands there
    last_line        its last line that is not empty

An answer's tokens are those that share a character with it: a token that reaches across its edge counts.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pipeline.rewards.answers import BOXED, BOXES, braced
from pipeline.tokens.thoughts import behind_thoughts

SpanRule = Literal["boxed", "after_thoughts", "last_line"]
Span = tuple[int, int]  # of characters: the first, and the one behind the last


def answer_confidence(
    logprobs: ArrayLike, texts: Sequence[str], rule: SpanRule = "boxed", opened: bool = False
) -> float:
    """The mean probability of the answer's tokens, from 0 to 1; NaN where the rule finds no answer.

    Args:
        logprobs: log pi of each token at temperature 1, [H].
        texts: of each token, [H]; of a character of several tokens the last has the text (`pipeline.tokens.pieces`). Empty for
            an end token, which is no part of an answer.
        opened: whether the prompt opens the thoughts.
    """
    span = answer_span("".join(texts), rule, opened)
    tokens = [] if span is None else tokens_of(texts, span)
    return float(np.exp(np.asarray(logprobs, np.float64)[tokens]).mean()) if tokens else float("nan")


def answer_span(text: str, rule: SpanRule, opened: bool = False) -> Span | None:
    r"""Where a rule finds the answer in a text, without the space around it; None where it finds none.

    >>> answer_span(r"It is \boxed{ 42 }.", "boxed"), answer_span("4 or 5?\nIt is 5.\n", "last_line")
    ((14, 16), (8, 16))
    """
    answer = behind_thoughts(text, opened)
    if answer is None:
        return None
    begin = len(text) - len(answer)
    return RULES[rule](text, begin)


def _boxed(text: str, begin: int) -> Span | None:
    for box in reversed(list(BOXED.finditer(text, begin))[-BOXES:]):
        after = text[box.end() :]
        inside = braced(after.lstrip())
        if inside is not None:
            opens = len(text) - len(after.lstrip())
            opens += text[opens] == "{"
            return _stripped(text, opens, opens + len(inside))
    return None


def _last_line(text: str, begin: int) -> Span | None:
    span = _stripped(text, begin, len(text))
    return span and _stripped(text, max(span[0], text.rfind("\n", 0, span[1]) + 1), span[1])


def _stripped(text: str, begin: int, end: int) -> Span | None:
    inside = text[begin:end]
    begin += len(inside) - len(inside.lstrip())
    return (begin, begin + len(inside.strip())) if inside.strip() else None


RULES: dict[str, Callable[[str, int], Span | None]] = {
    "boxed": _boxed,
    "after_thoughts": lambda text, begin: _stripped(text, begin, len(text)),
    "last_line": _last_line,
}


def tokens_of(texts: Sequence[str], span: Span) -> list[int]:
    """The numbers of tokens that share a character with a span; those without a text go with the character that they begin."""
    ends = np.cumsum([len(text) for text in texts])
    begins = np.append(0, ends[:-1])
    filled = np.array([bool(text) for text in texts])
    inside = np.where(filled, (begins < span[1]) & (ends > span[0]), (begins >= span[0]) & (begins < span[1]))
    return [int(number) for number in np.flatnonzero(inside)]


def without_ends(ids: Sequence[int], texts: Sequence[str], special: Collection[int]) -> list[str]:
    """The texts of tokens, empty for the special tokens that a response ends with."""
    count = len(ids)
    while count and ids[count - 1] in special:
        count -= 1
    return [*texts[:count], *([""] * (len(ids) - count))]
