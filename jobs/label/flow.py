"""The labelling flow: shards go through three steps, two on Ray Data and one in a pool of actors.

    read        one task per run of bytes: raw rows of each shard asked for
    prepare     normalise and tokenise, in a process beside the task's; a step of its own, so that a file that can only be
                read from its front keeps many tokenisers busy
    label       an actor of the pool (`jobs.label.pool`): the model, in a process beside it, answers, the actor writes the
                shard's parts and its record while the next shard is being answered

A row that ends the process which works on it is found out and becomes an error row (`pipeline.killers`).

What is asked of the model and how its answers become labels is the labeller's (`pipeline.rewards.labellers`).

One row of the dataset is one shard, pickled, and a block of its own: nothing waits for a neighbour, siblings of one prompt
stay together, memory is bounded by the shards in flight.
"""

import contextlib
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from actors.actor import ActorSpec
from actors.beside import ActorBeside
from jobs.cluster import READ_CPUS, Pool
from jobs.label.pool import LabelPool
from jobs.label.work import Done, PoolState, Target, Work
from pipeline.apart import unpickled
from pipeline.corpus import NumberedRow, Shape, Shard, read_shards
from pipeline.errors import EndorewardError, RunError
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Preparation
from pipeline.rewards.labelling import Prepared
from pipeline.store import commit

Row = dict[str, Any]

log = logging.getLogger(__name__)


def label_shards(
    work: list[Work],
    labeller: Labeller,
    target: Target,
    spec: ActorSpec,
    pool: Pool,
    watch: Callable[[PoolState], None] = lambda state: None,
) -> Iterator[Done]:
    """Run the flow; yields each shard as it is committed, in no order. Raises what a step raised.

    Args:
        watch: called every few seconds with how the pool of actors is.
    """
    with _settings(labeller.config.run.verbose):  # a dataset keeps those that it was made under
        prepared = _prepared(work, labeller, pool)
    shards = sum(len(each.shards) for each in work)
    with (
        warnings.catch_warnings(),
        LabelPool(ShardActor, (spec, labeller, target), labeller.config, pool, shards, watch) as actors,
    ):
        # of a limit above the shards that there are, which does no harm
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
        for done in actors.results(lambda: _blocks(prepared)):
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


def _prepared(work: list[Work], labeller: Labeller, pool: Pool) -> ray.data.Dataset:
    tries = labeller.config.scorer.max_task_retries
    reads, prepares = ray.data.TaskPoolStrategy(size=pool.reads), ray.data.TaskPoolStrategy(size=pool.prepares)
    return (
        ray.data.from_items([_encode(each) for each in work], override_num_blocks=min(len(work), 1000))
        .flat_map(_read, compute=reads, num_cpus=READ_CPUS, max_retries=tries)
        .map(_prepare, fn_args=(labeller,), compute=prepares, num_cpus=pool.prepare_cpus, max_retries=tries)  # type: ignore[arg-type]
    )


def _blocks(prepared: ray.data.Dataset) -> Iterator[Any]:
    """References to blocks, each of one shard; the shards themselves never come to the driver."""
    for bundle in prepared.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            if entry.metadata.num_rows:
                yield entry.ref


# The steps. Each is a function of a row; an EndorewardError travels on as a row, so that the driver can raise it whole.


@dataclass(frozen=True)
class _Read:
    shard: Shard
    generation: int
    rows: list[NumberedRow]
    shape: Shape


def _encode(value: Any) -> Row:
    return {"shard": pickle.dumps(value, pickle.HIGHEST_PROTOCOL)}


def _decode(row: Row) -> Any:
    return unpickled(row["shard"])  # ours: written a step earlier by `_encode`


def _step(step: Callable[[Any], Any], value: Any) -> Any:
    """What the step makes of a value, or the error that it raised."""
    if isinstance(value, EndorewardError):
        return value
    try:
        return step(value)
    except EndorewardError as error:
        return error
    except Exception as error:
        log.exception("a step failed")
        return RunError(f"{_rows_of(value.shard)} could not be labelled: {type(error).__name__}: {error}")


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

    return _encode(_step(step, _decode(row)))


class ShardActor:
    """Answers a shard's requests and commits what comes of them. Two shards may be in hand at once: one is answered while the
    other is committed."""

    def __init__(self, spec: ActorSpec, labeller: Labeller, target: Target):
        self.labeller, self.target = labeller, target
        self.answering, self.committing = threading.Lock(), threading.Lock()
        self.broken: EndorewardError | None = None
        try:
            self.actor = ActorBeside(spec)
        except EndorewardError as error:  # as an answer it reaches the driver whole
            self.broken = error
        except Exception as error:
            log.exception("loading failed")
            self.broken = RunError(f"{spec.model.name} could not be loaded: {type(error).__name__}: {error}")

    def place(self) -> str | EndorewardError:
        """The node, once the model is loaded, or why it is not."""
        return self.broken or ray.get_runtime_context().get_node_id()

    def forwarded_tokens(self) -> int:
        """Tokens given to the model so far, also of the shard that is being answered."""
        return self.actor.forwarded_tokens

    def label(self, block: pa.Table) -> list[Done | EndorewardError]:
        return [_step(self._labelled, unpickled(each.as_buffer())) for each in block["shard"]]

    def _labelled(self, prepared: Prepared) -> Done:
        with self.answering:
            answered = self.actor.answer(_rows_of(prepared.shard), prepared.requests)
        target = self.target
        with self.committing:  # which may import what does not bear to be imported by two threads
            labels, failures = self.labeller.finish(prepared, answered.answers)
            record = commit(
                target.store, prepared.shard, target.fingerprint, prepared.generation, labels, failures, target.lease
            )
        notes = prepared.notes + answered.notes
        counts = prepared.counts
        return Done(record, answered.forwarded_tokens, answered.seconds, answered.layout, answered.check, notes, counts)
