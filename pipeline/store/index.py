"""A driver's copies of the records that its workers commit: read a thousand at a time, where else each is a file."""

from pipeline.store.commit import Record
from pipeline.store.segments import Segment, new_name, segment_names
from pipeline.store.store import LabelStore

RECORDS = 1024
"""Records in one file of the index."""


class RecordIndex:
    """Takes each record as it is committed. Needs the writer's lock. Raises RunError when the disk is full or cannot be
    written.

    A record with error rows is left out: its shard may be labelled once more, and what the index says never changes. What is
    in the index and in no file of its own does not count, so a run that is killed loses nothing but a short cut.
    """

    def __init__(self, store: LabelStore, records: int = RECORDS):
        self.store, self.records = store, records
        self._names: list[str] | None = None
        self._waiting: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        if not record.errors.rows:
            self._waiting[record.name] = record
        if len(self._waiting) >= self.records:
            self._write()

    def close(self) -> None:
        """At the end of a run. A few that are left stay where they are: a small store has no index."""
        if len(self._waiting) >= max(1, self.records // 8):
            self._write()

    def _write(self) -> None:
        if self._names is None:
            self._names = segment_names(self.store.uri)
        self._names.append(new_name(self._names))
        segment = Segment.of(self._names[-1], list(self._waiting.values()))
        segment.create(self.store.uri)
        self.store.remember(segment)
        self._waiting.clear()
