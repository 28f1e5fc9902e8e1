"""Any corpus with chosen and rejected responses, or with rankings: the share of pairs whose better response has the higher
reward."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.corpus.ranking import is_ranked
from pipeline.evaluation.benchmarks.base import Benchmark, count_ties, item_name
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item

GROUPS = ("subset", "source", "category")  # columns that details are given by, the first that fits
MOST_GROUPS = 40


class Pairs(Benchmark):
    """accuracy = sum over items of pairs (better i, worse j) with r_i > r_j / number of such pairs."""

    name = "pairs"
    about = "any corpus that label reads with chosen and rejected responses, or with rankings: accuracy over all pairs"

    def check(self, item: Item) -> str | None:
        if item.ranking:
            return None
        if any(is_ranked(answer.extra) for answer in item.others):
            return "its scores or ranks put no response far enough above another to prefer it"
        missing = " and ".join(name for name in ("chosen", "rejected") if not getattr(item, name))
        if missing:
            return (
                f"no {missing} response: say which they are with input.chosen_key, input.rejected_key or input.label_key, or "
                "with input.score_key or input.rank_key and input.pairs_from"
            )
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        right = np.array([sum(margin > 0 for *_, margin in item.pairs()) for item in items], float)
        pairs = np.array([len(item.pairs()) for item in items], float)
        ties, comparisons = count_ties(items)
        return Figures(
            values={"accuracy": float(right.sum() / pairs.sum())},
            items=[item_name(item) for item in items],
            scores={"accuracy": right / pairs},
            strata=np.zeros(len(items), np.int64),
            weights=np.ones(1),
            sizes=pairs,
            ties=ties,
            comparisons=comparisons,
            details=_by_group(items, right, pairs),
        )


def _by_group(items: Sequence[Item], right: Array, pairs: Array) -> dict[str, Any]:
    """`{"by": column, "groups": {value: accuracy, pairs, items}}`, or nothing where no column tells groups apart."""
    for column in GROUPS:
        groups = np.array([str(item.extra.get(column)) for item in items])
        names = sorted(set(groups.tolist()))
        if 2 <= len(names) <= MOST_GROUPS:
            held = {name: groups == name for name in names}
            return {
                "by": column,
                "groups": {
                    name: {
                        "accuracy": float(right[among].sum() / pairs[among].sum()),
                        "pairs": int(pairs[among].sum()),
                        "items": int(among.sum()),
                    }
                    for name, among in held.items()
                },
            }
    return {}
