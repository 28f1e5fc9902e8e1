"""The results of an evaluation as one JSON document: every figure with its interval, what it rests on, and how two
rewards differ on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import EvaluateConfig
from pipeline.errors import RunError
from pipeline.evaluation.benchmarks.base import Benchmark, item_name
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.bias import bias
from pipeline.evaluation.documents import Comparison, Incomplete, Results, RewardEntry
from pipeline.evaluation.pictures import picture_control
from pipeline.evaluation.statistics import by_stratum, compare, holm, intervals
from pipeline.evaluation.stores import Evaluated
from pipeline.store.manifest import BatchCheckEntry

Json = dict[str, Any]
MOST_COMPARED = 5  # rewards of which every two are compared

ITEMS = pa.schema(
    [
        ("reward", pa.string()),
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("rubric", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("chosen_rewards", pa.list_(pa.float64())),
        ("rejected_rewards", pa.list_(pa.float64())),
        ("other_rewards", pa.list_(pa.float64())),
        ("chosen_tokens", pa.list_(pa.int32())),
        ("rejected_tokens", pa.list_(pa.int32())),
        ("other_tokens", pa.list_(pa.int32())),
        ("step_rewards", pa.list_(pa.float64())),  # of the only response, where a benchmark is of them; else null
    ]
)


@dataclass(frozen=True)
class Cost:
    """What the label stores of a variant say of their making, together."""

    model: str  # of the first store
    notes: Sequence[str]
    seconds: float | None  # of all actors, for all labels; None where a store does not say
    forwarded_tokens: int | None
    batch_check: BatchCheckEntry | None


def make_results(
    evaluations: Sequence[Evaluated],
    costs: Sequence[Cost],
    stopped: Mapping[str, str],
    benchmark: Benchmark,
    config: EvaluateConfig,
    *,
    created: str,
    notes: Sequence[str] = (),
    **more: Any,
) -> tuple[Results, pa.Table]:
    """The document and the rows per item.

    Args:
        evaluations, costs: one each for every variant.
        stopped: variants that were not even scored, and why.
        notes: besides those on the configuration.
        more: what else only a job knows of itself: `fingerprints`, `inputs`, `versions`, `command`.

    A reward without a complete item, or a judge that is mostly unreadable, has no figures: it is in `failed`.

    Raises:
        RunError: where that is so of every reward.
    """
    failed = dict(stopped)
    shown: list[tuple[Evaluated, Cost, Figures]] = []
    for each, cost in zip(evaluations, costs, strict=True):
        why = _unusable(each, benchmark, config.judge.max_unparsable)
        if why is None:
            shown.append((each, cost, benchmark.figures(each.items)))
        else:
            failed[each.variant.name] = why
    if not shown:
        raise RunError("\n".join(f"{name}: {why}" for name, why in failed.items()))
    first = shown[0][2]
    document = {
        "benchmark": benchmark.name,
        "about": benchmark.about,
        **{name: _number(value) for name, value in first.values.items()},
        **first.details,
        "chance": benchmark.chance(first),
        "rewards": [_entry(each, cost, figures, config) for each, cost, figures in shown],
        "failed": failed,
        "comparisons": _comparisons([(each.variant.name, figures) for each, _, figures in shown], config),
        "pictures": picture_control(evaluations, config.evaluate.resamples, config.evaluate.seed),
        "notes": [*config.reward.warnings(), *notes],
        "config": config.model_dump(exclude={"run"}),
        "created": created,
    }
    return Results.model_validate(document | more), pa.concat_tables(
        [_rows(each, figures) for each, _, figures in shown]
    )


def _entry(each: Evaluated, cost: Cost, figures: Figures, config: EvaluateConfig) -> RewardEntry:
    resampling = config.evaluate.resamples, config.evaluate.seed
    bounds = intervals(figures, *resampling)
    pairs = sum(len(item.pairs()) for item in each.items) or figures.comparisons
    asked = pairs * each.responses / max(1, sum(map(_responses, each.items)))  # the seconds are of incomplete items too
    return RewardEntry(
        name=each.variant.name,
        reward=each.variant.reward,
        about=each.variant.about,
        model=cost.model,
        values={name: _number(value) for name, value in figures.values.items()},
        intervals={name: list(ends) for name, ends in bounds.items()},
        sets=by_stratum(figures, figures.main, *resampling),
        items=len(each.items),
        incomplete=Incomplete(
            items=each.incomplete.total(),
            reasons=dict(each.incomplete.most_common()),
            examples=each.examples,
        ),
        ties=figures.ties,
        comparisons=figures.comparisons,
        tie_rule=figures.tie_rule,
        responses=each.responses,
        truncated=each.truncated,
        tokens=each.tokens,
        seconds=cost.seconds,
        forwarded_tokens=cost.forwarded_tokens,
        seconds_per_thousand_pairs=1000 * cost.seconds / asked if cost.seconds is not None and asked else None,
        details=dict(figures.details),
        matrices=list(figures.matrices),
        notes=[*figures.notes, *cost.notes],
        bias=bias(each.items),
        batch_check=cost.batch_check,
        judgements=each.judgements,
    )


def _responses(item: Item) -> int:
    return len(item.chosen) + len(item.rejected) + len(item.others)


def _comparisons(shown: Sequence[tuple[str, Figures]], config: EvaluateConfig) -> list[Comparison]:
    """Every two rewards where there are few, else the first against every other. A reward that says the same of every
    item as an earlier one is not compared again."""
    options, main = config.evaluate, shown[0][1].main
    distinct: list[tuple[str, Figures]] = []
    for name, figures in shown:
        if not any(_alike(figures, earlier, main) for _, earlier in distinct):
            distinct.append((name, figures))
    few = len(distinct) <= MOST_COMPARED
    pairs = list(combinations(distinct, 2)) if few else [(distinct[0], other) for other in distinct[1:]]
    compared = []
    for (name, figures), (other_name, other) in pairs:
        comparison = compare(figures, other, main, options.resamples, options.seed)
        if comparison is not None:
            compared.append((name, other_name, comparison))
    adjusted = holm([comparison.p_value for _, _, comparison in compared])
    return [
        Comparison(
            first=first,
            second=second,
            figure=main,
            difference=comparison.difference,
            interval=[comparison.low, comparison.high],
            p_value=comparison.p_value,
            p_holm=p,
            items=comparison.items,
        )
        for (first, second, comparison), p in zip(compared, adjusted, strict=True)
    ]


def _alike(first: Figures, second: Figures, name: str) -> bool:
    if name not in first.scores or name not in second.scores or list(first.items) != list(second.items):
        return False
    return bool(np.array_equal(first.scores[name], second.scores[name]))


def _rows(each: Evaluated, figures: Figures) -> pa.Table:
    scores = {
        name: [(figure, float(values[i])) for figure, values in figures.scores.items()]
        for i, name in enumerate(figures.items)
    }

    def row(item: Item) -> Json:
        sides = {"chosen": item.chosen, "rejected": item.rejected, "other": item.others}
        steps = [answer.steps for answer in item.others if answer.steps]
        return {
            "reward": each.variant.name,
            "id": item_name(item),
            "prompt_id": item.id,
            "rubric": item.rubric,
            "scores": scores.get(item_name(item), scores.get(item.id, [])),
            **{f"{side}_rewards": [answer.reward for answer in answers] for side, answers in sides.items()},
            **{f"{side}_tokens": [answer.num_tokens for answer in answers] for side, answers in sides.items()},
            "step_rewards": list(steps[0]) if len(steps) == 1 else None,
        }

    return pa.Table.from_pylist([row(item) for item in each.items], schema=ITEMS)


def _unusable(each: Evaluated, benchmark: Benchmark, most: float) -> str | None:
    """Why a reward has no figures, or None."""
    judged = each.judgements
    if judged is not None and judged.asked:
        share = judged.unparsable / judged.asked
        if share > most:
            of = "pairs" if judged.disagree is not None else "responses"
            return (
                f"{share:.0%} of {judged.asked:,} {of} have no judgement in the format asked for, more than "
                f"judge.max_unparsable = {most:g}, so no accuracy is given. Take a model that follows instructions, or "
                "give a prompt and a pattern (judge.*) that fit it"
            )
    if not each.items:
        why = ", ".join(f"{reason} {count:,}" for reason, count in each.incomplete.most_common())
        return (
            f"not one item of {benchmark.name} is complete ({why or 'there are no rows'}); its label store's errors/ say of "
            "each what would mend it"
        )
    return None


def _number(value: float) -> float | None:
    return None if value != value else float(value)
