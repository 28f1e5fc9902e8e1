"""A shard's rows become requests in a process beside this one, since tokenizers and templates may end theirs."""

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from pipeline.apart import Apart, Died, TimedOut, unpickled
from pipeline.corpus import InputFile, NumberedRow, Shape, Shard, read_shards
from pipeline.errors import RunError
from pipeline.killers import Bisection, killed
from pipeline.rewards.labellers.base import Labeller
from pipeline.rewards.labelling import Prepared
from pipeline.tokens.bounded import QUIET, WITHOUT, render_here, rendering_in

DOING = "tokenising"
MEMORY = 16 << 30  # bytes of address space: a template may write without end, and then it is the row's error
WITHIN_S = 900.0  # a shard takes seconds


class Place(NamedTuple):
    """Where rows are read."""

    file: InputFile
    format: str


@dataclass
class Preparation:
    """One process that prepares shards, one after the other; without torch, unless a model folder's own code may want it."""

    own_code: bool = False
    lived: bool = False
    beside: Apart = field(init=False)

    def __post_init__(self) -> None:
        self.beside = Apart() if self.own_code else Apart(MEMORY, WITHOUT, QUIET)

    def prepare(
        self,
        labeller: Labeller,
        shard: Shard,
        generation: int,
        rows: Sequence[NumberedRow],
        shape: Shape,
        deaths: Sequence[str] = (),
    ) -> Prepared:
        """As `labeller.prepare`; a row that ends its process is a failure as a whole.

        Args:
            deaths: what has ended the process that worked on these rows already.

        Raises:
            RunError: where no row in particular is to blame.
        """

        def work(positions: Sequence[int]) -> Prepared:
            wanted = {*positions, *search.killers}
            given = [
                (number, killed(search.killers[i], DOING) if i in search.killers else row)
                for i, (number, row) in enumerate(rows)
                if i in wanted
            ]
            try:
                return self.beside.call(_prepared, labeller, shard, generation, given, shape, timeout_s=WITHIN_S)
            except TimedOut:
                raise _endless(shard) from None

        search = Bisection(work, self.beside.stop, shard.where, self.lived, list(deaths))
        prepared = search.run(len(rows))
        self.lived = search.lived
        prepared.notes = [*prepared.notes, *search.notes(DOING)]
        return prepared

    def packed(self, labeller: bytes, shard: Shard, generation: int, rows: bytes | Place, shape: Shape) -> bytes:
        """What `prepare` gives, pickled, of a pickled labeller and rows that are pickled or are read there. Raises what
        `read_shards` raises, and RunError."""
        try:
            packed = self.beside.call(_packed, labeller, shard, generation, rows, shape, timeout_s=WITHIN_S)
        except TimedOut:
            raise _endless(shard) from None
        except Died as death:  # rows are read here now: of reading, none of them is to blame
            read, known = _rows(rows, shard), _labeller(labeller)
            return _pickled(self.prepare(known, shard, generation, read, shape, [death.how]))
        self.lived = True
        return packed

    def packed_together(
        self, labeller: bytes, shards: Sequence[Shard], generations: Sequence[int], place: Place, shape: Shape
    ) -> list[bytes] | None:
        """`packed` of shards of one file, in their order, which is opened once. None where that fails, whatever it is: alone
        each shard says what is wrong with it."""
        if len(shards) < 2:
            return None
        try:
            packed = self.beside.call(_together, labeller, shards, generations, place, shape, timeout_s=WITHIN_S)
        except Exception:
            return None
        self.lived = True
        return packed


@contextlib.contextmanager
def begun(labeller: Labeller) -> Iterator[Preparation]:
    """One whose process loads the tokenizer while this one goes on, for as long as the block runs. Where its memory is
    bounded, templates of this process run there, too."""
    preparation = Preparation(labeller.model.trust_remote_code)
    preparation.beside.begin(_opened, labeller)
    shares = contextlib.nullcontext() if preparation.own_code else rendering_in(preparation.beside)
    try:
        with shares:
            yield preparation
    finally:
        preparation.beside.close()


def _endless(shard: Shard) -> RunError:
    return RunError(
        f"{shard.where} were not tokenised within {WITHIN_S:g} s, so the chat template or the tokenizer does not come to an "
        "end: see tokens.template, or take another model; a shard that is only large takes a lower input.shard_rows, in "
        "another output"
    )


# What the process beside runs


def _opened(labeller: Labeller) -> None:
    render_here()
    _ = labeller.renderer


def _packed(labeller: bytes, shard: Shard, generation: int, rows: bytes | Place, shape: Shape) -> bytes:
    return _pickled(_prepared(_labeller(labeller), shard, generation, _rows(rows, shard), shape))


def _prepared(labeller: Labeller, shard: Shard, generation: int, rows: Sequence[NumberedRow], shape: Shape) -> Prepared:
    render_here()
    return labeller.prepare(shard, generation, rows, shape)


def _together(
    labeller: bytes, shards: Sequence[Shard], generations: Sequence[int], place: Place, shape: Shape
) -> list[bytes]:
    known, read = _labeller(labeller), read_shards(place.file, place.format, shards)
    return [
        _pickled(_prepared(known, shard, generation, rows, shape))
        for generation, (shard, rows) in zip(generations, read, strict=True)
    ]


def _pickled(prepared: Prepared) -> bytes:
    return pickle.dumps(prepared, pickle.HIGHEST_PROTOCOL)


def _rows(rows: bytes | Place, shard: Shard) -> Sequence[NumberedRow]:
    if isinstance(rows, Place):
        [(_, read)] = read_shards(rows.file, rows.format, [shard])
        return read
    pickled: Sequence[NumberedRow] = unpickled(rows)  # ours: written by the task that reads
    return pickled


@lru_cache(maxsize=2)
def _labeller(pickled: bytes) -> Labeller:
    labeller: Labeller = pickle.loads(pickled)  # ours: written by the driver
    return labeller
