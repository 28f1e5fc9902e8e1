"""What a store's records come to, each of them taken once: as a run commits them, or as they are read.

Of each shard some hundred bytes stay, in columns: a large store has millions.
"""

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import eq
from typing import overload

from pipeline.store.commit import NO_ROWS, Committed, Part, Record, file_key, indexed_name
from pipeline.store.names import ShardNames
from pipeline.store.summary import ShardStats, merge

DIGEST_BYTES = 32
SHA256 = re.compile(r"[0-9a-f]{64}")
GROUP = re.compile(r"(.+)#(0|[1-9]\d{0,8})")


@dataclass
class _FileStats:
    """Statistics of one file's shards, merged in the order of the shards, in whichever order they come."""

    merged: ShardStats = field(default_factory=ShardStats)
    next: int = 0
    waiting: dict[int, ShardStats] = field(default_factory=dict)

    def add(self, index: int, stats: ShardStats) -> None:
        self.waiting[index] = stats
        while self.next in self.waiting:
            self.merged += self.waiting.pop(self.next)
            self.next += 1

    def all(self) -> ShardStats:
        return merge([self.merged, *(self.waiting[index] for index in sorted(self.waiting))])


class _Parts:
    """Those of one kind, without the digests of their ids: rows, digest, and where `compact` put the rows."""

    def __init__(self) -> None:
        self.rows, self.groups, self.files = array("q"), array("i"), array("i")
        self.digests = bytearray()
        self.names: list[str] = []  # of merged files; neighbours are mostly in the same
        self.others: dict[int, Part] = {}  # what is of no form that columns can hold

    def add(self, part: Part) -> None:
        group = GROUP.fullmatch(part.merged or "")
        if part.rows and not (SHA256.fullmatch(part.sha256 or "") and (group or part.merged is None)):
            self.others[len(self.rows)] = Part(part.rows, part.sha256, "", part.merged)
            part, group = NO_ROWS, None
        if group and (not self.names or self.names[-1] != group[1]):
            self.names.append(group[1])
        self.rows.append(part.rows)
        self.files.append(len(self.names) - 1 if group else -1)
        self.groups.append(int(group[2]) if group else -1)
        self.digests += bytes.fromhex(part.sha256 or "") if part.rows else bytes(DIGEST_BYTES)

    def __getitem__(self, at: int) -> Part:
        if not self.rows[at]:
            return self.others.get(at, NO_ROWS)
        digest = self.digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES].hex()
        merged = f"{self.names[self.files[at]]}#{self.groups[at]}" if self.files[at] >= 0 else None
        return Part(self.rows[at], digest, "", merged)

    def any(self, at: int) -> bool:
        return bool(self.rows[at]) or at in self.others


class _File:
    """The committed shards of one input file, in the order in which they came."""

    def __init__(self, name: str):
        self.name, self.key = name, file_key(name)
        self.indices = array("q")
        self.labels, self.errors = _Parts(), _Parts()
        self.stats = _FileStats()

    def add(self, record: Record) -> None:
        self.indices.append(record.shard.index)
        self.labels.add(record.labels)
        self.errors.add(record.errors)
        self.stats.add(record.shard.index, record.stats)

    def order(self, labelled: bool) -> "array[int]":
        """Positions in the order of the shards' names; `labelled`: of those with labels."""
        positions = (at for at in range(len(self.indices)) if not labelled or self.labels.any(at))
        large = max(self.indices, default=0) >= 1_000_000  # a digit more does not sort as a number
        key = (lambda at: f"{self.indices[at]:06d}") if large else self.indices.__getitem__
        return array("q", sorted(positions, key=key))

    def __getitem__(self, at: int) -> Committed:
        index = self.indices[at]
        return Committed(indexed_name(self.key, index), self.name, index, self.labels[at], self.errors[at])


class CommittedShards(Sequence[Committed]):
    """Committed shards in the order of their names, each made as it is asked for."""

    def __init__(self, files: Sequence[_File], labelled: bool):
        self._files = [(file, file.order(labelled)) for file in files]
        self._ends = list(accumulate(len(order) for _, order in self._files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> Committed: ...
    @overload
    def __getitem__(self, at: slice) -> list[Committed]: ...
    def __getitem__(self, at: int | slice) -> Committed | list[Committed]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        number = bisect_right(self._ends, at)
        file, order = self._files[number]
        return file[order[at - self._ends[number]]]  # counted from the end of the file's

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list


class Survey:
    """Counts, statistics and the places of rows. The same records give the same bits, in whichever order they come."""

    def __init__(self) -> None:
        self.rows = self.labels = 0
        self.errors: Counter[str] = Counter()
        self._names = ShardNames()
        self._files: dict[str, _File] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, record: Record) -> None:
        """Take a committed shard's record; one that was taken already says nothing new."""
        name, file = record.name, record.shard.file
        if name in self._names:
            return
        self._names.add(name)
        self.rows += record.shard.rows
        self.labels += record.labels.rows
        self.errors.update(record.reasons)
        if file not in self._files:
            self._files[file] = _File(file)
        self._files[file].add(record)

    def committed(self, file: str, shards: int) -> int:
        """How many of the first shards of an input file are."""
        return sum(index < shards for index in self._files[file].indices) if file in self._files else 0

    @property
    def shards(self) -> CommittedShards:
        """In the order of their names."""
        return CommittedShards(self._sorted(), labelled=False)

    @property
    def labelled(self) -> CommittedShards:
        """Those that have labels, in the order of their names."""
        return CommittedShards(self._sorted(), labelled=True)

    @property
    def stats(self) -> ShardStats:
        return merge(file.stats.all() for file in self._sorted())

    def _sorted(self) -> list[_File]:
        return sorted(self._files.values(), key=lambda file: file.key)
