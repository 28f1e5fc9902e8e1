"""Parts of a store, read by several threads at once: pyarrow gives up the interpreter while it reads and decodes."""

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store.commit import Part, Record, rows_uri
from pipeline.store.schema import LABELS, LATER
from pipeline.store.segments import Merged

READERS = 8

_FOOTERS = Lock()

Item = TypeVar("Item")
Value = TypeVar("Value")


def in_parallel(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int = READERS
) -> Iterator[tuple[Item, Value]]:
    """Each item with what `function` makes of it in a thread, in their order. At most `workers` + 1 values are in memory,
    however slow whoever takes them is. Raises what `function` raised."""
    ahead: deque[tuple[Item, Future[Value]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append((item, pool.submit(function, item)))
                if len(ahead) > workers:
                    first, value = ahead.popleft()
                    yield first, value.result()
                    del value
            while ahead:
                first, value = ahead.popleft()
                yield first, value.result()
        finally:
            for _, value in ahead:
                value.cancel()


def read_part(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One part of a store, its page checksums verified: a Parquet file, or as `FILE#3` the row group 3 of one. Columns that
    are asked for are as stores have them now: those that format 1 lacks are null, and so is what its messages lack."""
    uri, group = split_group(uri)
    filesystem, path = storage.locate(uri)
    with filesystem.open_input_file(path) as file:
        if group is None:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns, use_threads=False)
        else:
            part = pq.ParquetFile(file, metadata=_footer(uri), page_checksum_verification=True)
            table = part.read_row_group(group, columns=columns, use_threads=False)
    for name in LATER:
        if columns and name in columns and name not in table.column_names:
            table = table.append_column(LABELS.field(name), pa.nulls(table.num_rows, LABELS.field(name).type))
    if columns and "prompt" in table.column_names and table.schema.field("prompt").type != LABELS.field("prompt").type:
        place, now = table.column_names.index("prompt"), LABELS.field("prompt")
        table = table.set_column(place, now, table["prompt"].cast(now.type))
    return table


def read_recorded(store: str, kind: str, record: Record) -> pa.Table | None:
    """All rows of one kind of a record, held against it; None where it has none. Raises StoreError where they are not what
    was committed, FileNotFoundError where they are gone."""
    part: Part = getattr(record, kind)
    if not part.rows:
        return None
    uri = rows_uri(store, kind, record)
    if part.merged is None:
        data = storage.read_bytes(uri)
        intact = hashlib.sha256(data).hexdigest() == part.sha256
        source = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) if intact else None
        table = source.read(use_threads=False) if source else None
    else:
        table = _read_group(uri)
        intact = table is not None and table.num_rows == part.rows and column_digest(table["id"]) == part.ids_sha256
    if not intact:
        raise StoreError(f"{uri} is damaged; endoreward validate {store} says how to mend it")
    return table


def whole_groups(uri: str, merged: Merged) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of a file that `compact` wrote, one in memory at a time; every byte is read, and read once.

    Raises StoreError where it is missing, or at its end where it is not the file that was written.
    """
    filesystem, path = storage.locate(uri)
    wrong = f"{uri}: damaged, its checksum is not the recorded one"
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            end = file.read_at(8, size - 8) if size >= 12 else b""
            length = int.from_bytes(end[:4], "little")
            if size != merged.bytes or end[4:] != b"PAR1" or length > size - 12:
                raise StoreError(wrong)
            footer = file.read_at(length, size - 8 - length) + end
            metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
            begins = [_begin(metadata.row_group(group)) for group in range(1, metadata.num_row_groups)]
            for group, (begin, stop) in enumerate(pairwise([0, *begins, size - len(footer)])):
                data = file.read_at(stop - begin, begin)
                digest.update(data)
                window = pq.ParquetFile(_Window(begin, data, size), metadata=metadata, page_checksum_verification=True)
                yield group, window.read_row_group(group, use_threads=False)
            digest.update(footer)
    except FileNotFoundError:
        raise StoreError(f"{uri}: missing") from None
    except (OSError, pa.ArrowException, OverflowError) as error:
        raise StoreError(f"{wrong} ({error})") from error
    if digest.hexdigest() != merged.sha256:
        raise StoreError(wrong)


def _begin(group: pq.RowGroupMetaData) -> int:
    first = group.column(0)
    begin: int = min(offset for offset in (first.dictionary_page_offset, first.data_page_offset) if offset is not None)
    return begin


class _Window(io.RawIOBase):
    """A file of which only the bytes from `begin` on are there."""

    def __init__(self, begin: int, data: bytes, size: int):
        super().__init__()
        self.begin, self.data, self.size, self.place = begin, memoryview(data), size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        first = self.place - self.begin
        if first < 0:
            raise OSError("its footer points outside of a row group")
        taken = bytes(self.data[first : None if size < 0 else first + size])
        self.place += len(taken)
        return taken


def _read_group(uri: str) -> pa.Table | None:
    try:
        return read_part(uri)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException):
        return None


def column_digest(ids: pa.ChunkedArray) -> str:
    """`pipeline.store.commit.ids_digest` of a column of strings that is never null, without a Python string for each."""
    flat = ids.combine_chunks()
    whole = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
    joined = pc.binary_join(whole, "\n")[0].as_buffer()
    return hashlib.sha256(joined or b"").hexdigest()


def split_group(uri: str) -> tuple[str, int | None]:
    """The file and the row group of what `rows_uri` gives; None for the whole file.

    >>> split_group("s3://b/labels/part-segment-000001-ab.parquet#3?region=x")
    ('s3://b/labels/part-segment-000001-ab.parquet?region=x', 3)
    """
    match = re.fullmatch(r"(.*\.parquet)#(\d+)(\?.*)?", uri, re.DOTALL)
    return (match[1] + (match[3] or ""), int(match[2])) if match else (uri, None)


def _footer(uri: str) -> pq.FileMetaData:
    """Of a file that `compact` wrote, whose name is given once: read once for all of its row groups."""
    with _FOOTERS:
        return _read_footer(uri)


@lru_cache(maxsize=READERS)
def _read_footer(uri: str) -> pq.FileMetaData:
    filesystem, path = storage.locate(uri)
    with filesystem.open_input_file(path) as file:
        return pq.ParquetFile(file).metadata
