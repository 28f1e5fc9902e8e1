"""Benchmarks of prompts with pictures: accuracy over pairs, by groups that the authors report.

VL-RewardBench (Li et al. 2024, arXiv 2411.17451): the figures are those of cal.py in
github.com/vl-rewardbench/VL_RewardBench, `get_dataset_from_id` and `distribution_dataset`.

Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191): those of scripts/2_get_accuracy.py in
github.com/facebookresearch/multimodal_rewardbench.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.corpus import Choice
from pipeline.evaluation.benchmarks.base import Benchmark, count_ties, first_right, item_name, listed, strata_of
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.benchmarks.items import Item

# The first word of an id of VL-RewardBench; any other is of VLFeedback or WildVision: general.
GROUPS = {
    "RLAIF": "hallucination", "RLHF": "hallucination", "hallucination": "hallucination", "mathverse": "reasoning",
    "mmmu": "reasoning",
}  # fmt: skip
ORDER = ("general", "hallucination", "reasoning")
# Of Multimodal RewardBench: categories in two parts, and how the ids of the first begin.
PARTED = {"safety": ("pairs", "bias", "toxicity"), "reasoning": ("math", "math", "coding")}


class _OfPairs(Benchmark):
    """A pair an item, about a picture."""

    by_prompt = True  # which shows whether there is one

    def check(self, item: Item) -> str | None:
        if (len(item.chosen), len(item.rejected)) != (1, 1):
            return f"{len(item.chosen)} chosen and {len(item.rejected)} rejected responses; one of each is due"
        if not any("pictures" in message for message in item.prompt):
            return "its prompt shows no picture"
        return None


class VLRewardBench(_OfPairs):
    """accuracy of a group = share of its items whose better response has the higher reward; macro = mean over the groups that
    are there, overall = over all items. The group is that of the id's first word."""

    name = "vl-reward-bench"
    about = "VL-RewardBench: pairs about a picture in general, hallucination and reasoning; macro mean"
    source = "hf://datasets/MMInstruction/VL-RewardBench/data/test-*.parquet"
    choice = Choice(split="test")
    fields = ("id", "query", "response", "human_ranking")

    def figures(self, items: Sequence[Item]) -> Figures:
        found = _Accuracies(items, _group, ORDER)
        missing = [group for group in ORDER if group not in found.names]
        macro = float(np.mean([found.values[name] for name in found.names]))
        note = f"no items of {listed(missing)}: macro is the mean of the other groups" if missing else None
        return found.figures({"macro": macro, "overall": found.overall}, by_group=True, missing=missing, note=note)


def _group(item: Item) -> str:
    """
    >>> _group(Item("f:0", extra={"id": "mmmu_pro_test_Marketing_150"}))
    'reasoning'
    """
    return GROUPS.get(re.split("[-_]", str(item.extra.get("id")), maxsplit=1)[0], "general")


class MultimodalRewardBench(_OfPairs):
    """overall = share of items whose better response has the higher reward; of each category likewise, safety and reasoning
    in two parts each, as the ids say."""

    name = "multimodal-reward-bench"
    about = "Multimodal RewardBench: pairs about a picture in six areas; accuracy over all"
    fields = ("ID", "Category", "Text", "Image", "Output1", "Output2", "Better")

    def figures(self, items: Sequence[Item]) -> Figures:
        found = _Accuracies(items, _category, sorted({_category(item) for item in items}))
        return found.figures({"overall": found.overall}, by_group=False)


def _category(item: Item) -> str:
    """
    >>> _category(Item("f:0", extra={"ID": "PAIRS_7", "Category": "safety"}))
    'safety/bias'
    """
    category = str(item.extra.get("Category"))
    if category not in PARTED:
        return category
    start, first, second = PARTED[category]
    return f"{category}/{first if str(item.extra.get('ID')).lower().startswith(start) else second}"


class _Accuracies:
    """The share of right pairs, of all items and of those of each group that is there."""

    def __init__(self, items: Sequence[Item], group: Callable[[Item], str], order: Sequence[str]):
        self.items = items
        groups = [group(item) for item in items]
        self.names = [name for name in order if name in groups]
        self.strata = strata_of(groups, self.names)
        self.right = np.array([first_right(item) for item in items], float)
        self.overall = float(self.right.mean())
        self.values = {name: float(self.right[self.strata == i].mean()) for i, name in enumerate(self.names)}

    def figures(
        self, values: Mapping[str, float], by_group: bool, missing: Sequence[str] = (), note: str | None = None
    ) -> Figures:
        """Figures whose first is of `values`.

        Args:
            by_group: whether groups weigh the same in the first of them, whatever their sizes; else items do.
        """
        counts = np.bincount(self.strata, minlength=len(self.names))
        shares = counts / counts.sum()
        weights = np.full(len(self.names), 1 / len(self.names)) if by_group else shares
        means = {"macro": np.full(len(self.names), 1 / len(self.names)), "overall": shares}
        scores = {name: self.right * (means[name] / weights)[self.strata] for name in values}
        scores |= {name: self.right * (self.strata == i) / weights[i] for i, name in enumerate(self.names)}
        ties, comparisons = count_ties(self.items)
        return Figures(
            values={**values, **self.values},
            items=[item_name(item) for item in self.items],
            scores=scores,
            strata=self.strata,
            strata_names=self.names,
            weights=weights,
            sizes=np.ones(len(self.items)),
            ties=ties,
            comparisons=comparisons,
            details={
                "groups": {
                    name: {"accuracy": value, "items": int(count)}
                    for (name, value), count in zip(self.values.items(), counts, strict=True)
                },
                "missing_groups": list(missing),
            },
            notes=[note] if note else [],
        )
