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
from pipeline.corpus import InputFile, Shape, counted, head_of, plan_file
from pipeline.corpus.labels.rules import ByValue
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
    for each, plan in _by_tasks(later, config) if by_tasks else _beside(later, config):
        if isinstance(plan, EndorewardError):
            raise plan
        yield replace(plan, file=each.file)


def _by_tasks(later: Sequence[Later], config: InputConfig) -> Iterator[tuple[Later, StoredInput | EndorewardError]]:
    import ray

    task: Any = ray.remote(num_cpus=READ_CPUS, max_retries=3)(_planned)
    asked: deque[tuple[Later, Any]] = deque()
    for each in later:
        asked.append((each, task.remote(each, config)))
        if len(asked) > AHEAD:
            first, plan = asked.popleft()
            yield first, ray.get(plan)
    for first, plan in asked:
        yield first, ray.get(plan)


def _beside(later: Sequence[Later], config: InputConfig) -> Iterator[tuple[Later, StoredInput | EndorewardError]]:
    beside = Apart()
    try:
        yield from in_parallel(lambda each: beside.call(_planned, each, config), later, 1)
    finally:
        beside.stop()


def _planned(later: Later, config: InputConfig) -> StoredInput | EndorewardError:
    """In a task, or in a process beside the driver: an error as a value reaches the driver whole."""
    file = later.file
    try:
        _require_untouched(file)
        plan = plan_file(file, config.format, config.shard_rows, config.shard_bytes)
        _require_untouched(file)
        if plan.head != later.head:
            raise _changed(file)
        shape = counted((file, later.format, later.shape, plan))
        return StoredInput(file, later.format, shape, replace(plan, head=()))
    except EndorewardError as error:
        return error


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
