"""Holds a file's labels against every one of its rows, once, before anything is labelled: the first rows may all say 1."""

from dataclasses import replace

from pipeline.corpus.files import InputFile
from pipeline.corpus.labels import ByScores, ByValue
from pipeline.corpus.meaning import refuse_disproved
from pipeline.corpus.readers import read_shards
from pipeline.corpus.shapes import Shape
from pipeline.corpus.shards import FilePlan
from pipeline.errors import RowError


def examined(shape: Shape, file: InputFile, format: str, plan: FilePlan) -> Shape:
    """A shape whose labels no row disproves; where pairs are made of scores its note counts them.

    Reads the file once more where it has to. Raises InputError for a row that disproves what the labels mean.
    """
    rule = shape.label
    if isinstance(rule, ByValue) and rule.closed:
        for _, rows in read_shards(file, format, plan.shards):
            for number, row in rows:
                if not isinstance(row, RowError):
                    refuse_disproved([row], rule, f"{file.name}, row {number}")
    elif isinstance(rule, ByScores) and rule.pairs:
        pairs = rows_read = 0
        for _, rows in read_shards(file, format, plan.shards):
            for _, row in rows:
                rows_read += 1
                pairs += _prefers(shape, row)
        alike = rows_read - pairs
        note = f"{shape.note}; {pairs:,} rows prefer a response, {alike:,} do not: ties, or scores that are not there"
        return replace(shape, note=note)
    return shape


def _prefers(shape: Shape, row: object) -> bool:
    try:
        return isinstance(row, dict) and bool(shape.judge(row).preferences)
    except RowError:
        return False
