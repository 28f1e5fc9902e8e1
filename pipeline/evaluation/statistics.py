"""How sure a figure is, and whether two rewards differ: the bootstrap, a permutation test, Holm's correction.

What is drawn is always an item, never a pair: pairs of one prompt share their responses and are not independent. A
benchmark's strata (domains, subsets) are fixed by its authors, so each keeps its number of items in every resample.

Items of a stratum that agree in size and in every score are interchangeable, so a resample is drawn as how often each
*distinct* item occurs, one multinomial for a stratum. 2,000 resamples of 100,000 items took 0.2 s on one core where
items score in steps, and 12 s where no two were alike (10,000 of those: 1 s). The same seed gives the same numbers,
whatever the order of the items. Left out: corrections of the percentile interval for bias and skewness (BCa).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.benchmarks.figures import Array, Figures, stratified_mean
from pipeline.evaluation.documents import SetFigure
from pipeline.store.summary import wilson_interval

CHUNK = 1 << 21  # counts drawn at a time: 16 MB, and as much again as float64
ENUMERATED = 12  # differences up to which all 2^12 sign patterns are gone through
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """A figure of one reward less that of another, over the items that both have."""

    difference: float
    low: float  # 95% interval of the difference
    high: float
    p_value: float  # two-sided, of no difference; not corrected for several comparisons: `holm`
    items: int


def intervals(figures: Figures, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals (Efron 1979) of every figure in `figures.scores`, from the same resamples.

    Items are drawn with replacement within strata. A stratum of one item adds no spread. Where all items agree on 0 or on
    1 the bootstrap cannot know of what it has not seen: there it is Wilson's interval of as many items.
    """
    if not figures.scores:
        return {}
    items = len(figures.items)
    scores = np.stack(list(figures.scores.values()), axis=1)
    low, high = _bootstrap(
        scores, figures.strata, figures.weights, figures.sizes, resamples, np.random.default_rng(seed)
    )
    bounds = {name: (float(low[k]), float(high[k])) for k, name in enumerate(figures.scores)}
    agreed = {name: float(values[0]) for name, values in figures.scores.items() if (values == values[0]).all()}
    return bounds | {
        name: wilson_interval(all_of * items, items) for name, all_of in agreed.items() if all_of in (0, 1)
    }


def by_stratum(figures: Figures, name: str, resamples: int, seed: int) -> dict[str, SetFigure]:
    """Figure `name` of each named stratum alone. Empty without names."""
    if name not in figures.scores:
        return {}
    sets = {}
    for number, stratum in enumerate(figures.strata_names):
        here = np.flatnonzero(figures.strata == number)
        alone = Figures(
            values={},
            items=[item for item, own in zip(figures.items, figures.strata, strict=True) if own == number],
            scores={name: figures.scores[name][here]},
            strata=np.zeros(len(here), np.int64),
            weights=np.ones(1),
            sizes=figures.sizes[here],
        )
        value = stratified_mean(alone.scores[name], alone.strata, alone.weights, alone.sizes)
        interval = list(intervals(alone, resamples, seed)[name])
        sets[stratum] = SetFigure(items=len(here), value=value, interval=interval)
    return sets


def compare(first: Figures, second: Figures, name: str, resamples: int, seed: int) -> Comparison | None:
    """Figure `name` of `first` less that of `second`, paired by item.

    Strata and sizes are those of `first`; the weights of strata that have an item in common are scaled to add up to 1.
    The interval is the paired bootstrap's. The p-value is that of the sign-flip permutation test (Fisher 1935): were
    the rewards alike, each item's difference would be as likely with the other sign. All patterns are enumerated up to
    12 non-zero differences; beyond, `resamples` random ones give (b + 1) / (resamples + 1), which is never 0 (Phipson
    and Smyth 2010). None where no item is in common, or where the figure is not made of item scores.
    """
    if name not in first.scores or name not in second.scores:
        return None
    place = {item: k for k, item in enumerate(second.items)}
    common = np.array([(k, place[item]) for k, item in enumerate(first.items) if item in place], np.int64)
    if not len(common):
        return None
    here, there = common.T
    differences = first.scores[name][here] - second.scores[name][there]
    present, strata = np.unique(first.strata[here], return_inverse=True)
    weights = first.weights[present] / first.weights[present].sum()
    sizes = first.sizes[here]
    rng = np.random.default_rng(seed)
    low, high = _bootstrap(differences[:, None], strata, weights, sizes, resamples, rng)
    shares = (weights / np.bincount(strata, sizes))[strata] * sizes  # of an item in the mean; they add up to 1
    return Comparison(
        stratified_mean(differences, strata, weights, sizes),
        float(low[0]),
        float(high[0]),
        _sign_flip(shares * differences, resamples, rng),
        len(common),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of m tests, adjusted so that the chance of any false alarm keeps its level (Holm 1979).

    With p_(1) <= ... <= p_(m), the k-th becomes max over j <= k of min(1, (m - j + 1) * p_(j)). The order is kept.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values, np.float64)[order]))
    return [float(p) for p in adjusted]


def _bootstrap(
    scores: Array, strata: Integers, weights: Array, sizes: Array, resamples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """scores: [n, figures] -> the 2.5% and 97.5% quantiles of the resampled stratified means, [figures] each."""
    means = np.zeros((resamples, scores.shape[1]))
    for stratum, weight in enumerate(weights):
        here = strata == stratum
        rows, counts = np.unique(np.column_stack((sizes[here], scores[here])), axis=0, return_counts=True)
        terms = np.column_stack((rows[:, 0], rows[:, :1] * rows[:, 1:]))  # [distinct, 1 + figures]
        for chunk in _chunks(resamples, len(rows)):
            sums = rng.multinomial(counts.sum(), counts / counts.sum(), chunk.stop - chunk.start) @ terms
            means[chunk] += weight * sums[:, 1:] / sums[:, :1]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high


def _sign_flip(terms: Array, flips: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of sum(terms) among the sums with random signs; terms: [n], each item's part of the sum."""
    terms = terms[terms != 0]
    least = abs(terms.sum()) - 1e-12 * np.abs(terms).sum()  # patterns that tie but for rounding count
    if len(terms) <= ENUMERATED:
        patterns = np.arange(1 << len(terms))[:, None] >> np.arange(len(terms)) & 1  # [2^n, n]
        return float((np.abs((2 * patterns - 1) @ terms) >= least).mean())
    sizes, counts = np.unique(np.abs(terms), return_counts=True)
    extreme = 0
    for chunk in _chunks(flips, len(sizes)):
        positive = rng.binomial(counts, 0.5, (chunk.stop - chunk.start, len(sizes)))
        extreme += int((np.abs((2 * positive - counts) @ sizes) >= least).sum())
    return (extreme + 1) / (flips + 1)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` such that rows * width numbers are held at a time. Draws are the same for any chunk."""
    step = max(1, CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
