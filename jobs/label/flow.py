"""The labelling flow: shards go through three steps, two on Ray Data (or beside the driver) and one in a pool of actors.

    read        raw rows, of what can only be read from its front and of shards that share a Parquet row group: one task for
                a file or a row group, which gives them as they are asked for
    prepare     normalise and tokenise, in a process beside the task's, which also reads where each shard has bytes of its own
    label       an actor of the pool (`jobs.label.pool`): the model, in a process beside it, answers, the actor writes the
                shard's parts and its record while the next shard is being answered

A row that ends the process which works on it is found out and becomes an error row (`pipeline.killers`).

What is asked of the model and how its answers become labels is the labeller's (`pipeline.rewards.labellers`).

A block is some neighbouring shards, each pickled: the driver hands out references to blocks and never opens one. Nothing waits
for a neighbour in a batch: siblings of one prompt stay together, and memory is bounded by the shards in flight.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from actors.actor import ActorSpec
from actors.beside import ActorBeside
from jobs.cluster import Pool
from jobs.label.backlog import Backlog
from jobs.label.feed import ROW, Feed, row, table
from jobs.label.pool import LabelPool
from jobs.label.work import Done, Headway, PoolState, Target, Work
from pipeline.apart import unpickled
from pipeline.corpus import Shape, Shard, read_shards
from pipeline.errors import EndorewardError, RunError
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Place, Preparation
from pipeline.rewards.labelling import Prepared
from pipeline.store import commit
from pipeline.store.commit import find_record
from pipeline.tokens import TokenizedTurn

Raw = tuple[Shard, int, bytes, Shape]  # a shard, its generation, its rows, pickled, and what they hold

log = logging.getLogger(__name__)


def label_shards(
    backlog: Backlog,
    labeller: Labeller,
    target: Target,
    spec: ActorSpec,
    pool: Pool,
    watch: Callable[[PoolState], None] = lambda state: None,
    preparations: Sequence[Preparation] = (),
) -> Iterator[Done]:
    """Run the flow; yields each shard as it is committed, in no order. Raises what a step raised.

    Args:
        watch: called every few seconds with how the pool of actors is.
        preparations: prepare all of it in processes beside the driver where they are given, in the place of Ray Data.
    """
    feed = Feed(backlog, labeller, pool, read_work, prepare_block, preparations)
    with (
        warnings.catch_warnings(),
        LabelPool(ShardActor, (spec, labeller, target), labeller.config, pool, backlog, watch, _name) as actors,
        contextlib.closing(feed),  # first: the pool waits for it
    ):
        # of a limit above the blocks that there are, which does no harm
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
        for done in actors.results(feed):
            if isinstance(done, EndorewardError):
                raise done
            yield done


# The steps. An EndorewardError travels on as a value, so that the driver can raise it whole.


def read_work(pickled: dict[str, Any]) -> Iterator[dict[str, bytes]]:
    """Rows of the shards of one file that has to be read from its front, each as `Raw`."""
    work: Work = unpickled(pickled[ROW])  # ours: written by the driver
    try:
        generations = dict(zip((shard.index for shard in work.shards), work.generations, strict=True))
        for shard, rows in read_shards(work.file, work.format, work.shards):
            yield row((shard, generations[shard.index], row(rows)[ROW], work.shape))
    except EndorewardError as error:
        yield row(error)
    except Exception as error:
        log.exception("reading failed")
        yield row(RunError(f"{work.file.uri} could not be read: {type(error).__name__}: {error}"))


def prepare_block(block: pa.Table, labeller: bytes, own_code: bool, preparation: Preparation | None = None) -> pa.Table:
    """Shards of a block, prepared: what `read_work` gave, or works whose shards are read where they are prepared."""
    prepared: list[bytes] = []
    shard: Shard | None = None
    try:
        preparation = preparation or _preparation(own_code)
        for content in _contents(block):
            if isinstance(content, Work) and (together := preparation.packed_together(labeller, *_placed(content))):
                prepared += together
                continue
            for shard, generation, rows, shape in _shards(content):
                prepared.append(preparation.packed(labeller, shard, generation, rows, shape))
    except EndorewardError as error:
        prepared.append(row(error)[ROW])
    except Exception as error:
        if shard is None:
            raise
        prepared.append(row(_unexpected(error, shard))[ROW])
    return table(prepared)


def _contents(block: pa.Table) -> Iterator[Work | Raw]:
    for value in block[ROW]:
        content: Work | Raw | EndorewardError = unpickled(value.as_buffer())  # ours: written by the step before
        if isinstance(content, EndorewardError):
            raise content
        yield content


def _placed(work: Work) -> tuple[Sequence[Shard], Sequence[int], Place, Shape]:
    return work.shards, work.generations, Place(work.file, work.format), work.shape


def _shards(content: Work | Raw) -> Iterator[tuple[Shard, int, bytes | Place, Shape]]:
    """Each shard, its generation, its rows or where they are, their shape."""
    if isinstance(content, Work):
        shards, generations, place, shape = _placed(content)
        yield from ((shard, of, place, shape) for shard, of in zip(shards, generations, strict=True))
    else:
        yield content


def _name(block: pa.Table, position: int) -> str:
    """Of a shard in a prepared block."""
    prepared = unpickled(block[ROW][position].as_buffer())
    return prepared.shard.where if isinstance(prepared, Prepared) else str(prepared)


def _unexpected(error: Exception, shard: Shard) -> RunError:
    log.exception("a step failed")
    return RunError(f"{shard.where} could not be labelled: {type(error).__name__}: {error}")


@lru_cache(maxsize=1)
def _preparation(own_code: bool) -> Preparation:
    """One for each worker."""
    return Preparation(own_code)


class ShardActor:
    """Answers a shard's requests and commits what comes of them. Two portions may be in hand at once: a shard of one is
    answered while one of the other is committed."""

    def __init__(self, spec: ActorSpec, labeller: Labeller, target: Target):
        self.labeller, self.target = labeller, target
        self.answering, self.committing = threading.Lock(), threading.Lock()
        self.broken: EndorewardError | None = None
        self.in_hand: tuple[Prepared, int, int] | None = None  # being answered; its tokens, those of what came before
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

    def headway(self) -> Headway:
        """How far it is, also with the shard that is being answered."""
        forwarded, in_hand = self.actor.forwarded_tokens, self.in_hand
        if in_hand is None or not in_hand[1]:
            return Headway(forwarded)
        prepared, expected, before = in_hand
        share = min(1.0, (forwarded - before) / expected)
        tokens = sum(len(turn.response_ids) for turn in prepared.tokens)
        return Headway(forwarded, share * prepared.shard.rows, share * tokens)

    def label(self, block: pa.Table, begin: int, end: int, again: bool) -> list[Done | EndorewardError]:
        """Label shards [begin, end) of a block; those that another actor has committed already are left where it is done
        `again`."""
        done: list[Done | EndorewardError] = []
        for each in block[ROW][begin:end]:
            prepared: Prepared | EndorewardError = unpickled(each.as_buffer())  # ours: written by the step before
            if isinstance(prepared, EndorewardError):
                return [*done, prepared]
            try:
                done.append(self._labelled(prepared, again))
            except EndorewardError as error:
                return [*done, error]
            except Exception as error:
                return [*done, _unexpected(error, prepared.shard)]
        return done

    def _labelled(self, prepared: Prepared, again: bool) -> Done:
        target = self.target
        standing = find_record(target.store, prepared.shard) if again else None
        if standing is not None and standing.generation >= prepared.generation:
            return Done(standing)
        with self.answering:
            self.in_hand = prepared, self._tokens_of(prepared.requests), self.actor.forwarded_tokens
            try:
                answered = self.actor.answer(prepared.shard.where, prepared.requests)
            finally:
                self.in_hand = None
        with self.committing:  # which may import what does not bear to be imported by two threads
            labels, failures = self.labeller.finish(prepared, answered.answers)
            record = commit(
                target.store, prepared.shard, target.fingerprint, prepared.generation, labels, failures, target.lease
            )
        notes = prepared.notes + answered.notes
        counts = prepared.counts
        return Done(record, answered.forwarded_tokens, answered.seconds, answered.layout, answered.check, notes, counts)

    def _tokens_of(self, requests: Sequence[Any]) -> int:
        """That the model is given for requests, each prompt once where the scorer shares it; 0 where answers are written,
        whose length nobody knows."""
        if not all(isinstance(each, TokenizedTurn) for each in requests):
            return 0
        if self.labeller.engine != "scorer":
            return sum(len(each.prompt_ids) + len(each.response_ids) for each in requests)
        prompts = {each.prompt_ids.tobytes(): len(each.prompt_ids) for each in requests}
        return sum(prompts.values()) + sum(len(each.response_ids) - 1 for each in requests)
