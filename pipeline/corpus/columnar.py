"""Rows of Parquet and Arrow files, a record batch at a time."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RowError

READ_BYTES = 1 << 22

Range = tuple[int, int]


class Span(NamedTuple):
    """Consecutive row groups of a Parquet file that are read together: rows [start, stop)."""

    groups: list[int]
    start: int
    stop: int
    offset: int  # first byte
    length: int


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BYTES, page_checksum_verification=True)


def spans(parquet: pq.ParquetFile, rows: int) -> list[Span]:
    """The row groups in order, small ones put together until they hold `rows` rows."""
    found: list[Span] = []
    for span in _groups(parquet):
        last = found[-1] if found else None
        if last and span.stop - last.start <= rows and span.offset >= last.offset + last.length:
            found[-1] = _joined([last, span])
        else:
            found.append(span)
    return found


def span_at(parquet: pq.ParquetFile, offset: int, length: int) -> Span:
    """The row groups that lie in the bytes [offset, offset + length)."""
    return _joined([span for span in _groups(parquet) if offset <= span.offset < offset + length])


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


def span_batches(parquet: pq.ParquetFile, span: Span, rows: int) -> Iterator[pa.RecordBatch]:
    return parquet.iter_batches(batch_size=min(rows, 1024), row_groups=span.groups)


def footer(source: pa.NativeFile) -> bytes:
    """The bytes that hold a Parquet file's schema and the places of its pages."""
    size = source.size()
    length = int.from_bytes(source.read_at(8, size - 8)[:4], "little")
    return source.read_at(length, size - 8 - length)


def digest_range(source: pa.NativeFile, offset: int, length: int, *hashes: "hashlib._Hash") -> None:
    """Feed bytes [offset, offset + length) to the hashes."""
    end = offset + length
    while offset < end:
        block = source.read_at(min(READ_BYTES, end - offset), offset)
        if not block:
            return
        offset += len(block)
        for digest in hashes:
            digest.update(block)


def arrow_batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, in the stream or in the file form."""
    start = source.read(6)
    source.seek(0)
    if start == b"ARROW1":
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pa.ipc.open_stream(source)


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
    return batch.serialize().to_pybytes()


def rows_of(batches: Iterable[pa.RecordBatch], row: int) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Numbered rows as dicts. A value that Python cannot hold (text that is not UTF-8, a date in the year 200000) makes
    its row a RowError."""
    for batch in batches:
        try:
            yield from enumerate(batch.to_pylist(maps_as_pydicts="lossy"), row)
        except (ValueError, OverflowError, pa.ArrowException):
            for index in range(batch.num_rows):
                yield row + index, _row_of(batch.slice(index, 1))
        row += batch.num_rows


def _row_of(batch: pa.RecordBatch) -> dict[str, Any] | RowError:
    try:
        return batch.to_pylist(maps_as_pydicts="lossy")[0]
    except UnicodeDecodeError as error:
        return RowError("not_utf8", f"a text of the row is not UTF-8: {error.object[:60]!r}; convert it")
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return RowError("unreadable", f"a value of the row cannot be read: {error}")
