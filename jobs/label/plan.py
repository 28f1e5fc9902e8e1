"""What there is to label: the input files, the shards of each, and those of them that are not done."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jobs import terminal
from jobs.label.backlog import Backlog, Coming
from jobs.label.later import Asked, Later, beyond, look, with_origin
from pipeline import storage
from pipeline.config import InputConfig
from pipeline.corpus import (
    Choice,
    FilePlan,
    InputFile,
    InputFiles,
    Shape,
    counted,
    detect,
    find_files,
    plan_file,
    read_shards,
    require_proof,
    sections,
)
from pipeline.corpus.columns import RawRow
from pipeline.corpus.examine import Planned
from pipeline.corpus.labels.rules import Guessed, LabelRule, disagree
from pipeline.corpus.placing import unseen
from pipeline.corpus.sources import beside_of
from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.evaluation.benchmarks.base import Benchmark
from pipeline.store import LabelStore, StoredInput, Survey
from pipeline.tokens import Renderer
from pipeline.tokens.sampled import check_samples

PLAN_CPUS, PLANNED_AHEAD = 0.5, 256  # of a task that plans a file; files that are asked for ahead of the one at hand

ShapeOf = Callable[[list[dict[str, Any]], InputConfig, str], Shape]


def find_inputs(config: InputConfig, output: str, benchmark: Benchmark | None = None) -> InputFiles:
    """The files of the input, of a benchmark only those that are its own, after a warning that names those that are not
    read. Raises InputError, and ConfigError where `output` is among them."""
    refuse_output_within(config.paths, output)
    default = benchmark.choice if benchmark else Choice()
    files = find_files(config.paths, Choice(config.config, config.split), default)
    if benchmark:
        files = files.without(benchmark.left_out([file.name for file in files]))
    for note in files.notes():
        terminal.warn(note)
    return files


def refuse_output_within(paths: Iterable[str], output: str) -> None:
    """Raises ConfigError where OUTPUT lies in a folder that is read: its files would be corpus the next time."""
    for path in paths:
        folder = storage.absolute(path).rstrip("/")
        below = output[len(folder) :].strip("/").split("/") if f"{output}/".startswith(f"{folder}/") else None
        if below is not None and not any(name.startswith((".", "_")) for name in below):
            raise ConfigError(
                f"output.path = {output} lies in {path}, a folder that is read: what is written there would be read as corpus "
                f"the next time; give an --output beside it, or the files alone, such as --input '{path}/*.jsonl'"
            )


def plan_inputs(
    store: LabelStore | None, files: Iterable[InputFile], config: InputConfig, shape_of: ShapeOf | None = None
) -> list[StoredInput]:
    """`plan_first` of all files."""
    return plan_first(store, files, config, shape_of)[0]


def plan_first(
    store: LabelStore | None,
    files: Iterable[InputFile],
    config: InputConfig,
    shape_of: ShapeOf | None = None,
    first_bytes: int | None = None,
) -> tuple[list[StoredInput], list[Later]]:
    """The shards of every file: from the store where it knows the file and the file is untouched, else by reading it
    once. Writes nothing. `shape_of` finds a file's shape from its first rows; by default its columns are recognised. What
    its labels mean is held against every row.

    With `first_bytes`, of new files beyond so many bytes only the columns are looked at, unless that does not say what their
    labels mean.

    Raises:
        InputError: where a file is broken, of no known shape, its labels' meaning is not proven, or all are empty.
        StoreError: where a file's content changed since the store labelled it, or its labels were guessed then.
    """
    planned: list[StoredInput] = []
    new: list[Planned] = []
    known = [(file, store.find_input(file.name) if store is not None else None) for file in files]
    late = [] if first_bytes is None else beyond([file for file, stored in known if stored is None], first_bytes)
    later = look(late, config, shape_of or detect)
    names = {each.file.name for each in later}
    known = [(file, stored) for file, stored in known if file.name not in names]
    plans = plan_files([file for file, stored in known if not _is_as_stored(file, stored)], config)
    for file, stored in known:
        if stored is not None and _is_as_stored(file, stored):
            planned.append(StoredInput(file, stored.format, stored.shape, stored.plan))
            continue
        guessed = stored is not None and isinstance(stored.shape.label, Guessed)
        plan = next(plans)
        if plan.rows == 0:
            terminal.warn(f"{file.uri} is empty")
        elif stored is None:
            if not plan.head and plan.trouble:
                raise InputError(f"{file.uri}: not one row can be read; of the first: {plan.trouble}")
            shape = (shape_of or detect)(list(plan.head), config, file.name)
            new.append((file, config.format, shape, plan))
            planned.append(StoredInput(file, config.format, counted(new[-1]), plan))
        elif stored.plan.digest == plan.digest:
            shape = _proven(stored, file, plan, config, shape_of or detect) if guessed else stored.shape
            planned.append(StoredInput(file, stored.format, shape, stored.plan))
        else:
            raise StoreError(
                f"{file.uri}: its content changed since it was labelled; restore it, or label the new content into "
                "another --output"
            )
    if not planned and not later:
        raise InputError("the input holds no rows: every file is empty")
    require_proof(new)
    _require_one_meaning([*planned, *later])
    _warn_of_unseen([*((shape, plan.head) for _, _, shape, plan in new), *((each.shape, each.head) for each in later)])
    return [with_origin(stored, config) for stored in planned], later


def _warn_of_unseen(heads: Iterable[tuple[Shape, Sequence[RawRow]]]) -> None:
    """Say of new files, by their first rows, which columns hold pictures that no prompt shows."""
    for column in dict.fromkeys(column for shape, rows in heads for column in unseen(rows, shape.images)):
        terminal.warn(
            f"column {column!r} seems to hold pictures, and nothing is shown of it: --set input.image_key={column} puts them "
            "into the prompts"
        )


def _is_as_stored(file: InputFile, stored: StoredInput | None) -> bool:
    """Whether the store's plan of a file holds: the file is untouched, and what its labels mean was no guess."""
    if stored is None or not file.stamp or isinstance(stored.shape.label, Guessed):
        return False
    return (stored.file.size, stored.file.stamp) == (file.size, file.stamp)


def plan_files(files: Sequence[InputFile], config: InputConfig) -> Iterator[FilePlan]:
    """The plan of each file, in order: read by tasks of the cluster that this process has joined, else one after the other."""
    ray = sys.modules.get("ray")
    few = sum(sections(file, config.format) for file in files) < 2
    alone = few or ray is None or not ray.is_initialized()
    plans: Iterator[FilePlan] = (_plan(each, config) for each in files) if alone else _planned_by_tasks(files, config)
    return terminal.track(plans, len(files), "planning", "files")


def _planned_by_tasks(files: Iterable[InputFile], config: InputConfig) -> Iterator[FilePlan]:
    asked: deque[Asked] = deque()
    for file in files:
        asked.append(Asked(file, config, PLAN_CPUS))
        if len(asked) >= PLANNED_AHEAD:
            yield asked.popleft().plan()
    while asked:
        yield asked.popleft().plan()


def _plan(file: InputFile, config: InputConfig) -> FilePlan:
    return plan_file(file, config.format, config.shard_rows, config.shard_bytes, beside_of(file, config))


def check_sampled(inputs: Iterable[StoredInput | Later], renderer: Renderer) -> None:
    """Raises ConfigError where a file's first rows are samples whose tokens this model cannot be given."""
    for stored in inputs:
        if isinstance(stored, Later):
            check_samples(stored.file.name, enumerate(stored.head), stored.shape, renderer)
        elif stored.shape.sampled:
            _, rows = next(read_shards(stored.file, stored.format, stored.plan.shards[:1]))
            check_samples(stored.file.name, rows, stored.shape, renderer)


def _proven(stored: StoredInput, file: InputFile, plan: FilePlan, config: InputConfig, shape_of: ShapeOf) -> Shape:
    """The shape of a file whose labels an earlier version guessed: with a proven reading that says the same.

    Raises StoreError where they mean something else, or it is not known what.
    """
    rule = stored.shape.label
    assert isinstance(rule, Guessed)
    was = f"an earlier version took {rule.first_label} in column {rule.column!r} of {file.name} for the first response"
    aside = "its labels are left as they are; label into another --output, with what the label means"
    try:
        shape = shape_of(list(plan.head), config, file.name)
        require_proof([(file, stored.format, shape, plan)])
    except InputError as error:
        raise StoreError(f"{was}, which was a guess; {aside}. {error}") from error
    names = [column for column, _ in stored.shape.responses]
    if shape.responses != stored.shape.responses or not rule.agrees(shape.label, names):
        because = getattr(shape.label, "why", "")
        raise StoreError(
            f"{was}, and that is not what it means ({because}): chosen and rejected may be swapped there; {aside}"
        )
    return replace(stored.shape, label=shape.label)


def _require_one_meaning(inputs: Iterable[StoredInput | Later]) -> None:
    """Raises InputError where the same columns would say something else in another file."""
    rules: dict[tuple[Any, ...], tuple[str, LabelRule]] = {}
    for stored in inputs:
        rule, name = stored.shape.label, stored.file.name
        if rule is None:
            continue
        first, theirs = rules.setdefault((rule.columns, stored.shape.responses), (name, rule))
        if disagree(theirs, rule):
            raise InputError(
                f"{name}: {', '.join(rule.columns)} would be read otherwise than in {first}; say what it means with "
                "input.label_values, or label the files into outputs of their own"
            )


def pending(
    store: LabelStore,
    inputs: Iterable[StoredInput],
    retry_errors: bool,
    later: Coming | None = None,
    survey: Survey | None = None,
) -> Backlog:
    """Shards that are not done, and with `retry_errors` those with error rows: the records of the others, which are read to
    know that, go into `survey`."""
    again: dict[str, int] = {}
    for record in store.records() if retry_errors else ():
        if record.errors.rows:
            again[record.name] = record.generation + 1
        elif survey is not None:
            survey.add(record)
    return Backlog(inputs, store.done(), again, later)
