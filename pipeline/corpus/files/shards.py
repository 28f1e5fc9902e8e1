"""The unit of commit, as data: which rows of which file, and the digest that says they are still the same."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of one file, `rows` of which are to be labelled: a blank line has a number but is no row.

    `offset` and `length` are the bytes to read for it, None where the file can only be read from its front. Shards
    that share a Parquet row group have the same bytes. `digest` is the sha256 of its content.
    """

    file: str  # the input's name, as in ids
    index: int  # position among the shards of its file
    start: int
    stop: int
    rows: int
    digest: str
    offset: int | None = None
    length: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shard":
        return cls(**data)


@dataclass(frozen=True)
class FilePlan:
    """One file, read once: its rows, its shards, the sha256 of its content whatever the shards.

    `head` holds a few first rows, parsed, to recognise the shape by; it is not part of the JSON form. `trouble` says
    what is wrong with the first row that cannot be parsed, among those looked at.
    """

    file: str
    rows: int
    digest: str
    shards: tuple[Shard, ...]
    head: tuple[dict[str, Any], ...] = ()
    trouble: str | None = None

    def to_json(self) -> dict[str, Any]:
        shards = [shard.to_json() for shard in self.shards]
        return {"file": self.file, "rows": self.rows, "digest": self.digest, "shards": shards, "trouble": self.trouble}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FilePlan":
        return cls(**{**data, "shards": tuple(map(Shard.from_json, data["shards"]))})


def read_together(shards: Iterable[Shard]) -> list[list[Shard]]:
    """Shards grouped by the bytes they need: each group is best given to one `read_shards`, the groups to as many as
    you like."""
    ordered = sorted(shards, key=lambda shard: (shard.file, shard.index))
    return [list(group) for _, group in groupby(ordered, key=lambda shard: (shard.file, shard.offset))]
