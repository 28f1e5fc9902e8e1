"""Groups without variance give place to others: always the same ones, and no more than may be."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_config_as
from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.refill import EXHAUSTED, candidates, filled
from pipeline.rl.rollouts import Group, Prompt, Rewarded


class Asked:
    """Groups of two whose rewards differ where the prompt's number is among `differing`."""

    def __init__(self, differing: Sequence[int]):
        self.differing = differing
        self.calls: list[tuple[list[int], int]] = []

    def __call__(self, numbers: Sequence[int], first: int) -> list[Group]:
        self.calls.append((list(numbers), first))
        return [
            Group(
                Prompt(str(number), [], False, [1]),
                [],
                [Rewarded(reward, {}, np.zeros(1), None, None) for reward in (0.0, float(number in self.differing))],
            )
            for number in numbers
        ]


def ids(groups: Sequence[Group]) -> list[int]:
    return [int(group.prompt.id) for group in groups]


def test_a_batch_that_tells_all_apart_is_left_as_it_is() -> None:
    ask = Asked(range(9))
    groups, measures, notes = filled([5, 3, 8, 1, 0], 3, ask)
    assert ids(groups) == [5, 3, 8] and ask.calls == [([5, 3, 8], 0)] and not notes
    assert measures == {"refill/candidates": 3.0, "refill/frac_reward_zero_std": 0.0}


def test_places_are_filled_in_the_order_of_candidates() -> None:
    ask = Asked([3, 0, 7, 6])
    groups, measures, notes = filled([5, 3, 8, 1, 0, 7, 6, 2], 3, ask)
    assert ids(groups) == [3, 0, 7] and not notes
    assert ask.calls == [([5, 3, 8], 0), ([1, 0], 3), ([7], 5)]  # by place, which the answers' random numbers follow
    assert measures == {"refill/candidates": 6.0, "refill/frac_reward_zero_std": 0.5}


def test_where_candidates_run_out_the_first_others_fill_the_batch_and_it_is_said() -> None:
    groups, measures, notes = filled([5, 3, 8, 1, 0], 3, Asked([8]))
    assert ids(groups) == [8, 5, 3] and notes == [EXHAUSTED]
    assert measures == {"refill/candidates": 5.0, "refill/frac_reward_zero_std": 0.8}


def test_candidates_are_a_function_of_the_step() -> None:
    own, count = [4, 2, 9], 12
    found = candidates(own, 7, 0, count, 10)
    assert found[:3] == own and len(found) == 10 and len(set(found)) == 10 and set(found) <= set(range(count))
    assert found == candidates(own, 7, 0, count, 10) == candidates(own, 7, 0, count, 99)[:10]
    assert sorted(candidates(own, 7, 0, count, 99)) == list(range(count))
    others = {tuple(candidates(own, step, seed, count, 99)[3:]) for step, seed in ((7, 0), (8, 0), (7, 1))}
    assert len(others) == 3


@pytest.mark.parametrize(
    "told", [["rl.algorithm=ppo"], ["rl.algorithm=opd"], ["rl.algorithm=reinforce", "reinforce.baseline=none"]]
)
def test_it_is_for_what_compares_a_group(told: list[str]) -> None:
    def load(*assignments: str) -> Any:
        return load_config_as(RlConfig, None, [], ["rl.refill=2", *assignments])

    assert load().rl.refill == 2
    with pytest.raises(ConfigError, match=r"rl\.refill = 2 looks for groups whose rewards differ"):
        load(*told)
