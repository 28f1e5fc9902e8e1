"""What a store's records come to, each of them taken once: as a run commits them, or as they are read."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.store.commit import Committed, Record, file_key
from pipeline.store.summary import ShardStats, merge


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


class Survey:
    """Counts, statistics and the places of rows. The same records give the same bits, in whichever order they come."""

    def __init__(self) -> None:
        self.rows = self.labels = 0
        self.errors: Counter[str] = Counter()
        self._shards: dict[str, Committed] = {}
        self._files: dict[str, _FileStats] = {}

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def add(self, record: Record) -> None:
        """Take a committed shard's record; one that was taken already says nothing new."""
        if record.name in self._shards:
            return
        self._shards[record.name] = Committed.of(record)
        self.rows += record.shard.rows
        self.labels += record.labels.rows
        self.errors.update(record.reasons)
        self._files.setdefault(record.shard.file, _FileStats()).add(record.shard.index, record.stats)

    @property
    def shards(self) -> list[Committed]:
        """In the order of their names."""
        return [self._shards[name] for name in sorted(self._shards)]

    @property
    def stats(self) -> ShardStats:
        return merge(self._files[file].all() for file in sorted(self._files, key=file_key))
