"""What there is to label: the input files, the shards of each, and those of them that are not done."""

from collections.abc import Callable, Iterable
from typing import Any

from jobs import terminal
from jobs.flow import Work
from pipeline.benchmarks.base import Benchmark
from pipeline.config import InputConfig
from pipeline.corpus import (
    Choice,
    InputFile,
    InputFiles,
    Shape,
    detect,
    find_files,
    plan_file,
    read_shards,
    read_together,
)
from pipeline.errors import InputError, StoreError
from pipeline.sampled import check_samples
from pipeline.store import LabelStore, Record, StoredInput, shard_name
from pipeline.tokens import Renderer

ShapeOf = Callable[[list[dict[str, Any]], InputConfig, str], Shape]


def find_inputs(config: InputConfig, benchmark: Benchmark | None = None) -> InputFiles:
    """The files of the input, of a benchmark only those that are its own, after a warning that names those that are not
    read. Raises InputError."""
    default = benchmark.choice if benchmark else Choice()
    files = find_files(config.paths, Choice(config.config, config.split), default)
    if benchmark:
        files = files.without(benchmark.left_out([file.name for file in files]))
    for note in files.notes():
        terminal.warn(note)
    return files


def plan_inputs(
    store: LabelStore | None, files: Iterable[InputFile], config: InputConfig, shape_of: ShapeOf | None = None
) -> list[StoredInput]:
    """The shards of every file: from the store where it knows the file and the file is untouched, else by reading it
    once. Writes nothing. `shape_of` finds a file's shape from its first rows; by default its columns are recognised.

    Raises:
        InputError: where a file is broken, of no known shape, or all are empty.
        StoreError: where a file's content changed since the store labelled it.
    """
    planned = []
    for file in files:
        stored = store.find_input(file.name) if store is not None else None
        if stored is not None and file.stamp and (stored.file.size, stored.file.stamp) == (file.size, file.stamp):
            planned.append(StoredInput(file, stored.format, stored.shape, stored.plan))
            continue
        plan = plan_file(file, config.format, config.shard_rows)
        if plan.rows == 0:
            terminal.warn(f"{file.uri} is empty")
        elif stored is None:
            if not plan.head and plan.trouble:
                raise InputError(f"{file.uri}: not one row can be read; of the first: {plan.trouble}")
            shape = (shape_of or detect)(list(plan.head), config, file.name)
            planned.append(StoredInput(file, config.format, shape, plan))
        elif stored.plan.digest == plan.digest:
            planned.append(StoredInput(file, stored.format, stored.shape, stored.plan))
        else:
            raise StoreError(
                f"{file.uri}: its content changed since it was labelled; restore it, or label the new content into "
                "another --output"
            )
    if not planned:
        raise InputError("the input holds no rows: every file is empty")
    return planned


def check_sampled(inputs: Iterable[StoredInput], renderer: Renderer) -> None:
    """Raises ConfigError where a file's first rows are samples whose tokens this model cannot be given."""
    for stored in inputs:
        if stored.shape.sampled:
            _, rows = next(read_shards(stored.file, stored.format, stored.plan.shards[:1]))
            check_samples(stored.file.name, rows, stored.shape, renderer)


def pending(store: LabelStore, inputs: Iterable[StoredInput], retry_errors: bool) -> list[Work]:
    """Shards that are not done, and with `retry_errors` those with error rows; by the bytes that one task reads."""
    done = store.done()
    again: dict[str, Record] = {}
    if retry_errors:
        again = {shard_name(record.shard): record for record in store.records() if record.errors.rows}
    work = []
    for stored in inputs:
        shards = [s for s in stored.plan.shards if (name := shard_name(s)) not in done or name in again]
        for together in read_together(shards):
            generations = [again[n].generation + 1 if (n := shard_name(s)) in again else 0 for s in together]
            work.append(Work(stored.file, stored.format, stored.shape, together, generations))
    return work
