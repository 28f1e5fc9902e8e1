"""Single rows of a file in any order: what reads a picture again long after its row was labelled.

Of JSON lines the start of each line is known after one pass, of Parquet the row group; what can only be read from its front
is read so up to the row, and from there on for the next.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.files import text
from pipeline.corpus.files.inputs import Format, InputFile
from pipeline.corpus.files.readers import open_file, read_all
from pipeline.errors import RowError

Row = dict[str, Any] | RowError
HELD, FEW = 64 << 20, 32  # bytes of a row group that is held whole; rows of a larger one that are read at once


class _Lines:
    """Of a file of JSON lines, not compressed."""

    def __init__(self, file: InputFile):
        self.source = open_file(file)
        self.starts = [0]
        offset = 0
        while block := self.source.read(1 << 22):
            end = block.find(b"\n")
            while end >= 0:
                self.starts.append(offset + end + 1)
                end = block.find(b"\n", end + 1)
            offset += len(block)
        self.starts.append(offset)

    def row(self, number: int) -> Row:
        start, stop = self.starts[number], self.starts[number + 1]
        return text.parse(number, self.source.read_at(stop - start, start))


class _Groups:
    """Of a Parquet file. The row group of the last row asked for stays in memory, or of a large one a few rows, from which the
    next are read on."""

    def __init__(self, file: InputFile):
        self.parquet = pq.ParquetFile(open_file(file), pre_buffer=False)
        self.starts = [0]
        for group in range(self.parquet.metadata.num_row_groups):
            self.starts.append(self.starts[-1] + self.parquet.metadata.row_group(group).num_rows)
        self.group = -1
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.first, self.batch = 0, pa.RecordBatch.from_pylist([])

    def row(self, number: int) -> Row:
        if number >= self.starts[-1]:
            raise IndexError(f"it has {self.starts[-1]} rows")
        group = bisect_right(self.starts, number) - 1
        if group != self.group or number < self.first:
            small = self.parquet.metadata.row_group(group).total_byte_size <= HELD
            size = self.starts[group + 1] - self.starts[group] if small else FEW
            self.batches = self.parquet.iter_batches(batch_size=size, row_groups=[group])
            self.group, self.first, self.batch = group, self.starts[group], next(self.batches)
        while number >= self.first + self.batch.num_rows:
            self.first += self.batch.num_rows
            self.batch = next(self.batches)
        row: dict[str, Any] = self.batch.slice(number - self.first, 1).to_pylist(maps_as_pydicts="strict")[0]
        return row


class _FromFront:
    """Of any other file."""

    def __init__(self, file: InputFile, how: Format):
        self.file, self.how = file, how
        self.rows: Iterator[tuple[int, Row]] = iter(())
        self.last: tuple[int, Row] | None = None

    def row(self, number: int) -> Row:
        if self.last and self.last[0] == number:
            return self.last[1]
        if self.last is None or self.last[0] > number:
            self.rows = read_all(self.file, self.how)
        self.last = next((each for each in self.rows if each[0] == number), None)
        if self.last is None:
            raise IndexError(f"it has no row {number}")
        return self.last[1]


def open_rows(file: InputFile, how: Format) -> _Lines | _Groups | _FromFront:
    """Whatever gives a row by its number: `row(number)`, which raises IndexError and RowError. Raises OSError."""
    if how.kind == "parquet":
        return _Groups(file)
    return _Lines(file) if how.kind == "jsonl" and how.compression is None else _FromFront(file, how)
