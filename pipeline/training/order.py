"""Which examples a step sees, and where its responses are computed: functions of numbers alone, the same everywhere.

Order      step -> examples. Any step is found without those before it, so a run goes on inside an epoch.
plan_step  a step's responses -> micro-batches of each worker.

The random numbers are the raw ones of PCG64, which NumPy keeps as they are from version to version (its permutations it
does not), and a shuffle is a stable sort by them.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.training.examples import Examples

Numbers = NDArray[np.int64]
PARTS, EXAMPLES = 0, 1  # streams of an epoch's random numbers
EPOCHS_HELD = 2  # a step may see the end of one and the beginning of the next


class Order:
    """All examples once an epoch, in another order each time.

    In each epoch the parts are shuffled, cut into windows of `shuffle_parts`, and the examples shuffled within each
    window: whoever follows needs the parts of one window, where windows meet of two. Epochs follow one another without
    a gap, and steps are cut from all of it: every step has `batch_size` examples, and an epoch's remainder begins a step
    that the next one fills (an example may then stand in it twice).

    Args:
        part: which part each example is in, [E].

    Memory: 24 bytes an example. Raises ConfigError where there are fewer examples than a step takes.
    """

    def __init__(self, part: NDArray[np.integer[Any]], batch_size: int, seed: int, shuffle_parts: int):
        if batch_size > len(part):
            raise ConfigError(
                f"train.batch_size = {batch_size} is more than the {len(part):,} examples there are to learn from; "
                "lower it, or add labels"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_parts = shuffle_parts
        self._parts, self._part = np.unique(part, return_inverse=True)
        self._epochs: dict[int, Numbers] = {}

    @property
    def steps_per_epoch(self) -> float:
        return len(self._part) / self.batch_size

    def steps(self, epochs: float) -> int:
        """Steps after which each example was seen `epochs` times, at least one."""
        return max(1, math.ceil(round(epochs * self.steps_per_epoch, 9)))

    def step(self, k: int) -> Numbers:
        """The examples of step k, counted from 0 over all epochs: [batch_size]."""
        begin, end = k * self.batch_size, (k + 1) * self.batch_size
        epoch, start = divmod(begin, len(self._part))
        here = self.epoch(epoch)[start : start + self.batch_size]
        return (
            here if len(here) == end - begin else np.append(here, self.epoch(epoch + 1)[: self.batch_size - len(here)])
        )

    def epoch(self, number: int) -> Numbers:
        """All examples in the order of this epoch: [E]."""
        if number not in self._epochs:
            places = np.argsort(np.argsort(self._random(number, PARTS, len(self._parts)), kind="stable"))
            windows = places[self._part] // self.shuffle_parts
            found = np.lexsort((self._random(number, EXAMPLES, len(self._part)), windows))
            self._epochs = {n: held for n, held in self._epochs.items() if abs(n - number) < EPOCHS_HELD}
            self._epochs[number] = found
        return self._epochs[number]

    def _random(self, epoch: int, stream: int, size: int) -> NDArray[np.uint64]:
        return np.random.PCG64(np.random.SeedSequence([self.seed, epoch, stream])).random_raw(size)


class Atom(NamedTuple):
    """What is computed together: the two responses of a pair, or one response.

    Atoms of one family share a prompt, which a micro-batch computes once.
    """

    positions: tuple[int, ...]  # among the rows of the examples
    family: Hashable
    prompt: int  # tokens
    tokens: int  # forwarded besides the prompt: a response's last token predicts nothing


def atoms_of(examples: Examples, numbers: Numbers) -> list[Atom]:
    """The atoms of some examples, in their order. Prompts of one group and length are taken to be the same one."""
    atoms = []
    for number in np.asarray(numbers).tolist():
        begin, end = examples.offsets[number : number + 2].tolist()
        size = 2 if examples.pairs else 1
        for first in range(begin, end, size):
            positions = tuple(range(first, first + size))
            prompts = sorted({int(examples.prompt_tokens[p]) for p in positions})
            tokens = sum(prompts[:-1]) + sum(int(examples.tokens[p]) - 1 for p in positions)
            atoms.append(Atom(positions, (int(examples.group[number]), *prompts), prompts[-1], tokens))
    return atoms


class _Pack(NamedTuple):
    """Atoms of one family that are computed together, and what they and their prompt cost in tokens."""

    cost: int
    atoms: list[int]


@dataclass
class _Bin:
    """Packs, and what they cost together."""

    packs: list[_Pack] = field(default_factory=list)
    cost: int = 0

    def put(self, pack: _Pack) -> None:
        self.packs.append(pack)
        self.cost += pack.cost

    @property
    def atoms(self) -> list[int]:
        return [atom for pack in self.packs for atom in pack.atoms]


def plan_step(atoms: Sequence[Atom], workers: int, budget_tokens: int) -> list[list[list[int]]]:
    """Which atoms each worker computes, and in which micro-batches: [workers][micro-batches], numbers of atoms.

    Every worker has the same number of micro-batches, as collectives ask for; one is empty only where the worker has
    fewer atoms than that. A micro-batch has at most `budget_tokens` tokens, prompts included, unless it is one atom.
    Families stay together where they fit the budget and a worker's fair share; the largest go first, each to the worker
    with the least so far (Graham 1969). A worker's micro-batches stand by falling size.
    """
    families: dict[Hashable, list[int]] = {}
    for number, atom in enumerate(atoms):
        families.setdefault(atom.family, []).append(number)
    total = sum(_pack(atoms, members).cost for members in families.values())
    limit = min(-(-total // workers), budget_tokens)
    packs = [pack for members in families.values() for pack in _cut(atoms, members, limit)]
    loads = [_Bin() for _ in range(workers)]
    for pack in sorted(packs, key=lambda pack: (-pack.cost, pack.atoms)):
        min(loads, key=lambda load: load.cost).put(pack)
    batches = [_fill(load.packs, budget_tokens) for load in loads]
    count = max(len(found) for found in batches)
    return [_stretched(atoms, found, count) for found in batches]


def _pack(atoms: Sequence[Atom], members: list[int]) -> _Pack:
    return _Pack(atoms[members[0]].prompt + sum(atoms[member].tokens for member in members), members)


def _cut(atoms: Sequence[Atom], members: Sequence[int], limit: int) -> Iterator[_Pack]:
    """A family in packs of at most `limit` tokens; an atom may exceed it alone."""
    part: list[int] = []
    size = 0
    for member in members:
        size += atoms[member].tokens
        if part and atoms[member].prompt + size > limit:
            yield _pack(atoms, part)
            part, size = [], atoms[member].tokens
        part.append(member)
    yield _pack(atoms, part)


def _fill(packs: Sequence[_Pack], budget_tokens: int) -> list[_Bin]:
    """Each pack into the first micro-batch that has room for it."""
    batches: list[_Bin] = []
    for pack in packs:
        found = next((batch for batch in batches if batch.cost + pack.cost <= budget_tokens), None)
        if found is None:
            batches.append(found := _Bin())
        found.put(pack)
    return batches


def _stretched(atoms: Sequence[Atom], batches: list[_Bin], count: int) -> list[list[int]]:
    """`count` micro-batches: the largest is parted, between families where it has several, for as long as one can be."""
    while len(batches) < count:
        largest = max((batch for batch in batches if len(batch.atoms) > 1), key=lambda b: b.cost, default=None)
        if largest is None:
            break
        batches.remove(largest)
        packs = largest.packs
        if len(packs) == 1:
            packs = [_pack(atoms, packs[0].atoms[start::2]) for start in (0, 1)]
        batches += _halves(packs)
    batches.sort(key=lambda batch: -batch.cost)
    return [batch.atoms for batch in batches] + [[] for _ in range(count - len(batches))]


def _halves(packs: Sequence[_Pack]) -> tuple[_Bin, _Bin]:
    """Two micro-batches of about the same cost; packs stand by falling cost."""
    halves = _Bin(), _Bin()
    for pack in packs:
        min(halves, key=lambda half: half.cost).put(pack)
    return halves
