"""Intervals and p-values against exact distributions, enumeration, normal theory and scipy."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pipeline.evaluation import statistics
from pipeline.evaluation.benchmarks.figures import Figures, stratified_mean
from pipeline.evaluation.statistics import Comparison, by_stratum, compare, holm, intervals


def figures(scores, strata=None, weights=None, sizes=None, items=None) -> Figures:
    scores = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    n = len(next(iter(scores.values())))
    return Figures(
        values={},
        items=items or [f"f:{k}" for k in range(n)],
        scores=scores,
        strata=np.zeros(n, np.int64) if strata is None else np.asarray(strata),
        weights=np.ones(1) if weights is None else np.asarray(weights, np.float64),
        sizes=np.ones(n) if sizes is None else np.asarray(sizes, np.float64),
    )


def stratified(rng: np.random.Generator, n: int) -> Figures:
    """Three strata of unequal weight, items of 1 to 9 pairs, one figure in steps and one continuous."""
    strata = np.concatenate(([0, 1, 2], rng.integers(0, 3, n - 3)))
    scores = {"steps": rng.integers(0, 4, n) / 3, "continuous": rng.random(n) * (1 + strata) / 3}
    return figures(scores, strata, [0.5, 0.2, 0.3], rng.integers(1, 10, n))


def test_an_interval_of_right_and_wrong_is_the_binomials():
    """The resampled number of right items is Binomial(n, share) exactly."""
    n, right = 200, 130
    share = right / n
    chances = np.cumsum([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)])
    low, high = intervals(figures({"accuracy": np.arange(n) < right}), 20_000, 0)["accuracy"]
    assert n * np.array((low, high)) == pytest.approx(np.searchsorted(chances, (0.025, 0.975)), abs=1)


def test_an_interval_is_scipys_percentile_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(0).beta(2, 5, 150)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert intervals(figures({"a": scores}), 4000, 1)["a"] == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_intervals_of_strata_follow_normal_theory():
    """Of a ratio in each stratum: variance sum_s w_s^2 * sum_i (size_i (score_i - mean_s))^2 / (sum_i size_i)^2."""
    made = stratified(np.random.default_rng(2), 900)
    found = intervals(made, 4000, 0)
    for name, scores in made.scores.items():
        mean = stratified_mean(scores, made.strata, made.weights, made.sizes)
        variance = 0.0
        for s, weight in enumerate(made.weights):
            x, size = scores[made.strata == s], made.sizes[made.strata == s]
            variance += weight**2 * ((size * (x - np.average(x, weights=size))) ** 2).sum() / size.sum() ** 2
        half = 1.96 * variance**0.5
        assert found[name] == pytest.approx((mean - half, mean + half), abs=0.08 * half)


def test_intervals_cover_the_truth():
    """200 data sets of two strata: 95% intervals hold the true figure in 90% to 98.5%."""
    rng = np.random.default_rng(3)
    strata, truth = np.repeat([0, 1], [60, 40]), np.array([0.8, 0.55])
    covered = 0
    for seed in range(200):
        scores = rng.random(100) < truth[strata]
        low, high = intervals(figures({"a": scores}, strata, [0.5, 0.5]), 400, seed)["a"]
        covered += low <= truth.mean() <= high
    assert 180 <= covered <= 197


def test_figures_of_the_same_resamples_move_together():
    scores = np.random.default_rng(4).random(50)
    found = intervals(figures({"a": scores, "b": 1 - scores, "half": np.full(50, 0.5)}), 500, 0)
    assert found["b"] == pytest.approx((1 - found["a"][1], 1 - found["a"][0]), abs=1e-12)
    assert found["half"] == pytest.approx((0.5, 0.5), abs=1e-12)  # weights of every resample add up to 1


def test_a_stratum_of_one_item_is_kept_and_adds_no_spread():
    rng = np.random.default_rng(5)
    scores = rng.random(40)
    alone = intervals(figures({"a": scores}), 300, 0)["a"]
    both = intervals(figures({"a": [*scores, 1.0]}, [0] * 40 + [1], [0.5, 0.5]), 300, 0)["a"]
    assert both == pytest.approx(tuple(0.5 * end + 0.5 for end in alone), abs=1e-12)


def test_the_seed_alone_decides(monkeypatch):
    made = stratified(np.random.default_rng(6), 80)
    other = stratified(np.random.default_rng(7), 80)
    first, pair = intervals(made, 200, 8), compare(made, other, "steps", 200, 8)
    assert intervals(made, 200, 8) == first != intervals(made, 200, 9)
    order = np.random.default_rng(0).permutation(80)
    shuffled = figures(
        {k: v[order] for k, v in made.scores.items()}, made.strata[order], made.weights, made.sizes[order]
    )
    assert intervals(shuffled, 200, 8) == first
    monkeypatch.setattr(statistics, "CHUNK", 100)
    small = intervals(made, 200, 8)
    assert all(small[name] == pytest.approx(first[name], abs=1e-12) for name in first)
    assert vars(compare(made, other, "steps", 200, 8)) == pytest.approx(vars(pair), abs=1e-12)


def test_figures_without_item_scores_have_no_interval():
    bare = Figures({"a": 0.5}, ["f:0"], {}, np.zeros(1, np.int64), np.ones(1), np.ones(1))
    assert intervals(bare, 100, 0) == {}
    assert compare(bare, bare, "a", 100, 0) is None


def enumerated(terms) -> float:
    sums = [
        abs(sum(sign * term for sign, term in zip(signs, terms, strict=True)))
        for signs in product((1, -1), repeat=len(terms))
    ]
    return float(np.mean(np.array(sums) >= abs(sum(terms)) - 1e-9))


@pytest.mark.parametrize("n", [1, 5, 12])
def test_few_differences_are_enumerated(n):
    rng = np.random.default_rng(n)
    first, second = rng.random(n) + 0.2, rng.random(n)
    same = [0.5] * 30  # items without a difference change the mean, not the p-value
    found = compare(figures({"a": [*first, *same]}), figures({"a": [*second, *same]}), "a", 50, 0)
    assert found.p_value == pytest.approx(enumerated(list(first - second)))
    assert found.difference == pytest.approx((first - second).sum() / (n + 30))


def test_many_differences_are_enumeration_but_for_chance():
    """14 unequal terms, beyond the 12 of enumeration, with strata and sizes: 2^14 patterns by hand."""
    rng = np.random.default_rng(16)
    strata, sizes, weights = np.repeat([0, 1], 7), rng.integers(1, 5, 14), np.array([0.7, 0.3])
    first, second = rng.random(14), rng.random(14)
    terms = [
        weights[s] * size * d / sizes[strata == s].sum()
        for s, size, d in zip(strata, sizes, first - second, strict=True)
    ]
    exact = enumerated(terms)
    assert 0.05 < exact < 0.95
    found = compare(
        figures({"a": first}, strata, weights, sizes), figures({"a": second}, strata, weights, sizes), "a", 20_000, 0
    )
    assert found.p_value == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5)
    assert found.difference == pytest.approx(sum(terms))


def test_right_against_wrong_is_the_sign_test():
    """47 or 12 differences of one size: twice the binomial tail."""
    first, second = np.repeat([1, 0, 1], [30, 17, 50]), np.repeat([0, 1, 1], [30, 17, 50])
    found = compare(figures({"a": first}), figures({"a": second}), "a", 40_000, 0)
    exact = 2 * sum(math.comb(47, k) for k in range(30, 48)) / 2**47
    assert found.p_value == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 40_000) ** 0.5)
    few = compare(figures({"a": first[27:39]}), figures({"a": second[27:39]}), "a", 10, 0)
    assert few.p_value == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)


def test_a_p_value_is_never_zero():
    found = compare(figures({"a": np.ones(100)}), figures({"a": np.zeros(100)}), "a", 999, 0)
    assert found == Comparison(1.0, 1.0, 1.0, 1 / 1000, 100)


def test_no_difference():
    made = stratified(np.random.default_rng(11), 30)
    assert compare(made, made, "steps", 100, 0) == Comparison(0.0, 0.0, 0.0, 1.0, 30)


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(12)
    p = [
        compare(figures({"a": rng.random(30)}), figures({"a": rng.random(30)}), "a", 200, k).p_value for k in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)


def test_items_in_common_are_matched_by_id_and_weights_renormalised():
    """Stratum 1 is not in the second; its weight goes to the others in proportion."""
    first = figures({"a": [1, 0, 1, 1]}, [0, 0, 1, 2], [0.2, 0.5, 0.3], items=["w", "x", "y", "z"])
    second = figures({"a": [0, 0.5, 0.25]}, items=["z", "u", "x"])
    found = compare(first, second, "a", 100, 0)
    assert found.items == 2
    assert found.difference == pytest.approx(0.4 * (0 - 0.25) + 0.6 * (1 - 0))
    assert compare(first, figures({"a": [1]}, items=["v"]), "a", 100, 0) is None


def test_the_paired_interval_is_that_of_the_differences():
    rng = np.random.default_rng(13)
    first = rng.random(200)
    second = np.clip(first - 0.1 + 0.05 * rng.normal(size=200), 0, 1)
    found = compare(figures({"a": first}), figures({"a": second}), "a", 2000, 0)
    half = 1.96 * (first - second).std() / 200**0.5
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), abs=0.1 * half)


def test_holm():
    """By hand: sorted 0.01, 0.02, 0.03, 0.04, 0.5 times 5, 4, 3, 2, 1, never falling."""
    assert holm([0.5, 0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.5, 0.09, 0.05, 0.09, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error():
    """Rejecting adjusted p <= 0.05 is the step-down procedure: the k-th smallest against 0.05 / (m - k + 1)."""
    rng = np.random.default_rng(14)
    for _ in range(50):
        p = rng.random(6) ** 4
        rejected = np.zeros(6, bool)
        for k, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (6 - k):
                break
            rejected[place] = True
        assert (np.array(holm(p)) <= 0.05).tolist() == rejected.tolist()


def test_each_stratum_alone_is_its_mean_and_its_interval():
    rng = np.random.default_rng(5)
    scores = (rng.random(60) < 0.7).astype(float)
    strata = np.repeat([0, 1, 2], [30, 20, 10])
    told = replace(figures({"accuracy": scores}, strata, np.full(3, 1 / 3)), strata_names=["chat", "code", "math"])
    found = by_stratum(told, "accuracy", 2000, 0)
    assert list(found) == ["chat", "code", "math"] and [f.items for f in found.values()] == [30, 20, 10]
    for number, each in enumerate(found.values()):
        mean = scores[strata == number].mean()
        assert each.value == pytest.approx(mean)
        half = 1.96 * np.sqrt(mean * (1 - mean) / each.items)
        assert each.interval == pytest.approx([mean - half, mean + half], abs=0.06)
    assert by_stratum(replace(told, strata_names=()), "accuracy", 200, 0) == {}
