"""ProcessBench (Zheng et al. 2024, arXiv 2412.06559): which step of a solution is the first that is wrong?

The accuracies and F1 are those of code/run_eval.py of github.com/QwenLM/ProcessBench, which leaves F1 undefined where both
accuracies are 0; here it is 0. A reward becomes a prediction by a threshold, and by which side of it is wrong: both are chosen
on the GSM8K subset alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EvaluateConfig, InputConfig
from pipeline.corpus import Choice, Shape
from pipeline.corpus.columns import RawRow
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.benchmarks.base import Benchmark, item_name, listed
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item

SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")
CHOOSER = "gsm8k"
RIGHT = -1  # the label of a solution without a wrong step
REWARDS = ("endogenous", "likelihood", "implicit")  # that are made of tokens


class ProcessBench(Benchmark):
    """The first step whose sign * reward is below a threshold is predicted as the first wrong one, else none (-1).

    a = share of a subset's erroneous solutions whose first wrong step is predicted, b = share of its correct ones for which
    none is; F1 of the subset = 2 a b / (a + b), and f1 = mean over the subsets that are there. Sign and threshold are those
    with the largest F1 on GSM8K (of several the smallest threshold, the sign 1 first); held_out is f1 without it.

    To resample f1, a solution has the score F1 + 2 dF1/da (x - a), or with b where it is correct, x being whether the
    prediction is right: the two are strata of half the weight, their mean is F1, and its variance that of the delta method.
    """

    name = "process-bench"
    about = (
        "ProcessBench: the first wrong step of a solution, by the reward of each step; F1, and without GSM8K held_out"
    )
    source = "hf://datasets/Qwen/ProcessBench"
    choice = Choice(split="*")  # a subset each
    fields = ("problem", "steps", "label")
    by_step = True
    knows_preferences = False

    def requires(self, config: EvaluateConfig) -> None:
        others = [name for name in config.evaluate.rewards if name not in REWARDS]
        if others:
            raise ConfigError(
                f"{self.name} asks for the reward of each step, and {listed(others)} has none; give --reward {listed(REWARDS)}"
            )

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        self.require_fields(head, file)
        return Shape((("steps", None),), prompt="problem", form="steps")

    def check(self, item: Item) -> str | None:
        if _subset(item) not in SUBSETS:
            return f"unknown subset {_subset(item)!r}; known are {listed(SUBSETS)}"
        if len(item.others) != 1:
            return f"{len(item.others)} solutions; one is due"
        [solution], label = item.others, item.extra.get("label")
        if solution.truncated:
            return "the solution was cut to fit the model's context; raise tokens.max_length"
        if not solution.steps:
            return "its tokens do not give the text of its steps again"
        if np.isnan(solution.steps).any():
            return "a step has no token of its own"
        if isinstance(label, bool) or not isinstance(label, int) or not RIGHT <= label < len(solution.steps):
            return f"its label is {label!r:.40}; {RIGHT} or the number of a step, from 0, is due"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        subsets = np.array([_subset(item) for item in items])
        wrong = np.array([_label(item) != RIGHT for item in items])
        whole = [name for name in SUBSETS if len(set(wrong[subsets == name].tolist())) == 2]
        if CHOOSER not in whole:
            raise InputError(
                f"process-bench chooses its threshold on {CHOOSER}, of which complete items with and without a wrong step are "
                f"due: give the file {CHOOSER}.json with --input too"
            )
        used = np.isin(subsets, whole)
        items, subsets, wrong = list(compress(items, used)), subsets[used], wrong[used]
        rule = choose([item for item, name in zip(items, subsets, strict=True) if name == CHOOSER])
        hits = np.array([rule.predict(item.others[0].steps) == _label(item) for item in items], float)
        rates = {name: _rates(hits[subsets == name], wrong[subsets == name]) for name in whole}
        held_out = [name for name in whole if name != CHOOSER]
        names = {"f1": whole, **({"held_out": held_out} if held_out else {})}
        numbers = [whole.index(name) for name in subsets]
        return Figures(
            values={
                **{name: float(np.mean([rates[s].f1 for s in of])) for name, of in names.items()},
                "error_accuracy": float(np.mean([rate.error for rate in rates.values()])),
                "correct_accuracy": float(np.mean([rate.correct for rate in rates.values()])),
            },
            items=[item_name(item) for item in items],
            scores={
                **{name: _linear(hits, wrong, subsets, rates, of) for name, of in names.items()},
                "error_accuracy": np.where(wrong, 2 * hits, 0.0),
                "correct_accuracy": np.where(wrong, 0.0, 2 * hits),
            },
            strata=np.array([2 * number + int(error) for number, error in zip(numbers, wrong, strict=True)], np.int64),
            weights=np.full(2 * len(whole), 1 / (2 * len(whole))),
            sizes=np.ones(len(items)),
            tie_rule="a step whose reward is at the threshold is not wrong",
            details={
                "sign": rule.sign,
                "threshold": rule.threshold,
                "subsets": {name: _entry(name, rates[name], items, subsets) for name in whole},
            },
            notes=_notes(rule, whole),
        )


@dataclass(frozen=True)
class Rule:
    """A step is wrong where sign * its reward is below the threshold."""

    sign: int
    threshold: float

    def predict(self, steps: Sequence[float]) -> int:
        """The first wrong step, or -1."""
        return next((i for i, reward in enumerate(steps) if self.sign * reward < self.threshold), RIGHT)


@dataclass(frozen=True)
class _Rates:
    error: float  # share of the erroneous solutions whose first wrong step is predicted
    correct: float  # share of the correct ones for which none is

    @property
    def f1(self) -> float:
        return 2 * self.error * self.correct / (self.error + self.correct) if self.error + self.correct else 0.0


def choose(items: Sequence[Item]) -> Rule:
    """The rule with the largest F1 on items of both kinds: among both signs, and thresholds between any two rewards, at the
    lowest, and above the highest."""
    best, chosen = -1.0, Rule(1, 0.0)
    for sign in (1, -1):
        scores = [sign * np.array(item.others[0].steps) for item in items]
        labels = [_label(item) for item in items]
        thresholds = _thresholds(np.concatenate(scores))
        erroneous = [(each, label) for each, label in zip(scores, labels, strict=True) if label != RIGHT]
        # predicted where the labelled step is below the threshold and none before it is
        spans = [(each[label], each[:label].min(initial=np.inf)) for each, label in erroneous]
        low, high = np.array([span for span in spans if span[0] < span[1]]).reshape(-1, 2).T
        lowest = np.array([each.min() for each, label in zip(scores, labels, strict=True) if label == RIGHT])
        error = (_below(low, thresholds) - _below(high, thresholds)) / len(erroneous)
        correct = 1 - _below(lowest, thresholds) / len(lowest)
        f1 = 2 * error * correct / np.maximum(error + correct, np.finfo(float).tiny)
        if f1.max() > best:
            best, chosen = float(f1.max()), Rule(sign, float(thresholds[f1.argmax()]))
    return chosen


def _thresholds(scores: Array) -> Array:
    """One for each way to part these into those below and the others; sorted."""
    distinct = np.unique(scores)
    between = (distinct[:-1] + distinct[1:]) / 2
    return np.concatenate([distinct[:1], np.where(between > distinct[:-1], between, distinct[1:]), distinct[-1:] + 1])


def _below(values: Array, thresholds: Array) -> Array:
    """How many values are below each threshold."""
    return np.searchsorted(np.sort(values), thresholds, "left").astype(float)


def _rates(hits: Array, wrong: NDArray[np.bool_]) -> _Rates:
    return _Rates(float(hits[wrong].mean()), float(hits[~wrong].mean()))


def _linear(
    hits: Array, wrong: NDArray[np.bool_], subsets: NDArray[np.str_], rates: dict[str, _Rates], of: Sequence[str]
) -> Array:
    """[n]: the score of each item in the mean of F1 over the subsets `of`, among all subsets of `rates`."""
    scores = np.zeros(len(hits))
    for name in of:
        rate, here = rates[name], subsets == name
        total = (rate.error + rate.correct) or 1.0
        slopes = np.where(wrong, 2 * (rate.correct / total) ** 2, 2 * (rate.error / total) ** 2)
        own = rate.f1 + 2 * slopes * (hits - np.where(wrong, rate.error, rate.correct))
        scores = np.where(here, own * len(rates) / len(of), scores)
    return scores


def _entry(name: str, rate: _Rates, items: Sequence[Item], subsets: NDArray[np.str_]) -> dict[str, Any]:
    """A subset's figures, and the mean reward of steps: right ones before the first wrong one, that one, those of correct
    solutions."""
    before, at, correct = list[float](), list[float](), list[float]()
    here = [item for item, own in zip(items, subsets, strict=True) if own == name]
    for item in here:
        steps, label = item.others[0].steps, _label(item)
        if label == RIGHT:
            correct += steps
        else:
            before += steps[:label]
            at.append(steps[label])
    return {
        "f1": rate.f1,
        "error_accuracy": rate.error,
        "correct_accuracy": rate.correct,
        "reward_before_the_wrong_step": float(np.mean(before)) if before else None,
        "reward_of_the_wrong_step": float(np.mean(at)),
        "reward_in_correct_solutions": float(np.mean(correct)),
        "items": len(here),
        "erroneous": len(at),
    }


def _subset(item: Item) -> str:
    """As the row's id begins; without one, the file's name."""
    name = str(item.extra.get("id", "")).rpartition("-")[0]
    return name or item.file.rpartition("/")[2].partition(".")[0]


def _label(item: Item) -> int:
    return int(item.extra["label"])


def _notes(rule: Rule, whole: Sequence[str]) -> list[str]:
    side = "below" if rule.sign == 1 else "above"
    notes = [
        f"a step counts as wrong where its reward is {side} {rule.sign * rule.threshold:.6g}; side and threshold were chosen "
        f"on {CHOOSER} alone, whose own F1 is therefore too high, and are fixed in the intervals"
    ]
    if missing := [name for name in SUBSETS if name not in whole]:
        notes.append(
            f"no erroneous or no correct solutions of {listed(missing)}: f1 is the mean over {listed(whole)} and not "
            "comparable with published ones"
        )
    return notes
