"""A fixed pool of identical actors; the parts of a step are assigned round-robin.

Ray restarts a dead actor and repeats the call that it had in hand; the answer then comes from another process, by which the
pool notices, and notes, what was done twice.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import ray
import ray.exceptions

from pipeline.errors import EndorewardError, RunError, last_line
from pipeline.rl.config import PoolSection

LOGS = "run the same again with --set run.verbose=true to see its log"


class ActorPool:
    """Raises nothing at first: an actor that cannot load its model says so when it is asked.

    Args:
        kind: the actor's class.
        name: what one of them is called, in messages, and the section that configures them.
        count: how many.
        section: what each reserves and how often it is restarted.
        gpus: that each reserves.
        spec: what each is made from.
        nodes: options that say on which nodes, of `jobs.cluster.placed`.

    Attributes:
        notes: what a person should know, as it comes up; drained by the caller.
        seconds: what the slowest of them took in each call, summed; drained by the caller.
    """

    def __init__(
        self,
        kind: type,
        name: str,
        count: int,
        section: PoolSection,
        gpus: float,
        spec: Any,
        nodes: Mapping[str, Any],
    ):
        self.name = name
        options: dict[str, Any] = {"num_cpus": section.cpus_per_actor, "num_gpus": gpus, **nodes}
        options |= {"max_restarts": section.max_restarts, "max_task_retries": section.max_restarts}
        remote: Any = ray.remote(**options)(kind)
        self.actors = [remote.remote(spec) for _ in range(count)]
        self.born: list[str | None] = [None] * count
        self.notes: list[str] = []
        self.seconds = 0.0

    def stop(self) -> None:
        """End the actors, and give back what they reserve."""
        for actor in self.actors:
            ray.kill(actor)

    def do(self, method: str, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """The results of `method(*part)`, in the order of `parts`; at most one part for each actor is best.

        Raises:
            EndorewardError: what an actor raised.
            RunError: where they die more often than they may.
        """
        asked = [getattr(self.actors[i % len(self.actors)], method).remote(*part) for i, part in enumerate(parts)]
        try:
            replies = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause
                if isinstance(cause, EndorewardError)
                else RunError(f"a {self.name} failed, which it should not: {cause!r}; {LOGS}")
            ) from None
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise RunError(f"a {self.name} could not be made: {last_line(error)}; {LOGS}") from error
            raise RunError(
                f"the {self.name}s died more often than {self.name}.max_restarts allows, most often of memory; lower "
                f"{self.name}.budget_tokens and run the same again, which goes on from the last checkpoint"
            ) from error
        for i, reply in enumerate(replies):
            self._meet(i % len(self.actors), reply.born)
            self.notes += reply.notes
        self.seconds += max(reply.seconds for reply in replies)
        return [reply.value for reply in replies]

    def _meet(self, number: int, born: str) -> None:
        if self.born[number] not in (None, born):
            self.notes.append(f"a {self.name} died and was started again; what it had in hand was done once more")
        self.born[number] = born


def shared_out(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """`items` in `count` runs of about equal length, none empty."""
    ends = [len(items) * part // count for part in range(count + 1)]
    return [items[begin:end] for begin, end in pairwise(ends) if begin < end]
