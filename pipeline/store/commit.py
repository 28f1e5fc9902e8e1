"""The commit of one shard: its parts first, then the record that makes them count.

    labels/part-<shard>.parquet      written under a hidden name, flushed, renamed
    errors/part-<shard>.parquet      likewise, only where there are errors
    records/<shard>.json             created if absent: rows, digests, reasons, statistics

A part's name is fixed by its shard and its bytes by the shard's content, so a writer that survives its driver and writes
once more changes nothing; on an object store it is refused as soon as the store is another driver's (`lease`). Killed
anywhere before the record, the shard is simply not done and is labelled again.
A retry takes the old record away before it replaces the parts, by the same steps: killed in between, the same holds.
`pipeline.store.compaction` merges parts and records into few files later.
"""

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline import storage
from pipeline.corpus import Shard
from pipeline.store import documents, typed
from pipeline.store.lock import working
from pipeline.store.schema import Failure, Label, errors_table, labels_table
from pipeline.store.summary import ShardStats

RECORD_VERSION = 1
REMEDY = "put it back from a copy, or delete it and run the same again"


@dataclass(frozen=True, slots=True)
class Part:
    """What a record says of one Parquet file; no file where there are no rows."""

    rows: int
    sha256: str | None  # of the file that the commit wrote, wherever its rows are now
    ids_sha256: str
    merged: str | None = None  # since `compact`: the file that the rows are in and its row group, `NAME#GROUP`

    def to_json(self) -> dict[str, Any]:
        content = {"rows": self.rows, "sha256": self.sha256, "ids_sha256": self.ids_sha256}
        return content if self.merged is None else {**content, "merged": self.merged}


@dataclass(frozen=True, slots=True)
class Record:
    """One committed shard. All of it follows from the shard's content and the fingerprint, but for the generation and for
    what `compact` merged its parts into."""

    shard: Shard
    fingerprint: str
    generation: int
    labels: Part
    errors: Part
    reasons: dict[str, int]
    stats: ShardStats

    def to_json(self) -> dict[str, Any]:
        return {
            "version": RECORD_VERSION,
            "shard": self.shard.to_json(),
            "fingerprint": self.fingerprint,
            "generation": self.generation,
            "labels": self.labels.to_json(),
            "errors": self.errors.to_json(),
            "reasons": self.reasons,
            "stats": self.stats.to_json(),
        }

    @property
    def name(self) -> str:
        return shard_name(self.shard)

    @staticmethod
    def read(uri: str) -> "Record":
        """Raises FileNotFoundError, and StoreError for a damaged one, or one of another form."""
        return Record.parse(documents.read(uri), uri)

    @staticmethod
    def parse(content: Any, uri: str) -> "Record":
        """What stands in the file `uri`. Raises StoreError for a record of another form."""
        typed.check_version(content, RECORD_VERSION, uri, REMEDY)
        return typed.parse(_RECORDS.validate_python, content, uri, REMEDY)


_RECORDS = TypeAdapter(Record)
NO_ROWS = Part(0, None, "")


@dataclass(frozen=True, slots=True)
class Committed:
    """What readers of rows need of a record: little enough to hold for every shard of a large store."""

    name: str
    file: str
    index: int
    labels: Part  # without the digest of its ids
    errors: Part

    @classmethod
    def of(cls, record: Record) -> "Committed":
        shard = record.shard
        return cls(record.name, sys.intern(shard.file), shard.index, _light(record.labels), _light(record.errors))


def _light(part: Part) -> Part:
    return Part(part.rows, part.sha256, "", part.merged) if part.rows else NO_ROWS


def shard_name(shard: Shard) -> str:
    """`<file>-<index>`, the file by a digest of its name: safe in any file system, the same on every run."""
    return indexed_name(file_key(shard.file), shard.index)


def indexed_name(file: str, index: int) -> str:
    return f"{file}-{index:06d}"


def file_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def part_uri(store: str, kind: str, shard: Shard) -> str:
    """The file that a shard's commit writes its rows to; `rows_uri` says where they are."""
    return storage.join(store, kind, part_name(shard_name(shard)))


def rows_uri(store: str, kind: str, record: "Record | Committed") -> str:
    """Where a record's rows are, as `read_part` takes it: a file, or `FILE#3`, a row group of one that `compact` wrote."""
    part: Part = getattr(record, kind)
    return storage.join(store, kind, part.merged or part_name(record.name))


def part_name(shard: str) -> str:
    """Of the file that the commit of a shard of this name writes."""
    return f"part-{shard}.parquet"


def record_uri(store: str, shard: Shard) -> str:
    return storage.join(store, "records", f"{shard_name(shard)}.json")


def ids_digest(ids: Sequence[str]) -> str:
    """sha256 over the ids in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def commit(
    store: str,
    shard: Shard,
    fingerprint: str,
    generation: int,
    labels: Sequence[Label],
    failures: Sequence[Failure],
    lease: str | None = None,
) -> Record:
    """Write a shard's rows and record them. Returns the record that stands, another writer's if that came first.

    Args:
        lease: what the driver's lock has for its workers (`WriterLock.lease`).

    Raises:
        RunError: when the disk is full or cannot be written, or the store is another driver's now; nothing is recorded then.
    """
    label_rows, label_data = _parquet(labels_table(labels))
    error_rows, error_data = _parquet(errors_table(failures))
    stats = ShardStats.of(label_rows)
    reasons = dict(sorted(Counter(f.reason for f in failures).items()))
    record = Record(
        shard, fingerprint, generation, _part(label_rows, label_data), _part(error_rows, error_data), reasons, stats
    )
    standing = find_record(store, shard)
    if standing is not None and standing.generation >= generation:
        return standing
    with working(store, lease):
        if standing is not None:
            documents.remove(record_uri(store, shard))
        for kind, data in (("labels", label_data), ("errors", error_data)):
            uri = part_uri(store, kind, shard)
            if data is None:
                documents.remove(uri)
            else:
                documents.write_bytes(uri, data)
        return _recorded(store, record)


def _recorded(store: str, record: Record) -> Record:
    """The record that stands: this one, or another writer's that came first and is true of the parts that stand."""
    uri = record_uri(store, record.shard)
    if documents.create(uri, record.to_json()):
        return record
    standing = find_record(store, record.shard)
    if standing is not None and all(
        _stands(store, record.shard, kind, part)
        for kind, part in (("labels", standing.labels), ("errors", standing.errors))
    ):
        return standing
    documents.write(uri, record.to_json())  # theirs, late, is of parts that ours replaced
    return record


def _stands(store: str, shard: Shard, kind: str, part: Part) -> bool:
    if part.sha256 is None:
        return True
    try:
        return hashlib.sha256(storage.read_bytes(part_uri(store, kind, shard))).hexdigest() == part.sha256
    except FileNotFoundError:
        return False


def find_record(store: str, shard: Shard) -> Record | None:
    """The record that a shard's commit wrote, None where there is none, or `compact` took it up since
    (`LabelStore.records` has these too). Raises StoreError for a damaged one."""
    try:
        return Record.read(record_uri(store, shard))
    except FileNotFoundError:
        return None


def _parquet(table: pa.Table) -> tuple[pa.Table, bytes | None]:
    if not table.num_rows:
        return table, None
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return table, buffer.getvalue()


def _part(table: pa.Table, data: bytes | None) -> Part:
    sha = None if data is None else hashlib.sha256(data).hexdigest()
    return Part(table.num_rows, sha, ids_digest(table["id"].to_pylist()))
