"""Fill a label store: what `label` does once and `evaluate` does for every reward.

    describe   model, tokens: what the run is, held against the store       Filling.open
    plan       the shards of every input file                               (jobs.label.plan)
    run        read, prepare, answer, commit on Ray                         (jobs.label.flow)
    finalize   manifest, report, table                                      (jobs.stores.finalize)

Nothing is written before `Filling.run`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from actors.actor import ActorSpec
from actors.classifier import ClassifierSpec
from actors.generator import GeneratorSpec
from actors.scorer import ScorerSpec
from jobs import terminal
from jobs.cluster import Pool, cluster, pick_pool
from jobs.label.flow import Done, Target, Work, label_shards
from jobs.label.plan import ShapeOf, check_sampled, pending, plan_inputs
from jobs.stores.finalize import Timing, counted, finalize
from pipeline.config import EvaluateConfig, LabelConfig
from pipeline.corpus import InputFile
from pipeline.errors import ConfigError, EndorewardError, RunError
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.rewards.labellers import UNPARSABLE, Endogenous, Labeller, Sampling
from pipeline.storage import absolute
from pipeline.store import LabelStore, Record, StoredInput, WriterLock, fingerprint
from pipeline.tokens import read_texts

OVER_LENGTH = {
    "prompt_too_long",
    "too_long",
    "question_too_long",
}  # answers to tokens.over_length, not faults of the corpus
JUDGED_AFTER = 100  # responses before the error rate is judged


Labelling = TypeVar("Labelling", bound=LabelConfig)


class TooManyErrors(RunError):
    """A run that mostly makes error rows; what is labelled is kept."""


class LateCluster:
    """Ray, opened by whoever first needs it, for as long as `held` is open."""

    def __init__(self, config: LabelConfig, held: contextlib.ExitStack):
        self.config, self.held, self.opened = config, held, False

    def open(self) -> None:
        if not self.opened:
            self.opened = True
            self.held.enter_context(cluster(self.config.run))


@dataclass(frozen=True)
class Filling:
    """One label store that is to be filled, checked and planned."""

    labeller: Labeller
    store: LabelStore
    device: str
    description: dict[str, Any]
    inputs: list[StoredInput]

    @classmethod
    def open(
        cls, labeller: Labeller, uri: str, device: str, files: Iterable[InputFile], shape_of: ShapeOf | None = None
    ) -> Self:
        """Hold a run against its store and plan it. Writes nothing.

        Raises:
            ConfigError, InputError: where model, tokens or input cannot be used.
            StoreError: where the store is of another run.
        """
        store = LabelStore(uri)
        store.check_place()
        labeller = replace(_pinned(labeller), texts=tuple(read_texts(labeller.config.tokens).items()))
        tokens = labeller.config.tokens.dated(store.began_on())
        labeller = replace(labeller, config=labeller.config.model_copy(update={"tokens": tokens}))
        description = labeller.describe(resolve_dtype(labeller.model.dtype, device))
        store.check_description(description)
        inputs = plan_inputs(store, files, labeller.config.input, shape_of)
        if isinstance(labeller, Endogenous):
            check_sampled(inputs, labeller.renderer)
        return cls(labeller, store, device, description, inputs)

    def run(self, ray: LateCluster, command: str, *, retry_errors: bool = False, quiet: bool = False) -> None:
        """Label what is left, then finalize the store. Raises EndorewardError."""
        store = self.store
        with WriterLock(store.uri):
            store.open_for_writing(self.description)
            for stored in self.inputs:
                store.add_input(stored)
            timing, notes = None, list(self.labeller.renderer.notes)
            work = pending(store, self.inputs, retry_errors)
            if work:
                store.reopen()
                ray.open()
                terminal.say(f"loading {self.labeller.model.name} ...")
                timing = self._label(work, notes)
            else:
                rows = sum(stored.plan.rows for stored in self.inputs)
                terminal.say(f"{store.uri}: all {rows:,} rows are labelled already; nothing to do")
            config = self.labeller.config.model_copy(update={"model": self.labeller.model})
            finalize(store, config, self.labeller.renderer, timing, notes, command, quiet=quiet)

    def _label(self, work: list[Work], notes: list[str]) -> Timing:
        """Label what is left, and show how it goes; adds what comes up on the way to `notes`."""
        config = self.labeller.config
        pool = pick_pool(config, self.device)
        target = Target(self.store.uri, fingerprint.digest(self.description))
        total = sum(stored.plan.rows for stored in self.inputs)
        todo = sum(shard.rows for each in work for shard in each.shards)
        rate, timing, counts = _ErrorRate(config), Timing(), Counter[str]()
        spec = _spec(self.labeller, self.device, pool)
        with (
            terminal.LabelProgress(total, total - todo, self.labeller.name) as progress,
            # closed, so that the flow stops with the loop, whatever ends that
            contextlib.closing(_explained(label_shards(work, self.labeller, target, spec, pool))) as results,
        ):
            for done in results:
                todo -= done.record.shard.rows
                timing.add(done.record.stats.tokens, done.forwarded_tokens, done.score_seconds, done.layout, done.check)
                for note in done.notes:
                    if note not in notes:
                        notes.append(note)
                        terminal.warn(note)
                progress.advance(done.record.shard.rows, done.record.stats.tokens)
                rate.add(done.record)
                counts.update(done.counts)
        for sentence, count in counts.items():
            if count:
                notes.append(f"{count:,} {sentence}")
                terminal.warn(notes[-1])
        if todo:
            raise RunError(
                f"the flow ended and left {todo:,} rows; what is committed is kept, run the same again to go on"
            )
        return timing.stop()


def with_absolute_places(config: Labelling) -> Labelling:
    """Workers have other working directories, so every local place becomes absolute."""

    def model(name: str) -> str:
        return os.path.abspath(name) if os.path.isdir(name) else name

    tokens = config.tokens
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": model(config.model.name)},
        "output": {"path": absolute(config.output.path)},
        "tokens": {
            "rubrics": absolute(tokens.rubrics) if tokens.rubrics else None,
            "template": tokens.template if tokens.template in ("auto", "none") else absolute(tokens.template),
        },
    }
    if isinstance(config, EvaluateConfig):
        sections |= {
            name: {"model": model(getattr(config, name).model)} for name in ("verifier", "judge", "classifier")
        }
        sections["implicit"] = {"reference": model(config.implicit.reference)}
    changed = {name: getattr(config, name).model_copy(update=update) for name, update in sections.items()}
    return config.model_copy(update=changed)


def require(**given: Any) -> None:
    """Raises ConfigError that names the flags without a value."""
    missing = [f"--{flag}" for flag, value in given.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: none given")


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
    if labeller.engine == "scorer":
        return ScorerSpec(**common, alpha=config.reward.alpha, head_chunk_mb=config.scorer.head_chunk_mb)
    if isinstance(labeller, Sampling):
        options = labeller.drawn.model_dump(include={"max_new_tokens", "temperature", "top_p"})
        return GeneratorSpec(**common, **options, end_tokens=labeller.renderer.end_tokens())
    assert isinstance(config, EvaluateConfig)
    if labeller.engine == "classifier":
        return ClassifierSpec(**common, output=config.classifier.output)
    end_tokens = labeller.renderer.end_tokens()
    return GeneratorSpec(**common, max_new_tokens=config.judge.max_new_tokens, end_tokens=end_tokens)


class _ErrorRate:
    """Stops a run that mostly makes error rows, each kind by its own limit."""

    def __init__(self, config: LabelConfig):
        self.limits = {"run.max_error_rate": config.run.max_error_rate}
        if isinstance(config, EvaluateConfig):
            self.limits["judge.max_unparsable"] = config.judge.max_unparsable
        self.responses, self.errors = 0, Counter[str]()
        self.reasons = {name: Counter[str]() for name in self.limits}  # by the limit that they count against

    def add(self, record: Record) -> None:
        self.responses += record.labels.rows + record.errors.rows
        for reason, count in record.reasons.items():
            judged = reason == UNPARSABLE and "judge.max_unparsable" in self.limits
            if reason not in OVER_LENGTH:
                self.reasons["judge.max_unparsable" if judged else "run.max_error_rate"][reason] += count
        self.errors.update(record.reasons)
        if self.responses < JUDGED_AFTER:
            return
        if self.errors.total() == self.responses and self.limits["run.max_error_rate"] < 1:
            raise TooManyErrors(
                f"stopped: not one of {self.responses:,} responses could be labelled ({counted(self.errors)}); see errors/"
            )
        for name, most in self.limits.items():
            share = self.reasons[name].total() / self.responses
            if share > most:
                raise TooManyErrors(
                    f"stopped: {share:.0%} of {self.responses:,} responses are in error "
                    f"({counted(self.reasons[name])}), more than {name} = {most:g}; see errors/, what is labelled is kept"
                )


def _explained(results: Iterable[Done]) -> Generator[Done]:
    """What a step raised, as a sentence for the operator. The run had started, so the exit code is 1."""
    from ray.exceptions import RayError

    kept = "What is committed is kept; run the same again to go on"
    try:
        yield from results
    except EndorewardError as error:
        raise RunError(f"{error}\n{kept}") from error
    except (RayError, RuntimeError) as error:
        raise RunError(
            f"the flow stopped: {_first_line(error)}\n{kept}, with --set run.verbose=true to see the workers' logs"
        ) from error


def _first_line(error: BaseException) -> str:
    """Of the innermost cause: Ray wraps what happened into what it did about it."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
