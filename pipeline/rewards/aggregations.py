"""How the tokens of a response become one number: an entry of AGGREGATIONS each, whose names `reward.aggregation` takes.

    sum              sum_h r_h. With gamma = 1 it telescopes to V(s_1) + alpha * log pi(response | prompt): short answers win.
    discounted_sum   sum_h max(gamma^(h-1), min_weight) * r_h; telescopes likewise for any gamma without the floor.
    discounted_logprobs   alpha * sum_h max(gamma^(h-1), min_weight) * log pi: the same between the responses to one prompt, as
                     V(s_1) is left out; with a floor too it leaks nothing of the level of the logits.
    mean             alpha * mean_h log pi = mean_h (Q_h - V_h). Not the mean of r_h, which would leak V(s_1)/H, and with it
                     the level of the logits, which next-token training does not determine.
    self_certainty   mean_h [V(s_h) - mean_a Q(s_h, a)] - log A = mean_h KL(uniform || pi(.|s_h)) (arXiv 2505.19590), with A
                     rows of the output matrix, those that no token uses included.
    negative_entropy -mean_h [V(s_h) - sum_a pi(a) Q(s_h, a)] (arXiv 2505.22660).

The last two are at temperature 1 whatever alpha is, and of optional columns (`reward.token_certainty`).

An entry gives a term for each token and says how terms are put together; one response and a whole store are both made of it
(`pipeline.rewards.endogenous.aggregate`, `pipeline.rewards.derive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import RewardConfig

Array = NDArray[np.float64]


class Certainty(NamedTuple):
    """Of the distribution that each token was taken from, at temperature 1: T tokens in all, in nats. The names are those of
    the columns of a label store without their `token_`."""

    entropies: NDArray[np.floating[Any]]  # [T], -sum_a pi(a) log pi(a)
    self_certainty: NDArray[np.floating[Any]]  # [T], KL(uniform || pi)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one or more responses, one after another: T tokens in all, in nats times alpha."""

    rewards: Array  # [T], r_h
    q: Array  # [T], Q(s_h, a_h)
    values: Array  # [T], V(s_h)
    positions: NDArray[np.int64]  # [T], h - 1
    certainty: Certainty | None = None

    def weights(self, config: RewardConfig) -> Array:
        """max(gamma^(h-1), min_weight), [T]."""
        by_position: Array = np.maximum(config.gamma ** np.arange(self.positions.max() + 1), config.min_weight)
        return by_position[self.positions]

    def known_certainty(self) -> Certainty:
        """Raises ConfigError where the tokens were scored without it."""
        if self.certainty is None:
            raise ConfigError(
                "these tokens were scored without entropies and self-certainty: label anew with reward.token_certainty = true"
            )
        return self.certainty


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One way.

    Attributes:
        formula: in words, for tables and pages.
        terms: of every token, [T].
        combine: puts the terms of a response together: a ufunc of NumPy, or what has its `reduce` and `reduceat`.
        by_length: whether the result is divided by H.
        discounts: whether gamma says how much a token weighs; elsewhere it is shown without a discount.
        certainty: whether it is of the columns that `reward.token_certainty` stores.
        repeats: whether without a floor it ranks responses to one prompt as another entry does; shown when asked for.
    """

    formula: str
    terms: Callable[[Tokens, RewardConfig], Array]
    combine: np.ufunc = np.add
    by_length: bool = False
    discounts: bool = False
    certainty: bool = False
    repeats: bool = False


AGGREGATIONS = {
    "sum": Aggregation("sum of r_h", lambda tokens, config: tokens.rewards),
    "mean": Aggregation(
        "alpha times the mean of log pi", lambda tokens, config: tokens.q - tokens.values, by_length=True
    ),
    "discounted_sum": Aggregation(
        "sum of gamma^(h-1) r_h", lambda tokens, config: tokens.weights(config) * tokens.rewards, discounts=True
    ),
    "discounted_logprobs": Aggregation(
        "alpha times the sum of gamma^(h-1) log pi",
        lambda tokens, config: tokens.weights(config) * (tokens.q - tokens.values),
        discounts=True,
        repeats=True,
    ),
    "self_certainty": Aggregation(
        "mean of KL(uniform || pi)",
        lambda tokens, config: tokens.known_certainty().self_certainty.astype(np.float64),
        by_length=True,
        certainty=True,
    ),
    "negative_entropy": Aggregation(
        "less the mean entropy of pi",
        lambda tokens, config: -tokens.known_certainty().entropies.astype(np.float64),
        by_length=True,
        certainty=True,
    ),
}
