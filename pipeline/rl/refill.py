"""Other prompts in place of those whose responses were all rewarded alike: dynamic sampling (DAPO, arXiv 2503.14476, eq. 11).

Candidate j of step k is a function of k and j: first the step's own prompts, then all others, shuffled for the step; the
random numbers of its answers follow from k and j too. Candidates are asked in their order, as many at once as places are
empty, so that the batch does not depend on who was fast. The paper samples until a batch is full; here there is a bound, and
where it is reached groups that tell nothing apart fill the batch. What is learnt from is then no fair sample of the prompts:
easy and hopeless ones are passed over, and means over a batch's rewards speak of the others.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.rl.rollouts import Group
from pipeline.training.advantages import alike

REFILL = 2  # stream of random numbers, beside those of the order of prompts and of minibatches
EXHAUSTED = (
    "rl.refill is exhausted: too few of the prompts that a step may try have responses whose rewards differ, and the batch is "
    "filled with others, from which nothing but a KL is learnt. Raise rl.refill or rl.group_size, or take prompts that are "
    "neither always nor never solved."
)


def candidates(own: Sequence[int], step: int, seed: int, count: int, most: int) -> list[int]:
    """Numbers of the prompts that a step may try, at most `most`.

    Args:
        own: those of the step's order.
        step: counted from 0.
        count: how many prompts there are.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, step, REFILL])).random_raw(count)
    others = np.argsort(words, kind="stable")
    return [*own, *others[~np.isin(others, own)].tolist()][:most]


def filled(
    numbers: Sequence[int], size: int, ask: Callable[[Sequence[int], int], list[Group]]
) -> tuple[list[Group], dict[str, float], list[str]]:
    """`size` groups: of the candidates, in their order, those whose rewards differ, then as many others as are missing.

    Args:
        numbers: of the candidates, at least `size`.
        ask: the groups of some of them, and the place of the first among the candidates.

    Returns:
        The groups; `refill/candidates`, how many were tried, and `refill/frac_reward_zero_std`, the share of these that tell
        nothing apart; what a person should know.
    """
    groups: list[Group] = []
    missing = size
    while missing and len(groups) < len(numbers):
        groups += ask(numbers[len(groups) : len(groups) + missing], len(groups))
        missing = max(0, size - sum(map(_tells_apart, groups)))
    differ = [group for group in groups if _tells_apart(group)]
    equal = [group for group in groups if not _tells_apart(group)]
    measures = {"refill/candidates": float(len(groups)), "refill/frac_reward_zero_std": len(equal) / len(groups)}
    return [*differ, *equal[:missing]], measures, [EXHAUSTED] if missing else []


def _tells_apart(group: Group) -> bool:
    return not alike(np.array([each.reward for each in group.rewarded]))
