"""What goes into the flow, and what comes out: plain data, without Ray."""

from collections import Counter
from dataclasses import dataclass, field

from actors.actor import BatchCheck
from pipeline.corpus import InputFile, Shape, Shard
from pipeline.store import Record


@dataclass(frozen=True)
class Work:
    """Shards of one file that one task reads, with the generation that each is committed as."""

    file: InputFile
    format: str
    shape: Shape
    shards: list[Shard]
    generations: list[int]


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
