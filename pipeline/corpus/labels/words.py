"""What the value of a label column says, as a word, and which words two response columns prove to be their own.

    columns                     words of the first (white space, case and `[[ ]]` aside)
    response_A, response_B      response_A, A, A>B, A>>B, model_a, first
    output_1, output_2          output_1, 1, 1>2, model_1, first, A, A>B, model_a
    llama_answer, gpt_answer    llama_answer, llama

A number proves nothing where no column has it in its name: 1 may count from 0, from 1, or say "yes".
"""

import math
import re
from typing import Any, Literal

Family = Literal["digits", "letters", "other"]

TIE = "tie"  # what a word means that calls neither response better
TIES = {
    "tie", "ties", "tied", "tie(bothbad)", "tie(bothgood)", "bothbad", "both_bad", "bothgood", "both_good", "both", "neither",
    "none", "draw", "equal", "equally", "same", "c", "a=b", "b=a", "a~b", "a~=b", "1=2", "2=1", "0=1", "1=0", "nopreference",
    "no_preference",
}  # fmt: skip
MISSING = frozenset(("", "nan", "null", "na", "n/a"))
NOUNS = ("model", "response", "answer", "output", "assistant", "completion")
ORDERED = (("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"), ("one", "two"))
# Columns whose numbers lie on a scale, whatever digits the response columns have in their names.
SCALES = {
    "score", "scores", "rating", "ratings", "rate", "rank", "ranks", "ranking", "grade", "grades", "strength", "scale",
    "degree", "likert", "level", "quality", "confidence", "probability", "margin", "points", "stars", "votes", "reward",
    "rewards",
}  # fmt: skip
TOKEN = re.compile(r"[a-z]+|\d+")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def word(value: Any) -> str:
    """A label in one spelling: `1`, `1.0`, `"1"` and `" 1.0 "` are "1", True is "true", null and NaN are ""."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = squash(value).removeprefix("[[").removesuffix("]]")
    elif isinstance(value, int | float):
        text = repr(value)
    else:
        text = squash(str(value))
    if text in MISSING:
        return ""
    number = as_number(text)
    return str(int(number)) if number is not None and number.is_integer() else text


def as_number(value: Any) -> float | None:
    """A number, or text that is one; None for anything else, a boolean and NaN among them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if not isinstance(value, str) or "_" not in value else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def squash(text: str) -> str:
    return "".join(text.split()).lower()


def tokens(name: str) -> list[str]:
    """The words and numbers that a column's name is made of: `betterResponse_id2` is better, response, id, 2."""
    return TOKEN.findall(CAMEL.sub("_", name).lower())


def is_scale(column: str, *, digits: bool) -> bool:
    """Whether a column is named for a score, a rating or a strength, or for a question that is answered by yes or no, so
    that its values are no names of responses."""
    scales = SCALES | {"preference", "preferences", "is", "was", "has", "does"} if digits else SCALES
    return any(token in scales for token in tokens(column))


def parts(first: str, second: str) -> tuple[str, str] | None:
    """The one token in which two names differ: `human_ref_A`, `human_ref_B` give `a`, `b`. None where there is no such."""
    left, right = tokens(first), tokens(second)
    if len(left) != len(right):
        return None
    different = [pair for pair in zip(left, right, strict=True) if pair[0] != pair[1]]
    return different[0] if len(different) == 1 else None


def family(first: str, second: str) -> Family:
    pair = parts(first, second)
    if pair and all(part.isdigit() for part in pair):
        return "digits"
    return "letters" if pair and all(len(part) == 1 for part in pair) else "other"


def vocabulary(first: str, second: str) -> dict[str, str]:
    """Word to column: every word that names one of two response columns by its own name, letter or digit."""
    meanings: dict[str, str] = {}
    pair = parts(first, second)
    for own, other in ((first, second), (second, first)):
        meanings[squash(own)] = own
        if squash(own.rpartition(".")[2]) != squash(other.rpartition(".")[2]):
            meanings.setdefault(squash(own.rpartition(".")[2]), own)
    for own, rest in zip((first, second), _remainders(tokens(first), tokens(second)), strict=True):
        for join in ("", "_", "-"):
            if rest:
                meanings.setdefault(join.join(rest), own)
    if pair is None:
        return meanings
    _name(meanings, pair, (first, second))
    order = next((known for known in ORDERED if pair in (known, known[::-1])), None)
    if order:
        ranked = (first, second) if pair == order else (second, first)
        for names in (("a", "b"), ("first", "second")):
            _name(meanings, names, ranked)
    return meanings


def _remainders(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    """Two names less the words that both begin and end with."""
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    while left and right and left[0] == right[0]:
        left, right = left[1:], right[1:]
    return left, right


def _name(meanings: dict[str, str], pair: tuple[str, str], columns: tuple[str, str]) -> None:
    """Add the words that say `pair` of `columns`; those that are there stand."""
    for (own, other), column in (((pair[0], pair[1]), columns[0]), ((pair[1], pair[0]), columns[1])):
        spellings = [own, f"{own}>{other}", f"{own}>>{other}"]
        if own.isdigit() or len(own) == 1:
            spellings += [f"{noun}{join}{own}" for noun in NOUNS for join in ("", "_")]
        for each in spellings:
            meanings.setdefault(each, column)
