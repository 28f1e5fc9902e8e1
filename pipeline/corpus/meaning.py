"""Settles what a corpus's labels mean before anything is labelled: stated, proven or known of a layout, else refused.

    stated    input.label_values, or input.label_threshold with input.label_above; input.score_key, input.rank_key
    proven    every value is a response column's own name, letter or digit (`pipeline.corpus.words`)
    known     of a published layout (`pipeline.corpus.layouts`)

A refusal is an InputError with the keys to give.
"""

import json
from collections.abc import Sequence

from pipeline.config import InputConfig
from pipeline.corpus import columns
from pipeline.corpus.columns import Row
from pipeline.corpus.labels import ByGrade, ByScores, ByValue, LabelRule
from pipeline.corpus.layouts import Layout
from pipeline.corpus.words import ORDERED, TIE, TIES, as_number, family, is_scale, parts, tokens, vocabulary, word
from pipeline.errors import InputError, RowError

BITS = ("0", "1", "true", "false", "")
LABELS = {"label", "labels", "winner", "better", "best", "preferred", "preference", "choice", "chosen", "verdict"}


def label_rule(rows: Sequence[Row], config: InputConfig, layout: Layout | None, name: str) -> LabelRule | None:
    """The rule by which a file's rows say which response is better; None where no column says it.

    Args:
        rows: the file's first.
        config: with what the layout adds to it.

    Raises InputError.
    """
    scored = config.score_key or config.rank_key
    if scored:
        return _by_scores(config, scored, name)
    if config.pairs_from is not None:
        raise InputError(
            f"{name}: input.pairs_from needs scores or ranks to make pairs of; give input.score_key or input.rank_key"
        )
    if config.label_key is None:
        for key in ("label_values", "label_threshold"):
            if getattr(config, key) is not None:
                raise InputError(
                    f"{name}: input.{key} says what a label means, and no column is one; give input.label_key"
                )
        return None
    names = _response_names(rows, config, name)
    label = (config.label_key,) if isinstance(config.label_key, str) else tuple(config.label_key)
    if config.label_threshold is not None:
        return _by_grade(rows, config, label, names, name)
    if config.label_values is not None:
        return _stated(rows, config, layout, label, names, name)
    return _proven(rows, config, layout, label, names, name)


def _by_scores(config: InputConfig, scored: str | list[str], name: str) -> ByScores:
    if config.chosen_key or config.rejected_key:
        raise InputError(
            f"{name}: input.chosen_key and input.rejected_key say which response is better, and so do scores or ranks; give "
            "one or the other"
        )
    if config.response_key is None:
        raise InputError(f"{name}: input.score_key and input.rank_key belong to input.response_key; give that too")
    keys = (scored,) if isinstance(scored, str) else tuple(scored)
    return ByScores(keys, config.rank_key is not None, config.pairs_from, config.min_margin, config.score_threshold)


def _response_names(rows: Sequence[Row], config: InputConfig, name: str) -> list[str]:
    """What the responses are called that a label chooses between: two columns, or places in a list from 0.

    Raises InputError.
    """
    given = config.response_key
    if config.chosen_key or config.rejected_key:
        raise InputError(
            f"{name}: input.label_key says which response is chosen, and so do input.chosen_key and "
            "input.rejected_key; give one or the other"
        )
    if isinstance(given, list) and len(set(given)) == len(given) == 2:
        return given
    only = given if isinstance(given, str) else given[0] if given and len(given) == 1 else None
    if only is not None:
        values = [columns.lookup(row, only) for row in rows if columns.has(row, only)]
        lists = [value for value in values if isinstance(value, list) and not any(map(_is_turn, value))]
        if lists:
            return [str(i) for i in range(max(map(len, lists)))]
    texts = [path for path in columns.paths(rows, (str, list)) if path != config.prompt_key]
    pair = siblings(texts) or ("response_A", "response_B")
    raise InputError(
        f"{name}: input.label_key = {config.label_key!r} chooses between two columns, and input.response_key is "
        f"{given!r}; name the two, for example --set 'input.response_key={json.dumps(list(pair))}'"
    )


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def _by_grade(
    rows: Sequence[Row], config: InputConfig, label: tuple[str, ...], names: Sequence[str], name: str
) -> ByGrade:
    above, threshold = config.label_above, config.label_threshold
    assert threshold is not None
    if above is None or above not in names or len(names) != 2:
        raise InputError(
            f"{name}: input.label_above = {above!r} is none of two responses; there are {', '.join(names)}"
        )
    if len(label) != 1:
        raise InputError(
            f"{name}: input.label_threshold is of one column of numbers, and input.label_key names {len(label)}"
        )
    values = [columns.lookup(row, label[0]) for row in rows if columns.has(row, label[0])]
    given = [value for value in values if word(value) != ""]
    if given and all(as_number(value) is None for value in given):
        raise InputError(
            f"{name}: input.label_threshold is of numbers, and {_column(label)} says {given[0]!r:.60}; give "
            "input.label_values"
        )
    below = next(each for each in names if each != above)
    return ByGrade(label[0], threshold, above, below, config.label_tie)


def _stated(
    rows: Sequence[Row],
    config: InputConfig,
    layout: Layout | None,
    label: tuple[str, ...],
    names: Sequence[str],
    name: str,
) -> ByValue:
    """By `input.label_values`, or by what a layout has in its place."""
    meanings: dict[str, str] = {}
    for value, meaning in (config.label_values or {}).items():
        better = TIE if meaning not in names and word(meaning) in TIES else meaning
        if better not in names and better != TIE:
            raise InputError(
                f"{name}: input.label_values says that {value!r} means {meaning!r}, which is none of the responses; there are "
                f"{', '.join(names)}, and tie"
            )
        if meanings.setdefault(word(value), better) != better:
            raise InputError(
                f"{name}: input.label_values gives {word(value)!r} two meanings, as {value!r} and in another spelling"
            )
    known = layout is not None and config.label_values == layout.keys.get("label_values")
    if known and layout is not None:
        closed = (
            "digits" if config.layout is None else ""
        )  # a layout that is named is stated, one that is recognised is proven
        rule = ByValue(label, tuple(meanings.items()), f"the layout {layout.name}, {layout.source}", closed)
        refuse_disproved(rows, rule, name)
        return rule
    rule = ByValue(label, tuple(meanings.items()), "input.label_values")
    _require_a_known_value(rows, rule, names, name)
    return rule


def _require_a_known_value(rows: Sequence[Row], rule: ByValue, names: Sequence[str], name: str) -> None:
    """Raises InputError where not one row that has a label has one that is stated."""
    said = _said(rows, rule)
    if said and all(rule.meaning(each) is None for each in said):
        stated = ", ".join(value for value, _ in rule.meanings)
        raise InputError(
            f"{name}: input.label_values knows {stated}, and {_column(rule.columns)} says {', '.join(said[:8])} in its first "
            f"rows; {_ways(rule.columns, said, names)}"
        )


def _proven(
    rows: Sequence[Row],
    config: InputConfig,
    layout: Layout | None,
    label: tuple[str, ...],
    names: Sequence[str],
    name: str,
) -> ByValue:
    """By the columns' own names."""
    first, second = names[0], names[-1]
    known = vocabulary(first, second) if isinstance(config.response_key, list) and len(names) == 2 else {}
    kind = family(first, second) if known else "other"
    if len(label) == 1 and is_scale(label[0], digits=True):
        letters = is_scale(label[0], digits=False)
        known = {
            said: column for said, column in known.items() if not said.isdigit() and not (letters and len(said) == 1)
        }
    why = "the values are the names of the columns, or their letters or digits"
    rule = ByValue(label, tuple(known.items()), why, kind if kind in ("digits", "letters") else "")
    said = _said(rows, rule)
    if any(rule.meaning(each) is not None for each in said):
        refuse_disproved(rows, rule, name, names)
        return rule
    shown = f"says {', '.join(said[:8])}" if said else "is empty"
    raise InputError(
        f"{name}: what {_column(label)} means is not proven: it {shown} in its first rows, and the responses are "
        f"{' and '.join(names)}. {_ways(label, said, names)}"
    )


def refuse_disproved(rows: Sequence[Row], rule: LabelRule | None, name: str, names: Sequence[str] = ()) -> None:
    """Raises InputError for the first row whose label shows that a proven or recognised reading is wrong."""
    if not isinstance(rule, ByValue):
        return
    for row in rows:
        foreign = rule.disproof(row)
        if foreign is not None:
            responses = names or list(dict.fromkeys(better for _, better in rule.meanings if better != TIE))
            said = [*_said(rows, rule), foreign]
            raise InputError(
                f"{name}: {_column(rule.columns)} says {foreign!r} in one of its rows, which is the name, letter or digit of "
                f"none of {', '.join(responses)}; so what its other values mean is not proven. "
                f"{_ways(rule.columns, list(dict.fromkeys(said)), responses)}"
            )


def _said(rows: Sequence[Row], rule: ByValue) -> list[str]:
    """The labels of some rows as words, each once; rows without one do not count."""
    found: dict[str, None] = {}
    for row in rows:
        try:
            found[rule.said(row)] = None
        except RowError:
            continue
    return [said for said in found if said]


def _ways(label: tuple[str, ...], said: Sequence[str], names: Sequence[str]) -> str:
    """How to say what a label means: sentences with keys that can be given as they stand."""
    first, second = names[0], names[-1]
    numbers = [number for each in said if (number := as_number(each)) is not None]
    words = [each for each in said if each not in TIES or as_number(each) is not None]
    if list(names) == [str(i) for i in range(len(names))]:  # places in a list
        ways = []
        for start in (0, 1):
            values = {str(place + start): name for place, name in enumerate(names)}
            ways.append(f"--set 'input.label_values={_inline(values)}' where {start} means the first")
        return f"Say it: {', or '.join(ways)}"
    all_numbers = len(label) == 1 and 0 < len(said) == len(numbers)
    scale = all_numbers and (len(words) > 2 or is_scale(label[0], digits=True))
    ways = []
    note = 'a value that calls neither better means "tie"'
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if scale and len(names) == 2 and (low < 0 or low < high):
        middle = 0.0 if low < 0 else (low + high) / 2
        ways += [
            f"--set input.label_threshold={middle:g} --set input.label_above={better} where a higher value prefers {better}"
            for better in (second, first)
        ]
        if low >= 0:
            note += f"; {middle:g} is only the middle of what its first rows say: give the value that prefers neither"
    if words and (not scale or (len(words) <= 2 and all(number.is_integer() for number in numbers))):
        one, other = words[0], words[1] if len(words) > 1 else None
        for better, worse in ((first, second), (second, first)):
            values = {one: better} | ({other: worse} if other else {})
            ways.append(f"--set 'input.label_values={_inline(values)}' where {one} means {better}")
    if not ways:
        ways = [f"--set 'input.label_values={_inline({'VALUE': first, 'OTHER': second})}' with its values"]
    return f"Say it: {', or '.join(ways)} ({note})"


def _inline(values: dict[str, str]) -> str:
    """A TOML table on one line."""
    return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items()) + "}"


def _column(label: tuple[str, ...]) -> str:
    return f"column {label[0]!r}" if len(label) == 1 else f"columns {', '.join(label)}"


def siblings(texts: Sequence[str]) -> tuple[str, str] | None:
    """Two columns whose names differ in a letter, a digit or a word that counts: `output_1`, `output_2`."""
    for i, first in enumerate(texts):
        for second in texts[i + 1 :]:
            if parts(first, second) in ORDERED:
                return first, second
    return None


def label_column(rows: Sequence[Row], pair: tuple[str, str]) -> str | list[str] | None:
    """The column that by its name says which of two is better; where several of 0 and 1 do, those."""
    named = [path for path in columns.paths(rows) if path not in pair and LABELS & set(tokens(path))]
    ones = [
        path for path in named if all(word(columns.lookup(row, path)) in BITS for row in rows if columns.has(row, path))
    ]
    return ones if len(ones) > 1 else next(iter(named), None)
