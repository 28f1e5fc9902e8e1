"""The order of examples, against what it promises; the plan of a step, against every property it needs."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.training.balance import Atom, atoms_of, plan_step
from pipeline.training.examples import Counts, Examples
from pipeline.training.order import Order


def examples_in(*sizes: int, pairs: bool = False, **columns: Any) -> Examples:
    """As many examples in each part, of one row each or of two."""
    total, width = sum(sizes), 2 if pairs else 1
    usual: dict[str, Any] = {
        "group": np.arange(total),
        "rows": np.arange(total * width, dtype=np.int32),
        "prompt_tokens": np.full(total * width, 5, np.int32),
        "tokens": np.full(total * width, 3, np.int32),
        "offsets": np.arange(total + 1) * width,
    }
    return Examples(
        sources=[],
        parts=[],
        counts=Counts(),
        pairs=pairs,
        part=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        draw=np.zeros(total),
        rewards=np.zeros(total * width),
        **{**usual, **columns},
    )


def test_the_order_is_this_one() -> None:
    """Written out: the same on every machine, and with every version of NumPy."""
    order = Order(examples_in(3, 1, 4, 2).part, 4, seed=7, shuffle_parts=2)
    expected = [[9, 1, 2, 0], [8, 5, 7, 6], [4, 3, 9, 8], [3, 2, 6, 7], [4, 1, 5, 0]]
    assert [order.step(k).tolist() for k in range(5)] == expected
    assert Order(examples_in(3, 1, 4, 2).part, 4, seed=8, shuffle_parts=2).step(0).tolist() != expected[0]


def test_every_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    examples = examples_in(5, 0, 7, 1, 9, 30)
    order = Order(examples.part, 8, 0, 2)
    stream = np.concatenate([order.step(k) for k in range(26)])
    epochs = stream.reshape(4, 52)
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == list(range(52)) and epoch.tolist() == order.epoch(number).tolist()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order.steps_per_epoch == 6.5
    assert [order.steps(epochs) for epochs in (1, 2, 4, 0.5, 0.001)] == [7, 13, 26, 4, 1]


def test_any_step_is_found_without_those_before_it() -> None:
    examples = examples_in(6, 6, 6, 5)
    one = Order(examples.part, 4, 3, 2)
    found = {k: one.step(k).tolist() for k in (50, 3, 51, 0, 5, 49)}
    for k, numbers in found.items():
        assert Order(examples.part, 4, 3, 2).step(k).tolist() == numbers and len(numbers) == 4
    assert len(one._epochs) <= 2  # what is held does not grow with the epochs


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_an_epoch_needs_the_parts_of_one_window_at_a_time(window: int) -> None:
    examples = examples_in(4, 9, 2, 5, 5, 1, 6)
    for epoch in range(5):
        parts = examples.part[Order(examples.part, 1, 0, window).epoch(epoch)]
        spans = [(np.flatnonzero(parts == part)[0], np.flatnonzero(parts == part)[-1]) for part in range(7)]
        open_at_once = max(sum(first <= place <= last for first, last in spans) for place in range(len(parts)))
        assert open_at_once <= window
    windows = {
        tuple(sorted(set(examples.part[Order(examples.part, 1, s, 7).epoch(0)[:8]].tolist()))) for s in range(20)
    }
    assert len(windows) > 10  # within a window, examples of all its parts are mixed


def test_parts_are_shuffled_fairly() -> None:
    """In 3,000 epochs every example is the first as often as any other: parts of one size, chi-squared by enumeration."""
    order = Order(examples_in(2, 2, 2).part, 1, 0, 2)
    first = Counter(int(order.epoch(number)[0]) for number in range(3000))
    expected = 3000 / 6
    assert sum((first[example] - expected) ** 2 / expected for example in range(6)) < 20.5  # 99.9% quantile, 5 degrees


def test_more_examples_to_a_step_than_there_are_is_refused() -> None:
    assert len(Order(examples_in(2, 3).part, 5, 0, 1).step(0)) == 5
    with pytest.raises(ConfigError, match=r"train.batch_size = 6 is more than the 5 examples"):
        Order(examples_in(2, 3).part, 6, 0, 1)


# Atoms


def test_a_pair_is_an_atom_and_siblings_are_a_family() -> None:
    tokens, prompts = np.array([3, 4, 1, 9], np.int32), np.array([5, 5, 6, 8], np.int32)
    pairs = examples_in(2, pairs=True, tokens=tokens, prompt_tokens=prompts, group=np.array([4, 4]))
    assert atoms_of(pairs, np.array([1, 0])) == [
        Atom((2, 3), (4, 6, 8), 8, 6 + 0 + 8),  # two prompts: one is forwarded besides
        Atom((0, 1), (4, 5), 5, 2 + 3),
    ]
    groups = examples_in(2, tokens=tokens, prompt_tokens=prompts, rows=np.arange(4), offsets=np.array([0, 1, 4]))
    assert atoms_of(groups, np.array([1])) == [
        Atom((1,), (1, 5), 5, 3),
        Atom((2,), (1, 6), 6, 0),
        Atom((3,), (1, 8), 8, 8),
    ]


# A step's plan


def cost_of(atoms: list[Atom], batch: list[int]) -> int:
    """Tokens forwarded: each prompt once."""
    prompts = {atoms[number].family: atoms[number].prompt for number in batch}
    return sum(prompts.values()) + sum(atoms[number].tokens for number in batch)


def atoms_like(families: list[tuple[int, list[int]]]) -> list[Atom]:
    sizes = [(family, prompt, tokens) for family, (prompt, members) in enumerate(families) for tokens in members]
    return [Atom((number,), *each) for number, each in enumerate(sizes)]


steps = st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 90), min_size=1, max_size=9)), max_size=12)


@given(steps.filter(bool), st.integers(1, 6), st.integers(1, 300))
def test_every_plan(families: list[tuple[int, list[int]]], workers: int, budget: int) -> None:
    atoms = atoms_like(families)
    plan = plan_step(atoms, workers, budget)
    assert plan == plan_step(atoms, workers, budget)
    assert sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(plan))) == list(range(len(atoms)))
    assert len(plan) == workers and len({len(batches) for batches in plan}) == 1
    for batches in plan:
        held = [batch for batch in batches if batch]
        assert len(held) == min(len(batches), sum(map(len, batches)))  # empty only where atoms have run out
        assert all(len(batch) == 1 or cost_of(atoms, batch) <= budget for batch in held)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_workers_are_balanced(sizes: list[int], workers: int) -> None:
    """Against the best of all assignments: no worse than 4/3 - 1/(3m) of it (Graham 1969, theorem 2)."""
    atoms = atoms_like([(size, [0]) for size in sizes])
    plan = plan_step(atoms, workers, 10**9)
    longest = max(sum(cost_of(atoms, batch) for batch in batches) for batches in plan)
    assignments = itertools.product(range(workers), repeat=len(sizes))
    best = min(max(np.bincount(chosen, sizes)) for chosen in assignments)
    assert longest <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9


def test_siblings_share_a_micro_batch_where_they_fit() -> None:
    atoms = atoms_like([(10, [5, 5, 5]), (10, [5, 5, 5]), (10, [5, 5, 5]), (10, [5, 5, 5])])
    plan = plan_step(atoms, 2, 50)
    together = [{atoms[number].family for number in batch} for batches in plan for batch in batches]
    assert sorted(map(sorted, together)) == [[0, 2], [1, 3]]
    assert [[cost_of(atoms, batch) for batch in batches] for batches in plan] == [[50], [50]]


def test_one_prompt_of_many_responses_keeps_all_workers_busy() -> None:
    atoms = atoms_like([(10, [20] * 8)])
    assert [sum(map(len, batches)) for batches in plan_step(atoms, 4, 10**6)] == [2, 2, 2, 2]


def test_a_worker_of_few_micro_batches_parts_the_largest() -> None:
    """The first has one response that is too long for any, and 24 short ones; the second cannot join any of its five."""
    atoms = atoms_like([(1, [274]), *[(1, [54])] * 5, *[(1, [4])] * 48])
    first, second = ([cost_of(atoms, batch) for batch in batches] for batches in plan_step(atoms, 2, 100))
    assert first == [275, 50, 25, 25, 20] and len(second) == 5 and sum(second) == sum(first)
    assert plan_step(atoms_like([(1, [5])]), 3, 100) == [[[0]], [[]], [[]]]


def test_a_large_step_is_planned_fast() -> None:
    rng = np.random.default_rng(0)
    atoms = atoms_like([(int(p), rng.integers(1, 500, 4).tolist()) for p in rng.integers(1, 500, 500)])
    plan = plan_step(atoms, 8, 16384)
    loads = [sum(cost_of(atoms, batch) for batch in batches) for batches in plan]
    assert max(loads) < 1.01 * sum(loads) / 8
