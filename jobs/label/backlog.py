"""What there is to label, made as it is asked for: runs of shards, of one file after the other."""

from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from jobs.label.work import Work
from pipeline.corpus import Shard, read_together
from pipeline.store import StoredInput
from pipeline.store.commit import file_key

RUN = 64
"""Most shards of one Work whose shards can be read apart."""


class Coming(Protocol):
    """Inputs as they are planned."""

    def __iter__(self) -> Iterator[StoredInput]: ...

    def close(self) -> None:
        """End it, from another thread too."""
        ...


class Backlog:
    """Shards that are not done. Work is made of them as it is asked for, again for each who asks; files that are still being
    planned come once, behind the others.

    Args:
        inputs: that are planned.
        done: names of shards that are.
        again: of those of them that are to be labelled once more, the generation that they then have.
        later: inputs as they are planned.

    Attributes:
        rows, shards: that are to be labelled, as far as they are known.
        total_rows: of all files that are planned.
        whole: whether every file is.
    """

    def __init__(
        self,
        inputs: Iterable[StoredInput],
        done: Iterable[str] = (),
        again: Mapping[str, int] | None = None,
        later: Coming | None = None,
    ):
        self.rows = self.shards = self.total_rows = 0
        self.again, self.later, self.whole = again or {}, later, later is None
        self._done: dict[str, array[int]] = {}  # by file: indices
        for name in done:
            file, _, index = name.rpartition("-")
            if name not in self.again:
                self._done.setdefault(file, array("q")).append(int(index))
        self._planned = [(stored, self._left(stored)) for stored in inputs]

    def planned(self) -> Iterator[Work]:
        """Of the inputs that were planned from the beginning."""
        for stored, left in self._planned:
            yield from self._work(stored, left)

    def first_left(self) -> Iterator[tuple[StoredInput, Shard, int]]:
        """Of each of these that is not done: the first shard that is left, and how many rows are."""
        for stored, left in self._planned:
            if left:
                rows = stored.plan.shards.column("rows")
                yield stored, stored.plan.shards[left[0]], sum(rows[at] for at in left)

    def planned_later(self) -> Generator[Work]:
        """Of the others, as they are planned."""
        for stored in self.later or ():
            yield from self._work(stored, self._left(stored))
        self.whole = True

    def close(self) -> None:
        """Plan no more, whoever waits for it."""
        if self.later is not None:
            self.later.close()

    def __iter__(self) -> Iterator[Work]:
        yield from self.planned()
        if self.later is not None:
            yield from self.planned_later()

    def _left(self, stored: StoredInput) -> Sequence[int]:
        """Positions of the shards that are not done."""
        shards = stored.plan.shards
        indices_done = self._done.pop(file_key(stored.file.name), None)
        done = None if indices_done is None else set(indices_done)
        indices, rows = shards.column("index"), shards.column("rows")
        left: Sequence[int] = range(len(shards))
        if done is not None:
            left = array("q", (at for at, index in enumerate(indices) if index not in done))
        self.total_rows += stored.plan.rows
        self.shards += len(left)
        self.rows += stored.plan.rows if done is None else sum(rows[at] for at in left)
        return left

    def _work(self, stored: StoredInput, left: Sequence[int]) -> Iterator[Work]:
        shards = stored.plan.shards
        for positions, apart in read_together(shards, left, RUN):
            part, key = shards.pick(positions), file_key(stored.file.name)
            generations = (
                [self.again.get(f"{key}-{index:06d}", 0) for index in part.column("index")] if self.again else []
            )
            yield Work(stored.file, stored.format, stored.shape, part, generations or [0] * len(part), apart)
