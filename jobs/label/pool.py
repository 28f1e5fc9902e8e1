"""The pool of actors that label: it grows as nodes join, and what an actor had in hand when it died is given to another.

Actors are asked for all at once, as many as there is work for: the ones that wait for a node are the demand by which a
cluster's autoscaler adds nodes, and each begins as soon as it has loaded its model. An actor without work leaves, and so does
its node. Everything that happens comes to the driver as an event in one queue: no reference is polled.

An actor gets the shards of a block in portions that take it seconds, by the time that shards took so far: a call to an actor
is worth its price then, and a kill costs little.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from jobs.cluster import Pool, alive_nodes, draining_nodes, pending_nodes, placed, usable
from jobs.label.ahead import ENDS_WITHIN_S
from jobs.label.backlog import Backlog
from jobs.label.work import BLOCK, Headway, PoolState
from pipeline.config import LabelConfig
from pipeline.errors import EndorewardError, RunError

IN_FLIGHT = 2  # portions that an actor has: one is answered, the other is fetched or committed
PORTION_S = 5.0  # that a portion of several shards takes its actor at most
RECENT = 0.2  # weight of the last shard in what one takes
PREPARED_AHEAD = 2  # times what the actors have in hand
AT_ONCE = IN_FLIGHT + 1  # calls: the third asks how far it is
LOOK_S = 2.0  # how often nodes and idle actors are looked at
ASK_S = 5.0  # how often an actor is asked how far it is
IDLE_S = 60.0  # after which an actor leaves that nothing has been prepared for
DECIDED_S = 30.0  # after which Ray knows whether an actor that cannot be reached died with its node

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Portion:
    """Neighbouring shards of a prepared block."""

    block: Any  # a reference
    size: int
    begin: int = 0  # position of the first in the block
    again: bool = False  # whether an actor has had it that has died, and may have committed some
    tries: int = 0

    def split(self, first: int) -> "list[_Portion]":
        """Its first shards, and the rest where there is one."""
        if first >= self.size:
            return [self]
        return [replace(self, size=first), replace(self, begin=self.begin + first, size=self.size - first)]

    def anew(self) -> "list[_Portion]":
        """For another actor, each shard by itself. A single one stays the same, so that what is learnt of its actors' deaths
        later counts too."""
        if self.size == 1:
            self.again = True
            return [self]
        return [replace(self, begin=self.begin + at, size=1, again=True) for at in range(self.size)]


@dataclass(eq=False)
class _Seat:
    """A place in the pool, which one actor takes after the other."""

    restarts: int = 0


@dataclass(eq=False)
class _Member:
    """An actor, and what it has in hand."""

    handle: Any
    seat: _Seat
    since: float
    node: str | None = None  # None until it has loaded its model
    leaving: bool = False
    headway: Headway = field(default_factory=Headway)  # as it told last
    done_tokens: int = 0  # that its model was given for blocks that are done
    asked: bool = False
    asked_at: float = 0.0
    portions: set[_Portion] = field(default_factory=set)


class LabelPool:
    """A context that ends its actors.

    Args:
        kind: the actor's class, with methods `place`, `headway` and `label`.
        arguments: what it is made from.
        size: how many, and what each asks of the cluster.
        backlog: whose shards are to be labelled.
        watch: called every few seconds with how the pool is.
        name: of a shard, for errors: of a block's content and its position in it.
    """

    def __init__(
        self,
        kind: type,
        arguments: tuple[Any, ...],
        config: LabelConfig,
        size: Pool,
        backlog: Backlog,
        watch: Callable[[PoolState], None],
        name: Callable[[Any, int], str],
    ):
        self.scorer, self.size, self.backlog, self.watch = config.scorer, size, backlog, watch
        self.run, self.name = config.run, name
        asks: dict[str, Any] = {"num_cpus": size.actor_cpus, "num_gpus": size.gpus, "max_concurrency": AT_ONCE}
        asks |= placed(config.run)
        self.actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **asks)(kind)
        self.arguments = [ray.put(each) for each in arguments]
        self.members: list[_Member] = []
        self.waiting: deque[_Portion] = deque()
        self.done = 0  # shards
        self.seconds: float | None = None  # that a shard takes an actor
        self.events: queue.SimpleQueue[Callable[[], list[Any]]] = queue.SimpleQueue()
        self.room = threading.Condition()  # of what follows
        self.ready = self.coming = 0  # shards that wait for an actor; those that no event has told of yet
        self.running = 0  # actors
        self.ended = self.closed = False
        self.running_at = self.looked = time.monotonic()
        self.tokens = 0  # of blocks that are done by actors that have gone
        self.unreachable: list[tuple[float, _Member, list[_Portion], RayError]] = []
        self.feeder: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._grow()
        return self

    def __exit__(self, *raised: object) -> None:
        with self.room:
            self.closed = True
            self.room.notify_all()  # the feeder, which then ends
        for member in self.members:
            ray.kill(member.handle)
        if self.feeder is not None:  # it may be about to ask Ray for something
            self.feeder.join(ENDS_WITHIN_S)

    def results(self, feed: Callable[[Self], None]) -> Iterator[Any]:
        """What the actors make of every shard, in no order.

        Args:
            feed: is called in a thread of its own, and calls the two methods that follow until there is no more to do.

        Raises:
            RayError: where actors die more often than `scorer.max_restarts`; the death of a node does not count.
            RunError: where a shard's actors die more often than `scorer.max_task_retries`, or no actor could be had in time.
        """
        self.feeder = threading.Thread(target=self._feed, args=(feed,), daemon=True)
        self.feeder.start()
        while not (self.ended and not self.waiting and not any(member.portions for member in self.members)):
            event = None
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=LOOK_S)
            if event is not None:
                yield from event()
            if time.monotonic() - self.looked >= LOOK_S:
                self._look()
            self._assign()

    # For whoever feeds the pool, in a thread of its own

    def wait_for_room(self) -> bool:
        """Until one block more is wanted; False where none is any more."""
        with self.room:
            self.room.wait_for(lambda: self.closed or self._has_room())
            return not self.closed

    def take(self, block: Any, size: int) -> None:
        """A reference to a prepared block of `size` shards."""
        with self.room:
            self.coming += size
        self.events.put(partial(self._prepared, block, size))

    def _has_room(self) -> bool:
        return self.ready + self.coming < PREPARED_AHEAD * IN_FLIGHT * max(1, self.running) * self._portion()

    # Events

    def _feed(self, feed: Callable[[Self], None]) -> None:
        try:
            feed(self)
            self.events.put(self._fed)
        except (EndorewardError, RayError) as error:
            self.events.put(partial(self._raise, error))
        except BaseException as error:
            log.exception("the feed failed")
            failed = RunError(f"shards could not be prepared: {type(error).__name__}: {error}")
            failed.__cause__ = error
            self.events.put(partial(self._raise, failed))

    def _prepared(self, block: Any, size: int) -> list[Any]:
        self.waiting.append(_Portion(block, size))
        with self.room:
            self.coming -= size
        self._count_ready()
        return []

    def _fed(self) -> list[Any]:
        self.ended = True
        return []

    def _raise(self, error: BaseException) -> list[Any]:
        raise error

    def _placed(self, member: _Member, answer: Any) -> list[Any]:
        if member not in self.members:  # dismissed meanwhile
            return []
        try:
            node = answer.result()
        except RayError as error:
            return self._lost(member, error)
        if isinstance(node, EndorewardError):
            if member.seat.restarts >= self.scorer.max_restarts or not any(each.node for each in self.members):
                raise node
            self._dismiss(member)  # others have loaded it
            member.seat.restarts += 1
            self._start(member.seat)
            return []
        member.node, member.since = node, time.monotonic()
        self.looked = 0.0
        self._count_ready()
        return []

    def _labelled(self, member: _Member, portion: _Portion, answer: Any) -> list[Any]:
        if portion not in member.portions:  # its actor's death was heard of already
            return []
        try:
            done = answer.result()
        except RayTaskError:
            raise
        except RayError as error:
            return self._lost(member, error)
        member.portions.discard(portion)
        member.since = time.monotonic()
        member.headway = member.headway._replace(rows=0.0, response_tokens=0.0)
        self.done += len(done)
        for each in done:
            member.done_tokens += getattr(each, "forwarded_tokens", 0)
            if (seconds := getattr(each, "score_seconds", 0.0)) > 0:
                self.seconds = seconds if self.seconds is None else (1 - RECENT) * self.seconds + RECENT * seconds
        return list(done)

    def _told(self, member: _Member, answer: Any) -> list[Any]:
        member.asked = False
        with contextlib.suppress(RayError):  # one that has died is heard of otherwise
            member.headway = answer.result()
        return []

    def _lost(self, member: _Member, error: RayError) -> list[Any]:
        """An actor has died, or cannot be reached: another takes its place, and what it had in hand goes first."""
        if member not in self.members:
            return []
        self._dismiss(member)
        portions = [shard for portion in member.portions for shard in portion.anew()]
        member.portions.clear()
        self.waiting.extendleft(portions)
        if isinstance(error, ActorUnavailableError):  # Ray has not made up its mind
            self.unreachable.append((time.monotonic(), member, portions, error))
        elif not self._died_with_node(member, error):
            self._count(member, portions, error)
        if len(self.members) < self._wanted():
            self._start(member.seat)
        return []

    def _died_with_node(self, member: _Member, error: RayError) -> bool:
        if isinstance(error, ActorDiedError) and error.preempted:
            return True
        if member.node is None:  # while it loaded
            return "node has died" in str(error)
        return member.node not in alive_nodes()

    def _count(self, member: _Member, portions: list[_Portion], error: RayError) -> None:
        """A death that was no node's, known at once or later. Raises where it is one too many."""
        member.seat.restarts += 1
        if member.seat.restarts > self.scorer.max_restarts or getattr(error, "actor_init_failed", False):
            raise error
        for portion in portions:
            portion.tries += 1
            if portion.tries > self.scorer.max_task_retries:
                raise RunError(self._tried_too_often(portion)) from error

    def _tried_too_often(self, portion: _Portion) -> str:
        name = self.name(ray.get(portion.block), portion.begin)
        return (
            f"{name}: {portion.tries} actors died while they had this shard in hand, and "
            f"scorer.max_task_retries = {self.scorer.max_task_retries} allows as many tries more: mostly memory, or what "
            "ends processes on those machines; give scorer.budget_tokens or scorer.max_actors a lower value, take machines "
            "with more memory, or raise scorer.max_task_retries"
        )

    # Actors

    def _wanted(self) -> int:
        """Actors that what is left can occupy, one of them at least."""
        most = self.size.max_actors
        return min(most, max(self.backlog.shards - self.done, 1)) if self.backlog.whole else most

    def _portion(self) -> int:
        """Shards that an actor is given at once: what it can do in PORTION_S, and no more than leaves some for the others."""
        if not self.seconds:
            return 1
        left = self.backlog.shards - self.done
        fair = left // (2 * IN_FLIGHT * max(1, self.running)) if self.backlog.whole else BLOCK
        return max(1, min(BLOCK, int(PORTION_S / self.seconds), fair))

    def _start(self, seat: _Seat | None = None) -> None:
        member = _Member(self.actor.remote(*self.arguments), seat or _Seat(), time.monotonic())
        self.members.append(member)
        self._hear(member.handle.place.remote(), partial(self._placed, member))

    def _hear(self, ref: Any, event: Callable[[Any], list[Any]]) -> None:
        ref.future().add_done_callback(lambda answer: self.events.put(partial(event, answer)))

    def _grow(self) -> None:
        while len(self.members) < self._wanted():
            self._start()

    def _assign(self) -> None:
        """Give what waits to whoever has least in hand."""
        if not self.waiting:
            return
        ready = [member for member in self.members if member.node is not None and not member.leaving]
        portion = self._portion()
        while self.waiting and ready:
            member = min(ready, key=lambda each: len(each.portions))
            if len(member.portions) >= IN_FLIGHT:
                break
            first, *rest = self.waiting.popleft().split(portion)
            self.waiting.extendleft(rest)
            member.portions.add(first)
            answer = member.handle.label.remote(first.block, first.begin, first.begin + first.size, first.again)
            self._hear(answer, partial(self._labelled, member, first))
        self._count_ready()

    def _count_ready(self) -> None:
        """Tell whoever feeds the pool what there is."""
        with self.room:
            self.ready = sum(portion.size for portion in self.waiting)
            self.running = sum(member.node is not None for member in self.members)
            self.room.notify_all()

    def _look(self) -> None:
        """Every few seconds: actors on nodes that drain, actors without work, actors that are missing."""
        now = self.looked = time.monotonic()
        draining = draining_nodes()
        for each in [lost for lost in self.unreachable if now - lost[0] >= DECIDED_S]:
            self.unreachable.remove(each)
            if not self._died_with_node(each[1], each[3]):
                self._count(*each[1:])
        idlers = sorted((each for each in self.members if not each.portions), key=lambda each: each.node is not None)
        for member in idlers:  # first those that have not loaded their model
            idle = member.node is not None and now - member.since >= IDLE_S and len(self.members) > self.size.min_actors
            unneeded = len(self.members) > self._wanted()
            if member.node in draining or unneeded or (idle and not self.waiting):
                self._dismiss(member)
        for member in self.members:
            member.leaving = member.node in draining
            if member.portions and not member.asked and now - member.asked_at >= ASK_S:
                member.asked, member.asked_at = True, now
                self._hear(member.handle.headway.remote(), partial(self._told, member))
        if self.ready >= IN_FLIGHT * self._portion() * sum(not member.leaving for member in self.members):
            self._grow()
        running = sum(member.node is not None for member in self.members)
        if running:
            self.running_at = now
        elif now - self.running_at > self.run.wait_for_actors_s:
            raise RunError(self._nobody())
        self.watch(self._state(running))

    def _state(self, running: int) -> PoolState:
        wanted, headways = self._wanted(), [member.headway for member in self.members]
        return PoolState(
            wanted=wanted,
            running=running,
            pending=len(self.members) - running,
            nodes=len(alive_nodes()),
            forwarded_tokens=self.tokens + sum(each.forwarded_tokens for each in headways),
            nodes_pending=pending_nodes() if running < wanted else None,
            rows_in_hand=sum(each.rows for each in headways),
            tokens_in_hand=sum(each.response_tokens for each in headways),
        )

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
