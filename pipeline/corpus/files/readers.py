"""Reads a file twice: once to plan its shards, once to give their rows.

JSON lines (not compressed) and Parquet are read by byte range, so that shards can be read anywhere in any order. Gzip,
zstd, JSON arrays, CSV and Arrow are read from the front, once for all the shards asked for. Memory holds one shard, or one
record where that is larger; of CSV also a few blocks of 16 MiB.

In CSV and TSV every cell is text (`007` stays `007`), an empty one the empty text; the first line has the names. Rows are
numbered from 0 after it.
"""

import hashlib
import io
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, groupby
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.corpus.files import columnar, contents, text
from pipeline.corpus.files.inputs import Format, InputFile, file_format
from pipeline.corpus.files.shards import FilePlan, Shard, Shards
from pipeline.errors import InputError, RowError

NumberedRow = tuple[int, dict[str, Any] | RowError]

HEAD_ROWS = 20
SHARD_BYTES = 1 << 19
SECTION = 1 << 26
"""Bytes of a file of JSON lines that are planned apart; no shard has lines that begin in two of them."""
BATCHED = ("arrow", "csv", "tsv")
BROKEN = (OSError, ValueError, pa.ArrowException)  # what reading a file that is not what it should be raises


class Beside(Protocol):
    """Says how many bytes belong to rows and lie in files of their own."""

    def of_text(self, row: int, raw: bytes) -> int: ...

    def of_batch(self, batch: pa.RecordBatch) -> int: ...

    def columns(self, schema: pa.Schema, filled: Container[str]) -> list[str]:
        """Those that may name such files; `filled` are columns of structs whose `bytes` are there in every row."""
        ...


@dataclass
class Draft:
    """A plan while its file is being read."""

    file: InputFile
    beside: Beside | None = None
    seen: int = 0  # rows passed, blank lines included
    total: Any = field(default_factory=hashlib.sha256)
    shards: Shards = field(init=False)
    head: list[dict[str, Any]] = field(default_factory=list)
    trouble: str | None = None
    weighs: bool = False  # whether anything lies beside its first rows

    def beside_text(self, row: int, raw: bytes) -> int:
        """Bytes that lie beside a row; of a file beside whose first rows nothing lies none."""
        if self.beside is None or (row >= HEAD_ROWS and not self.weighs):
            return 0
        size = self.beside.of_text(row, raw)
        self.weighs = self.weighs or size > 0
        return size

    def __post_init__(self) -> None:
        self.shards = Shards(self.file.name)

    def show(self, row: dict[str, Any] | RowError) -> None:
        if isinstance(row, RowError):
            self.trouble = self.trouble or str(row)
        elif len(self.head) < HEAD_ROWS:
            self.head.append(row)

    def close(
        self, start: int, stop: int, rows: int, digest: str, offset: int | None = None, length: int | None = None
    ) -> None:
        """End a shard; one of blank lines alone is none."""
        if rows:
            self.shards.add(start, stop, rows, offset, length, digest)

    def done(self) -> FilePlan:
        head, shards = tuple(self.head), self.shards
        return FilePlan(self.file.name, shards.rows, self.total.hexdigest(), shards, head, self.trouble)


def plan_file(
    file: InputFile,
    format: str = "auto",
    shard_rows: int = 128,
    shard_bytes: int = SHARD_BYTES,
    beside: Beside | None = None,
) -> FilePlan:
    """Read all of a file once, and say what its shards are.

    `shard_rows` is the most rows of a shard, and the row with which it reaches `shard_bytes` is its last; where a file is read
    in batches of rows (Parquet, CSV, Arrow) a row counts as the mean one of its row group, or of the first batch. What lies
    beside a row counts too. An empty file has no shards. Raises InputError, before anything is started, where the file breaks
    off or is not what its format says. A broken line is no error here: `read_shards` gives it as a RowError in its place.
    Parquet is decoded for the head alone, and the columns that name files beside their rows: a page that is broken behind it
    is known where it is read.
    """
    draft = Draft(file, beside)
    for _ in _planned(draft, file_format(file.name, format), shard_rows, shard_bytes):
        pass
    return draft.done()


class Head(NamedTuple):
    """The first rows of a file that can be parsed, and what is wrong with the first that cannot; neither of an empty file."""

    rows: tuple[dict[str, Any], ...]
    trouble: str | None


def head_of(file: InputFile, format: str = "auto") -> Head:
    """`head` and `trouble` of the file's plan, without reading on. Raises InputError where its beginning is not what its
    format says."""
    draft = Draft(file)
    for _ in _planned(draft, file_format(file.name, format), HEAD_ROWS, SHARD_BYTES):
        if len(draft.head) >= HEAD_ROWS:
            break
    return Head(tuple(draft.head), draft.trouble)


def _planned(draft: Draft, how: Format, shard_rows: int, shard_bytes: int) -> Iterator[None]:
    """Fills the draft, shard by shard."""
    file = draft.file
    plan = _plan_parquet if how.kind == "parquet" else _plan_batches if how.kind in BATCHED else _plan_text
    try:
        start = require_kind(file, how)
        yield from plan(draft, how, shard_rows, shard_bytes)
    except BROKEN as error:
        where = f"breaks after {draft.seen} rows" if draft.seen else "cannot be read"
        form = f"{how.kind} in {how.compression}" if how.compression else how.kind
        remedy = contents.remedy(start, how) if "--set" not in str(error) else ""
        raise InputError(f"{file.uri}: {where} as {form}: {error}; fetch or write the file again{remedy}") from error


def require_kind(file: InputFile, how: Format) -> bytes:
    """The first bytes of a file. Raises InputError where they show that it is not what its name says."""
    with open_file(file) as source:
        start = bytes(source.read(contents.LOOKED_AT))
    if wrong := contents.mistaken(file.name, start, how):
        raise InputError(f"{file.uri}: {wrong}")
    return start


def read_shards(
    file: InputFile, format: str, shards: Iterable[Shard], only: Sequence[str] | None = None
) -> Iterator[tuple[Shard, list[NumberedRow]]]:
    """The rows of some shards of one file, by ascending row, each as `(row number, dict or RowError)`.

    With `only`, rows may lack columns that none of these dotted paths begins with: of Parquet no others are read, and the
    digest of all is not asked for. Raises InputError where a shard is not what it was when the file was planned, or cannot be
    decoded, before any of its rows is given.
    """
    how = file_format(file.name, format)
    wanted = sorted(shards, key=lambda shard: shard.index)
    if not wanted:
        return
    try:
        if how.kind == "parquet":
            yield from _read_parquet(file, wanted, only)
        else:
            yield from (_read_batches if how.kind in BATCHED else _read_text)(file, how, wanted)
    except BROKEN as error:
        raise InputError(f"{file.uri} could be read when the run was planned and no more: {error}") from error


def _verify(file: InputFile, shard: Shard, digest: str) -> None:
    if digest != shard.digest:
        raise InputError(
            f"{file.uri} changed while it was being labelled: rows {shard.start} to {shard.stop - 1} are not what they "
            "were when the run was planned; restore the file, or label the new content into an output of its own"
        )


def open_file(file: InputFile) -> pa.NativeFile:
    """A file for reading anywhere in it."""
    filesystem, path = storage.locate(file.uri)
    return filesystem.open_input_file(path)


def _stream(file: InputFile, how: Format) -> io.BufferedReader:
    """The file from its front, unpacked."""
    filesystem, path = storage.locate(file.uri)
    return io.BufferedReader(filesystem.open_input_stream(path, compression=how.compression), 1 << 20)


def require_text(file: InputFile, stream: io.BufferedReader) -> None:
    """Raises InputError for what is no UTF-8 text by its first bytes; reads nothing on."""
    if wrong := contents.not_text(stream.peek(contents.LOOKED_AT)[: contents.LOOKED_AT]):
        raise InputError(f"{file.uri}: {wrong}")


@contextmanager
def _records(file: InputFile, how: Format) -> Iterator[tuple[Iterator[text.Record], bool]]:
    """All records of a JSON file, and whether it can be split."""

    layout = "lines"
    if how.kind == "json":
        with _stream(file, how) as start:
            require_text(file, start)
            layout = text.layout(start)
    with _stream(file, how) as whole:
        require_text(file, whole)
        yield getattr(text, layout)(whole), layout == "lines" and how.compression is None


def _parsed(records: Iterable[text.Record]) -> list[NumberedRow]:
    rows: list[NumberedRow] = []
    for row, raw in records:
        if not text.is_blank(row, raw):
            try:
                rows.append((row, text.parse(row, raw)))
            except RowError as error:
                rows.append((row, error))
    return rows


def _plan_text(draft: Draft, how: Format, shard_rows: int, shard_bytes: int) -> Iterator[None]:
    with _records(draft.file, how) as (records, splittable):
        yield from cut_records(draft, records, 0 if splittable else None, shard_rows, shard_bytes)
    require_rows(draft, how)


def cut_records(
    draft: Draft, records: Iterable[text.Record], offset: int | None, shard_rows: int, shard_bytes: int
) -> Iterator[None]:
    """Shards of records, the first of which begins at byte `offset` where they can be split: then none goes over the end of a
    section."""
    start, rows, length, weight, digest = draft.seen, 0, 0, 0, hashlib.sha256()

    def close() -> None:
        place = (offset, length) if offset is not None else ()
        draft.close(start, draft.seen, rows, digest.hexdigest(), *place)

    for row, raw in records:
        draft.seen = row + 1
        draft.total.update(raw)
        digest.update(raw)
        length += len(raw)
        if not text.is_blank(row, raw):
            rows += 1
            weight += draft.beside_text(row, raw)
            if len(draft.head) < HEAD_ROWS:
                draft.show(_parsed([(row, raw)])[0][1])
        ends = offset is not None and (offset + length) // SECTION != offset // SECTION
        if ends or rows == shard_rows or length + weight >= shard_bytes:
            close()
            yield
            offset = None if offset is None else offset + length
            start, rows, length, weight, digest = draft.seen, 0, 0, 0, hashlib.sha256()
    close()


def require_rows(draft: Draft, how: Format) -> None:
    """Says of lines that are not one of them an object what they may be. Raises InputError for a file that is one object and
    no row."""
    if how.kind == "jsonl" and draft.trouble and not draft.head:
        draft.trouble += (
            "; where the file is one array, or its objects run over several lines, say --set input.format=json"
        )
    if draft.shards.rows == 1 and draft.head and (nested := text.nested_rows(draft.head[0])):
        raise InputError(
            f"{draft.file.uri}: the whole file is one object, of {nested}; {contents.unnest(draft.file.name, nested)}"
        )


def _read_text(file: InputFile, how: Format, shards: list[Shard]) -> Iterator[tuple[Shard, list[NumberedRow]]]:
    if shards[0].offset is not None:
        with open_file(file) as source:
            for shard in shards:
                data = source.read_at(shard.length, shard.offset)
                _verify(file, shard, hashlib.sha256(data).hexdigest())
                yield shard, _parsed(text.lines(io.BytesIO(data), shard.start))
        return
    with _records(file, how) as (records, _):
        for shard in shards:
            mine: list[text.Record] = []
            digest = hashlib.sha256()
            for row, raw in records:
                if row >= shard.start:
                    mine.append((row, raw))
                    digest.update(raw)
                if row == shard.stop - 1:
                    break
            _verify(file, shard, digest.hexdigest())
            yield shard, _parsed(mine)


def _plan_parquet(draft: Draft, how: Format, shard_rows: int, shard_bytes: int) -> Iterator[None]:
    with open_file(draft.file) as source, columnar.open_parquet(source) as parquet:
        footer = columnar.footer(source)
        for span in columnar.spans(parquet, shard_rows):
            if len(draft.head) < HEAD_ROWS:
                for batch in columnar.span_batches(parquet, span, HEAD_ROWS):
                    for _, row in columnar.rows_of([batch], draft.seen):
                        draft.show(row)
                    yield
                    if len(draft.head) >= HEAD_ROWS:
                        break
            size = columnar.span_bytes(parquet, span) + _beside_span(draft, parquet, span, shard_rows)
            digest = hashlib.sha256(footer)
            columnar.digest_range(source, span.offset, span.length, digest, draft.total)
            draft.seen = span.stop
            rows = _rows_within(shard_bytes, size, span.stop - span.start, shard_rows)
            for start in range(span.start, span.stop, rows):
                stop = min(start + rows, span.stop)
                draft.close(start, stop, stop - start, digest.hexdigest(), span.offset, span.length)
            yield
        draft.total.update(footer)


def _beside_span(draft: Draft, parquet: pq.ParquetFile, span: columnar.Span, rows: int) -> int:
    """Bytes that lie beside the rows of some row groups."""
    if draft.beside is None:
        return 0
    names = draft.beside.columns(parquet.schema_arrow, columnar.filled(parquet, span))
    return sum(map(draft.beside.of_batch, columnar.span_batches(parquet, span, rows, names))) if names else 0


def _read_parquet(
    file: InputFile, shards: list[Shard], only: Sequence[str] | None
) -> Iterator[tuple[Shard, list[NumberedRow]]]:
    with open_file(file) as source:
        footer = columnar.footer(source)
        for (offset, length), group in groupby(shards, key=lambda shard: (shard.offset or 0, shard.length or 0)):
            together = list(group)
            if only is None:
                digest = hashlib.sha256(footer)
                columnar.digest_range(source, offset, length, digest)
                for shard in together:
                    _verify(file, shard, digest.hexdigest())
            parquet = columnar.open_parquet(source)
            span = columnar.span_at(parquet, offset, length)
            names = None if only is None else columnar.holding(parquet.schema_arrow, only)
            batches = columnar.span_batches(parquet, span, together[0].rows, names)
            ranges = ((shard.start, shard.stop) for shard in together)
            try:
                for shard, (_, pieces) in zip(together, columnar.cut(batches, span.start, ranges), strict=True):
                    yield shard, list(columnar.rows_of(pieces, shard.start))
            except BROKEN as error:
                raise InputError(
                    f"{file.uri}: {columnar.place(span)}, cannot be decoded: {error}; fetch or write the file again, and "
                    "label it into another --output, as this one knows it by the bytes that it has now"
                ) from error


def read_all(file: InputFile, how: Format) -> Iterator[NumberedRow]:
    """Every row of a file that is read from its front."""
    if how.kind in BATCHED:
        with _batches(file, how) as batches:
            row = 0
            for batch in batches:
                yield from columnar.rows_of([batch], row)
                row += batch.num_rows
        return
    with _records(file, how) as (records, _):
        for record in records:
            yield from _parsed([record])


def _content(how: Format, pieces: Iterable[pa.RecordBatch]) -> bytes:
    return b"".join(map(columnar.content if how.kind == "arrow" else columnar.cells, pieces))


@contextmanager
def _batches(file: InputFile, how: Format) -> Iterator[Iterator[pa.RecordBatch]]:
    """All record batches of a file that is read from its front."""
    if how.kind == "arrow":
        with open_file(file) as source:
            yield columnar.arrow_batches(source)
        return
    delimiter = "\t" if how.kind == "tsv" else ","
    with _stream(file, how) as start:
        require_text(file, start)
        names = columnar.csv_header(start, delimiter)
    with _stream(file, how) as whole:
        yield columnar.csv_batches(whole, names, delimiter) if names else iter(())


def _plan_batches(draft: Draft, how: Format, shard_rows: int, shard_bytes: int) -> Iterator[None]:
    with _batches(draft.file, how) as all_batches:

        def batches() -> Iterator[pa.RecordBatch]:
            for index, batch in enumerate(all_batches):
                draft.total.update(_names(how, batch) if index == 0 else b"")
                draft.total.update(_content(how, [batch]))
                yield batch

        first, every = _peeked(batches())
        rows = shard_rows
        if first:
            size = first.nbytes + (draft.beside.of_batch(first) if draft.beside else 0)
            rows = _rows_within(shard_bytes, size, first.num_rows, shard_rows)
        ranges = ((start, start + rows) for start in count(0, rows))
        for (start, stop), pieces in columnar.cut(every, 0, ranges):
            if len(draft.head) < HEAD_ROWS:
                for _, row in columnar.rows_of([piece.slice(0, HEAD_ROWS) for piece in pieces], start):
                    draft.show(row)
            draft.seen = stop
            draft.close(start, stop, stop - start, _digest(how, pieces))
            yield


def _rows_within(most: int, size: int, rows: int, most_rows: int) -> int:
    """How many rows of a shard hold `most` bytes where `rows` have `size`; one at least, `most_rows` at most."""
    return max(1, min(most_rows, most * rows // size if size else most_rows))


def _peeked(batches: Iterator[pa.RecordBatch]) -> tuple[pa.RecordBatch | None, Iterator[pa.RecordBatch]]:
    """The first batch that has rows, and all of them."""
    passed: list[pa.RecordBatch] = []
    for batch in batches:
        passed.append(batch)
        if batch.num_rows:
            return batch, chain(passed, batches)
    return None, iter(passed)


def _digest(how: Format, pieces: list[pa.RecordBatch]) -> str:
    names = _names(how, pieces[0]) if pieces else b""
    return hashlib.sha256(names + _content(how, pieces)).hexdigest()


def _names(how: Format, batch: pa.RecordBatch) -> bytes:
    """The names of columns, for a digest; in Arrow they are part of each batch's content."""
    return b"" if how.kind == "arrow" else repr(batch.schema.names).encode()


def _read_batches(file: InputFile, how: Format, shards: list[Shard]) -> Iterator[tuple[Shard, list[NumberedRow]]]:
    with _batches(file, how) as batches:
        ranges = ((shard.start, shard.stop) for shard in shards)
        cuts = columnar.cut(batches, 0, ranges)
        for shard in shards:
            _, pieces = next(cuts, ((0, 0), []))
            _verify(file, shard, _digest(how, pieces))
            yield shard, list(columnar.rows_of(pieces, shard.start))
