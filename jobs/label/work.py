"""What goes into the flow, and what comes out: plain data, without Ray."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from actors.actor import BatchCheck
from pipeline.corpus import InputFile, Shape, Shard
from pipeline.store import Record

BLOCK = 8
"""Most shards that one task prepares, and that an actor is given at once."""


@dataclass(frozen=True)
class Work:
    """Shards of one file, with the generation that each is committed as: to be read by one task, or, where each can be read
    `apart` from the others, by as many as you like."""

    file: InputFile
    format: str
    shape: Shape
    shards: Sequence[Shard]
    generations: Sequence[int]
    apart: bool

    def part(self, begin: int, end: int) -> "Work":
        return replace(self, shards=self.shards[begin:end], generations=self.generations[begin:end])


@dataclass(frozen=True)
class Done:
    """What the driver hears of a committed shard."""

    record: Record
    forwarded_tokens: int = 0
    score_seconds: float = 0.0
    layout: str = ""
    check: BatchCheck = field(default_factory=BatchCheck)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of what the run says at its end, by sentence


@dataclass(frozen=True)
class Target:
    """Where labels are committed, and as what."""

    store: str
    fingerprint: str
    lease: str | None = None  # of the driver, which its workers show


class Headway(NamedTuple):
    """How far an actor is."""

    forwarded_tokens: int = 0  # that its model was given so far
    rows: float = 0.0  # of the shard that is being answered, as far as its tokens were given to the model
    response_tokens: float = 0.0  # of these rows


@dataclass(frozen=True)
class PoolState:
    """How the pool is: actors `wanted`, of which some are `running` and some wait for a node or load their model, and the
    tokens that models were given so far, those of shards that are not done among them."""

    wanted: int
    running: int
    pending: int
    nodes: int
    forwarded_tokens: int
    nodes_pending: int | None = None  # that are about to join; None: not known
    rows_in_hand: float = 0.0  # of shards that are being answered, as far as they are
    tokens_in_hand: float = 0.0  # of their responses

    def sentence(self) -> str:
        pending = f"{self.pending} waiting for a node or loading"
        nodes = f"{self.nodes} nodes" + (f", {self.nodes_pending} nodes pending" if self.nodes_pending else "")
        return f"{self.wanted} actors wanted, {self.running} running, {pending}, {nodes}"
