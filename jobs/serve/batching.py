"""Requests that come one by one, answered by a model many at a time: one queue, one thread that holds the model.

While the model computes, requests wait; then the oldest is taken, with those that share a prompt with it, and others up to the
tokens that the model forwards at once. So batches are full where there is load, and nobody waits where there is none. A number
does not depend on who else was in the batch, beyond rounding (`pipeline.models.scoring`).
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60  # that a client is asked for before it tries again
Answers = list[Scores | RowError]


class Scorer(Protocol):
    """What answers: `pipeline.models.scoring.Scorer`."""

    @property
    def batch_tokens(self) -> int: ...

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers: ...


class Full(Exception):
    """As many requests are in hand as may be; `retry_after_s` is about when there will be room."""

    def __init__(self, most: int, retry_after_s: int):
        super().__init__(f"{most} requests are in hand already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Unready(Exception):
    """The model is not loaded yet, or the server is on its way down."""


class Expired(Exception):
    """A request waited longer than it had time."""


@dataclass(eq=False)
class _Job:
    """One request: responses that are answered together."""

    turns: Sequence[TokenizedTurn]
    keys: list[bytes]  # of each turn's prompt
    future: "Future[Answers]"
    deadline: float  # of time.monotonic

    def tokens(self, besides: set[bytes]) -> int:
        """That the model computes for it, in a batch that has these prompts already."""
        prompts = {key: len(t.prompt_ids) for key, t in zip(self.keys, self.turns, strict=True) if key not in besides}
        return sum(prompts.values()) + sum(len(turn.response_ids) - 1 for turn in self.turns)


@dataclass
class Counts:
    """Since the start."""

    batches: int = 0
    responses: int = 0
    tokens: int = 0  # of batches, a prompt that responses share once
    busy_s: float = 0.0
    failures: int = 0  # batches that the model raised on


class Batcher:
    """One model and those who wait for it.

    Args:
        load: makes the scorer; called in the thread that will use it.
        max_requests: that are in hand at once, from their arrival to their answer.
        failed: called in that thread with what `load` raised.
    """

    def __init__(
        self, load: Callable[[], Scorer], max_requests: int, failed: Callable[[Exception], None] = lambda error: None
    ):
        self.max_requests = max_requests
        self.counts = Counts()
        self.in_hand = 0
        self.ready = False
        self._load, self._failed = load, failed
        self._waiting: list[_Job] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """A request's place, from its arrival on. Raises Full and Unready."""
        with self._changed:
            if not self.ready or self._closing:
                raise Unready("the server is going down" if self._closing else "the model is being loaded")
            if self.in_hand >= self.max_requests:
                raise Full(self.max_requests, self.wait_s())
            self.in_hand += 1
        try:
            yield
        finally:
            with self._changed:
                self.in_hand -= 1

    def submit(self, turns: Sequence[TokenizedTurn], deadline: float = math.inf) -> "Future[Answers]":
        """The answers to turns, in their order, as soon as the model has them; cancelling the future takes the request out of
        the queue. Its exception is Expired where the deadline, of `time.monotonic`, passes in the queue. Raises Unready."""
        job = _Job(turns, [turn.prompt_ids.tobytes() for turn in turns], Future(), deadline)
        with self._changed:
            if self._closing:
                raise Unready("the server is going down")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def wait_s(self) -> int:
        """About how long what waits will take, in whole seconds, 1 at least."""
        tokens = sum(job.tokens(set()) for job in self._waiting)
        rate = self.counts.tokens / self.counts.busy_s if self.counts.busy_s else 0.0
        return min(LONGEST_WAIT_S, max(1, math.ceil(tokens / rate))) if rate else 1

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing more, answer what waits, and let go of the model."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._scorer = self._load()
        except Exception as error:
            self._failed(error)
            return
        self.ready = True
        while jobs := self._take():
            self._answer(jobs)
        self.ready = False

    def _take(self) -> list[_Job]:
        """The next batch, when there is one; none once there will be no more."""
        with self._changed:
            while True:
                self._leave_out_the_expired()
                if self._waiting:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            taken = _filled(self._waiting, self._scorer.batch_tokens)
            self._waiting = [job for job in self._waiting if job not in taken]
            return taken

    def _leave_out_the_expired(self) -> None:
        now = time.monotonic()
        for job in self._waiting:
            if job.deadline < now and job.future.set_running_or_notify_cancel():
                job.future.set_exception(Expired("the request's time was over before the model was free"))
        self._waiting = [job for job in self._waiting if not job.future.done()]

    def _answer(self, jobs: Sequence[_Job]) -> None:
        jobs = [job for job in jobs if job.future.running() or job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        begun = time.monotonic()
        try:
            answers = self._scorer.score([turn for job in jobs for turn in job.turns])
        except Exception as error:
            self.counts.failures += 1
            log.error("the model raised %s on a batch of %d requests", type(error).__name__, len(jobs))
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one request may fail another's batch, not its answer
                self._answer([job])
            return
        self._count(jobs, time.monotonic() - begun)
        place = 0
        for job in jobs:
            job.future.set_result(answers[place : place + len(job.turns)])
            place += len(job.turns)

    def _count(self, jobs: Sequence[_Job], seconds: float) -> None:
        prompts: set[bytes] = set()
        for job in jobs:
            self.counts.tokens += job.tokens(prompts)
            self.counts.responses += len(job.turns)
            prompts.update(job.keys)
        self.counts.batches += 1
        self.counts.busy_s += seconds


def _filled(waiting: Sequence[_Job], budget_tokens: int) -> list[_Job]:
    """The oldest request, whatever its size, and others that fit beside it: first those that share a prompt with it."""
    oldest = set(waiting[0].keys)
    batch: list[_Job] = []
    prompts, size = set[bytes](), 0
    for job in sorted(waiting, key=lambda job: oldest.isdisjoint(job.keys)):
        tokens = job.tokens(prompts)
        if not batch or size + tokens <= budget_tokens:
            batch.append(job)
            prompts.update(job.keys)
            size += tokens
    return batch
