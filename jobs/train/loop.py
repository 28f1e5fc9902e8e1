"""What each worker of a training run does, inside Ray Train: the loop over the steps of `train`.

`jobs.learning.worker` has what any training run's workers do besides.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.learner import Diverged, Learner, LearnerSpec
from jobs.learning.worker import export, guarded, keep, place_of, restore
from pipeline import storage
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples
from pipeline.training.metrics import EVAL, MetricsFile, Trackers
from pipeline.training.objectives import objective_of
from pipeline.training.reference import References
from pipeline.training.rows import RowReader
from pipeline.training.schedule import learning_rate
from pipeline.training.steps import StepData

DRIFT = 0.1
"""Nats by which stored log-probabilities of a token may differ from the policy's own before the first step, on average:
rounding to bfloat16 makes a tenth of it."""


@dataclass(frozen=True)
class Training:
    """What every worker is told."""

    config: TrainConfig
    device: str
    deepspeed: str | None  # the content of `learner.deepspeed`
    output: str
    steps: int
    rate: float  # after the warm-up
    stored_reference: bool
    policy_labelled: bool
    reference: str | None  # where it was computed to
    run: dict[str, Any]  # what trackers are told
    examples: Any  # a Ray reference to (examples to learn from, examples to measure on)

    def place(self, name: str) -> str:
        return storage.join(self.output, name)


def learn(told: dict[str, Training]) -> None:
    """The function that Ray Train runs on every worker."""
    training = told["told"]
    guarded(training.output, lambda: _learn(training))


def _learn(training: Training) -> None:
    config = training.config
    torch.set_num_threads(config.learner.cpus_per_worker)
    rank, workers = place_of()
    examples, held_out = ray.get(training.examples)
    data, eval_data = (_data(training, each, rank, workers) for each in (examples, held_out))
    order = data.order()
    learner = Learner(LearnerSpec(config, objective_of(config), training.device, training.deepspeed))
    state = restore(learner, {"best": repr(float("inf"))})
    metrics, trackers = MetricsFile(training.place("metrics.jsonl")), None
    if rank == 0:
        metrics.truncate(state["step"])
        trackers = Trackers(config.tracking, training.output, training.run, state["step"])
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(data.part, order.step(state["step"]))
        ended = time.perf_counter()
        for step in range(state["step"], training.steps):
            part = waiting.result()
            waiting = ahead.submit(data.part, order.step(step + 1))
            rate = learning_rate(config.train, training.rate, step, training.steps)
            row = learner.step(part.micro_batches, part.totals, rate)
            _check_drift(training, step, row.pop("reference_drift", None))
            began, ended = ended, time.perf_counter()
            state |= {"step": step + 1, "num_tokens": state["num_tokens"] + part.tokens}
            row |= {"epoch": (step + 1) / order.steps_per_epoch, "tokens_per_second": part.tokens / (ended - began)}
            due = (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == training.steps
            if due and len(held_out):
                measured = learner.measure(micro for part in eval_data.parts() for micro in part.micro_batches)
                measured.pop("reference_drift", None)
                row |= {f"{EVAL}{name}": value for name, value in measured.items()}
                if row[f"{EVAL}loss"] < float(state["best"]):
                    state["best"] = repr(row[f"{EVAL}loss"])
                    export(learner, training.output, "best")
            said, learner.notes = learner.notes, []
            row = {"step": step + 1, "num_tokens": state["num_tokens"], **row} | ({"warnings": said} if said else {})
            if trackers is not None:
                metrics.append(row)
                trackers.log(row)
                if due:
                    metrics.flush()
            if due:
                keep(learner, training.output, state, row)
                ended = time.perf_counter()
        waiting.cancel()
    export(learner, training.output, "hf")
    if trackers is not None:
        metrics.close()
        trackers.close()


def _data(training: Training, examples: Examples, rank: int, workers: int) -> StepData:
    """With a reader of its own: steps are read ahead while others are measured."""
    config = training.config
    hold = config.train.shuffle_parts
    reader = RowReader(examples.sources, examples.parts, config.policy, hold)
    references = References(training.reference, hold) if training.reference else None
    return StepData(config, examples, reader, references, training.stored_reference, rank, workers)


def _check_drift(training: Training, step: int, drift: float | None) -> None:
    if step == 0 and training.stored_reference and training.policy_labelled and drift is not None and drift > DRIFT:
        raise Diverged(
            f"the stored log-probabilities differ from the policy's own by {drift:.2g} nats a token before the first step: "
            "it does not see what was labelled; label once more with this version and this policy"
        )
