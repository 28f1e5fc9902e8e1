r"""Is a response's final answer the right one? Finding it is ours, equivalence is math_verify's (on SymPy).

The final answer is what the last `\boxed{}` holds; without one, what follows the last `####`, or `A:` or `Answer:` on
the last line; without those, what math_verify finds in the last characters of the text ("the answer is ...", else the
last formula or number). So a response that met its limit before it boxed anything is judged by its last number.

All of it happens in a process that is killed where it has not come to an end in time: math_verify's own timer works in the
main thread alone, and some of SymPy's work cannot be interrupted. Such an answer is `unchecked` and counts as wrong, which
whoever asks says. As this costs the whole time, what is known to take for ever is compared as text: long expressions, many
bars, brackets deep inside others, towers of powers, large factorials and binomials, long chains of quotients, sums and
integrals left undone. A policy that has gone astray writes all of these.
"""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.apart import Apart, Died, TimedOut
from pipeline.tokens.thoughts import behind_thoughts

CHECKED_WITHIN_S = 10.0
MEMORY = 4 << 30  # bytes of address space that a check may take
LONGEST = 400  # characters of an answer that is parsed, and of a text's end that is searched for one
LARGEST_EXPONENT = 10**5
LARGEST_POWER_OF_A_SUM = 32  # which SymPy may multiply out
LARGEST_FACTORIAL = 10**4
LARGE_BINOMIAL = re.compile(r"binom\s*\{?\s*\d{5}")  # is computed as it is parsed
MOST_BARS = 8  # which of them open and which close, a grammar has to guess
DEEPEST = 6  # brackets inside each other; a fraction's braces are such
DEEP, MOST_DEEP = 3, 16  # how many may be inside more than three others
MOST_PRODUCTS = 10  # inside each other, as 1/2/2/2 and nested fractions are: evaluated twice as often with each
MOST_FLOORS = 3  # inside each other
BAR = re.compile(r"\||\\[lr]?vert\b", re.IGNORECASE)
BRACKET = re.compile(r"(?P<opens>[({\[]|\\l(?:floor|ceil|angle|brac[ek])\b)|[)}\]]|\\r(?:floor|ceil|angle|brac[ek])\b")
CHAIN = re.compile(r"(?:[\^_]\s*(?:\\[A-Za-z]+|\{[^{}]*\}|\w)\s*){7}")  # x^x^x^x^x^x^x^x
DISPLAYED = re.compile(r"\$\$|\\\[|boxed")  # a formula of several lines
APART = re.compile(r"\$|\\[()]|\n")  # what no other formula reaches across, such as a table's lines
UNDONE = ("Integral", "Sum", "Product", "Limit", "Derivative")

BOXES = 8  # looked into, from the last: a model may write thousands
BOXED = re.compile(r"\\(?:boxed|fbox)")
LAST_LINE = re.compile(r"[\s*]*(?:the\s+)?(?:final\s+)?(?:A|answer)\s*:[\s*]*(\S.*)", re.IGNORECASE)
MATHS = re.compile(r"\$|\\\(|\\\[")
WORD = re.compile(r"[A-Za-z]{3,}")  # a name, no product of variables
PROSE = re.compile(r"[A-Za-z\d]\s+[A-Za-z]{2,}|[A-Za-z]{2,}\s+[A-Za-z\d]")


@dataclass(frozen=True)
class Verdict:
    """`extracted` is the answer found, in SymPy's spelling where it could be parsed; None where there is none. `unchecked`
    is an answer that could not be told in time, and so is not correct."""

    correct: bool
    extracted: str | None
    unchecked: bool = False


@dataclass(frozen=True)
class _Expression:
    text: str
    parsed: list[Any]  # math_verify's: the expression, then its text; empty where it found none

    @property
    def spelt(self) -> str:
        import sympy

        if not self.parsed:
            return self.text
        expression = self.parsed[0]
        return str(sympy.nsimplify(expression, rational=True) if isinstance(expression, sympy.Float) else expression)


@lru_cache(maxsize=1 << 16)
def extract_and_check(response: str, gold: str, thinking: bool = False) -> Verdict:
    r"""Whether the response's final answer is equivalent to that of `gold`, which may be an answer alone (`72`,
    `\frac{1}{2}`, `$x^2$`), a MATH solution with its `\boxed{}`, or a GSM8K solution with its `####`.

    The answer is looked for behind the response's thoughts; where these do not end, there is none. `thinking`: the prompt
    opens them (`pipeline.tokens.thoughts`).

    Takes no longer than CHECKED_WITHIN_S, once SymPy is imported in the process that checks. Raises RunError where there can
    be no such process."""
    try:
        if not _beside.alive:
            _beside.call(_ready)
        return _beside.call(_checked, response, gold, thinking, timeout_s=CHECKED_WITHIN_S)
    except (TimedOut, Died, MemoryError):
        _beside.stop()
        return Verdict(False, final_answer(behind_thoughts(response, thinking) or ""), unchecked=True)


def unchecked_note(count: int, of: int) -> str:
    """What a person should know of answers that could not be told."""
    return (
        f"{count:,} of {of:,} answers could not be checked within {CHECKED_WITHIN_S:g} s and count as wrong: SymPy was killed "
        "over them"
    )


_beside = Apart(MEMORY)


def _ready() -> None:
    """Import what checking needs: no part of an answer's time."""
    import math_verify  # noqa: F401


def _checked(response: str, gold: str, thinking: bool) -> Verdict:
    answer = behind_thoughts(response, thinking)
    reached, due = None if answer is None else _find(answer), _find(gold)
    if reached is None or due is None:
        return Verdict(False, reached.spelt if reached else None)
    same = "".join(reached.text.split()) == "".join(due.text.split())
    return Verdict(same or _equivalent(due.text, reached.text), reached.spelt)


def final_answer(text: str) -> str | None:
    r"""What the last closed `\boxed{}` or `\fbox{}` holds, else what the text marks as its answer; None without a mark."""
    for box in reversed(list(BOXED.finditer(text))[-BOXES:]):
        inside = braced(text[box.end() :].lstrip())
        if inside is not None:
            return inside.strip()
    _, mark, after = text.rpartition("####")
    if mark:
        return after.strip().partition("\n")[0].strip()
    said = LAST_LINE.fullmatch(text.rstrip().rpartition("\n")[2])
    return said and said[1].strip(" *")


def braced(text: str) -> str | None:
    r"""The content of the braces that the text opens with, or its first token (`\boxed 5`); None where they stay open."""
    if not text.startswith("{"):
        bare = re.match(r"[^\s$.,]+", text)
        return bare and bare[0]
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return text[1:position]
    return None


def _find(text: str) -> _Expression | None:
    answer = final_answer(text)
    marked = answer is not None
    if answer is None:
        answer = text.strip()
        if len(answer) > LONGEST:
            answer = answer[-LONGEST:].partition(" ")[2]
    parsed = _parse(answer)
    return _Expression(answer, parsed) if parsed or (answer and (marked or len(answer.split()) == 1)) else None


@lru_cache(maxsize=4096)
def _parse(answer: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there is no timer
    written = re.sub(r"\\[!,$]", "", answer)
    if len(written) > LONGEST or LARGE_BINOMIAL.search(written):
        return []
    if WORD.fullmatch(written):
        written = rf"$\text{{{written}}}$"
    elif not (MATHS.search(written) or "\n" in written or ("\\" not in written and PROSE.search(written))):
        written = f"${written}$"
    if any(_tangled(part) for part in ([written] if DISPLAYED.search(written) else APART.split(written))):
        return []
    try:
        parsed = parse(written, parsing_timeout=None)
        return parsed if parsed and _harmless(parsed[0]) else []
    except MemoryError:
        raise
    except Exception:  # whatever a parser makes of what a model wrote
        return []


def _tangled(written: str) -> bool:
    """Whether a grammar may try so many ways to read it that it does not come to an end within a second or two."""
    if len(BAR.findall(written)) > MOST_BARS or CHAIN.search(written):
        return True
    depth = deep = 0
    for bracket in BRACKET.finditer(written):
        depth = depth + 1 if bracket["opens"] else max(0, depth - 1)  # of an open interval's ends either may be either
        deep += bool(bracket["opens"]) and depth > DEEP
        if depth > DEEPEST or deep > MOST_DEEP:
            return True
    return False


def _harmless(expression: Any) -> bool:
    """Whether comparing it ends within reason."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        return all(map(_harmless, expression))
    if not isinstance(expression, sympy.Basic):
        return True  # text
    if _nested(expression, sympy.Mul) > MOST_PRODUCTS:
        return False
    if _nested(expression, sympy.floor, sympy.ceiling) > MOST_FLOORS:
        return False
    for node in sympy.preorder_traversal(expression):
        if type(node).__name__ in UNDONE:
            return False
        if isinstance(node, sympy.Pow | sympy.factorial):
            size = node.args[-1]
            largest = LARGEST_EXPONENT if isinstance(node, sympy.Pow) else LARGEST_FACTORIAL
            if isinstance(node, sympy.Pow) and node.base.free_symbols and not node.base.is_Symbol:
                largest = LARGEST_POWER_OF_A_SUM
            towers = not size.free_symbols and size.has(sympy.Pow, sympy.factorial)
            if towers or (size.is_Number and abs(size) > largest):
                return False
    return True


def _nested(expression: Any, *kinds: type) -> int:
    """How many of these kinds lie inside each other."""
    return isinstance(expression, kinds) + max((_nested(each, *kinds) for each in expression.args), default=0)


@lru_cache(maxsize=65536)  # best-of-n asks once for each reward
def _equivalent(gold: str, answer: str) -> bool:
    from math_verify import verify

    due, answered = _parse(gold), _parse(answer)
    try:
        return bool(due and answered and verify(due, answered, timeout_seconds=None))
    except MemoryError:
        raise
    except Exception:  # SymPy raises of every kind
        return False
