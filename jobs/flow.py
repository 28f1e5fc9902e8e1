"""The labelling flow: an ordered list of steps on Ray Data, each of which takes a shard and gives a shard.

    read        one task per run of bytes: raw rows of each shard asked for
    prepare     normalise and tokenise, in the same task
    score       an autoscaling pool of actors that hold the model
    commit      write the shard's parts and its record

One row of the dataset is one shard, pickled, and a block of its own: nothing waits for a neighbour, siblings of one prompt
stay together, memory is bounded by the shards in flight.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ray.data
from ray.util.annotations import RayDeprecationWarning

from actors.scorer import Scored, ScorerSpec, ShardScorer
from pipeline.config import LabelConfig
from pipeline.corpus import InputFile, Shape, Shard, read_shards
from pipeline.errors import EndorewardError, RunError
from pipeline.labelling import Prepared, finish, prepare
from pipeline.models import context_length, load_settings, load_tokenizer
from pipeline.store import Record, commit
from pipeline.tokens import Renderer, load_rubrics

TASK_CPUS = 0.25
"""CPUs of a read or a commit. An actor asks for this much less than its threads, so that tasks always find room: on two
CPUs with two actors as on a large cluster."""

Row = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Shards of one file that one task reads, with the generation that each is committed as."""

    file: InputFile
    format: str
    shape: Shape
    shards: list[Shard]
    generations: list[int]


@dataclass(frozen=True)
class Done:
    """What the driver hears of a committed shard."""

    record: Record
    forwarded_tokens: int = 0
    score_seconds: float = 0.0
    layout: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """The actors: how many, and what each asks of the cluster."""

    min_actors: int
    max_actors: int
    cpus: int
    gpus: int


def label_shards(
    work: list[Work], config: LabelConfig, fingerprint: str, spec: ScorerSpec, pool: Pool
) -> Iterator[Done]:
    """Run the flow; yields each shard as it is committed, in no order. Raises what a step raised."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = config.run.verbose
    context.target_max_block_size = 1  # a block per shard
    # Ray's defaults try a call that kills its process for ever. It has no named parameters for this yet.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=RayDeprecationWarning)
    tries = config.scorer.max_task_retries
    steps = (
        ray.data.from_items([_pack(each) for each in work], override_num_blocks=min(len(work), 1000))
        .flat_map(_read_and_prepare, fn_args=(config,), num_cpus=TASK_CPUS, max_retries=tries)  # type: ignore[arg-type]
        .map(
            _Score,  # type: ignore[arg-type]
            fn_constructor_args=(spec,),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_actors, max_size=pool.max_actors, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=pool.cpus - TASK_CPUS,
            num_gpus=pool.gpus,
            max_restarts=config.scorer.max_restarts,
            max_task_retries=tries,
        )
        .map(_commit, fn_args=(config, fingerprint), num_cpus=TASK_CPUS, max_retries=tries)  # type: ignore[arg-type]
    )
    for row in steps.iter_rows():
        done = _unpack(row)
        if isinstance(done, EndorewardError):
            raise done
        yield done


def open_renderer(config: LabelConfig) -> Renderer:
    """Tokenizer, template, rubrics and context length of a run. Raises ConfigError."""
    tokenizer = load_tokenizer(config.model)
    context = context_length(load_settings(config.model), tokenizer)
    rubrics = load_rubrics(config.tokens.rubrics) if config.tokens.rubrics else None
    return Renderer(tokenizer, config.tokens, context, rubrics)


# The steps. Each is a function of a row; an EndorewardError travels on as a row, so that the driver can raise it whole.


@dataclass(frozen=True)
class _Finished:
    prepared: Prepared
    scored: Scored


def _pack(value: Any) -> Row:
    return {"shard": pickle.dumps(value)}


def _unpack(row: Row) -> Any:
    return pickle.loads(row["shard"])  # ours: written a stage earlier by `_pack`


def _passing_errors(step: Callable[[Any], Any], row: Row) -> Row:
    value = _unpack(row)
    if isinstance(value, EndorewardError):
        return row
    try:
        return _pack(step(value))
    except EndorewardError as error:
        return _pack(error)
    except Exception as error:
        log.exception("a step failed")
        shard: Shard = getattr(value, "prepared", value).shard
        rows = f"rows {shard.start} to {shard.stop - 1} of {shard.file}"
        return _pack(RunError(f"{rows} could not be labelled: {type(error).__name__}: {error}"))


def _read_and_prepare(row: Row, config: LabelConfig) -> Iterator[Row]:
    work: Work = _unpack(row)
    renderer = _worker_renderer(config.model_dump_json())
    generations = dict(zip(work.shards, work.generations, strict=True))
    try:
        for shard, rows in read_shards(work.file, work.format, work.shards):
            yield _pack(prepare(shard, generations[shard], rows, work.shape, renderer, config.input.turns))
    except EndorewardError as error:
        yield _pack(error)
    except Exception as error:
        log.exception("reading failed")
        yield _pack(RunError(f"{work.file.uri} could not be read: {type(error).__name__}: {error}"))


@lru_cache(maxsize=1)
def _worker_renderer(config_json: str) -> Renderer:
    return open_renderer(LabelConfig.model_validate_json(config_json))


class _Score:
    def __init__(self, spec: ScorerSpec):
        self.broken: EndorewardError | None = None
        try:
            self.actor = ShardScorer(spec)
        except EndorewardError as error:  # as a row it reaches the driver whole, from here it would not
            self.broken = error

    def __call__(self, row: Row) -> Row:
        if self.broken is not None:
            return _pack(self.broken)
        return _passing_errors(lambda prepared: _Finished(prepared, self.actor.score(prepared.tokens)), row)


def _commit(row: Row, config: LabelConfig, fingerprint: str) -> Row:
    def step(finished: _Finished) -> Done:
        prepared, scored = finished.prepared, finished.scored
        labels, failures = finish(prepared, scored.scores, config.reward)
        record = commit(config.output.path, prepared.shard, fingerprint, prepared.generation, labels, failures)
        notes = prepared.notes + scored.notes
        return Done(record, scored.forwarded_tokens, scored.seconds, scored.layout, notes)

    return _passing_errors(step, row)
