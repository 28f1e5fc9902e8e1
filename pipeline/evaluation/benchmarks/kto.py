"""Unpaired feedback, as KTO trains on it: a prompt, one completion, and whether that is desirable.

The layout is TRL's "unpaired preference": `prompt`, `completion`, `label`, where true is desirable.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.benchmarks.base import Benchmark, item_name
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item

LABELS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # text is of CSV; 1 == True
LABEL = "label"


class Kto(Benchmark):
    """by_prompt: of the prompts that have both, the share of pairs of a desirable and an undesirable completion in which
    the desirable one has the larger reward. auc: the same over all completions, whatever their prompts, which is the area
    under the ROC curve and U / (m n) of Mann and Whitney (1947), with m desirable completions x and n undesirable y:

        AUC = 1 / (m n) * sum_ij [x_i > y_j] + [x_i = y_j] / 2

    The main figure is by_prompt where a prompt has both, else auc. A tie counts half in both. Several rubrics are averaged
    in auc. To resample auc, each completion has the score 2 V - AUC, where V is the share of the other side that it is on
    the right side of; the two sides are strata of half the weight. Their mean is AUC, and the variance of their resampled
    means is that of DeLong, DeLong and Clarke-Pearson (1988) for it.
    """

    name = "kto"
    about = "unpaired feedback (KTO): desirable completions above undesirable ones, by prompt or as AUC"
    fields = (LABEL,)
    by_prompt = True
    knows_preferences = False

    def chance(self, figures: Figures) -> float | None:
        return 0.5

    def check(self, item: Item) -> str | None:
        if item.chosen or item.rejected:
            return "it has chosen and rejected responses: evaluate it as pairs"
        if len(item.others) != 1:
            return f"{len(item.others)} completions; one is due"
        if _desirable(item) is None:
            return f"its {LABEL} is {item.extra.get(LABEL)!r:.40}; true (desirable) or false is due"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        groups: dict[tuple[str | None, str], list[Item]] = defaultdict(list)
        for item in items:
            groups[item.rubric, json.dumps(item.prompt)].append(item)
        both = [(good, bad) for group in groups.values() for good, bad in [_sides(group)] if good and bad]
        overall = _auc(items)
        details: dict[str, Any] = {
            "desirable": sum(map(bool, map(_desirable, items))),
            "undesirable": sum(not _desirable(item) for item in items),
            "prompts": len(groups),
            "prompts_with_both": len(both),
        }
        if not both:
            note = "no prompt has a desirable and an undesirable completion: the figure compares rewards of different prompts"
            return Figures(**overall, details=details, notes=[note])
        shares = [_above(_rewards(good), _rewards(bad)) for good, bad in both]
        sizes = np.array([len(good) * len(bad) for good, bad in both], float)
        scores = np.array([share.mean() for share in shares])
        return Figures(
            values={"by_prompt": float((sizes * scores).sum() / sizes.sum()), **overall["values"]},
            items=[item_name(good[0]) for good, _ in both],
            scores={"by_prompt": scores},
            strata=np.zeros(len(both), np.int64),
            weights=np.ones(1),
            sizes=sizes,
            ties=sum(_ties(_rewards(good), _rewards(bad)) for good, bad in both),
            comparisons=int(sizes.sum()),
            tie_rule=overall["tie_rule"],
            details=details,
            notes=[f"by_prompt rests on {len(both):,} of {len(groups):,} prompts: those with both kinds of completion"],
        )


def _desirable(item: Item) -> bool | None:
    value = item.extra.get(LABEL)
    value = value.strip().lower() if isinstance(value, str) else value
    return LABELS.get(value) if isinstance(value, str | int) else None


def _sides(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Desirable and undesirable."""
    return [item for item in items if _desirable(item)], [item for item in items if not _desirable(item)]


def _rewards(items: Sequence[Item]) -> Array:
    return np.array([item.others[0].reward for item in items])


def _above(rewards: Array, others: Array) -> Array:
    """[m] and [n] -> [m]: of `others`, the share that each reward is above, those that tie counted half."""
    others = np.sort(others)
    return (np.searchsorted(others, rewards, "left") + np.searchsorted(others, rewards, "right")) / (2 * len(others))


def _ties(rewards: Array, others: Array) -> int:
    others = np.sort(others)
    return int((np.searchsorted(others, rewards, "right") - np.searchsorted(others, rewards, "left")).sum())


def _auc(items: Sequence[Item]) -> dict[str, Any]:
    """The overall figure, as arguments of `Figures`."""
    rubrics = list(dict.fromkeys(item.rubric for item in items))
    names: list[str] = []
    scores, strata, areas, ties, comparisons = [], [], [], 0, 0
    for number, rubric in enumerate(rubrics):
        good, bad = _sides([item for item in items if item.rubric == rubric])
        if not good or not bad:
            raise InputError(
                f"kto: all {len(good or bad):,} completions are {'desirable' if good else 'undesirable'}, so there is nothing "
                "to tell apart"
            )
        high, low = _rewards(good), _rewards(bad)
        area = float(_above(high, low).mean())
        scores += [2 * _above(high, low) - area, 2 * (1 - _above(low, high)) - area]
        strata += [np.full(len(good), 2 * number), np.full(len(bad), 2 * number + 1)]
        names += map(item_name, [*good, *bad])
        areas.append(area)
        ties += _ties(high, low)
        comparisons += len(good) * len(bad)
    return {
        "values": {"auc": float(np.mean(areas))},
        "items": names,
        "scores": {"auc": np.concatenate(scores)},
        "strata": np.concatenate(strata).astype(np.int64),
        "weights": np.full(2 * len(rubrics), 1 / (2 * len(rubrics))),
        "sizes": np.ones(len(names)),
        "ties": ties,
        "comparisons": comparisons,
        "tie_rule": "a tie counts half",
    }
