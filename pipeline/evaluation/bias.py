"""Does a reward go by length or by Markdown rather than by what a response says?

All figures are of pairs, every chosen response of an item with every rejected one or every one of a ranking with every
lower one, and every pair counts once. A tie is
not right and wins nothing. "Longer" is in response tokens.

How a bias is told from chance: a reward without one is as often right where the chosen response is the longer as where
it is the shorter. So the sentences of the summary go by the 95% interval of the difference of those two accuracies
(Newcombe 1998, method 10), not by how often the longer response wins, which also moves with how good the reward is. A
difference is no proof of a cause: pairs with a longer chosen response may be the easier ones.

Intervals of shares are Wilson's. Those take pairs to be independent and are too narrow where an item gives several, so
both counts are first divided by the design effect (Rao and Scott 1992), estimated from how much the pairs of an item
agree; with one pair an item it is 1, and the interval is Wilson's own. Left out: strata and their weights.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.benchmarks.figures import Array
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.documents import Bias, ControlledAccuracy, Gap, LengthGroup, MarkdownBias, PairAccuracy
from pipeline.store.summary import Moments, wilson_interval

SMALLEST_BIN = 10  # pairs
RIDGE = 0.01  # of the logistic fit: a normal prior of standard deviation 10 on both coefficients
Z = 1.959963984540054
Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]

_FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^`\n]*$.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_MARKS = re.compile(
    r"^ {0,3}\#{1,6}[ \t]+\S"  # heading
    r"|^[ \t]*[-*+][ \t]+\S"  # bullet
    r"|^[ \t]*\d{1,3}[.)][ \t]+\S"  # number
    r"|^[ \t]*(?:\|[ \t]*)?:?-+:?[ \t]*\|[ \t:|-]*$",  # the line under a table's head
    re.MULTILINE,
)
_BOLD = re.compile(r"\*\*[^\s*](?:[^*\n]*[^\s*])?\*\*")


def bias(items: Sequence[Item]) -> Bias | None:
    """The bias section of an evaluation; None without pairs, and inside it None for what is undefined.

    `length_gap` is accuracy where the chosen response is the longer less accuracy where it is the shorter. `deciles`
    are bins of equal numbers of pairs by length of the chosen less length of the rejected; pairs of one difference
    stay together, and a bin has at least 10 pairs unless there are fewer in all. `length_controlled` is
    `controlled_accuracy`. Under a pairwise judge single responses have no reward, and the two correlations of rewards
    are None.
    """
    items = [item for item in items if item.pairs()]
    if not items:
        return None
    pairs = [
        (number, margin, chosen, rejected)
        for number, item in enumerate(items)
        for chosen, rejected, margin in item.pairs()
    ]
    marks = {id(answer): markdown_marks(answer.text) for item in items for answer in _answers(item)}
    group = np.array([number for number, *_ in pairs])
    margin = np.array([margin for _, margin, *_ in pairs], np.float64)
    longer = np.array([chosen.num_tokens - rejected.num_tokens for *_, chosen, rejected in pairs], np.int64)
    chosen_marks = np.array([marks[id(chosen)] for *_, chosen, _ in pairs], np.int64)
    rejected_marks = np.array([marks[id(rejected)] for *_, rejected in pairs], np.int64)

    single = [] if any(item.verdicts is not None for item in items) else [a for item in items for a in _answers(item)]
    reward = np.array([answer.reward for answer in single])
    length = _by_difference(margin, longer, group)
    by_marks = Moments.of(reward, np.array([marks[id(a)] for a in single])).correlation
    over_all, decided = _accuracy(margin > 0, group), margin != 0
    result = Bias(
        pairs=len(pairs),
        items=len(items),
        ties=int((margin == 0).sum()),
        accuracy=over_all.accuracy,
        interval=over_all.interval,
        reward_length_correlation=Moments.of(reward, np.array([a.num_tokens for a in single])).correlation,
        margin_length_correlation=Moments.of(margin, longer).correlation,
        unequal_pairs=length.pairs,
        unequal_ties=length.ties,
        longer_wins=length.wins,
        longer_is_chosen=length.is_chosen,
        chosen_longer=length.above,
        chosen_shorter=length.below,
        same_length=_accuracy((margin > 0)[longer == 0], group[longer == 0]),
        length_gap=length.gap,
        deciles=[_length_group(margin[k] > 0, longer[k], group[k]) for k in _bins(longer)],
        length_controlled=controlled_accuracy(margin > 0, longer, group),
        markdown=_markdown(margin, chosen_marks, rejected_marks, group, by_marks) if any(marks.values()) else None,
        summary=[],
    )
    chance = _accuracy((margin > 0)[decided], group[decided]).interval
    return result.model_copy(update={"summary": _sentences(result, chance)})


def controlled_accuracy(right: Booleans, longer: Array | Integers, group: Integers) -> ControlledAccuracy | None:
    """Accuracy at equal length: that of P(right) = sigmoid(a + b * tanh(d / s)) at d = 0, sigmoid(a).

    d is the length of the chosen less that of the rejected response, [pairs], and s its standard deviation: the idea of
    length-controlled win rates (Dubois et al. 2024, arXiv 2404.04475). The logistic regression is fitted by Newton's
    method with a ridge of 0.01 on a and b, so that it has a maximum where length or nothing at all separates right from
    wrong; between accuracies of 0.5 and 0.98 it moved them by up to 0.003 at 50 pairs and 0.0003 at 200. The interval
    is 95% by the delta method on the logit of the accuracy, from the curvature at the maximum times the design effect.
    None where every pair has the same difference, other than 0: then nothing is known of equal lengths.
    """
    spread = longer.std()
    if not spread and longer[0]:
        return None
    terms = np.column_stack((np.ones(len(longer)), np.tanh(longer / spread) if spread else np.zeros(len(longer))))
    coefficients, curvature = _logistic(terms, right)
    half = Z * math.sqrt(np.linalg.inv(curvature)[0, 0] * _design_effect(right, group))
    low, middle, high = (_sigmoid(coefficients[0] + step) for step in (-half, 0.0, half))
    return ControlledAccuracy(accuracy=float(middle), interval=[float(low), float(high)])


def markdown_marks(text: str) -> int:
    """Headings, list items, bold spans, tables and fenced blocks of code of a text, each one mark.

    What stands inside a fenced block is not looked at, so a comment in Python is no heading. `__bold__` is not counted,
    as it cannot be told from a name such as `__init__`.

    >>> markdown_marks("# Two things\\n\\n- **one**\\n- two")
    4
    """
    text, blocks = _FENCED.subn("", text)
    return blocks + len(_MARKS.findall(text)) + len(_BOLD.findall(text))


def _answers(item: Item) -> tuple[Answer, ...]:
    return item.chosen + item.rejected + item.others


@dataclass(frozen=True)
class _ByDifference:
    """What a reward does where the chosen response has more of something, or less, than the rejected."""

    pairs: int  # that differ
    ties: int  # of those
    wins: float | None  # share in which the response with more has the higher reward
    is_chosen: float | None  # share in which it is the chosen one
    above: PairAccuracy  # where it is the chosen one
    below: PairAccuracy
    gap: Gap | None


def _by_difference(margin: Array, difference: Integers, group: Integers) -> _ByDifference:
    """All of shape [pairs]."""
    unequal, more, less = difference != 0, difference > 0, difference < 0
    above, below = (_accuracy((margin > 0)[here], group[here]) for here in (more, less))
    return _ByDifference(
        pairs=int(unequal.sum()),
        ties=int((margin[unequal] == 0).sum()),
        wins=_share((np.sign(margin) == np.sign(difference))[unequal]),
        is_chosen=_share(more[unequal]),
        above=above,
        below=below,
        gap=_gap(above, below),
    )


def _markdown(
    margin: Array, chosen: Integers, rejected: Integers, group: Integers, correlation: float | None
) -> MarkdownBias:
    """What a reward does where one response has more Markdown marks; `chosen`, `rejected`: [pairs], counts of marks."""
    more = _by_difference(margin, chosen - rejected, group)
    return MarkdownBias(
        chosen_mean=float(chosen.mean()),
        rejected_mean=float(rejected.mean()),
        pairs=more.pairs,
        more_marks_win=more.wins,
        more_marks_is_chosen=more.is_chosen,
        accuracy_chosen_more=more.above.accuracy,
        accuracy_chosen_fewer=more.below.accuracy,
        gap=more.gap,
        reward_marks_correlation=correlation,
    )


def _length_group(right: Booleans, longer: Integers, group: Integers) -> LengthGroup:
    within = _accuracy(right, group)
    return LengthGroup(low=int(longer.min()), high=int(longer.max()), **dict(within))


def _accuracy(right: Booleans, group: Integers) -> PairAccuracy:
    """right, group: [pairs], whether a pair is right and the number of its item."""
    if not len(right):
        return PairAccuracy(pairs=0, accuracy=None, interval=None)
    effect = _design_effect(right, group)
    low, high = wilson_interval(right.sum() / effect, len(right) / effect)
    return PairAccuracy(pairs=len(right), accuracy=_share(right), interval=[float(low), float(high)])


def _design_effect(right: Booleans, group: Integers) -> float:
    """By how much pairs of one item raise the variance of the share of right ones over that of independent pairs.

    With p the share, n pairs and e_i the sum of (right - p) over the pairs of item i: sum_i e_i^2 / (n p (1 - p)), and
    never below 1. Where nothing can be estimated (one item, or no pair unlike the rest) items count as one pair each.
    """
    _, number = np.unique(group, return_inverse=True)
    items = int(number.max()) + 1
    share = right.mean()
    if items == 1 or share in (0.0, 1.0):
        return len(right) / items
    sums = np.bincount(number, right - share)
    return max(1.0, float((sums**2).sum() / (len(right) * share * (1 - share))))


def _gap(first: PairAccuracy, second: PairAccuracy) -> Gap | None:
    """The first accuracy less the second; the interval is Newcombe's (1998, method 10), of both Wilson intervals."""
    p, q = first.accuracy, second.accuracy
    if p is None or q is None or first.interval is None or second.interval is None:
        return None
    (p_low, p_high), (q_low, q_high) = first.interval, second.interval
    below, above = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    return Gap(difference=p - q, interval=[p - q - below, p - q + above])


def _bins(longer: Integers) -> list[Booleans]:
    """Up to ten masks of pairs, in order of their difference in length; a difference is in one of them only."""
    values, counts = np.unique(longer, return_counts=True)
    pairs, wanted = len(longer), min(10, max(1, len(longer) // SMALLEST_BIN))
    ends: list[int] = []  # where bins end in `values`
    begin = 0  # pairs in the bins that are closed
    for place, end in enumerate(np.cumsum(counts)):
        if end - begin >= max(SMALLEST_BIN, (pairs - begin) / (wanted - len(ends))):
            ends.append(place)
            begin = end
    if begin < pairs:  # a rest too small for a bin of its own
        ends = [*ends[:-1], len(values) - 1]
    number = np.searchsorted(values[ends], longer)
    return [number == k for k in range(len(ends))]


def _logistic(terms: Array, right: Booleans) -> tuple[Array, Array]:
    """terms: [n, 2], right: [n] -> coefficients [2] at the maximum of the penalised log-likelihood, curvature [2, 2]."""
    penalty = RIDGE * np.eye(2)

    def objective(w: Array) -> float:
        return float(np.logaddexp(0, np.where(right, -1, 1) * (terms @ w)).sum() + w @ penalty @ w / 2)

    w = np.zeros(2)
    for _ in range(100):
        chance = _sigmoid(terms @ w)
        curvature = (terms * (chance * (1 - chance))[:, None]).T @ terms + penalty
        step = np.linalg.solve(curvature, terms.T @ (right - chance) - penalty @ w)
        if np.abs(step).max() < 1e-10:
            break
        while objective(w + step) > objective(w) and np.abs(step).max() > 1e-12:  # too far for the parabola
            step /= 2
        w = w + step
    return w, curvature


def _sigmoid(x: Any) -> Any:
    return np.exp(-np.logaddexp(0, -x))


def _share(true: Booleans) -> float | None:
    return float(true.mean()) if len(true) else None


def _sentences(figures: Bias, chance: list[float] | None) -> list[str]:
    """One to four sentences for a person; `chance` is the interval of the accuracy over pairs that are no ties."""
    said = []
    over = f"{figures.pairs:,} pairs" + (f", {figures.ties:,} of them ties," if figures.ties else "")
    accuracy = f"The accuracy of {figures.accuracy:.1%} over {over}"
    if chance is None:
        return [f"All {figures.pairs:,} pairs are ties: this reward does not tell chosen from rejected."]
    if chance[1] < 0.5:
        said.append(f"{accuracy} is below chance: this reward prefers the rejected responses.")
    elif chance[0] <= 0.5:
        said.append(f"{accuracy} is not distinguishable from chance.")
    return [*said, *_of_length(figures), *_of_markdown(figures.markdown)]


def _of_length(figures: Bias) -> list[str]:
    gap, controlled = figures.length_gap, figures.length_controlled
    if not figures.unequal_pairs:
        return ["Length bias cannot be seen: the responses of every pair are equally long."]
    if gap is None:
        never = "shorter" if figures.chosen_longer.pairs else "longer"
        return [f"Length bias cannot be told from accuracy: the chosen response is never the {never} one."]
    low, high = gap.interval
    wins = f"the longer response wins {figures.longer_wins:.1%} of the pairs of unequal length"
    wins += f" and is the chosen one in {figures.longer_is_chosen:.1%}"
    right = f"accuracy is {figures.chosen_longer.accuracy:.1%} where the chosen response is the longer"
    right += f" and {figures.chosen_shorter.accuracy:.1%} where it is the shorter"
    if low <= 0 <= high:
        return [f"No length bias is visible: {wins}; {right} (difference {_points(gap)})."]
    favoured = "long" if low > 0 else "short"
    said = [
        f"{wins[0].upper()}{wins[1:]}; {right} (difference {_points(gap)}): this reward favours {favoured} answers."
    ]
    if controlled is not None:
        low, high = controlled.interval
        chance = ", not distinguishable from chance" if low <= 0.5 <= high and not figures.ties else ""
        said.append(
            f"At equal length its accuracy would be {controlled.accuracy:.1%} (95%: {low:.1%} to {high:.1%}){chance};"
            f" over all pairs it is {figures.accuracy:.1%}."
        )
    return said


def _of_markdown(figures: MarkdownBias | None) -> list[str]:
    """Nothing unless a bias is visible."""
    if figures is None or figures.gap is None or figures.gap.interval[0] <= 0 <= figures.gap.interval[1]:
        return []
    favoured = "more" if figures.gap.difference > 0 else "less"
    return [
        f"Of the {figures.pairs:,} pairs that differ in Markdown marks, the response with more of them wins"
        f" {figures.more_marks_win:.1%} and is the chosen one in {figures.more_marks_is_chosen:.1%}"
        f" (difference in accuracy {_points(figures.gap)}): this reward favours {favoured} Markdown,"
        " or the length that comes with it."
    ]


def _points(gap: Gap) -> str:
    low, high = (100 * value for value in gap.interval)
    return f"{100 * gap.difference:+.1f} points, 95%: {low:+.1f} to {high:+.1f}"
