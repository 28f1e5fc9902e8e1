"""Bias figures on items made by hand, on rewards whose bias is known, and against scipy."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest

from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.bias import _bins, _design_effect, bias, controlled_accuracy, markdown_marks
from pipeline.evaluation.documents import Bias, PairAccuracy
from pipeline.store.summary import wilson_interval


def item(number: int, chosen, rejected, others=(), verdicts=None) -> Item:
    """Responses as (reward, tokens) or (reward, tokens, text)."""
    made = [
        tuple(Answer(a[0], a[1], a[2] if len(a) > 2 else "plain") for a in side) for side in (chosen, rejected, others)
    ]
    return Item(f"f:{number}", *made, verdicts=verdicts)


def noisy(rng: np.random.Generator, n: int, signal: float, by_length: float, p_longer: float = 0.5) -> list[Item]:
    """One pair each; P(right) = sigmoid(signal + by_length * sign of the chosen's length less the rejected's)."""
    items = []
    for number in range(n):
        lengths = sorted(rng.choice(np.arange(5, 200), 2, replace=False).tolist(), reverse=rng.random() < p_longer)
        logit = signal + by_length * np.sign(lengths[0] - lengths[1])
        right = rng.random() < 1 / (1 + np.exp(-logit))
        items.append(item(number, [(float(right), lengths[0])], [(float(not right), lengths[1])]))
    return items


def test_by_hand():
    items = [
        item(0, [(2.0, 10)], [(1.0, 4), (3.0, 12)]),  # chosen longer, right; shorter, wrong
        item(1, [(1.0, 5)], [(1.0, 9)]),  # shorter, a tie
        item(2, [(4.0, 7)], [(0.0, 7)]),  # equally long, right
        item(3, [], [(9.0, 900)]),  # no pair
        item(4, [], [], [(9.0, 900)]),
    ]
    found = bias(items)
    assert (found.pairs, found.items, found.ties, found.accuracy) == (4, 3, 1, 0.5)
    assert (found.unequal_pairs, found.unequal_ties) == (3, 1)
    assert found.longer_wins == pytest.approx(2 / 3)
    assert found.longer_is_chosen == pytest.approx(1 / 3)
    assert found.chosen_longer == PairAccuracy(pairs=1, accuracy=1.0, interval=list(wilson_interval(1, 1)))
    assert found.chosen_shorter == PairAccuracy(pairs=2, accuracy=0.0, interval=list(wilson_interval(0, 2)))
    assert found.same_length.pairs == 1 and found.same_length.accuracy == 1.0
    rewards, lengths = [2, 1, 3, 1, 1, 4, 0], [10, 4, 12, 5, 9, 7, 7]
    assert found.reward_length_correlation == pytest.approx(np.corrcoef(rewards, lengths)[0, 1])
    assert found.margin_length_correlation == pytest.approx(np.corrcoef([1, -1, 0, 4], [6, -2, -4, 0])[0, 1])
    assert [(d.low, d.high, d.pairs, d.accuracy) for d in found.deciles] == [(-4, 6, 4, 0.5)]
    assert found.markdown is None
    assert bias(items[3:]) is None
    assert bias([]) is None


def test_everything_is_json_and_undefined_is_none():
    cases = [
        [item(0, [(1.0, 3)], [(0.0, 3)])],
        [item(0, [(1.0, 3)], [(1.0, 3)])],
        [item(k, [(1.0, 9)], [(0.0, 3)]) for k in range(3)],
        [item(0, [(1.0, 3, "# a")], [(0.0, 5, "b")])],
        noisy(np.random.default_rng(0), 40, 1.0, 1.0),
    ]
    for items in cases:
        found = bias(items)
        assert Bias.model_validate(json.loads(json.dumps(found.model_dump(), allow_nan=False))) == found
        assert 1 <= len(found.summary) <= 4
    one = bias(cases[0])
    assert one.longer_wins is one.longer_is_chosen is one.length_gap is one.reward_length_correlation is None
    assert one.chosen_longer == PairAccuracy(pairs=0, accuracy=None, interval=None)
    assert bias(cases[2]).length_controlled is None  # every chosen is 6 longer: nothing is known of equal lengths


def test_a_reward_that_is_minus_length():
    rng = np.random.default_rng(1)
    pairs = [rng.choice(np.arange(1, 300), 2, replace=False).tolist() for _ in range(400)]
    found = bias([item(k, [(-float(a), a)], [(-float(b), b)]) for k, (a, b) in enumerate(pairs)])
    assert found.longer_wins == 0
    assert found.reward_length_correlation == pytest.approx(-1)
    assert found.margin_length_correlation == pytest.approx(-1)
    assert found.length_gap.difference == -1
    assert [d.accuracy for d in found.deciles][::9] == [1.0, 0.0]
    assert "favours short answers" in " ".join(found.summary)
    low, high = found.length_controlled.interval
    assert low < 0.5 < high


def test_a_judge_has_verdicts_and_no_rewards():
    verdicts = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): -1.0, (1, 1): 1.0}
    found = bias([item(0, [(5.0, 8), (0.0, 3)], [(5.0, 4), (1.0, 2)], verdicts=verdicts)])
    assert (found.pairs, found.ties, found.accuracy) == (4, 1, 0.5)
    assert found.reward_length_correlation is None
    assert found.longer_wins == pytest.approx(3 / 4)
    assert found.margin_length_correlation == pytest.approx(np.corrcoef([1, 0, -1, 1], [4, 6, -1, 1])[0, 1])


@pytest.mark.parametrize("sizes", [[1] * 200, [40, 3, 60, 2, 1, 30, 5, 59], [5, 5], [3], [195, 1, 1, 1, 1, 1], [1] * 9])
def test_deciles_partition_the_pairs(sizes):
    """`sizes`: how many pairs have the first, second, ... difference in length."""
    longer = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3 - 7, sizes))
    bins = _bins(longer)
    assert (np.sum(bins, axis=0) == 1).all()
    assert 1 <= len(bins) <= 10
    for before, after in pairwise(bins):
        assert longer[before].max() < longer[after].min()
    assert all(here.sum() >= 10 for here in bins) or len(bins) == 1
    if sizes == [1] * 200:
        assert [here.sum() for here in bins] == [20] * 10


def test_the_logistic_fit_is_scipys():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(2)
    for right_logit, n in ((0.5, 300), (3.0, 30), (-1.0, 12), (50.0, 40)):  # the last: every pair is right
        longer = rng.normal(20, 80, n).round()
        right = rng.random(n) < 1 / (1 + np.exp(-(right_logit + longer / 100)))
        x = np.tanh(longer / longer.std())

        def loss(w, x=x, right=right):
            z = w[0] + w[1] * x
            return np.logaddexp(0, np.where(right, -z, z)).sum() + 0.01 * (w @ w) / 2

        fit = optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-8})
        found = controlled_accuracy(right, longer, np.arange(n))
        assert found.accuracy == pytest.approx(1 / (1 + np.exp(-fit.x[0])), abs=1e-6)
        effect = _design_effect(right, np.arange(n))
        assert effect == pytest.approx(1)
        z = fit.x[0] + fit.x[1] * x
        weight = 1 / (1 + np.exp(-z)) / (1 + np.exp(z))
        curvature = np.array([[weight.sum(), weight @ x], [weight @ x, weight @ x**2]]) + 0.01 * np.eye(2)
        half = 1.959964 * np.linalg.inv(curvature)[0, 0] ** 0.5
        ends = 1 / (1 + np.exp(-(fit.x[0] + np.array([-half, half]))))
        assert found.interval == pytest.approx(ends.tolist(), abs=1e-4)


def test_a_known_model_is_recovered():
    """P(right) = sigmoid(0.4 + 1.5 tanh(d/s)), most chosen longer: plain accuracy is far off, the controlled one is not."""
    rng = np.random.default_rng(3)
    longer = rng.normal(60, 60, 20_000).round()
    right = rng.random(20_000) < 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(longer / longer.std()))))
    truth = 1 / (1 + np.exp(-0.4))
    found = controlled_accuracy(right, longer, np.arange(20_000))
    low, high = found.interval
    assert found.accuracy == pytest.approx(truth, abs=0.02)
    assert low < truth < high and high - low < 0.04
    assert right.mean() > truth + 0.1


def test_intervals_of_the_controlled_accuracy_cover_the_truth():
    rng = np.random.default_rng(4)
    truth, covered = 1 / (1 + np.exp(-0.8)), 0
    for _ in range(200):
        longer = rng.normal(30, 60, 150)
        right = rng.random(150) < 1 / (1 + np.exp(-(0.8 + np.tanh(longer / 60))))
        low, high = controlled_accuracy(right, longer, np.arange(150)).interval
        covered += low <= truth <= high
    assert 180 <= covered <= 198


def test_equal_lengths_need_no_control():
    right = np.arange(400) < 300
    found = controlled_accuracy(right, np.zeros(400), np.arange(400))
    assert found.accuracy == pytest.approx(0.75, abs=1e-4)
    assert found.interval == pytest.approx(wilson_interval(300, 400), abs=2e-3)


def test_separation_has_a_finite_fit():
    """Length decides alone; and all pairs right, where the ridge leaves the accuracy a little below 1."""
    longer = np.array([-3.0, -2, -1, 1, 2, 3] * 10)
    by_length = controlled_accuracy(longer > 0, longer, np.arange(60))
    assert by_length.accuracy == pytest.approx(0.5, abs=1e-6)
    everything = controlled_accuracy(np.ones(60, bool), longer, np.arange(60))
    assert 0.99 < everything.accuracy < 1
    assert everything.interval[0] < 0.99


def test_pairs_of_one_item_that_agree_count_as_one():
    right, group = np.repeat([1, 0, 1, 1], 9) > 0, np.repeat(np.arange(4), 9)
    assert _design_effect(right, group) == pytest.approx(9)
    assert _design_effect(right, np.arange(36)) == pytest.approx(1)
    assert _design_effect(np.ones(36, bool), group) == 9
    assert _design_effect(right, np.zeros(36)) == 36
    assert _design_effect(np.arange(36) % 2 > 0, np.repeat(np.arange(18), 2)) == 1  # pairs that disagree narrow nothing
    low, high = np.array([controlled_accuracy(right, np.zeros(36), g).interval for g in (group, np.arange(36))]).T
    widths = np.log(high / (1 - high)) - np.log(low / (1 - low))
    assert widths[0] == pytest.approx(3 * widths[1])
    found = bias([item(k, [(float(k != 1), 5)] * 3, [(0.5, 4)] * 3) for k in range(4)])
    assert found.pairs == 36
    assert found.interval == pytest.approx(list(wilson_interval(3, 4)))


def test_the_design_effect_is_that_of_resampling_items():
    """The variance of a share over bootstrap samples of items, over that of independent pairs."""
    rng = np.random.default_rng(5)
    chance = rng.beta(2, 1, 300)
    right, group = rng.random((300, 9)) < chance[:, None], np.repeat(np.arange(300), 9)
    means = right[rng.integers(0, 300, (4000, 300))].mean((1, 2))
    share = right.mean()
    expected = means.var() / (share * (1 - share) / 2700)
    assert _design_effect(right.ravel(), group) == pytest.approx(expected, rel=0.1)
    assert expected > 2


@pytest.mark.parametrize(
    ("signal", "by_length", "p_longer", "said", "number"),
    [
        (0.5, 1.0, 0.5, "favours long answers", 2),
        (0.5, -1.0, 0.5, "favours short answers", 2),
        (1.0, 0.0, 0.8, "No length bias is visible", 1),  # a good reward on pairs whose chosen is mostly longer
        (0.0, 0.0, 0.8, "not distinguishable from chance", 2),
        (-1.0, 0.0, 0.5, "below chance", 2),
    ],
)
def test_the_summary_says_what_was_put_in(signal, by_length, p_longer, said, number):
    found = bias(noisy(np.random.default_rng(9), 600, signal, by_length, p_longer))
    assert said in " ".join(found.summary)
    assert len(found.summary) == number


def test_a_reward_without_bias_is_seldom_called_biased():
    rng = np.random.default_rng(7)
    said = [" ".join(bias(noisy(rng, 100, 0.8, 0.0, 0.7)).summary) for _ in range(100)]
    assert sum("favours" in text for text in said) <= 11


def test_the_summary_where_nothing_can_be_said():
    def said(*items: Item) -> str:
        return " ".join(bias(items).summary)

    assert "All 1 pairs are ties" in said(item(0, [(1.0, 2)], [(1.0, 3)]))
    assert "equally long" in said(item(0, [(1.0, 2)], [(0.0, 2)]))
    assert "never the longer one" in said(item(0, [(1.0, 2)], [(0.0, 3)]))
    assert "never the shorter one" in said(item(0, [(1.0, 3)], [(0.0, 2)]))
    lost = [item(k, [(0.0, 3)], [(float(k < 15), 2)]) for k in range(40)]  # 15 wrong, 25 ties, none right
    assert "0.0% over 40 pairs, 25 of them ties, is below chance" in said(*lost)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("", 0),
        ("Two plain sentences. 3 * 4 ** 2 = 48, #1, a-b, and -5.", 0),
        ("# Head\n\n### Head\n####### seven\n#none", 2),
        ("- one\n* two\n  + three\n-none\n1. four\n12) five\n1.5 none", 5),
        ("some **bold** and **more bold** and ** none ** and __init__", 2),
        ("- **bold** item", 2),
        ("```python\n# a comment\n- x\n```\nafter\n- item", 2),
        ("~~~\n# inside\n", 1),
        ("````\n```\n# inside\n````\n# outside", 2),
        ("```inline``` code\n# Head", 1),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", 1),
        ("a | b\n--- | ---\n1 | 2", 1),
        ("---\ntext", 0),
    ],
)
def test_markdown_marks(text, marks):
    assert markdown_marks(text) == marks


@pytest.mark.parametrize(
    "text", [" " * 50_000 + "x", "|" * 50_000 + "x", "-" * 50_000 + "x", "**a" * 20_000, "```\n" * 20_001]
)
def test_markdown_marks_takes_time_in_proportion_to_the_text(text):
    start = time.perf_counter()
    markdown_marks(text)
    assert time.perf_counter() - start < 1  # milliseconds; a pattern that backtracks takes half a minute


def test_markdown_by_hand():
    items = [
        item(0, [(2.0, 5, "# a\n- b")], [(1.0, 5, "a")]),  # more marks, right
        item(1, [(0.0, 5, "a")], [(1.0, 5, "**a**")]),  # fewer, wrong
        item(2, [(3.0, 5, "a")], [(1.0, 5, "- a")]),  # fewer, right
        item(3, [(3.0, 5, "a")], [(1.0, 5, "a")]),
    ]
    found = bias(items).markdown.model_dump()
    rewards, marks = [2, 1, 0, 1, 3, 1, 3, 1], [2, 0, 0, 1, 0, 1, 0, 0]
    gap = found.pop("gap")
    assert gap["difference"] == 0.5
    assert found == {
        "chosen_mean": 0.5,
        "rejected_mean": 0.5,
        "pairs": 3,
        "more_marks_win": pytest.approx(2 / 3),
        "more_marks_is_chosen": pytest.approx(1 / 3),
        "accuracy_chosen_more": 1.0,
        "accuracy_chosen_fewer": 0.5,
        "reward_marks_correlation": pytest.approx(np.corrcoef(rewards, marks)[0, 1]),
    }


def test_a_reward_that_counts_marks_is_found_out():
    rng = np.random.default_rng(8)
    items = []
    for number in range(200):
        texts = ["- a\n" * int(count) for count in rng.choice(9, 2, replace=False)]
        items.append(item(number, *([(float(len(text)), 20, text)] for text in texts)))
    found = bias(items)
    assert found.markdown.more_marks_win == 1
    assert found.markdown.reward_marks_correlation == pytest.approx(1)
    assert "favours more Markdown" in found.summary[-1]


def test_newcombes_interval_of_the_gap():
    """His table II (1998, method 10): 56/70 less 48/80 is 0.2000, 0.0524 to 0.3339."""
    items = [item(k, [(float(k < 56), 9)], [(0.5, 3)]) for k in range(70)]
    items += [item(70 + k, [(float(k < 48), 3)], [(0.5, 9)]) for k in range(80)]
    gap = bias(items).length_gap
    assert gap.difference == pytest.approx(0.2)
    assert gap.interval == pytest.approx([0.0524, 0.3339], abs=1e-4)
