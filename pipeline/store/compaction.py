"""`compact`: few large files instead of many small ones, of a store that stays whole at every moment.

    1  read        the rows of some shards, held against their records
    2  merge       into labels/part-segment-NAME.parquet and errors/part-segment-NAME.parquet, a shard a row group, until they
                   are large enough
    3  segment     records/segments/NAME.segment: from now on its shards' records and rows count there, and no more where
                   they were (`pipeline.store.standing`)
    4  remove      the records and parts that it replaces; at the end the segments that nothing counts in any more

Stopped before 3, nothing has changed but for files that nobody names; stopped after it, files are left that do not count.
`clean` removes both, as the next writer opens the store. A reader that goes by the records meets every row once, always; a
plain glob of labels/ does so again when the command is finished.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store import documents
from pipeline.store.commit import Part, Record, part_name
from pipeline.store.names import ShardNames
from pipeline.store.reading import READERS, in_parallel, read_recorded
from pipeline.store.segments import (
    Merged,
    Segment,
    merged_name,
    merged_segment,
    new_name,
    segment_uri,
)
from pipeline.store.standing import Standing, own_uri

KINDS = ("labels", "errors")
TARGET_BYTES = 256 * 2**20
LARGEST_SEGMENT = 4096
"""Shards in one segment at most: their records are decoded together."""

Rows = dict[str, pa.Table | None]


@dataclass
class Compaction:
    """How far it is: shards that are to be merged, those that are, and the files of rows and records that they are in now."""

    of_shards: int = 0
    shards: int = 0
    files: int = 0


def compact(store: str, target_bytes: int = TARGET_BYTES) -> Iterator[Compaction]:
    """Merge all that is small; yields how far it is after each segment. Needs the writer's lock.

    Args:
        target_bytes: a file of labels is closed when it is as large as this; one of half the size is left as it is.

    Raises:
        StoreError: where a part is damaged: nothing that it replaces is removed.
    """
    clean(store)
    look = Standing(store)
    names = _small(look, target_bytes)
    yield from _rewrite(look, names, target_bytes)
    clean(store)


def settle(store: str, known: dict[str, Segment] | None = None, target_bytes: int = TARGET_BYTES) -> None:
    """Take the rows of shards that were retried out of the files that `compact` merged them into before, so that a plain
    glob finds every row once. Needs the writer's lock. `known`: as `Standing` takes it."""
    look = Standing(store, known)
    if look.superseded:
        retried = {segment.name for segment in look.segments if look.superseded & segment.generations.keys()}
        names = sorted(name for name, segment in look.merged.items() if segment.name in retried)
        for _ in _rewrite(look, names, target_bytes):
            pass
        clean(store, known)


def clean(store: str, known: dict[str, Segment] | None = None) -> None:
    """Remove what no longer counts, of `compact` that was stopped and of workers that outlived their run. Needs the writer's
    lock. `known`: as `Standing` takes it. Raises StoreError where a segment is damaged."""
    listed = {kind: ShardNames(_parts(storage.join(store, kind))) for kind in KINDS}
    look = Standing(store, known)
    look.require_intact()
    counting = {segment.name for segment in look.merged.values()}
    gone = []
    for segment in look.segments:
        whole = segment.merged or segment.generations.keys() <= look.indexed
        if segment.name not in counting if segment.merged else not whole:
            gone.append(segment_uri(store, segment.name))
    _remove(gone)
    gone = [own_uri(store, name) for name in sorted(look.files & look.merged.keys())]
    for kind, names in listed.items():
        for name in names:
            segment_of = merged_segment(part_name(name))
            if name in look.merged or (segment_of is not None and segment_of not in counting):
                gone.append(storage.join(store, kind, part_name(name)))
    _remove(gone)


def _parts(folder: str) -> Iterator[str]:
    """Of the files in a folder what stands in their names for a shard, or for a segment."""
    for name in storage.each_name(folder):
        part = name.removeprefix("part-").removesuffix(".parquet")
        if part_name(part) == name:
            yield part


def _small(look: Standing, target_bytes: int) -> list[str]:
    """Shards whose rows are in small files, or in a file with rows that do not count; none where there is nothing to merge."""
    large = set()
    tails = set()
    for segment in look.segments:
        if segment.merged and all(look.merged.get(name) is segment for name in segment.generations):
            tails.add(segment.name)
            size = max((part.bytes for part in segment.parts.values()), default=0)
            if size >= target_bytes / 2 or len(segment.generations) >= LARGEST_SEGMENT:
                large.add(segment.name)
    names = [name for name in look.names() if name not in look.merged or look.merged[name].name not in large]
    files = {look.merged[name].name if name in look.merged else name for name in names}
    return [] if len(files) == 1 and files <= tails else names


def _rewrite(look: Standing, names: list[str], target_bytes: int) -> Iterator[Compaction]:
    """Put the rows of some shards into segments of their own."""
    done = Compaction(len(names))
    if names:
        _allow_segments(look.store)
    segments = [segment.name for segment in look.segments]

    def read(record: Record) -> tuple[Record, Rows]:
        return record, {kind: read_recorded(look.store, kind, record) for kind in KINDS}

    rows = (value for _, value in in_parallel(read, look.records(look.by_place(names)), READERS))
    first = next(rows, None)
    while first is not None:
        segments.append(new_name(segments))
        segment, first = _merge(look.store, segments[-1], first, rows, target_bytes)
        segment.create(look.store)
        shards = segment.generations
        replaced = [name for name in shards if name in look.files]
        _remove([own_uri(look.store, name) for name in replaced])
        parts = [storage.join(look.store, kind, part_name(name)) for name in replaced for kind in KINDS]
        _remove(parts)
        done.shards += len(shards)
        done.files += 1 + len(segment.parts)
        yield done


def _merge(
    store: str, name: str, first: tuple[Record, Rows], more: Iterator[tuple[Record, Rows]], target_bytes: int
) -> tuple[Segment, tuple[Record, Rows] | None]:
    """Write the files of one segment. Returns it, not yet written, and what comes after it."""
    records: list[Record] = []
    following: tuple[Record, Rows] | None = first
    with contextlib.ExitStack() as stack:  # where a file cannot be written to its end, none of them shows
        file = merged_name(name)
        files = {kind: _Rows(storage.join(store, kind, file), file, stack) for kind in KINDS}
        while following is not None and len(records) < LARGEST_SEGMENT:
            record, rows = following
            parts = {kind: files[kind].add(getattr(record, kind), rows[kind]) for kind in KINDS}
            records.append(_moved(record, parts))
            following = next(more, None)
            if max(each.bytes for each in files.values()) >= target_bytes:
                break
        merged = {kind: written for kind, each in files.items() if (written := each.close()) is not None}
    return Segment.of(name, records, merged), following


def _moved(record: Record, parts: dict[str, Part]) -> Record:
    return Record(
        record.shard,
        record.fingerprint,
        record.generation,
        parts["labels"],
        parts["errors"],
        record.reasons,
        record.stats,
    )


@dataclass
class _Rows:
    """A file that shards' rows are put into, a row group each; there is none where no shard has any."""

    uri: str
    name: str
    stack: contextlib.ExitStack
    groups: int = 0
    path: str = ""
    writer: pq.ParquetWriter | None = None
    sink: pa.NativeFile | None = field(default=None, repr=False)

    def add(self, part: Part, table: pa.Table | None) -> Part:
        """The part as it is from now on. Raises StoreError where its columns are not those of the others."""
        if table is None:
            return part
        if self.writer is None:
            self.path = self.stack.enter_context(documents.whole_file(self.uri))
            self.sink = self.stack.enter_context(pa.OSFile(self.path, "wb"))
            writer = pq.ParquetWriter(self.sink, table.schema, compression="zstd", write_page_checksum=True)
            self.writer = self.stack.enter_context(writer)
        elif not self.writer.schema.equals(table.schema):
            raise StoreError(f"{self.uri}: the columns of its shards differ; endoreward validate says where")
        self.writer.write_table(table, row_group_size=table.num_rows)
        self.groups += 1
        return Part(part.rows, part.sha256, part.ids_sha256, f"{self.name}#{self.groups - 1}")

    @property
    def bytes(self) -> int:
        return self.sink.tell() if self.sink is not None else 0

    def close(self) -> Merged | None:
        if self.writer is None or self.sink is None:
            return None
        self.writer.close()
        self.sink.close()
        digest, size = hashlib.sha256(), 0
        with open(self.path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
                size += len(block)
        return Merged(digest.hexdigest(), size, self.groups)


def _allow_segments(store: str) -> None:
    """Say in `records/run.json` that records may be in segments: earlier versions of this program then refuse the store, where
    they would label again what they do not see."""
    uri = storage.join(store, "records", "run.json")
    content = documents.read(uri)
    if content.get("version", 0) < 2:
        documents.write(uri, {**content, "version": 2})


def _remove(uris: Sequence[str]) -> None:
    for _ in in_parallel(documents.remove, uris, 2 * READERS):
        pass
