"""Where a step's responses are computed: micro-batches of each worker, balanced by tokens. A function of numbers alone, so
that all workers make the same plan.

    atoms      what is computed together: the responses of a pair, or one response
    families   of atoms that share a prompt, which a micro-batch computes once
    items      a family, or where it is larger than a worker's fair share or the budget, parts of it
    workers    the largest item first, each to the worker with the least so far
    bins       a worker's items, each into the first micro-batch with room; then as many micro-batches on every worker
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.training.examples import Examples
from pipeline.training.order import Numbers


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


class _Item(NamedTuple):
    """Atoms of one family that are computed together, and what they and their prompt cost in tokens."""

    cost: int
    atoms: list[int]


@dataclass
class _Bin:
    """A micro-batch, or all of a worker's: items, and what they cost together."""

    items: list[_Item] = field(default_factory=list)
    cost: int = 0

    def put(self, item: _Item) -> None:
        self.items.append(item)
        self.cost += item.cost

    @property
    def atoms(self) -> list[int]:
        return [atom for item in self.items for atom in item.atoms]


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
    total = sum(_item(atoms, members).cost for members in families.values())
    limit = min(-(-total // workers), budget_tokens)
    items = [item for members in families.values() for item in _split(atoms, members, limit)]
    loads = [_Bin() for _ in range(workers)]
    for item in sorted(items, key=lambda item: (-item.cost, item.atoms)):
        min(loads, key=lambda load: load.cost).put(item)
    workers_bins = [_fill(load.items, budget_tokens) for load in loads]
    count = max(map(len, workers_bins))
    return [_extended(atoms, bins, count) for bins in workers_bins]


def _item(atoms: Sequence[Atom], members: list[int]) -> _Item:
    return _Item(atoms[members[0]].prompt + sum(atoms[member].tokens for member in members), members)


def _split(atoms: Sequence[Atom], members: Sequence[int], limit: int) -> Iterator[_Item]:
    """A family as items of at most `limit` tokens; an atom may exceed it alone."""
    part: list[int] = []
    size = 0
    for member in members:
        size += atoms[member].tokens
        if part and atoms[member].prompt + size > limit:
            yield _item(atoms, part)
            part, size = [], atoms[member].tokens
        part.append(member)
    yield _item(atoms, part)


def _fill(items: Sequence[_Item], budget_tokens: int) -> list[_Bin]:
    """Each item into the first micro-batch that has room for it."""
    bins: list[_Bin] = []
    for item in items:
        roomy = next((each for each in bins if each.cost + item.cost <= budget_tokens), None)
        if roomy is None:
            bins.append(roomy := _Bin())
        roomy.put(item)
    return bins


def _extended(atoms: Sequence[Atom], bins: list[_Bin], count: int) -> list[list[int]]:
    """`count` micro-batches: the largest is parted, between families where it has several, for as long as one can be."""
    while len(bins) < count:
        largest = max((each for each in bins if len(each.atoms) > 1), key=lambda each: each.cost, default=None)
        if largest is None:
            break
        bins.remove(largest)
        items = largest.items
        if len(items) == 1:
            items = [_item(atoms, items[0].atoms[start::2]) for start in (0, 1)]
        bins += _halves(items)
    bins.sort(key=lambda each: -each.cost)
    return [each.atoms for each in bins] + [[] for _ in range(count - len(bins))]


def _halves(items: Sequence[_Item]) -> tuple[_Bin, _Bin]:
    """Two micro-batches of about the same cost; items stand by falling cost."""
    halves = _Bin(), _Bin()
    for item in items:
        min(halves, key=lambda half: half.cost).put(item)
    return halves
