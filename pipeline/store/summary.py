"""What labels say, as statistics that merge: a store of a million shards is summarised from its records alone.

`ShardStats` is what one committed shard says of its labels table. Shards merge in any number, and the merged statistics
equal those of all labels together up to rounding, because all siblings of a prompt are in one shard and means, squares
and products are kept about the mean (Chan, Golub and LeVeque 1983). Nothing here is sampled. Left out: quantiles, which
do not merge exactly.

Pairs are formed within (prompt_id, rubric): every chosen response with every rejected one, and of a ranking every response
with every lower one (`pipeline.corpus.ranking`), each by its last labelled turn.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.corpus.ranking import ranked_pairs, ranked_rows
from pipeline.store import typed
from pipeline.store.pictures import pictured_rows
from pipeline.store.turns import last_turns


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, means and centred second moments of points (x, y), and the range of x; `a + b` is of both sets."""

    count: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    square_x: float = 0.0  # sum of (x - mean_x)^2
    square_y: float = 0.0
    product: float = 0.0  # sum of (x - mean_x)(y - mean_y)
    min_x: float = math.inf
    max_x: float = -math.inf

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Self:
        """x, y: [n]. Sums are exact before one rounding, so the same points give the same bits on every machine."""
        if not len(x):
            return cls()
        x, y = x.astype(np.float64), y.astype(np.float64)
        mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
        dx, dy = x - mean_x, y - mean_y
        sums = (math.fsum(dx * dx), math.fsum(dy * dy), math.fsum(dx * dy))
        return cls(len(x), mean_x, mean_y, *sums, float(x.min()), float(x.max()))

    def __add__(self, other: "Moments") -> "Moments":
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share = other.count / count
        weight = self.count * share
        return Moments(
            count,
            self.mean_x + dx * share,
            self.mean_y + dy * share,
            self.square_x + other.square_x + dx * dx * weight,
            self.square_y + other.square_y + dy * dy * weight,
            self.product + other.product + dx * dy * weight,
            min(self.min_x, other.min_x),
            max(self.max_x, other.max_x),
        )

    @property
    def std_x(self) -> float | None:
        """Population standard deviation of x; None without points."""
        if not self.count:
            return None
        return 0.0 if self.min_x == self.max_x else math.sqrt(self.square_x / self.count)

    @property
    def correlation(self) -> float | None:
        """Pearson's r of x and y; None where x or y is constant."""
        if not self.std_x or not self.square_y:
            return None
        return max(-1.0, min(1.0, self.product / math.sqrt(self.square_x) / math.sqrt(self.square_y)))


@dataclass(frozen=True, slots=True)
class Tally:
    """How pairs came out. The rest, `pairs - right - ties`, is wrong."""

    pairs: int = 0
    right: int = 0
    ties: int = 0

    @classmethod
    def of(cls, margins: np.ndarray) -> Self:
        """margins: [pairs], reward of the chosen less reward of the rejected."""
        return cls(len(margins), int((margins > 0).sum()), int((margins == 0).sum()))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.pairs + other.pairs, self.right + other.right, self.ties + other.ties)

    @property
    def accuracy(self) -> float | None:
        """Share of right pairs; a tie is not right. None without pairs."""
        return _share(self.right, self.pairs)


@dataclass(frozen=True, slots=True)
class RubricStats:
    """The labels under one rubric: moments of (reward, num_tokens), and for pairs of chosen less rejected of both."""

    chosen: Moments = Moments()
    rejected: Moments = Moments()
    other: Moments = Moments()  # labels that no preference is known of
    margin: Moments = Moments()
    chosen_longer: Tally = Tally()
    chosen_shorter: Tally = Tally()
    same_length: Tally = Tally()

    def __add__(self, other: "RubricStats") -> "RubricStats":
        return RubricStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def labels(self) -> Moments:
        return self.chosen + self.rejected + self.other

    @property
    def pairs(self) -> Tally:
        return self.chosen_longer + self.chosen_shorter + self.same_length


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What one shard, or any number of them merged, says of its labels."""

    truncated: int = 0
    tokens: int = 0  # scored
    prompt_tokens: int = 0  # a prompt counts once for each of its labels
    rubrics: dict[str, RubricStats] = field(default_factory=dict)  # "" where no rubric was used
    pictured: int = 0  # labels whose prompt has a picture

    @classmethod
    def of(cls, labels: pa.Table) -> Self:
        """Statistics of one shard's whole labels table (columns as in the label store); it may have no rows."""
        reward, tokens, prompt_tokens, truncated = (
            labels[name].to_numpy() for name in ("reward", "num_tokens", "num_prompt_tokens", "truncated")
        )
        preference = np.array(labels["preference"].to_pylist(), dtype=object)
        rubric = np.array([name or "" for name in labels["rubric"].to_pylist()], dtype=object)
        pairs = find_pairs(labels)
        margin = reward[pairs[:, 0]] - reward[pairs[:, 1]]
        longer = tokens[pairs[:, 0]].astype(np.int64) - tokens[pairs[:, 1]]
        rubrics = {}
        for name in sorted(set(rubric)):
            here, paired = rubric == name, rubric[pairs[:, 0]] == name
            chosen, rejected, other = (here & (preference == kind) for kind in ("chosen", "rejected", None))
            rubrics[name] = RubricStats(
                chosen=Moments.of(reward[chosen], tokens[chosen]),
                rejected=Moments.of(reward[rejected], tokens[rejected]),
                other=Moments.of(reward[other], tokens[other]),
                margin=Moments.of(margin[paired], longer[paired]),
                chosen_longer=Tally.of(margin[paired & (longer > 0)]),
                chosen_shorter=Tally.of(margin[paired & (longer < 0)]),
                same_length=Tally.of(margin[paired & (longer == 0)]),
            )
        pictured = len(pictured_rows(labels))
        return cls(int(truncated.sum()), int(tokens.sum()), int(prompt_tokens.sum()), rubrics, pictured)

    def __add__(self, other: "ShardStats") -> "ShardStats":
        rubrics = {
            name: self.rubrics.get(name, RubricStats()) + other.rubrics.get(name, RubricStats())
            for name in sorted(self.rubrics.keys() | other.rubrics.keys())
        }
        return ShardStats(
            self.truncated + other.truncated,
            self.tokens + other.tokens,
            self.prompt_tokens + other.prompt_tokens,
            rubrics,
            self.pictured + other.pictured,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts; moments of nothing are left out, and pictures where there are none."""
        rubrics = {
            name: {f.name: asdict(part) for f in fields(group) if (part := getattr(group, f.name)) != Moments()}
            for name, group in self.rubrics.items()
        }
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pictured" or self.pictured}
        return named | {"rubrics": rubrics}

    def summary(self) -> "Summary":
        """The figures of these labels."""
        whole = sum(self.rubrics.values(), RubricStats())
        labels, pairs, margin = whole.labels, whole.pairs, whole.margin
        longer, shorter = whole.chosen_longer, whole.chosen_shorter
        unequal = longer.pairs + shorter.pairs
        known = {"chosen": whole.chosen, "rejected": whole.rejected}
        rubrics = {
            name: RubricFigures(labels=g.labels.count, reward=Spread(**_spread(g.labels)), **_outcome(g.pairs))
            for name, g in self.rubrics.items()
        }
        return Summary(
            labels=labels.count,
            truncated=self.truncated,
            tokens=TokenCounts(response=self.tokens, prompt=self.prompt_tokens),
            reward=Spread(**_spread(labels)),
            preferences={kind: KindFigures(labels=m.count, **_spread(m)) for kind, m in known.items() if m.count}
            or None,
            pairs=PairFigures(**_outcome(pairs), margin=Margin(mean=margin.mean_x, std=margin.std_x or 0.0))
            if pairs.pairs
            else None,
            length=LengthFigures(
                reward_length_correlation=labels.correlation,
                margin_length_correlation=margin.correlation,
                chosen_tokens_mean=whole.chosen.mean_y if whole.chosen.count else None,
                rejected_tokens_mean=whole.rejected.mean_y if whole.rejected.count else None,
                longer_wins=_share(longer.right + shorter.pairs - shorter.right - shorter.ties, unequal),
                chosen_longer=_share(longer.pairs, unequal),
                accuracy_chosen_longer=longer.accuracy,
                accuracy_chosen_shorter=shorter.accuracy,
            ),
            rubrics=rubrics if any(rubrics) else None,
        )


class TokenCounts(typed.Entry):
    """Tokens of all labels; a prompt counts once for each of its labels."""

    response: int
    prompt: int


class Spread(typed.Entry):
    """Of rewards: population standard deviation and range. All are None where there is no label."""

    mean: float | None
    std: float | None
    min: float | None
    max: float | None

    def known(self) -> tuple[float, float, float, float]:
        """mean, std, min, max, of at least one label."""
        assert self.mean is not None and self.std is not None and self.min is not None and self.max is not None
        return self.mean, self.std, self.min, self.max


class Outcome(typed.Entry):
    """How pairs came out; a tie is not right. Without pairs the accuracy is None."""

    pairs: int
    right: int
    ties: int
    accuracy: float | None


class Margin(typed.Entry):
    """Of pairs: reward of the chosen less reward of the rejected."""

    mean: float
    std: float


class PairFigures(Outcome):
    margin: Margin


class Labelled(typed.Entry):
    labels: int


class RewardFigures(Labelled):
    reward: Spread


class KindFigures(Spread, Labelled):  # a document has the fields of the last class first
    """The rewards of the chosen, or of the rejected."""


class RubricFigures(Outcome, RewardFigures):
    """The labels under one rubric."""


class LengthFigures(typed.Entry):
    """What lengths in tokens have to do with rewards, over labels and over pairs; None where it is undefined."""

    reward_length_correlation: float | None
    margin_length_correlation: float | None
    chosen_tokens_mean: float | None
    rejected_tokens_mean: float | None
    longer_wins: float | None  # shares of the pairs of unequal length
    chosen_longer: float | None
    accuracy_chosen_longer: float | None
    accuracy_chosen_shorter: float | None


class Summary(typed.Entry):
    """The figures of a store's labels, as its manifest has them.

    Rewards under different rubrics are different rewards: where there are several, `rubrics` holds the figures that can be
    compared, and the others mix them.
    """

    labels: int
    truncated: int
    tokens: TokenCounts
    reward: Spread
    preferences: dict[str, KindFigures] | None  # by chosen and rejected, those that there are
    pairs: PairFigures | None
    length: LengthFigures
    rubrics: dict[str, RubricFigures] | None  # "" where no rubric was used; None where none was anywhere


def merge(stats: Iterable[ShardStats]) -> ShardStats:
    """All of `stats` together, one after another: the same order gives the same bits. No shard is no label."""
    return sum(stats, ShardStats())


def find_pairs(labels: pa.Table) -> np.ndarray:
    """Rows of `labels` that make a pair, [pairs, 2] int64: (chosen, rejected), or of a ranking (better, worse), in the
    order of the table.

    Needs the columns prompt_id, rubric, preference, response_index and turn; extra_info where there are rankings.
    """
    extras = ranked_rows(labels)
    groups: dict[tuple[str, str | None], tuple[list[int], list[int], list[int]]] = {}
    for response, row in last_turns(labels).items():
        if response.preference is not None or row in extras:
            chosen, rejected, ranked = groups.setdefault((response.prompt_id, response.rubric), ([], [], []))
            side = {"chosen": chosen, "rejected": rejected}.get(response.preference or "", ranked)
            side.append(row)
    pairs: list[tuple[int, int]] = []
    for chosen, rejected, ranked in groups.values():
        pairs += product(chosen, rejected)
        pairs += [(ranked[i], ranked[j]) for i, j in ranked_pairs([extras[row] for row in ranked])]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def wilson_interval(right: float, trials: float) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): it stays within [0, 1] and is sound at 0 and 1.

    It takes trials to be independent, so it is too narrow where a prompt gives several pairs.
    """
    z2 = 1.959963984540054**2
    share = right / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials * trials))) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """The table that a terminal and the report show: (name, value) with figures that are undefined left out."""
    labels, tokens, pairs, length = summary.labels, summary.tokens, summary.pairs, summary.length
    rows = [("Labels", f"{labels:,}")]
    if not labels:
        return rows
    rows += [
        ("Truncated", _of(summary.truncated, labels)),
        ("Response tokens", f"{tokens.response:,} ({tokens.response / labels:,.1f} a label)"),
        ("Prompt tokens", f"{tokens.prompt:,} ({tokens.prompt / labels:,.1f} a label)"),
        ("Reward", _spread_text(summary.reward)),
    ]
    mean_tokens = {"chosen": length.chosen_tokens_mean, "rejected": length.rejected_tokens_mean}
    for kind, spread in (summary.preferences or {}).items():
        rows += [
            (f"Reward of {kind}", _spread_text(spread)),
            (f"Tokens of {kind}", f"{mean_tokens[kind]:,.1f} a label"),
        ]
    if pairs:
        rows += [
            ("Pairs", f"{pairs.pairs:,}"),
            ("Accuracy", accuracy_text(pairs)),
            ("Ties", _of(pairs.ties, pairs.pairs)),
            ("Margin", f"{signed(pairs.margin.mean)} ± {plain(pairs.margin.std)}"),
        ]
    for name, figure, form in (
        ("Correlation of reward and length", length.reward_length_correlation, "+.2f"),
        ("Correlation within pairs", length.margin_length_correlation, "+.2f"),
        ("Longer response wins", length.longer_wins, ".1%"),
        ("Chosen is the longer", length.chosen_longer, ".1%"),
        ("Accuracy, chosen longer", length.accuracy_chosen_longer, ".1%"),
        ("Accuracy, chosen shorter", length.accuracy_chosen_shorter, ".1%"),
    ):
        if figure is not None:
            rows.append((name, format(figure, form)))
    for name, group in (summary.rubrics or {}).items():
        value = accuracy_text(group) if group.pairs else _spread_text(group.reward)
        rows.append((f"{'Accuracy' if group.pairs else 'Reward'}, rubric {name or 'none'}", value))
    return rows


def accuracy_text(counts: Outcome) -> str:
    """`61.0% (95%: 56.1% to 65.7%)`, of at least one pair."""
    low, high = wilson_interval(counts.right, counts.pairs)
    return f"{counts.right / counts.pairs:.1%} (95%: {low:.1%} to {high:.1%})"


def plain(value: float) -> str:
    """Four figures, as many as are worth reading: `1,234`, `12.34`, `0.001234`."""
    if not value:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.2e}" if decimals > 7 else f"{value:,.{decimals}f}"


def signed(value: float) -> str:
    """`plain` with its sign: `+12.34`."""
    return ("+" if value > 0 else "") + plain(value)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _outcome(tally: Tally) -> dict[str, Any]:
    return asdict(tally) | {"accuracy": tally.accuracy}


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if part else "0"


def _spread(moments: Moments) -> dict[str, float | None]:
    if not moments.count:
        return dict.fromkeys(("mean", "std", "min", "max"))
    return {"mean": moments.mean_x, "std": moments.std_x, "min": moments.min_x, "max": moments.max_x}


def _spread_text(spread: Spread) -> str:
    mean, std, low, high = spread.known()
    return f"{signed(mean)} ± {plain(std)} ({signed(low)} to {signed(high)})"
