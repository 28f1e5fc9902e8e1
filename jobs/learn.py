"""What each worker of a training run does, inside Ray Train: the loop over steps, checkpoints, the export.

A worker that dies takes the others with it; Ray Train starts them all again and they go on from the last checkpoint. What
was learned after it is learned once more, from the same data in the same order, and comes out the same to the last bit.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch

from actors.learner import Diverged, Learner, LearnerSpec
from pipeline import storage
from pipeline.errors import ConfigError, EndorewardError
from pipeline.store import documents
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples
from pipeline.training.metrics import EVAL, MetricsFile, Trackers
from pipeline.training.reference import References
from pipeline.training.rows import RowReader
from pipeline.training.run import keep_snapshot
from pipeline.training.schedule import learning_rate
from pipeline.training.steps import StepData

STOPPED = "stopped.json"  # why a run cannot go on, for the driver
STATE = "endoreward.json"  # in a checkpoint, beside DeepSpeed's files
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
    training = told["training"]
    if storage.exists(training.place(STOPPED)):
        return  # another worker found out that there is no going on
    try:
        _learn(training)
    except torch.OutOfMemoryError as error:
        _stop(
            training,
            f"out of memory: {str(error).splitlines()[0]}; lower learner.budget_tokens, set learner.gradient_checkpointing, a "
            "higher learner.zero_stage or learner.offload; once there is a checkpoint, in another --output",
        )
        raise
    except Diverged as error:  # which all workers find at once: they end together, and nothing is started again
        _stop(training, str(error))
    except EndorewardError as error:
        _stop(training, str(error))
        raise  # the others may wait for this one in a collective


def _stop(training: Training, sentence: str) -> None:
    """Tell the driver, and the workers that are started again, why there is no going on."""
    documents.create(training.place(STOPPED), {"sentence": sentence})


def _learn(training: Training) -> None:
    config = training.config
    torch.set_num_threads(config.learner.cpus_per_worker)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    examples, held_out = ray.get(training.examples)
    data, eval_data = (_data(training, each, rank, workers) for each in (examples, held_out))
    order = data.order()
    learner = Learner(LearnerSpec(config, training.device, training.deepspeed))
    state = _restore(learner)
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
                if row[f"{EVAL}loss"] < state["best"]:
                    state["best"] = row[f"{EVAL}loss"]
                    _export(learner, training.place("best"), rank)
            row = {"step": step + 1, "num_tokens": state["num_tokens"], **row}
            if trackers is not None:
                metrics.append(row)
                trackers.log(row)
                if due:
                    metrics.flush()
            if due:
                _checkpoint(training, learner, state, row, rank)
                ended = time.perf_counter()
        waiting.cancel()
    _export(learner, training.place("hf"), rank)
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


def _restore(learner: Learner) -> dict[str, Any]:
    """Take up the last checkpoint, where there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return {"step": 0, "num_tokens": 0, "best": float("inf"), "workers": learner.world}
    with checkpoint.as_directory() as folder:
        state = documents.read(os.path.join(folder, STATE))
        if state["workers"] != learner.world:
            raise ConfigError(
                f"the checkpoint was written by {state['workers']} workers and these are {learner.world}; set "
                f"learner.workers={state['workers']}, or begin anew in another --output"
            )
        learner.restore(folder)
    return {**state, "best": float(state["best"])}


def _checkpoint(training: Training, learner: Learner, state: dict[str, Any], row: dict[str, Any], rank: int) -> None:
    """Every worker hands its own part to Ray Train, which merges them where they are kept."""
    with tempfile.TemporaryDirectory() as folder:
        learner.save(folder, state["step"])
        if rank == 0:
            documents.create(os.path.join(folder, STATE), {**state, "best": repr(state["best"])})
            keep_snapshot(training.output)
        kept = {name: row[name] for name in ("step", "loss")}
        ray.train.report(kept, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _export(learner: Learner, place: str, rank: int) -> None:
    """Write the policy as it is now, whole."""
    with tempfile.TemporaryDirectory() as folder:
        learner.export(folder)
        if rank == 0:
            storage.put_folder(folder, place)
