"""Best-of-n: how good is the response that the reward picks out of n?

Responses are good by a score in [0, 1] that does not come from the reward: a column (`best_of_n.score_key`), equivalence
to a right answer (`best_of_n.answer_key`), or, without either, 1 for chosen and 0 for rejected.

The curve is exact, no resampling: of all subsets of k of an item's n responses, a group of m equal rewards with L lower
ones holds the largest of C(L+m, k) - C(L, k), and by symmetry each of the m is then picked as often. So the expected
score of the pick is

    B(k) = sum over groups g of mean score(g) * (C(L_g + m_g, k) - C(L_g, k)) / C(n, k)

and the best that any reward could do is B(k) with the scores in place of the rewards: with scores of 0 and 1, pass@k.
"""

import math
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from pipeline.config import BestOfNConfig, InputConfig
from pipeline.corpus import Shape
from pipeline.corpus.columns import RawRow, lookup, without
from pipeline.corpus.samples import OPENS_THOUGHTS
from pipeline.errors import RowError
from pipeline.evaluation.benchmarks.base import Benchmark, item_name
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.rewards.answers import Verdict, extract_and_check, unchecked_note


class BestOfN(Benchmark):
    """best_of_n = B(n), mean = B(1): a random pick, gain = their difference, oracle = the best score that is there; each a
    mean over items."""

    name = "best-of-n"
    about = "best-of-n: the score of the response with the largest reward, against a random and the best pick"
    knows_preferences = False  # need not, and a judge of pairs gives no response a reward of its own

    def __init__(self, config: BestOfNConfig | None = None):
        self.config = config or BestOfNConfig()

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        """Of the columns but the one of the right answers, which is no response."""
        known = self.config.answer_key
        return super().shape([without(row, known) for row in head] if known else head, config, file)

    def check(self, item: Item) -> str | None:
        if item.verdicts is not None:
            return "a judge of pairs gives no response a reward of its own to pick by"
        try:
            scores = self._scores(item)
        except RowError as error:
            return error.detail
        wrong = next((score for score in scores if not 0 <= score <= 1), None)
        if wrong is not None:
            return f"a response has the score {wrong:g}; scores from 0 to 1 are due"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        rewards = [[answer.reward for answer in _responses(item)] for item in items]
        scores = [self._scores(item) for item in items]
        pairs = list(zip(rewards, scores, strict=True))
        named = {
            "best_of_n": np.array([expected_best(r, s, len(r)) for r, s in pairs]),
            "gain": np.array([expected_best(r, s, len(r)) - np.mean(s) for r, s in pairs]),
            "mean": np.array([np.mean(s) for s in scores]),
            "oracle": np.array([max(s) for s in scores]),
        }
        fewest, most = min(map(len, rewards)), max(map(len, rewards))
        sizes = sorted({fewest, *(2**power for power in range(fewest.bit_length()))})
        notes = []
        if most > fewest:
            notes.append(
                f"items have {fewest} to {most} responses: best_of_n is over all of each, the curve to {fewest}"
            )
        if self.config.answer_key is not None:
            unchecked = sum(verdict.unchecked for item in items for verdict in self._verdicts(item))
            if unchecked:
                notes.append(unchecked_note(unchecked, sum(map(len, rewards))))
        return Figures(
            values={name: float(each.mean()) for name, each in named.items()},
            items=[item_name(item) for item in items],
            scores=named,
            strata=np.zeros(len(items), np.int64),
            weights=np.ones(1),
            sizes=np.ones(len(items)),
            ties=sum(r.count(max(r)) > 1 for r in rewards),
            comparisons=len(items),
            tie_rule="responses that share the largest reward share the pick",
            details={
                "responses": {"fewest": fewest, "most": most},
                "curve": {
                    "n": sizes,
                    "score": [float(np.mean([expected_best(r, s, k) for r, s in pairs])) for k in sizes],
                    "oracle": [float(np.mean([expected_best(s, s, k) for s in scores])) for k in sizes],
                    "random": float(named["mean"].mean()),
                },
            },
            notes=notes,
        )

    def _scores(self, item: Item) -> list[float]:
        """A score for each response, in the order of `_responses`. Raises RowError, whose detail says what is wrong."""
        responses = _responses(item)
        if self.config.answer_key is not None:
            return [float(verdict.correct) for verdict in self._verdicts(item)]
        if self.config.score_key is not None:
            return self._labels(item, self.config.score_key, len(responses))
        if item.others:
            raise RowError(
                "no_score", "nothing says which of its responses are good; give best_of_n.score_key or answer_key"
            )
        return [1.0] * len(item.chosen) + [0.0] * len(item.rejected)

    def _verdicts(self, item: Item) -> list[Verdict]:
        """On each response, by the item's right answer. Raises RowError where it has none."""
        assert self.config.answer_key is not None
        gold = lookup(dict(item.extra), self.config.answer_key)
        if gold is None:
            raise RowError("null", f"column {self.config.answer_key!r} is null; a right answer is due")
        thinking = item.extra.get(OPENS_THOUGHTS) is True
        return [extract_and_check(response.text, str(gold), thinking) for response in _responses(item)]

    @staticmethod
    def _labels(item: Item, keys: str | list[str], due: int) -> list[float]:
        scores: list[Any] = []
        for key in [keys] if isinstance(keys, str) else keys:
            value = lookup(dict(item.extra), key)
            scores += value if isinstance(value, list) else [value]
        if len(scores) != due:
            raise RowError("no_score", f"{len(scores)} scores for {due} responses; one for each is due, in their order")
        return [_number(each) for each in scores]


def expected_best(rewards: Sequence[float], scores: Sequence[float], k: int) -> float:
    """B(k): the expected score of the largest reward among k of n responses drawn without replacement.

    Args:
        rewards: [n]
        scores: [n]
        k: 1 <= k <= n

    >>> expected_best([0.1, 0.2, 0.3], [1, 0, 0], 1), expected_best([0.1, 0.2, 0.3], [1, 0, 0], 3)
    (0.3333333333333333, 0.0)
    """
    groups: dict[float, list[float]] = {}
    for reward, score in sorted(zip(rewards, scores, strict=True)):
        groups.setdefault(reward, []).append(score)
    expected, lower = 0.0, 0
    for group in groups.values():
        upper = lower + len(group)
        expected += sum(group) / len(group) * ((comb(upper, k) - comb(lower, k)) / comb(len(rewards), k))
        lower = upper
    return expected


def _number(value: Any) -> float:
    """A score; in CSV it is text. Raises RowError."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), math.nan)
    if math.isnan(number):
        raise RowError("no_score", f"a response has the score {value!r}; a number or a boolean is due")
    return number


def _responses(item: Item) -> tuple[Answer, ...]:
    return (*item.chosen, *item.rejected, *item.others)
