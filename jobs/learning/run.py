"""A training run from its description to its manifest: `train` and `rl` each describe a `TrainingRun`, the rest is here.

describe  everything that can be known before a worker starts; nothing is written before
begin     run.json, under the writer's lock
learn     the run's own
finish    model card, page, manifest, table; with the manifest a run is done
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from jobs import terminal
from jobs.cluster import cluster, joins_cluster, warn_of_local_output
from jobs.learning.trainer import absolute_model, cpus_of, learner_versions, warn_of_room
from jobs.stores.finalize import versions
from jobs.stores.inspect_run import draw_run, read_results
from pipeline.config.places import with_absolute_places
from pipeline.config.section import changed, value_at
from pipeline.errors import ConfigError
from pipeline.report.card import model_card, shareable_config
from pipeline.rl.run import LEFT_BY_RUN, REPEATED, ROLLOUTS
from pipeline.store import LabelStore, WriterLock, documents, fingerprint
from pipeline.training.config import LearningConfig
from pipeline.training.documents import Repeats, RlResults, Run, RunManifest
from pipeline.training.metrics import MetricRow, check_tracking, ends, read_metrics
from pipeline.training.run import STOPPED, RunFolder

Config = TypeVar("Config", bound=LearningConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingRun(ABC):
    """A run that is described and checked, and of which nothing is written yet.

    Attributes:
        TITLE: of the table that shows it; the policy's name follows.
        DONE: of the last table.
        SHOWN: metrics whose start and end stand in that.
    """

    TITLE: ClassVar[str]
    DONE: ClassVar[str]
    SHOWN: ClassVar[tuple[str, ...]]

    config: LearningConfig
    device: str
    workers: int
    dtype: str
    deepspeed: str | None  # the content of `learner.deepspeed`
    steps: int
    rate: float  # after the warm-up
    notes: list[str]
    description: dict[str, Any]

    @property
    def who(self) -> str:
        """What the run starts, for messages."""
        return f"{self.workers} workers"

    @property
    def remedy(self) -> str:
        """What to do where there is no room for that."""
        return "lower learner.workers"

    @property
    def cpus(self) -> int:
        """That the run reserves."""
        return self.workers * self.config.learner.cpus_per_worker

    @property
    def gpus(self) -> float:
        """That the run reserves."""
        return float(self.workers) if self.device == "cuda" else 0.0

    def shared(self, folder: RunFolder, record: Run) -> dict[str, Any]:
        """The fields of a `Recipe` that are of every run."""
        return {
            "config": self.config,
            "device": self.device,
            "deepspeed": self.deepspeed,
            "output": folder.uri,
            "steps": self.steps,
            "rate": self.rate,
            "nodes_go": joins_cluster(self.config.run),  # a local Ray's one node is nobody's to take
            "run": {
                "created": record.created,
                "objective": record.objective,
                "config": shareable_config(record),
            },
        }

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Of the table that shows it."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What its run.json holds besides what every run's does."""

    @abstractmethod
    def learn(self, folder: RunFolder, record: Run) -> None:
        """Take all steps, connected to Ray. Raises RunError where the run cannot go on.

        Args:
            record: run.json.
        """


def carry_out(
    config: LearningConfig, describe: Callable[[], TrainingRun], reads: Iterable[str], *, dry_run: bool, command: str
) -> int:
    """Describe a run and carry it out. Returns the exit code; raises EndorewardError.

    Args:
        config: with absolute places.
        describe: raises for all that can be known before a worker starts. Called connected where the run joins a cluster.
        reads: places of what it learns from, which may not lie where it writes.
        dry_run: show the description only.
    """
    check_tracking(config.tracking)
    folder = RunFolder(config.output.path)
    folder.check_place()
    for place in reads:
        if f"{place.rstrip('/')}/".startswith(f"{folder.uri.rstrip('/')}/"):
            raise ConfigError(f"the run would read {place} and write over it: give another --output than {folder.uri}")
    with contextlib.ExitStack() as held:
        if joins_cluster(config.run):  # only the cluster knows its devices
            held.enter_context(cluster(config.run))
            warn_of_local_output(config.output.path)
        run = describe()
        folder.check(run.description)
        terminal.print_table(f"{run.TITLE} {run.config.policy.name}", run.rows())
        for note in run.notes:
            terminal.warn(note)
        if folder.manifest() is not None:
            terminal.say(f"{folder.uri}: all {run.steps:,} steps are done already; the policy is {folder.at('hf')}")
            return 0
        if dry_run:
            return 0
        held.enter_context(WriterLock(folder.uri))  # given back after a local Ray, whose workers may still write
        folder.mend()
        record = _begin(folder, run, command)
        if not joins_cluster(config.run):
            room = max(run.cpus, cpus_of(config))  # actors that take turns may reserve more than there is
            held.enter_context(cluster(config.run.model_copy(update={"num_cpus": room})))
        warn_of_room(config.run, run.who, run.cpus, run.gpus, run.remedy)
        started = time.perf_counter()
        run.learn(folder, record)
        _finish(folder, run, record, time.perf_counter() - started)
    return 0


def resolved(config: Config, *places: str) -> Config:
    """With the models as `absolute_model` has them, and local places absolute: those of every run, and these fields."""
    models = {name: absolute_model(value_at(config, name)) for name in ("policy", "reference")}
    return with_absolute_places(changed(config, models), "output.path", "learner.deepspeed", *places)


def _begin(folder: RunFolder, run: TrainingRun, command: str) -> Run:
    """run.json, which stays as it was at the run's beginning."""
    record = folder.run()
    if record is None or record.description != run.description:  # without a checkpoint, it is as if it had not been
        config = run.config
        record = Run.model_validate(
            {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": command,
                "config": config.model_dump(mode="json"),
                "description": run.description,
                "fingerprint": fingerprint.digest(run.description),
                "policy": {"name": config.policy.name, "revision": config.policy.revision},
                "steps": run.steps,
                "device": f"{run.workers} x {run.device}, {run.dtype}",
                "notes": run.notes,
                **run.record(),
            }
        )
        folder.forget(*LEFT_BY_RUN)
        folder.forget_policies()
        LabelStore(folder.at(ROLLOUTS)).discard()
        record.write(folder.at("run.json"))
    documents.remove(folder.at(STOPPED))
    return record


def _finish(folder: RunFolder, run: TrainingRun, record: Run, seconds: float) -> None:
    metrics = read_metrics(folder.at("metrics.jsonl"))
    repeats = folder.find(Repeats, REPEATED)
    manifest = RunManifest.model_validate(
        {
            **record.content(),
            "seconds": round(seconds, 3),
            "tokens": metrics[-1]["num_tokens"],
            "last": metrics[-1],
            **({"repeated": repeats.repeated} if repeats is not None else {}),
            "versions": {**versions(), **learner_versions()},
        }
    )
    results = read_results(folder)
    documents.write_bytes(folder.at("hf", "README.md"), model_card(manifest, metrics, results).encode())
    draw_run(folder, manifest)
    manifest.create(folder.at("manifest.json"))
    figures = [
        *_figures(results, metrics, run.SHOWN),
        ("Policy", folder.at("hf")),
        ("Report", folder.at("report.html")),
    ]
    terminal.print_table(run.DONE, figures)


def _figures(results: RlResults | None, metrics: list[MetricRow], shown: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for when in ("before", "after"):
        if results is not None and (measured := results.accuracy(when)) and measured[1]:
            low, high = measured[1]
            yield f"accuracy {when}", f"{measured[0]:.1%} ({low:.1%} to {high:.1%})"
    for name in shown:
        values = ends(metrics, name)
        if values is not None:
            yield name, f"{values[0]:.4g} -> {values[1]:.4g}"
