"""Input files that are planned while those before them are labelled: their columns are known from the beginning, their shards
and rows when their turn comes.

Until a file is planned to its end, nothing of it is labelled. One that is not what it was, or cannot be read, ends the run.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

from jobs.cluster import READ_CPUS
from pipeline import storage
from pipeline.apart import Apart
from pipeline.config import InputConfig
from pipeline.corpus import (
    FilePlan,
    InputFile,
    Shape,
    counted,
    digest_of,
    head_of,
    joined,
    plan_file,
    plan_section,
    sections,
)
from pipeline.corpus.labels.rules import ByValue
from pipeline.corpus.sources import beside_of, origin_of
from pipeline.errors import EndorewardError, InputError
from pipeline.store import StoredInput
from pipeline.store.reading import in_parallel

FIRST_BYTES = 256 << 20
"""Files of so many bytes are planned before anything is labelled: that takes a second or two."""
PACKED = 4  # bytes that one of a compressed file counts as
AHEAD = 8  # files that tasks plan ahead of the one at hand
LOOKS = 16  # files that are looked at at once
LOOK_S = 1.0  # how often it is asked whether a plan is still wanted

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Later:
    """An input file whose columns are known and whose shards are not."""

    file: InputFile
    format: str
    shape: Shape
    head: tuple[dict[str, Any], ...]


def beyond(files: Iterable[InputFile], most: int) -> list[InputFile]:
    """Those after the first `most` bytes, and after the first file in any case."""
    size, later = 0, []
    for number, file in enumerate(files):
        size += file.size * (PACKED if file.name.endswith((".gz", ".zst")) else 1)
        if number and size > most:
            later.append(file)
    return later


def look(
    files: Sequence[InputFile], config: InputConfig, shape_of: Callable[[Rows, InputConfig, str], Shape]
) -> list[Later]:
    """What the files are by their first rows; without empty ones, and without those whose labels have to be held against every
    row. Raises InputError."""
    later = []
    for file, head in in_parallel(lambda file: head_of(file, config.format), files, LOOKS):
        if not head.rows and head.trouble:
            raise InputError(f"{file.uri}: not one row can be read; of the first: {head.trouble}")
        if not head.rows:
            continue
        shape = shape_of(list(head.rows), config, file.name)
        if not (isinstance(shape.label, ByValue) and shape.label.closed):
            later.append(Later(file, config.format, shape, head.rows))
    return later


class Asked:
    """A file that tasks of the cluster plan: one, or of a large file of JSON lines one for each section."""

    def __init__(self, file: InputFile, config: InputConfig, cpus: float):
        import ray

        task: Any = ray.remote(num_cpus=cpus, max_retries=3)(_unless_error)
        self.file, self.format = file, config.format
        number, cut = sections(file, config.format), (config.shard_rows, config.shard_bytes, beside_of(file, config))
        self.parts: list[Any] = []
        if number == 1:
            self.whole = task.remote(plan_file, file, config.format, *cut)
        else:
            self.whole = task.remote(digest_of, file)
            self.parts = [task.remote(plan_section, file, index, *cut) for index in range(number)]

    @property
    def references(self) -> list[Any]:
        return [*self.parts, self.whole]

    def done(self, timeout_s: float) -> bool:
        """Whether it is planned, which is waited for so long at most."""
        import ray

        return not ray.wait(self.references, num_returns=len(self.references), timeout=timeout_s)[1]

    def cancel(self) -> None:
        import ray

        for each in self.references:
            ray.cancel(each, force=True)

    def plan(self) -> FilePlan:
        """Waits for it. Raises EndorewardError."""
        parts = [_result(part) for part in self.parts]
        whole = _result(self.whole)
        return joined(self.file, self.format, parts, whole) if parts else whole


def _unless_error(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except EndorewardError as error:  # as a value it reaches the driver whole
        return error


def _result(answer: Any) -> Any:
    import ray

    value = ray.get(answer)
    if isinstance(value, EndorewardError):
        raise value
    return value


class Planning:
    """The plan of each of some files, in order, until it is closed; iterate once.

    Args:
        by_tasks: of the cluster that this process has joined, else in a process beside it.
        add: is called with each before it is given on.
    """

    def __init__(
        self,
        later: Sequence[Later],
        config: InputConfig,
        by_tasks: bool,
        add: Callable[[StoredInput], None] = lambda stored: None,
    ):
        self.later, self.config, self.by_tasks, self.add = later, config, by_tasks, add
        self.closed = False
        self.beside = Apart()

    def __iter__(self) -> Iterator[StoredInput]:
        """Raises EndorewardError, and CancelledError once it is closed."""
        try:
            for stored in self._by_tasks() if self.by_tasks else self._beside():
                self._require_open()
                self.add(stored)
                yield stored
        finally:
            self.beside.stop()

    def close(self) -> None:
        """End it from another thread, whatever it is doing: nothing is planned or added any more."""
        self.closed = True
        self.beside.close()

    def _require_open(self) -> None:
        if self.closed:
            raise CancelledError

    def _beside(self) -> Iterator[StoredInput]:
        for each in self.later:
            yield self.beside.call(_planned, each, self.config)

    def _by_tasks(self) -> Iterator[StoredInput]:
        asked: deque[tuple[Later, Asked]] = deque()
        try:
            for each in self.later:
                _require_untouched(each.file)
                self._require_open()  # else Ray may be another's by now
                asked.append((each, Asked(each.file, self.config, READ_CPUS)))
                if len(asked) > AHEAD:
                    yield self._first(asked)
            while asked:
                yield self._first(asked)
        finally:
            for _, each_asked in asked:
                each_asked.cancel()

    def _first(self, asked: "deque[tuple[Later, Asked]]") -> StoredInput:
        later, first = asked[0]
        while not first.done(LOOK_S):
            self._require_open()
        asked.popleft()
        return _held(later, first.plan(), self.config)


def _planned(later: Later, config: InputConfig) -> StoredInput:
    """In a process beside the driver."""
    _require_untouched(later.file)
    beside = beside_of(later.file, config)
    return _held(later, plan_file(later.file, config.format, config.shard_rows, config.shard_bytes, beside), config)


def _held(later: Later, plan: FilePlan, config: InputConfig) -> StoredInput:
    """A plan, held against what was known of its file. Raises InputError."""
    _require_untouched(later.file)
    if repr(plan.head) != repr(later.head):  # a NaN is not equal to itself
        raise _changed(later.file)
    shape = counted((later.file, later.format, later.shape, plan))
    return with_origin(StoredInput(later.file, later.format, shape, replace(plan, head=())), config)


def with_origin(stored: StoredInput, config: InputConfig) -> StoredInput:
    """An input whose shape knows where its pictures are to be read."""
    origin = replace(origin_of(stored.file, stored.format, config), rows=stored.plan.shards[-1].stop)
    return replace(stored, shape=replace(stored.shape, origin=origin))


def _require_untouched(file: InputFile) -> None:
    filesystem, path = storage.locate(file.uri)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise InputError(f"{file.uri}: cannot be looked at: {error}") from error
    if (info.size, info.mtime_ns or 0) != (file.size, file.stamp):
        raise _changed(file)


def _changed(file: InputFile) -> InputError:
    return InputError(
        f"{file.uri} is not what it was when the run began, and nothing of it is labelled; leave input files alone while they "
        "are labelled, and run the same again"
    )
