"""Which record of each shard counts: the one in a file of its own, or the one in a segment (`pipeline.store.segments`).

    merged segment    counts, unless the shard has a record of its own of a later generation: it was retried since
    own file          counts otherwise
    index segment     is where a record with a file of its own is read; without that file it says nothing
    of two segments   the later one

So every shard counts once at any moment, also while `compact` works or after it was killed: a segment shows before the files
that it replaces go. Records are listed before segments are, so that none is missed on its way.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cached_property
from itertools import groupby
from threading import Lock

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store.commit import Record
from pipeline.store.names import ShardNames
from pipeline.store.reading import READERS, in_parallel
from pipeline.store.segments import Segment, segment_names

LOOKS = 5
DECODED = 2
"""Segments that are decoded ahead: of thousands of records each, by one interpreter."""


class Standing:
    """One look at a store: a listing, and every segment once.

    Args:
        known: segments that were read before, by name; those that are read now are put there.
    """

    def __init__(self, store: str, known: dict[str, Segment] | None = None):
        self.store = store
        self.damage: list[StoreError] = []
        self.files = _own_files(store)
        self.known = {} if known is None else known
        self.segments = self._read_segments(self.known)
        self.merged: dict[str, Segment] = {}  # by shard's name
        self.superseded: set[str] = set()  # shards in a merged segment that were retried since
        for segment in self.segments:
            if segment.merged:
                self.merged.update(dict.fromkeys(segment.generations, segment))
        for name, generation in self._own_generations(sorted(self.files & self.merged.keys())):
            if generation > self.merged[name].generations[name]:
                del self.merged[name]
                self.superseded.add(name)
        self.indexed = ShardNames()
        self.repeated: dict[str, str] = {}  # of shards in several index segments, the last of these
        for segment in self.segments:
            for name in self._indexed_in(segment):
                if name in self.indexed:
                    self.repeated[name] = segment.name
                self.indexed.add(name)

    def _indexed_in(self, segment: Segment) -> Iterator[str]:
        """Shards whose record is read in an index segment, if not in a later one."""
        if not segment.merged:
            yield from (name for name in segment.generations if name in self.files and name not in self.merged)

    @cached_property
    def _index(self) -> dict[str, Segment]:
        """By shard's name: large, and made for who asks for records by their names."""
        return {name: segment for segment in self.segments for name in self._indexed_in(segment)}

    def names(self) -> Set[str]:
        """Of the shards that are done. Raises StoreError where a segment is damaged."""
        self.require_intact()
        return self.files | self.merged.keys() if self.merged else self.files

    def indexed_records(self) -> Iterator[tuple[Segment, Record]]:
        """What the index says of shards that have a record of their own, which counts whatever this says."""
        for segment in self.segments:
            if not segment.merged:
                for record in segment.records(self.store):
                    if record.name in self.files and record.name not in self.merged:
                        yield segment, record

    def require_intact(self) -> None:
        if self.damage:
            raise self.damage[0]

    def by_place(self, names: Iterable[str]) -> list[str]:
        """Shards that are done, those of one segment together: `records` then decodes one segment at a time."""

        def place(name: str) -> tuple[str, str]:
            segment = self.merged.get(name) or self._index.get(name)
            return (segment.name if segment is not None else "", name)

        return sorted(names, key=place)

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Those of some shards that are done, in their order. Raises StoreError for a damaged one."""
        decoded = _Decoded(self.store)
        places = [(name, self.merged.get(name) or self._index.get(name)) for name in names]
        decoded.wanted.update(segment.name for _, segment in places if segment is not None)

        def read(run: tuple[Segment | None, list[str]]) -> list[Record]:
            segment, inside = run
            return decoded.take(segment, inside) if segment is not None else [self._own(name) for name in inside]

        for _, records in in_parallel(read, _runs(places), 2 * READERS):
            yield from records

    def records_of(self, wanted: Callable[[str], bool]) -> Iterator[Record]:
        """Those of the shards that are done and wanted, segment by segment. Raises StoreError for a damaged one."""
        self.require_intact()

        def counts(name: str, segment: Segment) -> bool:
            if segment.merged:
                return self.merged.get(name) is segment
            return name in self.indexed and self.repeated.get(name, segment.name) == segment.name

        def read(segment: Segment) -> list[Record]:
            return [each for each in segment.records(self.store) if counts(each.name, segment) and wanted(each.name)]

        segments = map(self.segments.__getitem__, range(len(self.segments)))  # not all held
        with_wanted = (s for s in segments if any(counts(n, s) and wanted(n) for n in s.generations))
        for segment, records in in_parallel(read, with_wanted, DECODED):
            if not segment.merged:  # whoever asks once more reads the file
                self.segments[self.segments.index(segment)] = self.known[segment.name] = segment.without_lines()
            yield from records
        own = (n for n in self.files if n not in self.merged and n not in self.indexed and wanted(n))
        for _, record in in_parallel(self._own, own, 2 * READERS):
            yield record

    def _own(self, name: str) -> Record:
        """A record in a file of its own, wherever it went since this look."""
        try:
            return Record.read(own_uri(self.store, name))
        except FileNotFoundError:
            segment = Standing(self.store).merged.get(name)
        if segment is None:
            raise StoreError(
                f"{own_uri(self.store, name)} went away while it was read: its shard is being labelled once more; wait until "
                "that run is finished"
            )
        return next(record for record in segment.records(self.store) if record.name == name)

    def _own_generations(self, names: list[str]) -> Iterator[tuple[str, int]]:
        def generation(name: str) -> int:
            try:
                return Record.read(own_uri(self.store, name)).generation
            except FileNotFoundError:  # what a segment replaces goes when that stands
                return -1
            except StoreError as error:
                self.damage.append(error)
                return -1

        return in_parallel(generation, names, 2 * READERS)

    def _read_segments(self, known: dict[str, Segment]) -> list[Segment]:
        """Every segment, in the order of their numbers. One that goes while it is read was replaced: then once more."""

        def read(name: str) -> Segment | None:
            if name not in known:
                try:
                    known[name] = Segment.read(self.store, name)
                except StoreError as error:
                    self.damage.append(error)
                    return None
            return known[name]

        for look in range(LOOKS):
            self.damage.clear()
            names = segment_names(self.store)
            try:
                read_now = [segment for _, segment in in_parallel(read, names) if segment is not None]
            except FileNotFoundError:
                if look == LOOKS - 1:
                    raise
                continue
            for gone in known.keys() - set(names):
                del known[gone]
            return read_now
        raise AssertionError


class _Decoded:
    """Segments' records, each segment decoded once and let go when all that is wanted of it was taken."""

    def __init__(self, store: str):
        self.store, self.lock = store, Lock()
        self.wanted: Counter[str] = Counter()
        self.held: dict[str, dict[str, Record]] = {}

    def take(self, segment: Segment, names: list[str]) -> list[Record]:
        with self.lock:
            if segment.name not in self.held:
                self.held[segment.name] = {record.name: record for record in segment.records(self.store)}
            taken = [self.held[segment.name].pop(name) for name in names]
            self.wanted[segment.name] -= len(names)
            if not self.wanted[segment.name]:
                del self.held[segment.name]
            return taken


def own_uri(store: str, name: str) -> str:
    """The file of its own that a shard's record is committed to."""
    return storage.join(store, "records", f"{name}.json")


def _own_files(store: str) -> ShardNames:
    names = storage.each_name(storage.join(store, "records"))
    return ShardNames(
        n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith(("input-", "run."))
    )


def _runs(places: list[tuple[str, Segment | None]]) -> Iterator[tuple[Segment | None, list[str]]]:
    """Neighbours in one segment together, a record in a file of its own alone."""
    for segment, run in groupby(places, key=lambda place: place[1]):
        names = [name for name, _ in run]
        if segment is not None:
            yield segment, names
        else:
            yield from ((None, [name]) for name in names)
