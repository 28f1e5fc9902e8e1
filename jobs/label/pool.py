"""The pool of actors that label: it grows as nodes join, and what an actor had in hand when it died is given to another.

Actors are asked for all at once, as many as there is work for: the ones that wait for a node are the demand by which a
cluster's autoscaler adds nodes, and each begins as soon as it has loaded its model. An actor without work leaves, and so does
its node. Everything that happens comes to the driver as an event in one queue: no reference is polled.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from jobs.cluster import Pool, alive_nodes, draining_nodes, placed, usable
from jobs.label.work import PoolState
from pipeline.config import LabelConfig
from pipeline.errors import EndorewardError, RunError

IN_FLIGHT = 2  # shards that an actor has: one is answered, the other is fetched or committed
AT_ONCE = IN_FLIGHT + 1  # calls: the third asks how far it is
LOOK_S = 2.0  # how often nodes and idle actors are looked at
IDLE_S = 60.0  # after which an actor leaves that nothing has been prepared for
DECIDED_S = 30.0  # after which Ray knows whether an actor that cannot be reached died with its node
ENDS_WITHIN_S = 10.0  # what feeds the pool, once it is closed


@dataclass(eq=False)
class _Block:
    """A prepared shard."""

    ref: Any
    tries: int = 0
    assigned: bool = False


@dataclass(eq=False)
class _Member:
    """An actor, and what it has in hand."""

    handle: Any
    restarts: int
    since: float
    node: str | None = None  # None until it has loaded its model
    leaving: bool = False
    tokens: int = 0  # that its model was given
    done_tokens: int = 0  # of these for blocks that are done
    asked: bool = False
    blocks: set[_Block] = field(default_factory=set)


class LabelPool:
    """A context that ends its actors.

    Args:
        kind: the actor's class, with methods `place` and `label`.
        arguments: what it is made from.
        size: how many, and what each asks of the cluster.
        shards: that there are to label.
        watch: called every few seconds with how the pool is.
    """

    def __init__(
        self,
        kind: type,
        arguments: tuple[Any, ...],
        config: LabelConfig,
        size: Pool,
        shards: int,
        watch: Callable[[PoolState], None],
    ):
        self.scorer, self.size, self.left, self.watch = config.scorer, size, shards, watch
        self.run = config.run
        asks: dict[str, Any] = {"num_cpus": size.actor_cpus, "num_gpus": size.gpus, "max_concurrency": AT_ONCE}
        asks |= placed(config.run)
        self.actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **asks)(kind)
        self.arguments = [ray.put(each) for each in arguments]
        self.members: list[_Member] = []
        self.waiting: deque[_Block] = deque()
        self.events: queue.SimpleQueue[Callable[[], list[Any]]] = queue.SimpleQueue()
        self.room = threading.Semaphore(IN_FLIGHT * size.max_actors + 2)  # for blocks that are not yet an actor's
        self.ended = self.closed = False
        self.running_at = self.looked = time.monotonic()
        self.tokens = 0  # of blocks that are done by actors that have gone
        self.unreachable: list[tuple[float, _Member, set[_Block], RayError]] = []
        self.feeder: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._grow()
        return self

    def __exit__(self, *raised: object) -> None:
        self.closed = True
        self.room.release()  # the feeder, which then ends
        for member in self.members:
            ray.kill(member.handle)
        if self.feeder is not None:  # it may be about to ask Ray for something
            self.feeder.join(ENDS_WITHIN_S)

    def results(self, blocks: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """What the actors make of every block, in no order.

        Raises:
            RayError: where a block's actors died more often than `scorer.max_task_retries`, actors more often than
                `scorer.max_restarts`; the death of a node counts for neither.
            RunError: where no actor could be had in time.
        """
        self.feeder = threading.Thread(target=self._feed, args=(blocks,), daemon=True)
        self.feeder.start()
        while not (self.ended and not self.waiting and not any(member.blocks for member in self.members)):
            event = None
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=LOOK_S)
            if event is not None:
                yield from event()
            if time.monotonic() - self.looked >= LOOK_S:
                self._look()
            self._assign()

    # Events

    def _feed(self, blocks: Callable[[], Iterator[Any]]) -> None:
        """In a thread of its own: the blocks as they are prepared, no more than there is room for."""
        try:
            for ref in blocks():
                self.room.acquire()
                if self.closed:
                    return
                self.events.put(partial(self._prepared, ref))
            self.events.put(self._fed)
        except BaseException as error:
            self.events.put(partial(self._raise, error))

    def _prepared(self, ref: Any) -> list[Any]:
        self.waiting.append(_Block(ref))
        return []

    def _fed(self) -> list[Any]:
        self.ended = True
        return []

    def _raise(self, error: BaseException) -> list[Any]:
        raise error

    def _placed(self, member: _Member, answer: Any) -> list[Any]:
        try:
            node = answer.result()
        except RayError as error:
            return self._lost(member, error)
        if isinstance(node, EndorewardError):
            if member.restarts >= self.scorer.max_restarts or not any(each.node for each in self.members):
                raise node
            self._dismiss(member)  # others have loaded it
            self._start(member.restarts + 1)
            return []
        member.node, member.since = node, time.monotonic()
        self.looked = 0.0
        return []

    def _labelled(self, member: _Member, block: _Block, answer: Any) -> list[Any]:
        if block not in member.blocks:  # its actor's death was heard of already
            return []
        try:
            done = answer.result()
        except RayTaskError:
            raise
        except RayError as error:
            return self._lost(member, error)
        member.blocks.discard(block)
        member.since = time.monotonic()
        self.left -= len(done)
        member.done_tokens += sum(getattr(each, "forwarded_tokens", 0) for each in done)
        return list(done)

    def _counted(self, member: _Member, answer: Any) -> list[Any]:
        member.asked = False
        with contextlib.suppress(RayError):  # one that has died is heard of otherwise
            member.tokens = answer.result()
        return []

    def _lost(self, member: _Member, error: RayError) -> list[Any]:
        """An actor has died, or cannot be reached: another takes its place, and what it had in hand goes first."""
        if member not in self.members:
            return []
        self._dismiss(member)
        blocks, member.blocks = member.blocks, set()
        self.waiting.extendleft(blocks)
        if isinstance(error, ActorUnavailableError):  # Ray has not made up its mind
            self.unreachable.append((time.monotonic(), member, blocks, error))
        elif not self._died_with_node(member, error):
            self._count(member, blocks, error)
        if len(self.members) < self._wanted():
            self._start(member.restarts)
        return []

    def _died_with_node(self, member: _Member, error: RayError) -> bool:
        if isinstance(error, ActorDiedError) and error.preempted:
            return True
        if member.node is None:  # while it loaded
            return "node has died" in str(error)
        return member.node not in alive_nodes()

    def _count(self, member: _Member, blocks: set[_Block], error: RayError) -> None:
        """A death that was no node's. Raises it where it is one too many."""
        member.restarts += 1
        if member.restarts > self.scorer.max_restarts or getattr(error, "actor_init_failed", False):
            raise error
        for block in blocks:
            block.tries += 1
            if block.tries > self.scorer.max_task_retries:
                raise error

    # Actors

    def _wanted(self) -> int:
        """Actors that what is left can occupy, one of them at least."""
        return min(self.size.max_actors, max(self.left, 1))

    def _start(self, restarts: int = 0) -> None:
        member = _Member(self.actor.remote(*self.arguments), restarts, time.monotonic())
        self.members.append(member)
        self._hear(member.handle.place.remote(), partial(self._placed, member))

    def _hear(self, ref: Any, event: Callable[[Any], list[Any]]) -> None:
        ref.future().add_done_callback(lambda answer: self.events.put(partial(event, answer)))

    def _grow(self) -> None:
        while len(self.members) < self._wanted():
            self._start()

    def _assign(self) -> None:
        """Give what waits to whoever has least in hand."""
        ready = [member for member in self.members if member.node is not None and not member.leaving]
        while self.waiting and ready:
            member = min(ready, key=lambda each: len(each.blocks))
            if len(member.blocks) >= IN_FLIGHT:
                return
            block = self.waiting.popleft()
            if not block.assigned:
                block.assigned = True
                self.room.release()
            member.blocks.add(block)
            self._hear(member.handle.label.remote(block.ref), partial(self._labelled, member, block))

    def _look(self) -> None:
        """Every few seconds: actors on nodes that drain, actors without work, actors that are missing."""
        now = self.looked = time.monotonic()
        draining = draining_nodes()
        for each in [lost for lost in self.unreachable if now - lost[0] >= DECIDED_S]:
            self.unreachable.remove(each)
            if not self._died_with_node(each[1], each[3]):
                self._count(*each[1:])
        idlers = sorted((each for each in self.members if not each.blocks), key=lambda each: each.node is not None)
        for member in idlers:  # first those that have not loaded their model
            idle = member.node is not None and now - member.since >= IDLE_S and len(self.members) > self.size.min_actors
            unneeded = len(self.members) > self._wanted()
            if member.node in draining or unneeded or (idle and not self.waiting):
                self._dismiss(member)
        for member in self.members:
            member.leaving = member.node in draining
            if member.node is not None and not member.asked:
                member.asked = True
                self._hear(member.handle.forwarded_tokens.remote(), partial(self._counted, member))
        if len(self.waiting) >= IN_FLIGHT * sum(not member.leaving for member in self.members):
            self._grow()
        running = sum(member.node is not None for member in self.members)
        if running:
            self.running_at = now
        elif now - self.running_at > self.run.wait_for_actors_s:
            raise RunError(self._nobody())
        tokens = self.tokens + sum(member.tokens for member in self.members)
        pending = len(self.members) - running
        self.watch(PoolState(self._wanted(), running, pending, len(alive_nodes()), len(self.waiting), tokens))

    def _dismiss(self, member: _Member) -> None:
        self.members.remove(member)
        self.tokens += member.done_tokens
        ray.kill(member.handle)

    def _nobody(self) -> str:
        size, run = self.size, self.run
        where = f", among nodes with {run.label_selector}," if run.label_selector else ""
        return (
            f"no actor could be started within run.wait_for_actors_s = {run.wait_for_actors_s:g} s: each asks for {size.cpus} "
            f"CPUs and {size.gpus} GPUs on one node{where} and the cluster has {usable(run, 'CPU'):g} CPUs and "
            f"{usable(run, 'GPU'):g} GPUs in all; add nodes, or lower scorer.cpus_per_actor or scorer.gpus_per_actor; where "
            "there is room, the model took longer than that to load"
        )
