"""The unit of commit, as data: which rows of which file, and the digest that says they are still the same."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import eq
from typing import Any, Self, overload

NUMBERS = ("start", "stop", "rows", "offset", "length", "index")
DIGEST_BYTES = 32


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

    @property
    def where(self) -> str:
        """For messages."""
        return f"rows {self.start} to {self.stop - 1} of {self.file}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shard":
        return cls(**data)


class Shards(Sequence[Shard]):
    """Shards of one file, in columns: 80 bytes each. A Shard is made as it is asked for. Equal to any sequence of the
    same shards."""

    def __init__(self, file: str):
        self.file = file
        self._numbers = {name: array("q") for name in NUMBERS}  # -1: None
        self._digests = bytearray()

    @classmethod
    def of(cls, file: str, shards: Iterable[Shard]) -> Self:
        """Raises ValueError for a shard of another file, or without a digest."""
        columns = cls(file)
        for each in shards:
            if each.file != file:
                raise ValueError(f"shard {each.index} is of {each.file} and not of {file}")
            columns.add(each.start, each.stop, each.rows, each.offset, each.length, each.digest, each.index)
        return columns

    def add(
        self,
        start: int,
        stop: int,
        rows: int,
        offset: int | None,
        length: int | None,
        digest: str,
        index: int | None = None,
    ) -> None:
        """One more, by default of the next index. Raises ValueError for a digest that is none."""
        binary = bytes.fromhex(digest)
        if len(binary) != DIGEST_BYTES:
            raise ValueError(f"{digest!r} is no sha256")
        index = len(self) if index is None else index
        for column, value in zip(self._numbers.values(), (start, stop, rows, offset, length, index), strict=True):
            column.append(-1 if value is None else value)
        self._digests += binary

    def extend(self, other: "Shards", rows: int = 0) -> None:
        """The shards of what follows, counted from row `rows` of the file on."""
        moves = {"start": rows, "stop": rows, "index": len(self)}
        for name, column in self._numbers.items():
            column.extend(array("q", [value + moves.get(name, 0) for value in other._numbers[name]]))
        self._digests += other._digests

    def pick(self, positions: Iterable[int]) -> "Shards":
        """Those at some positions."""
        picked, positions = Shards(self.file), list(positions)
        for name, column in self._numbers.items():
            picked._numbers[name] = array("q", [column[at] for at in positions])
        for at in positions:
            picked._digests += self._digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
        return picked

    def column(self, name: str) -> Sequence[int]:
        """A number of each, -1 for None: one of NUMBERS."""
        return self._numbers[name]

    @property
    def rows(self) -> int:
        return sum(self._numbers["rows"])

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_BYTES

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        if isinstance(at, slice):
            return [self._at(each) for each in range(*at.indices(len(self)))]
        return self._at(range(len(self))[at])

    def _at(self, at: int) -> Shard:
        start, stop, rows, offset, length, index = (column[at] for column in self._numbers.values())
        digest = self._digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES].hex()
        place = (None, None) if offset < 0 else (offset, length)
        return Shard(self.file, index, start, stop, rows, digest, *place)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shards):
            return (self.file, self._numbers, self._digests) == (other.file, other._numbers, other._digests)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"Shards({self.file!r}, {len(self):,} of {self.rows:,} rows)"

    def to_json(self) -> dict[str, Any]:
        columns = {name: [None if value < 0 else value for value in column] for name, column in self._numbers.items()}
        digests = [self._digests[i : i + DIGEST_BYTES].hex() for i in range(0, len(self._digests), DIGEST_BYTES)]
        return {"file": self.file, **columns, "digest": digests}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Of columns, or of a list of shards as earlier versions wrote it. Raises ValueError."""
        try:
            if isinstance(data, list):
                shards = list(map(Shard.from_json, data))
                return cls.of(shards[0].file if shards else "", shards)
            columns = cls(data["file"])
            values = (data[name] for name in (*NUMBERS, "digest"))
            for start, stop, rows, offset, length, index, digest in zip(*values, strict=True):
                columns.add(start, stop, rows, offset, length, digest, index)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no shards of a file that this version knows ({error})") from error
        return columns

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # late: where models run there is none

        return core_schema.no_info_plain_validator_function(cls.from_json)


@dataclass(frozen=True)
class FilePlan:
    """One file, read once: its rows, its shards, the sha256 of its content whatever the shards.

    `head` holds a few first rows, parsed, to recognise the shape by; it is not part of the JSON form. `trouble` says
    what is wrong with the first row that cannot be parsed, among those looked at.
    """

    file: str
    rows: int
    digest: str
    shards: Shards
    head: tuple[dict[str, Any], ...] = ()
    trouble: str | None = None

    def to_json(self) -> dict[str, Any]:
        content = {"file": self.file, "rows": self.rows, "digest": self.digest, "trouble": self.trouble}
        return {**content, "shards": self.shards.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FilePlan":
        return cls(**{**data, "shards": Shards.from_json(data["shards"])})


def read_together(shards: Shards, positions: Sequence[int], run: int) -> Iterator[tuple[Sequence[int], bool]]:
    """Positions of a file's shards, grouped by the bytes that they need: each group is best given to one `read_shards`, the
    groups to as many as you like. Of shards with bytes of their own, up to `run` neighbours are a group; with each group
    comes whether it is of such."""
    neighbours: list[int] = []
    for offset, group in groupby(positions, key=shards.column("offset").__getitem__):
        together = list(group)
        apart = offset >= 0 and len(together) == 1
        if apart:
            neighbours += together
        if neighbours and (len(neighbours) == run or not apart):
            yield neighbours, True
            neighbours = []
        if not apart:
            yield together, False
    if neighbours:
        yield neighbours, True
