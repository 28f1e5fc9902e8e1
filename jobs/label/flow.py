"""The labelling flow: an ordered list of steps on Ray Data, each of which takes a shard and gives a shard.

    read        one task per run of bytes: raw rows of each shard asked for
    prepare     normalise and tokenise, in a process beside the task's; a step of its own, so that a file that can only be
                read from its front keeps many tokenisers busy
    answer      an autoscaling pool of actors, each with a process beside it that holds the model
    commit      write the shard's parts and its record

A row that ends the process which works on it is found out and becomes an error row (`pipeline.killers`).

What is asked of the model and how its answers become labels is the labeller's (`pipeline.rewards.labellers`).

One row of the dataset is one shard, pickled, and a block of its own: nothing waits for a neighbour, siblings of one prompt
stay together, memory is bounded by the shards in flight.
"""

import contextlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray.data
from ray.util.annotations import RayDeprecationWarning

from actors.actor import ActorSpec, Answered
from actors.beside import ActorBeside
from jobs.cluster import Pool
from jobs.label.work import Done, Target, Work
from pipeline.apart import unpickled
from pipeline.corpus import NumberedRow, Shape, Shard, read_shards
from pipeline.errors import EndorewardError, RunError
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Preparation
from pipeline.rewards.labelling import Prepared
from pipeline.store import commit

READ_CPUS, PREPARE_CPUS, COMMIT_CPUS = 0.05, 0.15, 0.05
"""CPUs of a task. What a read and a preparation ask for has to differ, or Ray makes one task of both."""

TASK_CPUS = READ_CPUS + PREPARE_CPUS + COMMIT_CPUS
"""An actor asks for this much less than its threads, so that one task of each kind always finds room: on two CPUs with two
actors as on a large cluster."""

Row = dict[str, Any]

log = logging.getLogger(__name__)


def label_shards(work: list[Work], labeller: Labeller, target: Target, spec: ActorSpec, pool: Pool) -> Iterator[Done]:
    """Run the flow; yields each shard as it is committed, in no order. Raises what a step raised."""
    with _settings(labeller.config.run.verbose):  # a dataset keeps those that it was made under
        steps = _steps(work, labeller, target, spec, pool)
    for row in steps.iter_rows():
        done = _decode(row)
        if isinstance(done, EndorewardError):
            raise done
        yield done


@contextlib.contextmanager
def _settings(verbose: bool) -> Iterator[None]:
    """Ray Data's settings for the flow; those of the process are what they were afterwards."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.target_max_block_size
    with warnings.catch_warnings():
        # Ray's defaults try a call that kills its process for ever. It has no named parameters for this yet.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=RayDeprecationWarning)
        try:
            context.enable_progress_bars = verbose
            context.target_max_block_size = 1  # a block per shard
            yield
        finally:
            context.enable_progress_bars, context.target_max_block_size = before


def _steps(work: list[Work], labeller: Labeller, target: Target, spec: ActorSpec, pool: Pool) -> ray.data.Dataset:
    scorer = labeller.config.scorer
    tries = scorer.max_task_retries
    return (
        ray.data.from_items([_encode(each) for each in work], override_num_blocks=min(len(work), 1000))
        .flat_map(_read, num_cpus=READ_CPUS, max_retries=tries)
        .map(_prepare, fn_args=(labeller,), num_cpus=PREPARE_CPUS, max_retries=tries)  # type: ignore[arg-type]
        .map(
            _Answer,  # type: ignore[arg-type]
            fn_constructor_args=(spec,),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_actors, max_size=pool.max_actors, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=pool.cpus - TASK_CPUS,
            num_gpus=pool.gpus,
            max_restarts=scorer.max_restarts,
            max_task_retries=tries,
        )
        .map(_commit, fn_args=(labeller, target), num_cpus=COMMIT_CPUS, max_retries=tries)  # type: ignore[arg-type]
    )


# The steps. Each is a function of a row; an EndorewardError travels on as a row, so that the driver can raise it whole.


@dataclass(frozen=True)
class _Read:
    shard: Shard
    generation: int
    rows: list[NumberedRow]
    shape: Shape


@dataclass(frozen=True)
class _Finished:
    prepared: Prepared
    answered: Answered


def _encode(value: Any) -> Row:
    return {"shard": pickle.dumps(value, pickle.HIGHEST_PROTOCOL)}


def _decode(row: Row) -> Any:
    return unpickled(row["shard"])  # ours: written a stage earlier by `_encode`


def _passing_errors(step: Callable[[Any], Any], row: Row) -> Row:
    value = _decode(row)
    if isinstance(value, EndorewardError):
        return row
    try:
        return _encode(step(value))
    except EndorewardError as error:
        return _encode(error)
    except Exception as error:
        log.exception("a step failed")
        rows = _rows_of(getattr(value, "prepared", value).shard)
        return _encode(RunError(f"{rows} could not be labelled: {type(error).__name__}: {error}"))


def _rows_of(shard: Shard) -> str:
    return f"rows {shard.start} to {shard.stop - 1} of {shard.file}"


@lru_cache(maxsize=1)
def _preparation(own_code: bool) -> Preparation:
    """One for each worker."""
    return Preparation(own_code)


def _read(row: Row) -> Iterator[Row]:
    work: Work = _decode(row)
    generations = dict(zip(work.shards, work.generations, strict=True))
    try:
        for shard, rows in read_shards(work.file, work.format, work.shards):
            yield _encode(_Read(shard, generations[shard], rows, work.shape))
    except EndorewardError as error:
        yield _encode(error)
    except Exception as error:
        log.exception("reading failed")
        yield _encode(RunError(f"{work.file.uri} could not be read: {type(error).__name__}: {error}"))


def _prepare(row: Row, labeller: Labeller) -> Row:
    def step(read: _Read) -> Prepared:
        preparation = _preparation(labeller.model.trust_remote_code)
        return preparation.prepare(labeller, read.shard, read.generation, read.rows, read.shape)

    return _passing_errors(step, row)


class _Answer:
    def __init__(self, spec: ActorSpec):
        self.broken: EndorewardError | None = None
        try:
            self.actor = ActorBeside(spec)
        except EndorewardError as error:  # as a row it reaches the driver whole, from here it would not
            self.broken = error
        except Exception as error:
            log.exception("loading failed")
            self.broken = RunError(f"{spec.model.name} could not be loaded: {type(error).__name__}: {error}")

    def __call__(self, row: Row) -> Row:
        if self.broken is not None:
            return _encode(self.broken)
        return _passing_errors(self._answered, row)

    def _answered(self, prepared: Prepared) -> _Finished:
        return _Finished(prepared, self.actor.answer(_rows_of(prepared.shard), prepared.requests))


def _commit(row: Row, labeller: Labeller, target: Target) -> Row:
    def step(finished: _Finished) -> Done:
        prepared, answered = finished.prepared, finished.answered
        labels, failures = labeller.finish(prepared, answered.answers)
        record = commit(
            target.store, prepared.shard, target.fingerprint, prepared.generation, labels, failures, target.lease
        )
        notes = prepared.notes + answered.notes
        counts = prepared.counts
        return Done(record, answered.forwarded_tokens, answered.seconds, answered.layout, answered.check, notes, counts)

    return _passing_errors(step, row)
