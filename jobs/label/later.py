"""Input files that are planned while those before them are labelled: their columns are known from the beginning, their shards
and rows when their turn comes.

Until a file is planned to its end, nothing of it is labelled. One that is not what it was, or cannot be read, ends the run.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def planned(later: Sequence[Later], config: InputConfig, by_tasks: bool) -> Iterator[StoredInput]:
    """The plan of each, in order: by tasks of the cluster that this process has joined, else in a process beside it. Raises
    EndorewardError."""
    return _by_tasks(later, config) if by_tasks else _beside(later, config)


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


def _by_tasks(later: Sequence[Later], config: InputConfig) -> Iterator[StoredInput]:
    asked: deque[tuple[Later, Asked]] = deque()
    for each in later:
        _require_untouched(each.file)
        asked.append((each, Asked(each.file, config, READ_CPUS)))
        if len(asked) > AHEAD:
            first, plan = asked.popleft()
            yield _held(first, plan.plan(), config)
    for first, plan in asked:
        yield _held(first, plan.plan(), config)


def _beside(later: Sequence[Later], config: InputConfig) -> Iterator[StoredInput]:
    beside = Apart()
    try:
        for _, stored in in_parallel(lambda each: beside.call(_planned, each, config), later, 1):
            yield stored
    finally:
        beside.stop()


def _planned(later: Later, config: InputConfig) -> StoredInput:
    """In a process beside the driver."""
    _require_untouched(later.file)
    beside = beside_of(later.file, config)
    return _held(later, plan_file(later.file, config.format, config.shard_rows, config.shard_bytes, beside), config)


def _held(later: Later, plan: FilePlan, config: InputConfig) -> StoredInput:
    """A plan, held against what was known of its file. Raises InputError."""
    _require_untouched(later.file)
    if plan.head != later.head:
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
