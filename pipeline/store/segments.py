"""Many records in one file: `records/segments/NUMBER-UNIQUE.segment`, written once and never changed.

    merged    by `compact`: the records' rows are in two files of its own, one of labels and one of errors, a shard a row group
    index     by a run as it commits: a copy of records that stand in files of their own, so that they need not be read one
              by one

The form: a line with what it is, a line with the sha256 of the rest, and the rest: compressed lines of JSON, a header and
after it one record each, in the order of their names. A flipped bit anywhere in it is seen.
"""

import hashlib
import json
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store import documents, typed
from pipeline.store.commit import Record

FOLDER = ("records", "segments")
ENDING = ".segment"
MAGIC = b"endoreward records\n"
VERSION = 1
REMEDY = (
    "put it back from a copy; or delete it, with the files part-segment-{name}.parquet in labels/ and errors/, and run the "
    "same label command again"
)


class DamagedSegment(StoreError):
    def __init__(self, message: str, segment: str):
        super().__init__(message)
        self.segment = segment


@dataclass(frozen=True)
class Merged:
    """A file that `compact` wrote."""

    sha256: str
    bytes: int
    groups: int  # a shard each


@dataclass(frozen=True, eq=False)
class Segment:
    """The records of some shards, packed. `parts` by kind is what they were merged into; an index has none."""

    name: str
    shards: bytes  # compressed JSON: the name and the generation of each, in the order of names
    parts: dict[str, Merged] = field(default_factory=dict)
    merged: bool = False
    lines: bytes | None = None  # compressed, without the header; None: read from the file where they are asked for

    @classmethod
    def of(cls, name: str, records: Sequence[Record], parts: dict[str, Merged] | None = None) -> "Segment":
        """`records` in any order; `parts` of a merged one."""
        ordered = sorted(records, key=lambda record: record.name)
        lines = b"".join(json.dumps(record.to_json()).encode() + b"\n" for record in ordered)
        shards = [(record.name, record.generation) for record in ordered]
        return cls(name, _packed(shards), parts or {}, parts is not None, zlib.compress(lines, 6))

    @property
    def generations(self) -> dict[str, int]:
        """By shard's name, in the order of names: made anew for each who asks."""
        return dict(json.loads(zlib.decompress(self.shards)))

    def without_lines(self) -> "Segment":
        return replace(self, lines=None)

    @property
    def number(self) -> int:
        """A later segment's is larger."""
        return int(self.name.partition("-")[0])

    def records(self, store: str) -> list[Record]:
        """All of them, in the order of their names. Raises StoreError for one of another form."""
        uri = segment_uri(store, self.name)
        lines = Segment.read(store, self.name).lines if self.lines is None else self.lines
        return [Record.parse(json.loads(line), uri) for line in zlib.decompress(lines or b"").splitlines()]

    def create(self, store: str) -> None:
        """Write it: from now on its records count."""
        header: dict[str, Any] = {
            "version": VERSION,
            "merged": self.merged,
            "parts": {kind: vars(part) for kind, part in self.parts.items()},
            "shards": list(self.generations.items()),
        }
        head = zlib.compress(json.dumps(header).encode(), 6)
        body = len(head).to_bytes(4, "big") + head + (self.lines or b"")
        data = MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if not documents.write_bytes(segment_uri(store, self.name), data, replace=False):
            raise StoreError(f"{segment_uri(store, self.name)} is there already; run the same again")

    @classmethod
    def read(cls, store: str, name: str) -> "Segment":
        """Raises FileNotFoundError, and StoreError for a damaged one, or one of a newer version."""
        uri, remedy = segment_uri(store, name), REMEDY.format(name=name)
        data = storage.read_bytes(uri)
        digest, body = data[len(MAGIC) : len(MAGIC) + 64], data[len(MAGIC) + 65 :]
        if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) + 64 : len(MAGIC) + 65] != b"\n":
            raise DamagedSegment(f"{uri} is damaged, or was not written by this program; {remedy}", name)
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise DamagedSegment(f"{uri} is damaged: its checksum does not match; {remedy}", name)
        size = int.from_bytes(body[:4], "big")
        header = json.loads(zlib.decompress(body[4 : 4 + size]))
        typed.check_version(header, VERSION, uri, remedy)
        parts = {kind: Merged(**part) for kind, part in header["parts"].items()}
        return cls(name, _packed(header["shards"]), parts, header["merged"], body[4 + size :])


def _packed(shards: Sequence[tuple[str, int]]) -> bytes:
    return zlib.compress(json.dumps(shards).encode(), 6)


def segment_uri(store: str, name: str) -> str:
    return storage.join(store, *FOLDER, name + ENDING)


def merged_name(segment: str) -> str:
    """The name of the files that a segment's rows were merged into, in `labels/` and in `errors/`."""
    return f"part-segment-{segment}.parquet"


def merged_segment(name: str) -> str | None:
    """The segment of a file that `compact` wrote; None for the name of another."""
    match = re.fullmatch(r"part-segment-(\d{6}-[0-9a-f]{8})\.parquet", name)
    return match[1] if match else None


def segment_names(store: str) -> list[str]:
    """Sorted. As new ones appear and old ones go, none is missed that stands: it is listed until nothing changes."""
    place = storage.join(store, *FOLDER)
    names = storage.list_names(place)
    while names and (again := storage.list_names(place)) != names:
        names = again
    return [name.removesuffix(ENDING) for name in names if re.fullmatch(r"\d{6}-[0-9a-f]{8}\.segment", name)]


def new_name(names: Sequence[str]) -> str:
    """Of the next segment. No name is given twice, even where a segment of that number was deleted."""
    last = max((int(name.partition("-")[0]) for name in names), default=0)
    return f"{last + 1:06d}-{uuid.uuid4().hex[:8]}"
