"""Requests that come one by one, answered by a model many at a time: one queue, and a thread for each batch that the model, or
its replicas, can have at once.

While the model computes, requests wait; then the oldest is taken, with those that share a prompt with it, and others up to the
tokens that the model forwards at once. So batches are full where there is load, and nobody waits where there is none. A number
does not depend on who else was in the batch, beyond rounding (`pipeline.models.scoring`).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn

log = logging.getLogger(__name__)

DEATHS = 3  # of the process that computed it, before a request is given up; the last time with no other batch anywhere
LOOK_EVERY_S = 0.5  # whether the model can have more batches at once
Answers = list[Scores | RowError]


class Scorer(Protocol):
    """What answers: a model in this process, or its replicas in others."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch."""
        ...

    @property
    def at_once(self) -> int:
        """Batches that it takes before it has answered one; none while it has no replica."""
        ...

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        """Raises Lost where the process that computed it ended, Unready where there will be none."""
        ...


class Unready(Exception):
    """The model is not loaded yet or has no replica, or the server is on its way down."""


class Expired(Exception):
    """A request waited longer than it had time."""


class Lost(Exception):
    """The process that computed a batch ended before it answered."""


@dataclass(eq=False)
class _Job:
    """One request: responses that are answered together."""

    turns: Sequence[TokenizedTurn]
    keys: list[bytes]  # of each turn's prompt
    future: "Future[Answers]"
    deadline: float  # of time.monotonic
    deaths: int = 0  # of processes that computed it

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
    lost: int = 0  # batches whose process ended


class Batcher:
    """One model and those who wait for it.

    Args:
        load: makes the scorer; called in a thread of the batcher.
        failed: called in that thread with what `load` raised.
        threads: batches that are computed at once, at most.
    """

    def __init__(
        self, load: Callable[[], Scorer], failed: Callable[[Exception], None] = lambda error: None, threads: int = 1
    ):
        self.counts = Counts()
        self._load, self._failed = load, failed
        self._scorer: Scorer | None = None
        self._waiting: list[_Job] = []
        self._computing = 0
        self._isolated = False  # what is computed is a request's last chance
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name="model batch", daemon=True) for _ in range(threads)]
        self._opening = threading.Thread(target=self._open, name="model load", daemon=True)

    def start(self) -> None:
        self._opening.start()

    @property
    def ready(self) -> bool:
        """Whether there is a model that can answer."""
        return self._scorer is not None and not self._closing and self._scorer.at_once > 0

    def require_ready(self) -> None:
        """Raises Unready."""
        if self._closing:
            raise Unready("the server is going down")
        if not self.ready:
            raise Unready("the model is being loaded, or has no replica now")

    def submit(self, turns: Sequence[TokenizedTurn], deadline: float = math.inf) -> "Future[Answers]":
        """The answers to turns, in their order, as soon as the model has them. Cancelling the future takes the request out of
        the queue as long as no batch had it; one whose process ended waits again, and stays. Its exception is Expired where
        the deadline, of `time.monotonic`, passes in the queue. Raises Unready."""
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

    def wait_s(self) -> float:
        """About how long what waits will take; 0 where that is not known."""
        tokens = sum(job.tokens(set()) for job in list(self._waiting))
        rate = self.counts.tokens / self.counts.busy_s if self.counts.busy_s else 0.0
        return tokens / (rate * max(1, self._computing)) if rate else 0.0

    def refuse(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing more, and answer what waits. A model that is still being loaded is not waited for."""
        self.refuse()
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        for thread in (self._opening, *self._threads) if self._scorer is not None else ():
            if thread.is_alive():
                thread.join(None if timeout_s is None else max(0.0, until - time.monotonic()))

    def _open(self) -> None:
        try:
            self._scorer = self._load()
        except Exception as error:
            self._failed(error)
            return
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        assert self._scorer is not None
        while jobs := self._take(self._scorer):
            try:
                self._answer(self._scorer, jobs)
            finally:
                with self._changed:
                    self._computing -= 1
                    self._changed.notify_all()

    def _take(self, scorer: Scorer) -> list[_Job]:
        """The next batch, when there is one and the model can have it; none once there will be no more."""
        with self._changed:
            while True:
                self._leave_out_the_expired()
                if self._waiting and self._computing < self._most(scorer):
                    break
                if self._closing and not self._waiting and not self._computing:  # a batch that is lost comes back
                    return []
                self._changed.wait(LOOK_EVERY_S if self._waiting else None)
            taken = _filled(self._waiting, scorer.batch_tokens)
            self._waiting = [job for job in self._waiting if job not in taken]
            self._computing += 1
            self._isolated = _is_last_chance(taken[0])
            return taken

    def _most(self, scorer: Scorer) -> int:
        """Batches at once. A process may end by one batch with another at its door: on its last chance a request is alone."""
        return min(1, scorer.at_once) if self._isolated or _is_last_chance(self._waiting[0]) else scorer.at_once

    def _leave_out_the_expired(self) -> None:
        now = time.monotonic()
        for job in self._waiting:
            if job.deadline < now and _is_wanted(job):
                job.future.set_exception(Expired("the request's time was over before the model was free"))
        self._waiting = [job for job in self._waiting if not job.future.done()]

    def _answer(self, scorer: Scorer, jobs: Sequence[_Job]) -> None:
        jobs = [job for job in jobs if _is_wanted(job)]
        if not jobs:
            return
        begun = time.monotonic()
        try:
            answers = scorer.score([turn for job in jobs for turn in job.turns])
        except Lost as error:
            self._again(jobs, error)
            return
        except Unready as error:
            for job in jobs:
                job.future.set_exception(error)
            return
        except Exception as error:
            with self._changed:
                self.counts.failures += 1
            log.error("the model raised %s on a batch of %d requests", type(error).__name__, len(jobs))
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one request may fail another's batch, not its answer
                self._answer(scorer, [job])
            return
        self._count(jobs, time.monotonic() - begun)
        place = 0
        for job in jobs:
            job.future.set_result(answers[place : place + len(job.turns)])
            place += len(job.turns)

    def _again(self, jobs: Sequence[_Job], error: Lost) -> None:
        """A batch whose process ended waits once more, each request for a batch of its own: one may have ended it."""
        log.error("a replica ended (%s) with a batch of %d requests, which are asked again", error, len(jobs))
        with self._changed:
            self.counts.lost += 1
            for job in jobs:
                job.deaths += 1
            self._waiting[:0] = [job for job in jobs if job.deaths < DEATHS]
        for job in jobs:
            if job.deaths >= DEATHS:
                job.future.set_exception(error)

    def _count(self, jobs: Sequence[_Job], seconds: float) -> None:
        prompts: set[bytes] = set()
        with self._changed:
            for job in jobs:
                self.counts.tokens += job.tokens(prompts)
                self.counts.responses += len(job.turns)
                prompts.update(job.keys)
            self.counts.batches += 1
            self.counts.busy_s += seconds


def _is_wanted(job: _Job) -> bool:
    """Whether there is somebody who waits for it, who can then no longer take it back."""
    return job.future.running() or job.future.set_running_or_notify_cancel()


def _is_last_chance(job: _Job) -> bool:
    return job.deaths == DEATHS - 1


def _filled(waiting: Sequence[_Job], budget_tokens: int) -> list[_Job]:
    """The oldest request, whatever its size, and others that fit beside it: first those that share a prompt with it. One whose
    process ended is alone."""
    if waiting[0].deaths:
        return [waiting[0]]
    oldest = set(waiting[0].keys)
    batch: list[_Job] = []
    prompts, size = set[bytes](), 0
    for job in sorted(waiting, key=lambda job: oldest.isdisjoint(job.keys)):
        if job.deaths:
            continue
        tokens = job.tokens(prompts)
        if not batch or size + tokens <= budget_tokens:
            batch.append(job)
            prompts.update(job.keys)
            size += tokens
    return batch
