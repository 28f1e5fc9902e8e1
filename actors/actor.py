"""The actor: one model in memory, one process, a shard at a time, so that no batch crosses a shard.

A spec says which model and how it is run; it pickles, and `open` loads what it names. What is loaded is an engine:
`Scorer`, `Classifier` or `Generator` of `pipeline.models`, each behind the same four names. Arithmetic lives in `pipeline`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.config import ModelConfig
from pipeline.errors import RowError

MOVED = 1e-3
"""A reward that changes by more than this share of itself (or by this much where it is below 1) has moved."""


class Engine(Protocol):
    """A model that answers requests."""

    layout: str
    notes: list[str]

    @property
    def forwarded_tokens(self) -> int: ...

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One answer for each request, or a RowError."""
        ...

    def reward(self, answer: Any) -> float | str:
        """What of an answer must not depend on the rest of its batch."""
        ...


@dataclass(frozen=True)
class ActorSpec:
    """What every actor needs to build its engine."""

    model: ModelConfig
    device: str  # "cpu" or "cuda"
    gpus: int
    threads: int
    budget_tokens: int | None
    check_responses: int  # answered once more alone, to see that batches move nothing

    def limit_threads(self) -> None:
        """Before the model is loaded; an engine that computes without torch has no need to import it."""
        import torch

        torch.set_num_threads(self.threads)

    def open(self) -> Engine:
        """Load the model. Raises ConfigError."""
        raise NotImplementedError


@dataclass(frozen=True)
class BatchCheck:
    """Some requests answered within their batch and once more alone."""

    responses: int = 0
    worst: float = 0.0  # largest difference in reward; for texts, 1 where they differ
    moved: int = 0

    def __add__(self, other: "BatchCheck") -> "BatchCheck":
        worst = max(self.worst, other.worst)
        return BatchCheck(self.responses + other.responses, worst, self.moved + other.moved)


@dataclass(frozen=True)
class Answered:
    """The answers to one shard's requests, one each, and what they cost."""

    answers: list[Any]
    forwarded_tokens: int
    seconds: float
    layout: str
    notes: list[str]
    check: BatchCheck


class Actor:
    def __init__(self, spec: ActorSpec):
        spec.limit_threads()
        self.engine = spec.open()
        self.to_check = spec.check_responses

    def answer(self, requests: Sequence[Any]) -> Answered:
        """Answer one shard's requests."""
        started, before = time.perf_counter(), self.engine.forwarded_tokens
        answers = self.engine.answer(requests)
        seconds = time.perf_counter() - started
        forwarded = self.engine.forwarded_tokens - before
        check = self._check(requests, answers)
        notes = list(self.engine.notes)
        self.engine.notes.clear()
        return Answered(answers, forwarded, seconds, self.engine.layout, notes, check)

    def _check(self, requests: Sequence[Any], answers: Sequence[Any]) -> BatchCheck:
        check = BatchCheck()
        if len(requests) < 2:  # alone already
            return check
        picked = range(0, len(requests), max(1, len(requests) // max(1, self.to_check)))[: self.to_check]
        for i in picked:
            [alone] = self.engine.answer([requests[i]])
            check += _difference(self.engine, answers[i], alone)
        self.to_check -= len(picked)
        return check


def _difference(engine: Engine, together: Any, alone: Any) -> BatchCheck:
    if isinstance(together, RowError) or isinstance(alone, RowError):
        same = isinstance(together, RowError) and isinstance(alone, RowError) and together.reason == alone.reason
        return BatchCheck(1, 0.0, 0) if same else BatchCheck(1, 1.0, 1)
    first, second = engine.reward(together), engine.reward(alone)
    if isinstance(first, str) or isinstance(second, str):
        return BatchCheck(1, float(first != second), int(first != second))
    difference = abs(first - second)
    return BatchCheck(1, difference, int(difference > MOVED * max(1.0, abs(second))))
