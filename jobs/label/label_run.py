"""One run that completes a label store: what `label` does once and `evaluate` does for every reward.

    describe   model, tokens: what the run is, held against the store       LabelRun.open
    plan       the shards of every input file                               (jobs.label.plan)
    label      read, prepare, answer, commit on Ray                         (jobs.label.flow)
    finalize   manifest, report, table                                      (jobs.stores.finalize)

Nothing is written before `LabelRun.complete`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from actors.actor import ActorSpec
from actors.classifier import ClassifierSpec
from actors.generator import GeneratorSpec
from actors.scorer import ScorerSpec
from jobs import terminal
from jobs.cluster import Pool, cluster, joins_cluster, pick_pool
from jobs.label.backlog import Backlog
from jobs.label.later import Later, Planning
from jobs.label.limits import ErrorRate, explained
from jobs.label.plan import ShapeOf, check_sampled, pending, plan_first
from jobs.label.watch import Watch
from jobs.label.work import Target
from jobs.label.writers import announce, checked_writer
from jobs.stores.finalize import Timing, finalize
from pipeline.config import EvaluateConfig, LabelConfig
from pipeline.corpus import InputFile
from pipeline.errors import RunError, StoreError
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.rewards.labellers import Endogenous, Labeller, Sampling
from pipeline.rewards.labellers.base import Rendering
from pipeline.rewards.labellers.beside import Preparation, begun
from pipeline.store import LabelStore, StoredInput, Survey, WriterLock, fingerprint
from pipeline.store.index import RecordIndex
from pipeline.tokens import read_texts

FEW = 32
"""Shards that one process prepares where a second one would take longer to start."""


class LateCluster:
    """Ray, opened by whoever first needs it, until `stack` is closed."""

    def __init__(self, config: LabelConfig, stack: contextlib.ExitStack):
        self.config, self.stack, self.opened = config, stack, False

    def open(self) -> None:
        if not self.opened:
            self.opened = True
            self.stack.enter_context(cluster(self.config.run, data=False))

    @property
    def local(self) -> bool:
        """Whether it was started here."""
        return not joins_cluster(self.config.run)


@dataclass(frozen=True)
class LabelRun:
    """A label store, and a labeller that completes it; checked and planned."""

    labeller: Labeller
    store: LabelStore
    device: str
    description: dict[str, Any]
    inputs: list[StoredInput]
    later: list[Later]  # input files that are planned while these are labelled
    names: list[str]  # of all input files, empty ones too

    @classmethod
    def open(
        cls,
        labeller: Labeller,
        uri: str,
        device: str,
        files: Iterable[InputFile],
        shape_of: ShapeOf | None = None,
        first_bytes: int | None = None,
    ) -> Self:
        """Hold a run against its store and plan it, or the first bytes of it. Writes nothing.

        Raises:
            ConfigError, InputError: where model, tokens or input cannot be used.
            StoreError: where the store is of another run.
        """
        store = LabelStore(uri)
        store.check_place()
        labeller = replace(_pinned(labeller), texts=tuple(read_texts(labeller.config.tokens).items()))
        tokens = labeller.config.tokens.dated(store.began_on())
        labeller = replace(labeller, config=labeller.config.model_copy(update={"tokens": tokens}))
        labeller = checked_writer(labeller, device)
        if labeller.engine == "generator":
            labeller = replace(labeller, known=Rendering.of(labeller.renderer))
        description = labeller.describe(resolve_dtype(labeller.model.dtype, device))
        store.check_description(description)
        files = list(files)
        names = [file.name for file in files]
        inputs, later = plan_first(store, files, labeller.config.input, shape_of, first_bytes)
        if any(stored.shape.pictured for stored in inputs) or any(each.shape.pictured for each in later):
            labeller.require_pictures()
        _require_same_pictures(store, inputs)
        if isinstance(labeller, Endogenous):
            check_sampled([*inputs, *later], labeller.renderer)
        return cls(labeller, store, device, description, inputs, later, names)

    def complete(
        self,
        ray: LateCluster,
        command: str,
        *,
        retry_errors: bool = False,
        quiet: bool = False,
        preparation: Preparation | None = None,
    ) -> None:
        """Label what is left, then finalize the store. Raises EndorewardError.

        Args:
            preparation: a process that prepares shards already, and may go on to.
        """
        store = self.store
        with WriterLock(store.uri) as lock:
            store.open_for_writing(self.description)
            for stored in self.inputs:
                store.add_input(stored)
            timing, survey, notes = None, Survey(), list(self.labeller.renderer.notes)
            store.expect_inputs([each.file.name for each in self.later])
            backlog = pending(store, self.inputs, retry_errors, self._planning(ray) if self.later else None, survey)
            if backlog.shards or not backlog.whole:
                store.reopen()
                if self.labeller.writer == "endpoint":
                    announce(self.labeller, backlog)
                with contextlib.ExitStack() as stack:
                    if preparation is None and ray.local:
                        preparation = stack.enter_context(begun(self.labeller))  # beside Ray's start
                    ray.open()
                    terminal.say(f"loading {self.labeller.model.name} ...")
                    remote = self.labeller.writer == "endpoint"  # one actor asks, as many times at once as it may
                    pool = Pool(1, 1, 1, 0) if remote else pick_pool(self.labeller.config, self.device)
                    most = _prepared_at_once(self.labeller.config, backlog, pool) if ray.local else 0
                    here = stack.enter_context(_preparations(preparation, self.labeller, most))
                    timing = self._label(backlog, survey, notes, lock, pool, here)
            else:
                rows = sum(stored.plan.rows for stored in self.inputs)
                terminal.say(f"{store.uri}: all {rows:,} rows are labelled already; nothing to do")
            store.expect_inputs([], self.names)
            config = self.labeller.config.model_copy(update={"model": self.labeller.model})
            finalize(store, config, self.labeller.renderer, timing, notes, command, survey=survey, quiet=quiet)

    def _planning(self, ray: LateCluster) -> Planning:
        return Planning(self.later, self.labeller.config.input, by_tasks=not ray.local, add=self.store.add_input)

    def _label(
        self,
        backlog: Backlog,
        survey: Survey,
        notes: list[str],
        lock: WriterLock,
        pool: Pool,
        preparations: list[Preparation],
    ) -> Timing:
        """Label what is left, and show how it goes; `survey` gets what is committed, `notes` what comes up on the way."""
        from jobs.label.flow import label_shards

        config = self.labeller.config
        target = Target(self.store.uri, fingerprint.digest(self.description), lock.lease)
        done_rows = 0
        rate, timing, counts, index = ErrorRate(config), Timing(), Counter[str](), RecordIndex(self.store)
        spec = _spec(self.labeller, self.device, pool)
        with (
            Watch(self.store.uri, self.labeller.name, backlog) as watch,
            # closed, so that the flow stops with the loop, whatever ends that
            contextlib.closing(
                explained(
                    label_shards(
                        backlog, self.labeller, target, spec, pool, watch=watch.pool, preparations=preparations
                    )
                )
            ) as results,
        ):
            for done in results:
                done_rows += done.record.shard.rows
                timing.add(done.record.stats.tokens, done.forwarded_tokens, done.score_seconds, done.layout, done.check)
                for note in done.notes:
                    if note not in notes:
                        notes.append(note)
                        terminal.warn(note)
                watch.committed(done)
                survey.add(done.record)
                index.add(done.record)
                rate.add(done.record)
                counts.update(done.counts)
        index.close()
        for sentence, count in counts.items():
            if count:
                notes.append(f"{count:,} {sentence}")
                terminal.warn(notes[-1])
        if left := backlog.rows - done_rows:
            raise RunError(
                f"the flow ended and left {left:,} rows; what is committed is kept, run the same again to go on"
            )
        return timing.stop()


def _require_same_pictures(store: LabelStore, inputs: list[StoredInput]) -> None:
    """Raises StoreError where a picture that was labelled is another by now."""
    if any(stored.shape.pictured for stored in inputs) and (place := next(store.changed_pictures(), None)):
        raise StoreError(
            f"{place}: the picture changed since it was labelled; restore it, or label the new pictures into another --output"
        )


def _prepared_at_once(config: LabelConfig, backlog: Backlog, pool: Pool) -> int:
    """Shards, by as many processes beside this one: half of the CPUs, and no more than the actors can use."""
    if backlog.whole and backlog.shards <= FEW:
        return 1
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(2, (config.run.num_cpus or there) // 2), pool.prepares)


@contextlib.contextmanager
def _preparations(first: Preparation | None, labeller: Labeller, most: int) -> Iterator[list[Preparation]]:
    """Processes beside this one that prepare shards, each started when it is needed: the one that is there, and others for as
    long as the block runs."""
    others = [Preparation(labeller.model.trust_remote_code) for _ in range(most - (first is not None))]
    try:
        yield ([first, *others] if first is not None else others)[:most]
    finally:
        for each in others:
            each.beside.close()


def _pinned(labeller: Labeller) -> Labeller:
    """A hub model becomes the commit that it resolves to now."""
    commit = getattr(load_settings(labeller.model), "_commit_hash", None)
    if not commit or os.path.isdir(labeller.model.name):
        return labeller
    return replace(labeller, model=labeller.model.model_copy(update={"revision": commit}))


def _spec(labeller: Labeller, device: str, pool: Pool) -> ActorSpec:
    """The actor that answers a labeller's requests."""
    config = labeller.config
    common: dict[str, Any] = {
        "model": labeller.model,
        "device": device,
        "gpus": pool.gpus,
        "threads": pool.cpus,
        "budget_tokens": config.scorer.budget_tokens,
        "check_responses": config.evaluate.check_responses if isinstance(config, EvaluateConfig) else 0,
    }
    if labeller.engine == "generator":
        common |= {"engine": labeller.writer, "end_tokens": labeller.renderer.end_tokens()}
        if labeller.writer == "endpoint":  # whose answers cost something
            common |= {"endpoint": labeller.endpoint(), "check_responses": 0}
    if labeller.engine == "scorer":
        reward = config.reward
        return ScorerSpec(
            **common,
            alpha=reward.alpha,
            head_chunk_mb=config.scorer.head_chunk_mb,
            certainty=reward.token_certainty and labeller.name == "endogenous",
        )
    if isinstance(labeller, Sampling):
        options = labeller.drawn.model_dump(include={"max_new_tokens", "temperature", "top_p"})
        return GeneratorSpec(**common, **options)
    assert isinstance(config, EvaluateConfig)
    if labeller.engine == "classifier":
        return ClassifierSpec(**common, output=config.classifier.output)
    return GeneratorSpec(**common, max_new_tokens=config.judge.max_new_tokens)
