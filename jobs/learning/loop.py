"""The loop of a run that trains, as Ray Train runs it on each worker. It has four parts:

    learner   the policy, its optimizer, this worker's part of a step      actors.learner
    state     what a checkpoint holds beside these: the steps done         jobs.learning.worker
    source    where a step's data come from                                the recipe's
    book      who writes what was measured; on the first worker            the recipe's

`train` and `rl` are a recipe each: their source, their book, and what happens in a step. All workers call the same methods
in the same order, since most are collective.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch

from actors.learner import Learner, LearnerSpec
from jobs.learning.book import Book
from jobs.learning.worker import State, export, guarded, keep, leaving_nodes, restore
from pipeline import storage
from pipeline.training.config import LearningConfig
from pipeline.training.metrics import MetricRow
from pipeline.training.schedule import learning_rate

Data = TypeVar("Data")
NODE_GOES = "a node of its workers is about to be taken away"


def work(payload: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker. `recipe` refers to a Recipe in Ray's store."""
    import ray

    carry_out(ray.get(payload["recipe"]))


def carry_out(recipe: "Recipe[Any]") -> None:
    """The loop; what ends it is known to those who start this worker again."""
    guarded(recipe.output, lambda: loop(recipe))


def loop(recipe: "Recipe[Any]") -> None:
    """Take the steps that are not done yet, from the last checkpoint on, and export the policy."""
    torch.set_num_threads(recipe.config.learner.cpus_per_worker)
    learner = Learner(recipe.learner())
    recipe = replace(recipe, config=learner.config)  # with what workers have agreed on
    state = restore(learner, recipe.FRESH)
    announced: set[str] = set()  # nodes that are taken back, of which a checkpoint knows
    with closing(recipe.source(learner, state["step"])) as source:
        source.update(state["step"], learner)
        book = recipe.book(source, state["step"], learner.notes) if learner.rank == 0 else None
        if book and not state["step"]:
            book.begin()
        for step in range(state["step"], recipe.steps):
            clock = Clock()
            with clock.of("waiting"):
                data = source.step(step)
            with clock.of("learning"):
                row, tokens = recipe.step(learner, step, data)
            with clock.of("weights"):
                source.update(step + 1, learner)
            state |= {"step": step + 1, "num_tokens": state["num_tokens"] + tokens}
            due = step + 1 == recipe.steps or (step + 1) % recipe.config.checkpoint.every_steps == 0
            row = {"step": step + 1, "num_tokens": state["num_tokens"], **row, **recipe.progress(step, tokens, clock)}
            if due:
                row |= recipe.measure(learner, source, state)
            going = leaving_nodes() - announced if recipe.nodes_go else set()
            announced |= going
            if book:
                book.notes += [f"a checkpoint after step {step + 1}: {NODE_GOES}"] if going else []
                book.write(row, data, due or bool(going))
            if due or going:
                keep(learner, recipe.output, state, row, source.save)
    export(learner, recipe.output, "hf")
    if book:
        book.close()


class Clock:
    """Where the seconds of a step go."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.parts[f"time/{part}"] = time.perf_counter() - began

    def spent(self) -> dict[str, float]:
        """The seconds of its parts so far, and of all since this was made."""
        return {**self.parts, "step_time": time.perf_counter() - self.started}


class Source(ABC, Generic[Data]):
    """Where a step's data come from. Every worker has one."""

    @abstractmethod
    def step(self, step: int) -> Data:
        """What this worker learns step `step` from, counted from 0: the same whenever it is asked."""

    def update(self, step: int, learner: Learner) -> None:
        """The learner has taken `step` steps, here or before a restart; data made by its policy come from these weights."""

    def save(self, folder: str) -> None:
        """Put what a later `step` needs and the learner does not hold into this worker's part of a checkpoint."""

    def close(self) -> None:
        """No further step is asked for."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC, Generic[Data]):
    """A run as its workers know it: what the driver settled, and what happens in a step. It pickles."""

    FRESH: ClassVar[State] = {}  # what the state holds besides `step` and `num_tokens`, at the beginning

    config: LearningConfig
    device: str  # "cpu" or "cuda"
    deepspeed: str | None  # the content of `learner.deepspeed`
    output: str
    steps: int
    rate: float  # after the warm-up
    nodes_go: bool  # whether a cluster may take nodes away from its workers
    run: dict[str, Any]  # what trackers show of it

    def place(self, name: str) -> str:
        return storage.join(self.output, name)

    def rate_of(self, step: int) -> float:
        return learning_rate(self.config.optimizer, self.rate, step, self.steps)

    @abstractmethod
    def learner(self) -> LearnerSpec: ...

    @abstractmethod
    def source(self, learner: Learner, step: int) -> Source[Data]:
        """To begin with step `step`."""

    @abstractmethod
    def book(self, source: Any, step: int, notes: Sequence[str]) -> Book:
        """For the steps after `step`; `notes` are for its first row. Called on the first worker alone."""

    @abstractmethod
    def step(self, learner: Learner, step: int, data: Data) -> tuple[MetricRow, int]:
        """Learn from a step's data. Returns metrics, the same on every worker, and how many tokens were seen by all."""

    @abstractmethod
    def progress(self, step: int, tokens: int, clock: Clock) -> MetricRow:
        """What a row says of time and place."""

    def measure(self, learner: Learner, source: Any, state: State) -> MetricRow:
        """What all workers measure together before a checkpoint, and may add to the state."""
        return {}
