"""What a benchmark says: its authors' figures, and what resampling needs to give them intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.documents import Matrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """The figures of one benchmark under one reward.

    `values` are computed by the authors' own formula. For resampling, each is also a stratified mean over items:

        value = sum_s weights[s] * (sum_{i in s} sizes[i] * scores[name][i]) / (sum_{i in s} sizes[i])

    up to rounding, with i over the n items and s over the S strata. A figure that no item score can express is in
    `values` and not in `scores`, and gets no interval. Scores are mostly shares; those of a figure that weighs items
    differently from the main one, or that is a difference, lie outside [0, 1].
    """

    values: Mapping[str, float]  # the main figure first
    items: Sequence[str]  # ids, [n]; with a rubric, `id@rubric`
    scores: Mapping[str, Array]  # by figure, [n]
    strata: NDArray[np.int64]  # [n], index into weights
    weights: Array  # [S], they add up to 1
    sizes: Array  # [n]; pairs of an item where pairs are what is averaged, else 1
    strata_names: Sequence[str] = ()  # [S], where people know them: domains, subsets
    ties: int = 0  # comparisons in which both rewards are equal; none of them counts as right unless `tie_rule` says so
    comparisons: int = 0
    tie_rule: str = "a tie is not right"
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON: per domain, per subset, what is missing
    matrices: Sequence[Matrix] = ()
    notes: Sequence[str] = ()  # what a person should know before believing a figure

    @property
    def main(self) -> str:
        return next(iter(self.values))


def stratified_mean(scores: Array, strata: NDArray[np.int64], weights: Array, sizes: Array) -> float:
    """The formula of `Figures`: [n], [n], [S], [n] -> one number. Every stratum has an item."""
    sums = np.bincount(strata, sizes * scores, len(weights))
    return float((weights * sums / np.bincount(strata, sizes, len(weights))).sum())
