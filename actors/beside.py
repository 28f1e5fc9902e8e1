"""The actor's model in a process beside it: a request that ends that process leaves the actor to say which one it was."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from actors.actor import Actor, ActorSpec, Answered
from pipeline.apart import Apart, Died, reporting
from pipeline.errors import RunError
from pipeline.killers import DEATHS, Bisection, killed

DOING = "answering"


class ActorBeside:
    """Answers as `Actor` does. Raises EndorewardError where the model cannot be loaded.

    Attributes:
        forwarded_tokens: tokens given to the model so far; moves every second while it answers.
    """

    def __init__(self, spec: ActorSpec):
        self.model, self.spec = spec.model.name, pickle.dumps(spec)
        self.beside, self.lived = Apart(), False
        self.forwarded_tokens = self._before = 0  # before: by processes that have ended
        self._load()

    def answer(self, what: str, requests: Sequence[Any]) -> Answered:
        """The answers to one shard's requests; a RowError where one ends its process.

        Args:
            what: the shard's rows, for messages.

        Raises:
            RunError: where no request in particular is to blame.
        """
        search = Bisection(lambda positions: self._answer(requests, positions), self.beside.stop, what, self.lived)
        answered = search.run(len(requests))
        self.lived = search.lived
        others = iter(answered.answers)
        answers = [
            killed(search.killers[i], DOING) if i in search.killers else next(others) for i in range(len(requests))
        ]
        return replace(answered, answers=answers, notes=[*answered.notes, *search.notes(DOING)])

    def _answer(self, requests: Sequence[Any], positions: Sequence[int]) -> Answered:
        if not self.beside.alive:
            self._load()
        return self.beside.call(_answered, self.spec, [requests[i] for i in positions], hear=self._hear)

    def _hear(self, tokens: int) -> None:
        self.forwarded_tokens = self._before + tokens

    def _load(self) -> None:
        """Start the process and load the model there: what ends it now is no request's doing."""
        self._before = self.forwarded_tokens
        for _ in range(DEATHS):
            try:
                self.beside.call(_opened, self.spec)
                return
            except Died as death:
                how = death.how
        raise RunError(
            f"the process that loads {self.model} ended {DEATHS} times before it had ({how}): mostly for want of memory; "
            "take a larger machine, or try it alone with --set run.verbose=true"
        )


@lru_cache(maxsize=1)
def _actor(spec: bytes) -> Actor:
    return Actor(pickle.loads(spec))  # ours: written by ActorBeside


def _opened(spec: bytes) -> None:
    _actor(spec)


def _answered(spec: bytes, requests: Sequence[Any]) -> Answered:
    actor = _actor(spec)
    with reporting(lambda: actor.engine.forwarded_tokens):
        return actor.answer(requests)
