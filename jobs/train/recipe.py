"""What `train` gives the loop on its workers (`jobs.learning.loop`): steps read from label stores, and one step of the
optimizer on each."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import ray

from actors.learner import Diverged, Learner, LearnerSpec
from jobs.learning.book import Book
from jobs.learning.loop import Clock, Recipe, Source
from jobs.learning.worker import State, export
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples
from pipeline.training.metrics import EVAL, MetricRow
from pipeline.training.objectives import objective_of
from pipeline.training.reference import References
from pipeline.training.rows import RowReader
from pipeline.training.steps import StepData, StepPart

DRIFT = 0.1
"""Nats by which stored log-probabilities of a token may differ from the policy's own before the first step, on average:
rounding to bfloat16 makes a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Recipe[StepPart]):
    """A run of `train`, as its workers know it."""

    FRESH: ClassVar[State] = {"best": repr(float("inf"))}  # the lowest eval_loss

    config: TrainConfig
    stored_reference: bool  # whether the labels hold the reference's log-probabilities
    policy_labelled: bool  # whether the policy, as it was before training, made the labels
    pictures: bool  # whether prompts have pictures
    reference: str | None  # where the reference's log-probabilities were computed to
    steps_per_epoch: float
    examples: Any  # a Ray reference to (examples to learn from, examples to measure on)

    def learner(self) -> LearnerSpec:
        objective = objective_of(self.config)
        return LearnerSpec(self.config, objective, self.device, self.deepspeed, pictures=self.pictures)

    def source(self, learner: Learner, step: int) -> "StoredSteps":
        learned, held_out = (self._data(each, learner) for each in ray.get(self.examples))
        return StoredSteps(learned, held_out, step)

    def _data(self, examples: Examples, learner: Learner) -> StepData:
        """With a reader of its own: steps are read ahead while others are measured."""
        hold = self.config.train.shuffle_parts
        reader = RowReader(examples.sources, examples.parts, self.config.policy, hold)
        references = References(self.reference, hold) if self.reference else None
        return StepData(self.config, examples, reader, references, self.stored_reference, learner.rank, learner.world)

    def book(self, source: Any, step: int, notes: Sequence[str]) -> Book:
        return Book(self, step, notes)

    def step(self, learner: Learner, step: int, data: StepPart) -> tuple[MetricRow, int]:
        row = learner.step(data.micro_batches, data.totals, self.rate_of(step))
        self._check_drift(step, row.pop("reference_drift", None))
        return row, data.tokens

    def _check_drift(self, step: int, drift: float | None) -> None:
        if step == 0 and self.stored_reference and self.policy_labelled and drift is not None and drift > DRIFT:
            raise Diverged(
                f"the stored log-probabilities differ from the policy's own by {drift:.2g} nats a token before the first "
                "step: it does not see what was labelled; label once more with this version and this policy"
            )

    def progress(self, step: int, tokens: int, clock: Clock) -> MetricRow:
        return {
            "epoch": (step + 1) / self.steps_per_epoch,
            "tokens_per_second": tokens / clock.spent()["step_time"],
        }

    def measure(self, learner: Learner, source: "StoredSteps", state: State) -> MetricRow:
        """On the held-out examples; the policy that they like best is exported."""
        if not len(source.held_out.examples):
            return {}
        row = learner.measure(source.held_out_micro_batches())
        row.pop("reference_drift", None)
        if row["loss"] < float(state["best"]):
            state["best"] = repr(row["loss"])
            export(learner, self.output, "best")
        return {f"{EVAL}{name}": value for name, value in row.items()}


class StoredSteps(Source[StepPart]):
    """This worker's part of each step, read from the label stores one step ahead.

    Args:
        step: the first that is asked for; the others follow in turn.
    """

    def __init__(self, learned: StepData, held_out: StepData, step: int):
        self.data, self.held_out, self.order = learned, held_out, learned.order()
        self.reader = ThreadPoolExecutor(1)
        self.next = self.reader.submit(self.data.part, self.order.step(step))

    def step(self, step: int) -> StepPart:
        part = self.next.result()
        self.next = self.reader.submit(self.data.part, self.order.step(step + 1))
        return part

    def held_out_micro_batches(self) -> Iterator[list[Response]]:
        return (micro for part in self.held_out.parts() for micro in part.micro_batches)

    def close(self) -> None:
        self.next.cancel()
        self.reader.shutdown()
