"""Rows of Parquet, Arrow, CSV and TSV files, a record batch at a time."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import RowError

READ_BYTES = 1 << 22
CSV_BYTES = 1 << 24  # a block of CSV; no row may be longer
END = b"\x1eend"  # each cell of a row that is put after the last, to know that no quote is left open

# What a value raises that Python cannot hold: KeyError is a map with a key twice.
UNREADABLE = (ValueError, OverflowError, KeyError, pa.ArrowException)

Range = tuple[int, int]


class Span(NamedTuple):
    """Consecutive row groups of a Parquet file that are read together: rows [start, stop)."""

    groups: list[int]
    start: int
    stop: int
    offset: int  # first byte
    length: int


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Raises ValueError for a table without columns or with two of one name."""
    parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BYTES, page_checksum_verification=True)
    require_columns(parquet.schema_arrow.names)
    return parquet


def require_columns(names: Sequence[str]) -> None:
    """Raises ValueError, which a reader of files names."""
    if not names:
        raise ValueError("it has no columns")
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} is there twice, and only one can be meant; rename one of them")


def spans(parquet: pq.ParquetFile, rows: int) -> list[Span]:
    """The row groups in order, small ones put together until they hold `rows` rows."""
    joined: list[Span] = []
    for span in _groups(parquet):
        last = joined[-1] if joined else None
        if last and span.stop - last.start <= rows and span.offset >= last.offset + last.length:
            joined[-1] = _joined([last, span])
        else:
            joined.append(span)
    return joined


def span_at(parquet: pq.ParquetFile, offset: int, length: int) -> Span:
    """The row groups that lie in the bytes [offset, offset + length)."""
    return _joined([span for span in _groups(parquet) if offset <= span.offset < offset + length])


def span_bytes(parquet: pq.ParquetFile, span: Span) -> int:
    """Bytes of its row groups, unpacked."""
    return sum(int(parquet.metadata.row_group(group).total_byte_size) for group in span.groups)


def _groups(parquet: pq.ParquetFile) -> Iterator[Span]:
    row = 0
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        chunks = [group.column(i) for i in range(group.num_columns)]
        # A chunk begins at its dictionary where it has one; some writers put 0 where they have none.
        begins = [min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))) for chunk in chunks]
        end = max(begin + chunk.total_compressed_size for begin, chunk in zip(begins, chunks, strict=True))
        yield Span([index], row, row + group.num_rows, min(begins), end - min(begins))
        row += group.num_rows


def _joined(parts: list[Span]) -> Span:
    first, last = parts[0], parts[-1]
    groups = [group for part in parts for group in part.groups]
    return Span(groups, first.start, last.stop, first.offset, last.offset + last.length - first.offset)


def span_batches(
    parquet: pq.ParquetFile, span: Span, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    yield from parquet.iter_batches(batch_size=min(rows, 1024), row_groups=span.groups, columns=columns)


def holding(schema: pa.Schema, paths: Iterable[str]) -> list[str]:
    """The columns that hold what dotted paths name."""
    paths = tuple(paths)
    return [name for name in schema.names if any(f"{path}.".startswith(f"{name}.") for path in paths)]


def filled(parquet: pq.ParquetFile, span: Span) -> set[str]:
    """The columns of structs whose `bytes` are nowhere null, by the statistics of the row groups."""
    every: set[str] | None = None
    for group in span.groups:
        metadata = parquet.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        leaves = [chunk for chunk in chunks if chunk.path_in_schema.endswith(".bytes")]
        whole = {chunk.path_in_schema.partition(".")[0] for chunk in leaves if _has_no_null(chunk.statistics)}
        every = whole if every is None else every & whole
    return every or set()


def _has_no_null(statistics: Any) -> bool:
    return statistics is not None and statistics.has_null_count and statistics.null_count == 0


def place(span: Span) -> str:
    """For messages."""
    groups = (
        f"row group {span.groups[0]}" if len(span.groups) == 1 else f"row groups {span.groups[0]} to {span.groups[-1]}"
    )
    return f"{groups}, rows {span.start} to {span.stop - 1}"


def footer(source: pa.NativeFile) -> bytes:
    """The bytes that hold a Parquet file's schema and the places of its pages."""
    size = source.size()
    length = int.from_bytes(source.read_at(8, size - 8)[:4], "little")
    return bytes(source.read_at(length, size - 8 - length))


def digest_range(source: pa.NativeFile, offset: int, length: int, *hashes: "hashlib._Hash") -> None:
    """Feed bytes [offset, offset + length) to the hashes. Raises ValueError for a file that ends before."""
    end = offset + length
    while offset < end:
        block = source.read_at(min(READ_BYTES, end - offset), offset)
        if not block:
            raise ValueError(f"it ends at byte {offset}, and {end} are due")
        offset += len(block)
        for digest in hashes:
            digest.update(block)


def arrow_batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, in the stream or in the file form."""
    start = source.read(6)
    source.seek(0)
    if start == b"ARROW1":
        reader = pa.ipc.open_file(source)
        require_columns(reader.schema.names)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        stream = pa.ipc.open_stream(source)
        require_columns(stream.schema.names)
        yield from stream


class _Ended(io.RawIOBase):
    """A stream with something after its end."""

    def __init__(self, stream: BinaryIO, end: bytes):
        super().__init__()
        self.stream, self.end = stream, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        if not data:
            data, self.end = self.end[: len(buffer)], self.end[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def csv_header(stream: BinaryIO, delimiter: str) -> list[str]:
    """The names in the first line that is not blank; empty where there is none.

    Raises ValueError where two are the same, or where the one that there is seems to hold several.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        names = next(filter(None, csv.reader(text, delimiter=delimiter)), [])
    except csv.Error as error:
        raise ValueError(f"its first line, of names: {error}") from None
    if any("\udc80" <= character <= "\udcff" for character in "".join(names)):
        raise ValueError(f"its first line, of names, is not UTF-8 text: {ascii(names)[:80]}")
    if names:
        require_columns(names)
    other = next(
        (sign for sign in (",", "\t", ";", "|") if sign != delimiter and len(names) == 1 and sign in names[0]), None
    )
    if other:
        format = {",": "csv", "\t": "tsv"}.get(other)
        remedy = f"say --set input.format={format}" if format else "commas are due"
        raise ValueError(
            f"its first line is one column, {names[0][:60]!r}, and seems to be separated by {other!r}: {remedy}"
        )
    return names


def csv_batches(stream: BinaryIO, names: Sequence[str], delimiter: str) -> Iterator[pa.RecordBatch]:
    """The batches of a CSV file with these columns, every cell as text and an empty one as the empty text.

    Raises ValueError, or what Arrow raises, for a row with another number of cells and for a quote that is left open.
    """
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    ended = io.BufferedReader(_Ended(stream, b"\n" + delimiter.encode().join([END] * len(names)) + b"\n"), READ_BYTES)
    last: pa.RecordBatch | None = None
    try:
        batches = pyarrow.csv.open_csv(
            ended,
            pyarrow.csv.ReadOptions(block_size=CSV_BYTES, use_threads=False),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=False
            ),
        )
        if batches.schema.names != list(names):
            raise ValueError(
                f"its first line is read as {batches.schema.names} and as {list(names)}; write it in one line"
            )
        for batch in batches:
            if batch.num_rows:
                if last is not None:
                    yield last
                last = batch
    except pa.ArrowInvalid as error:
        if "straddl" in str(error):
            raise ValueError(
                f"a row is longer than {CSV_BYTES >> 20} MiB, or a double quote is opened and never closed"
            ) from error
        if not ragged:
            raise
        row = ragged[0]
        raise ValueError(
            f"row {row.number} (the line of names is row 1) has {row.actual_columns} cells and {row.expected_columns} are "
            f"due: {row.text[:60]!r}; a cell with {delimiter!r} or a line break in it belongs between double quotes"
        ) from error
    if last is None or last.slice(last.num_rows - 1).to_pylist() != [dict.fromkeys(names, END.decode())]:
        raise ValueError('a double quote is opened and never closed; write " within a cell as ""')
    if last.num_rows > 1:
        yield last.slice(0, last.num_rows - 1)


def cells(batch: pa.RecordBatch) -> bytes:
    """The bytes of a batch of text, row by row, for a digest that does not depend on how rows were read together."""
    columns = [column.cast(pa.binary()).to_pylist() for column in batch.columns]
    return b"".join(len(cell).to_bytes(8) + cell for row in zip(*columns, strict=True) for cell in row)


def cut(
    batches: Iterable[pa.RecordBatch], row: int, ranges: Iterable[Range]
) -> Iterator[tuple[Range, list[pa.RecordBatch]]]:
    """The slices of `batches`, whose first row has number `row`, that make up each of the ascending row ranges. A last
    range that the batches do not fill comes out shorter."""
    wanted = iter(ranges)
    now = next(wanted, None)
    pieces: list[pa.RecordBatch] = []
    for batch in batches:
        end = row + batch.num_rows
        while now and now[0] < end:
            begin = max(now[0], row)
            pieces.append(batch.slice(begin - row, min(now[1], end) - begin))
            if now[1] > end:
                break
            yield now, pieces
            now, pieces = next(wanted, None), []
        row = end
        if not now:
            return
    if now and pieces:
        yield (now[0], row), pieces


def content(batch: pa.RecordBatch) -> bytes:
    """The batch's own bytes, for a digest."""
    return bytes(batch.serialize().to_pybytes())


def rows_of(batches: Iterable[pa.RecordBatch], row: int) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Numbered rows as dicts. A value that Python cannot hold (text that is not UTF-8, a date in the year 200000, a map with
    a key twice) makes its row a RowError."""
    for batch in batches:
        try:
            yield from enumerate(batch.to_pylist(maps_as_pydicts="strict"), row)
        except UNREADABLE:
            for index in range(batch.num_rows):
                yield row + index, _row_of(batch.slice(index, 1))
        row += batch.num_rows


def _row_of(batch: pa.RecordBatch) -> dict[str, Any] | RowError:
    try:
        return dict(batch.to_pylist(maps_as_pydicts="strict")[0])
    except UnicodeDecodeError as error:
        return RowError("not_utf8", f"a text of the row is not UTF-8: {error.object[:60]!r}; convert it")
    except UNREADABLE as error:
        return RowError("unreadable", f"a value of the row cannot be read: {error}")
