"""Reads whole files where their labels ask for it, of Parquet the columns of the labels alone, before anything is labelled:
the first rows may all say 1."""

from collections.abc import Iterable
from dataclasses import replace

from pipeline.corpus.files.inputs import InputFile
from pipeline.corpus.files.readers import read_shards
from pipeline.corpus.files.shards import FilePlan
from pipeline.corpus.labels.meaning import disproved, words_of
from pipeline.corpus.labels.rules import ByScores, ByValue, Decision
from pipeline.corpus.labels.words import TIE
from pipeline.corpus.ranking import RANK, SCORE, ranked_pairs
from pipeline.corpus.shapes import Shape
from pipeline.errors import RowError

Planned = tuple[InputFile, str, Shape, FilePlan]  # a file, its configured format, its shape and plan
SHOWN = 20  # different labels named in a message


def require_proof(inputs: Iterable[Planned]) -> None:
    """Hold every row of all files against labels whose meaning one foreign value disproves. Raises InputError for the first
    such row; it names what the labels of all files say."""
    values: dict[ByValue, dict[str, None]] = {}
    foreign: tuple[ByValue, str, str, list[str]] | None = None
    for file, format, shape, plan in inputs:
        rule = shape.label
        if not isinstance(rule, ByValue) or not rule.closed:
            continue
        words = values.setdefault(rule, {})
        for _, rows in read_shards(file, format, plan.shards, rule.columns):
            for number, row in rows:
                if isinstance(row, RowError):
                    continue
                if len(words) < SHOWN:
                    words |= dict.fromkeys(words_of([row], rule))
                if foreign is None and (value := rule.disproof(row)) is not None:
                    foreign = rule, value, f"{file.name}, row {number}", _responses(shape, rule)
    if foreign is not None:
        rule, value, where, responses = foreign
        raise disproved(rule, value, list(values[rule] | {value: None}), responses, where)


def _responses(shape: Shape, rule: ByValue) -> list[str]:
    """What a rule chooses between, in the order of the shape."""
    named = dict.fromkeys(better for _, better in rule.meanings if better != TIE)
    return [column for column, _ in shape.responses if column in named] or list(named)


def counted(planned: Planned) -> Shape:
    """A file's shape; where pairs are made of scores, its note counts the rows that give one."""
    file, format, shape, plan = planned
    if not isinstance(shape.label, ByScores) or shape.label.pairs is None:
        return shape
    preferring = ranked = missing = 0
    judged = (*shape.label.columns, *(column for column, _ in shape.responses))
    for _, rows in read_shards(file, format, plan.shards, judged):
        for _, row in rows:
            decision = _judged(shape, row)
            extras = list(decision.of_response.values())
            pairs = len(ranked_pairs(extras))
            preferring += bool(decision.preferences or pairs)
            ranked += pairs
            missing += sum(extra.get(SCORE, extra.get(RANK)) is None for extra in extras)
    alike = plan.rows - preferring
    note = f"{shape.note}; {preferring:,} rows prefer a response, {alike:,} do not: ties, or scores that are not there"
    if shape.label.pairs == "all":
        note += f"; {ranked:,} pairs of two responses each"
    if missing:
        note += f"; {missing:,} responses have no score or rank and are in no pair"
    return replace(shape, note=note)


def _judged(shape: Shape, row: object) -> Decision:
    """What a row says; nothing where it is an error."""
    try:
        return shape.judge(row) if isinstance(row, dict) else Decision({})
    except RowError:
        return Decision({})
