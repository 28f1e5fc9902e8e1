"""How the tokens of a response become one number: an entry of AGGREGATIONS each, whose names `reward.aggregation` takes.

    sum              sum_h r_h. With gamma = 1 it telescopes to V(s_1) + alpha * log pi(response | prompt): short answers win.
    discounted_sum   sum_h max(gamma^(h-1), min_weight) * r_h; telescopes likewise for any gamma without the floor.
    mean             alpha * mean_h log pi = mean_h (Q_h - V_h). Not the mean of r_h, which would leak V(s_1)/H, and with it
                     the level of the logits, which next-token training does not determine.

An entry gives a term for each token and says how terms are put together; one response and a whole store are both made of it
(`pipeline.rewards.endogenous.aggregate`, `pipeline.rewards.derive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.config import RewardConfig

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one or more responses, one after another: T tokens in all, in nats times alpha."""

    rewards: Array  # [T], r_h
    q: Array  # [T], Q(s_h, a_h)
    values: Array  # [T], V(s_h)
    positions: NDArray[np.int64]  # [T], h - 1

    def weights(self, config: RewardConfig) -> Array:
        """max(gamma^(h-1), min_weight), [T]."""
        by_position: Array = np.maximum(config.gamma ** np.arange(self.positions.max() + 1), config.min_weight)
        return by_position[self.positions]


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One way.

    Attributes:
        formula: in words, for tables and pages.
        terms: of every token, [T].
        combine: puts the terms of a response together: a ufunc of NumPy, or what has its `reduce` and `reduceat`.
        by_length: whether the result is divided by H.
        discounts: whether gamma says how much a token weighs; elsewhere it is shown without a discount.
    """

    formula: str
    terms: Callable[[Tokens, RewardConfig], Array]
    combine: np.ufunc = np.add
    by_length: bool = False
    discounts: bool = False


AGGREGATIONS = {
    "sum": Aggregation("sum of r_h", lambda tokens, config: tokens.rewards),
    "mean": Aggregation(
        "alpha times the mean of log pi", lambda tokens, config: tokens.q - tokens.values, by_length=True
    ),
    "discounted_sum": Aggregation(
        "sum of gamma^(h-1) r_h", lambda tokens, config: tokens.weights(config) * tokens.rewards, discounts=True
    ),
}
