"""How a run that trains goes, whatever it learns from: `train` and `rl` each make a `Plan`, and the rest is here.

plan      everything that can be known before a worker starts; nothing is written before
begin     run.json, under the writer's lock
learn     the plan's own
close     model card, page, manifest, table; with the manifest a run is done
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
from pipeline.errors import ConfigError
from pipeline.report.card import model_card
from pipeline.rl.run import LEFT_BY_RUN, REPEATED, ROLLOUTS
from pipeline.storage import absolute
from pipeline.store import LabelStore, WriterLock, documents, fingerprint
from pipeline.training.config import LearningConfig
from pipeline.training.documents import Run, RunManifest
from pipeline.training.metrics import Row, check_tracking, ends, read_metrics
from pipeline.training.run import STOPPED, RunFolder

Config = TypeVar("Config", bound=LearningConfig)


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
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

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Of the table that shows it."""

    @abstractmethod
    def says(self) -> dict[str, Any]:
        """What its run.json holds besides what every run's does."""

    @abstractmethod
    def learn(self, folder: RunFolder, run: dict[str, Any]) -> None:
        """Take all steps, connected to Ray. Raises RunError where the run cannot go on."""


def drive(
    config: LearningConfig, plan_of: Callable[[], Plan], reads: Iterable[str], *, dry_run: bool, command: str
) -> int:
    """Make a plan and carry it out. Returns the exit code; raises EndorewardError.

    Args:
        config: with absolute places.
        plan_of: raises for all that can be known before a worker starts. Called connected where the run joins a cluster.
        reads: places of what it learns from, which may not lie where it writes.
        dry_run: show the plan only.
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
        plan = plan_of()
        folder.check(plan.description)
        terminal.print_table(f"{plan.TITLE} {plan.config.policy.name}", plan.rows())
        for note in plan.notes:
            terminal.warn(note)
        if folder.manifest() is not None:
            terminal.say(f"{folder.uri}: all {plan.steps:,} steps are done already; the policy is {folder.at('hf')}")
            return 0
        if dry_run:
            return 0
        held.enter_context(WriterLock(folder.uri))  # given back after a local Ray, whose workers may still write
        folder.mend()
        run = _begin(folder, plan, command)
        if not joins_cluster(config.run):
            room = max(plan.cpus, cpus_of(config))  # actors that take turns may reserve more than there is
            held.enter_context(cluster(config.run.model_copy(update={"num_cpus": room})))
        warn_of_room(plan.who, plan.cpus, plan.gpus, plan.remedy)
        started = time.perf_counter()
        plan.learn(folder, run)
        _close(folder, plan, run, time.perf_counter() - started)
    return 0


def with_absolute_places(config: Config) -> Config:
    """Workers have other working directories, so every local place that any run has becomes absolute."""
    learner = config.learner
    return config.model_copy(
        update={
            "policy": absolute_model(config.policy),
            "reference": absolute_model(config.reference),
            "output": config.output.model_copy(update={"path": absolute(config.output.path)}),
            "learner": learner.model_copy(update={"deepspeed": learner.deepspeed and absolute(learner.deepspeed)}),
        }
    )


def _begin(folder: RunFolder, plan: Plan, command: str) -> dict[str, Any]:
    """What the run says of itself, as documents and the page want it; kept from its beginning on."""
    found = folder.read("run.json")
    if found is None or found["description"] != plan.description:  # without a checkpoint, it is as if it had not been
        config = plan.config
        found = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "config": config.model_dump(mode="json"),
            "description": plan.description,
            "fingerprint": fingerprint.digest(plan.description),
            "policy": {"name": config.policy.name, "revision": config.policy.revision},
            "steps": plan.steps,
            "device": f"{plan.workers} x {plan.device}, {plan.dtype}",
            "notes": plan.notes,
            **plan.says(),
        }
        folder.forget(*LEFT_BY_RUN)
        folder.forget_policies()
        LabelStore(folder.at(ROLLOUTS)).discard()
        Run.model_validate(found).write(folder.at("run.json"))
    documents.remove(folder.at(STOPPED))
    return found


def _close(folder: RunFolder, plan: Plan, run: dict[str, Any], seconds: float) -> None:
    metrics = read_metrics(folder.at("metrics.jsonl"))
    manifest = {
        **run,
        "seconds": round(seconds, 3),
        "tokens": metrics[-1]["num_tokens"],
        "last": metrics[-1],
        **(folder.read(REPEATED) or {}),
        "versions": {**versions(), **learner_versions()},
    }
    results = read_results(folder)
    documents.write_bytes(folder.at("hf", "README.md"), model_card(manifest, metrics, results).encode())
    draw_run(folder, manifest)
    RunManifest.model_validate(manifest).create(folder.at("manifest.json"))
    figures = [
        *_figures(results, metrics, plan.SHOWN),
        ("Policy", folder.at("hf")),
        ("Report", folder.at("report.html")),
    ]
    terminal.print_table(plan.DONE, figures)


def _figures(results: dict[str, Any], metrics: list[Row], shown: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for when in ("before", "after"):
        if f"accuracy_{when}" in results:
            low, high = results[f"accuracy_{when}_interval"]
            yield f"accuracy {when}", f"{results[f'accuracy_{when}']:.1%} ({low:.1%} to {high:.1%})"
    for name in shown:
        found = ends(metrics, name)
        if found is not None:
            yield name, f"{found[0]:.4g} -> {found[1]:.4g}"
