"""Settles what a corpus's labels mean before anything is labelled: stated, proven or known of a layout, else refused.

    stated    input.label_values, or input.label_threshold with input.label_above; input.score_key, input.rank_key
    proven    every value is a response column's own name, letter or digit (`pipeline.corpus.labels.words`)
    known     of a published layout (`pipeline.corpus.labels.layouts`)

A refusal is an InputError with the keys to give.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels.layouts import Layout
from pipeline.corpus.labels.rules import ByGrade, ByScores, ByValue, LabelRule
from pipeline.corpus.labels.words import (
    ORDERED,
    TIE,
    TIES,
    as_number,
    family,
    is_scale,
    parts,
    tokens,
    vocabulary,
    word,
)
from pipeline.errors import InputError, RowError

if TYPE_CHECKING:
    from pipeline.config import InputConfig

BITS = ("0", "1", "true", "false", "")
LABELS = {"label", "labels", "winner", "better", "best", "preferred", "preference", "choice", "chosen", "verdict"}


class Label(NamedTuple):
    """The label whose meaning is to be settled."""

    columns: tuple[str, ...]
    responses: list[str]  # between which it chooses: two columns, or places in a list from 0
    rows: Sequence[RawRow]  # the file's first
    file: str  # its name

    def __str__(self) -> str:
        return f"column {self.columns[0]!r}" if len(self.columns) == 1 else f"columns {', '.join(self.columns)}"


def label_rule(rows: Sequence[RawRow], config: InputConfig, layout: Layout | None, name: str) -> LabelRule | None:
    """The rule by which a file's rows say which response is better; None where no column says it.

    Args:
        rows: the file's first.
        config: with what the layout adds to it.

    Raises InputError.
    """
    if config.score_key or config.rank_key:
        return _by_scores(config, name)
    if config.pairs_from is not None:
        raise InputError(
            f"{name}: input.pairs_from makes pairs of scores or ranks; give input.score_key or input.rank_key"
        )
    key = config.label_key
    if key is None:
        for field in ("label_values", "label_threshold"):
            if getattr(config, field) is not None:
                raise InputError(
                    f"{name}: input.{field} says what a label means, and no column is one; give input.label_key"
                )
        return None
    label = Label((key,) if isinstance(key, str) else tuple(key), _responses(rows, config, name), rows, name)
    _refuse_lists(label)
    if config.label_threshold is not None:
        return _by_grade(label, config)
    return _proven(label, config) if config.label_values is None else _stated(label, config, layout)


def _refuse_lists(label: Label) -> None:
    """Several people's labels of one row are not one: whose counts is for a person to say."""
    values = (columns.lookup(row, column) for row in label.rows for column in label.columns if columns.has(row, column))
    several = next((value for value in values if isinstance(value, list | dict)), None)
    if several is not None:
        raise InputError(
            f"{label.file}: {label} says {several!r:.60}, and a label is one value; write one into each row, such as the "
            "vote of most"
        )


def _by_scores(config: InputConfig, name: str) -> ByScores:
    if config.chosen_key or config.rejected_key:
        raise InputError(
            f"{name}: input.chosen_key and input.rejected_key say which response is better, and so do scores or ranks; give "
            "one or the other"
        )
    if config.response_key is None:
        raise InputError(f"{name}: input.score_key and input.rank_key belong to input.response_key; give that too")
    keys = config.score_key or config.rank_key or ()
    return ByScores(
        (keys,) if isinstance(keys, str) else tuple(keys),
        config.rank_key is not None,
        config.pairs_from,
        config.min_margin,
        config.score_threshold,
    )


def _responses(rows: Sequence[RawRow], config: InputConfig, name: str) -> list[str]:
    """What the responses are called that a label chooses between. Raises InputError where nothing says it."""
    responses = config.response_key
    if config.chosen_key or config.rejected_key:
        raise InputError(
            f"{name}: input.label_key says which response is chosen, and so do input.chosen_key and "
            "input.rejected_key; give one or the other"
        )
    if isinstance(responses, list) and len(set(responses)) == len(responses) == 2:
        return responses
    only = responses if isinstance(responses, str) else responses[0] if responses and len(responses) == 1 else None
    if only is not None:
        values = [columns.lookup(row, only) for row in rows if columns.has(row, only)]
        lists = [v for v in values if isinstance(v, list) and len(v) > 1 and not any(map(_is_turn, v))]
        if lists:
            return [str(place) for place in range(max(map(len, lists)))]
    pair = siblings([path for path in columns.paths(rows, (str, list)) if path != config.prompt_key])
    example = f", for example --set 'input.response_key={json.dumps(pair)}'" if pair else ""
    raise InputError(
        f"{name}: input.label_key = {config.label_key!r} chooses between two columns, or between responses in a list of two "
        f"or more, and input.response_key is {responses!r}; name the two{example}"
    )


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def _by_grade(label: Label, config: InputConfig) -> ByGrade:
    above, threshold = config.label_above, config.label_threshold
    assert threshold is not None
    if above is None or above not in label.responses or len(label.responses) != 2:
        raise InputError(
            f"{label.file}: input.label_above = {above!r} is none of two responses; there are {', '.join(label.responses)}"
        )
    if len(label.columns) != 1:
        raise InputError(
            f"{label.file}: input.label_threshold is of one column of numbers, and input.label_key is {label}"
        )
    [column] = label.columns
    values = [
        value for row in label.rows if columns.has(row, column) and word(value := columns.lookup(row, column)) != ""
    ]
    if values and all(as_number(value) is None for value in values):
        raise InputError(
            f"{label.file}: input.label_threshold is of numbers, and {label} says {values[0]!r:.60}; give input.label_values"
        )
    below = next(each for each in label.responses if each != above)
    return ByGrade(column, threshold, above, below, config.label_tie)


def _stated(label: Label, config: InputConfig, layout: Layout | None) -> ByValue:
    """By `input.label_values`, or by what a layout has in its place."""
    stated = config.label_values or {}
    meanings: dict[str, str] = {}
    for value, meaning in stated.items():
        better = TIE if meaning not in label.responses and word(meaning) in TIES else meaning
        if better not in label.responses and better != TIE:
            raise InputError(
                f"{label.file}: input.label_values says that {value!r} means {meaning!r}, which is none of the responses; "
                f"there are {', '.join(label.responses)}, and tie"
            )
        if meanings.setdefault(word(value), better) != better:
            raise InputError(
                f"{label.file}: input.label_values gives {word(value)!r} two meanings, as {value!r} and in another spelling"
            )
    known = tuple(meanings.items())
    if layout is not None and stated == layout.keys.get("label_values"):
        closed = "" if config.layout else "digits"  # one that is named is stated: another value disproves nothing
        rule = ByValue(label.columns, known, f"the layout {layout.name}, {layout.source}", closed)
        _refuse_disproved(label, rule)
        return rule
    rule = ByValue(label.columns, known, "input.label_values")
    values = words_of(label.rows, rule)
    if values and all(rule.meaning(each) is None for each in values):
        raise InputError(
            f"{label.file}: input.label_values knows {', '.join(meanings)}, and {label} says {', '.join(values[:8])} in its "
            f"first rows; {_ways(label, values)}"
        )
    return rule


def _proven(label: Label, config: InputConfig) -> ByValue:
    """By the columns' own names."""
    first, second = label.responses[0], label.responses[-1]
    of_columns = isinstance(config.response_key, list) and len(config.response_key) == 2
    known = vocabulary(first, second) if of_columns else {}
    for column in label.columns[:1] if len(label.columns) == 1 else ():
        digits, letters = is_scale(column, digits=True), is_scale(column, digits=False)
        known = {
            spelling: meaning
            for spelling, meaning in known.items()
            if not (digits and spelling.isdigit()) and not (letters and len(spelling) == 1)
        }
    kind = family(first, second)
    closed = kind if of_columns and kind != "other" else ""
    why = "the values are the names of the columns, or their letters or digits"
    rule = ByValue(label.columns, tuple(known.items()), why, closed)
    values = words_of(label.rows, rule)
    if any(rule.meaning(each) is not None for each in values):
        _refuse_disproved(label, rule)
        return rule
    shown = f"says {', '.join(values[:8])}" if values else "is empty"
    raise InputError(
        f"{label.file}: what {label} means is not proven: it {shown} in its first rows, and the responses are "
        f"{' and '.join(label.responses)}. {_ways(label, values)}"
    )


def _refuse_disproved(label: Label, rule: ByValue) -> None:
    foreign = next((value for row in label.rows if (value := rule.disproof(row)) is not None), None)
    if foreign is not None:
        raise disproved(rule, foreign, words_of(label.rows, rule), label.responses, label.file)


def disproved(rule: ByValue, foreign: str, values: Sequence[str], responses: Sequence[str], where: str) -> InputError:
    """The error for a reading that a value disproves; `values` is what the file's labels say, each once."""
    label = Label(rule.columns, list(responses), (), where)
    return InputError(
        f"{where}: {label} says {foreign!r} in one of its rows, which is the name, letter or digit of none of "
        f"{', '.join(responses)}; so what its other values mean is not proven. {_ways(label, values)}"
    )


def words_of(rows: Iterable[RawRow], rule: ByValue) -> list[str]:
    """The labels of some rows as words, each once; rows without one do not count."""
    values: dict[str, None] = {}
    for row in rows:
        try:
            values[rule.value(row)] = None
        except RowError:
            continue
    return [value for value in values if value]


def _ways(label: Label, values: Sequence[str]) -> str:
    """How to say what a label means: sentences with keys that can be typed as they stand."""
    first, second = label.responses[0], label.responses[-1]
    if label.responses == [str(place) for place in range(len(label.responses))]:
        from_each = [{str(place + start): name for place, name in enumerate(label.responses)} for start in (0, 1)]
        fitting = [meanings for meanings in from_each if meanings.keys() & set(values)] or from_each
        ways = [
            f"--set 'input.label_values={_inline(each)}' where {next(iter(each))} means the first" for each in fitting
        ]
        return f"Say it: {', or '.join(ways)}"
    numbers = [number for each in values if (number := as_number(each)) is not None]
    sides = [each for each in values if each not in TIES or as_number(each) is not None]
    known = vocabulary(first, second)
    named = [each for each in sides if each in known and as_number(each) is None]
    sides = named if named and len(sides) > 2 else sides  # "unsure" beside "a" is neither of two
    all_numbers = len(label.columns) == 1 and 0 < len(values) == len(numbers)
    scale = all_numbers and (len(sides) > 2 or is_scale(label.columns[0], digits=True))
    ways = []
    note = 'a value that calls neither better means "tie"'
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if scale and (low < 0 or low < high):
        middle = 0.0 if low < 0 else (low + high) / 2
        ways += [
            f"--set input.label_threshold={middle:g} --set input.label_above={better} where a higher value prefers {better}"
            for better in (second, first)
        ]
        if low >= 0:
            note += f"; {middle:g} is only the middle of what these rows say: give the value that prefers neither"
    if sides and (not scale or (len(sides) <= 2 and all(number.is_integer() for number in numbers))):
        for better, worse in ((first, second), (second, first)):
            meanings = dict(zip(sides[:2], (better, worse), strict=False))
            ways.append(f"--set {quote(f'input.label_values={_inline(meanings)}')} where {sides[0]} means {better}")
    if not ways:
        ways = [f"--set 'input.label_values={_inline({'VALUE': first, 'OTHER': second})}' with its values"]
    return f"Say it: {', or '.join(ways)} ({note})"


def _inline(values: dict[str, str]) -> str:
    """A TOML table on one line."""
    return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items()) + "}"


def siblings(texts: Sequence[str]) -> tuple[str, str] | None:
    """Two columns whose names differ in a letter, a digit or a word that counts: `output_1`, `output_2`."""
    for i, first in enumerate(texts):
        for second in texts[i + 1 :]:
            if parts(first, second) in ORDERED:
                return first, second
    return None


def label_column(rows: Sequence[RawRow], pair: tuple[str, str]) -> str | list[str] | None:
    """The column that by its name says which of two is better; where several of 0 and 1 do, those."""
    named = [path for path in columns.paths(rows) if path not in pair and LABELS & set(tokens(path))]
    ones = [
        path for path in named if all(word(columns.lookup(row, path)) in BITS for row in rows if columns.has(row, path))
    ]
    return ones if len(ones) > 1 else next(iter(named), None)
