"""The bias section of two pages: what length and Markdown do to the accuracy of rewards.

The figures and sentences are those of `pipeline.evaluation.bias`, of several rewards side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.config import DISCOUNTED, RewardConfig
from pipeline.evaluation.bias import bias
from pipeline.evaluation.documents import Bias, ControlledAccuracy, PairAccuracy
from pipeline.evaluation.reading import items_of
from pipeline.report.markup import minus
from pipeline.report.page import Cell
from pipeline.report.shares import draw_by_length, interval_text, share
from pipeline.rewards.derive import TOKEN_COLUMNS, TokenArrays, aggregations

Pair = tuple[str, str]  # a figure, and what stands under it (empty: nothing)


@dataclass(frozen=True)
class BiasSection:
    """What the section shows: sentences, a chart with its sentences for each reward, and a table of all of them."""

    sentences: Sequence[str]
    figures: Sequence[tuple[str, Markup, Sequence[str]]]
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def bias_section(biases: list[tuple[str, Bias]], sentences: list[str]) -> BiasSection | None:
    """The section for each (reward, its bias): accuracy by difference in length, a table, and sentences. None of none.

    `sentences` are what a person should know of the pairs.
    """
    if not biases:
        return None
    legend = (
        "Accuracy by how many tokens the chosen response has more than the rejected one. A dot is a group of pairs with its "
        "95% interval; its area grows with the number of pairs, but no dot is too small to see. The broken line is chance. "
        "Where a reward goes by length, the dots rise or fall."
    )
    figures = [
        (name, draw_by_length(each.deciles, name), [minus(sentence) for sentence in each.summary])
        for name, each in biases
    ]
    head, cells = bias_columns(biases)
    rows: list[list[Cell]] = [[name, *row] for (name, _), row in zip(biases, cells, strict=True)]
    return BiasSection([legend, *sentences], figures, ["reward", *head], rows)


def bias_by_aggregation(labels: pa.Table, stored: RewardConfig) -> list[tuple[str, Bias]]:
    """The bias of a store's own reward first, then of the other aggregations of the same tokens. Empty without pairs.

    Where a label has no tokens (a reward of another kind), its own reward is all there is.

    Args:
        labels: whole prompts of the store.
        stored: the reward that the store was made with.
    """
    own = labels["reward"].to_numpy()
    rewards = {"reward": own}
    if has_tokens(labels):
        rewards = {named(stored): own}
        tokens = TokenArrays.of(labels, stored)
        for wanted in aggregations(stored.alpha, certainty=stored.token_certainty):
            if named(wanted) not in rewards:
                rewards[named(wanted)] = tokens.rewards(wanted)
    biases = ((name, bias(items_of(labels, values))) for name, values in rewards.items())
    return [(name, each) for name, each in biases if each]


def named(reward: RewardConfig) -> str:
    """An aggregation as people call it, with what sets it apart: `discounted_sum, gamma = 0.95`."""
    name: str = reward.aggregation
    if name in DISCOUNTED or (name == "sum" and reward.gamma != 1):
        name += f", gamma = {reward.gamma:g}"
    return name + (f", min_weight = {reward.min_weight:g}" if reward.min_weight else "")


def has_tokens(labels: pa.Table) -> bool:
    """Whether every label says what each of its tokens got; rewards of a whole response have empty lists."""
    return all(bool((np.diff(labels[name].combine_chunks().offsets) > 0).all()) for name in TOKEN_COLUMNS)


def bias_columns(
    biases: list[tuple[str, Bias]], wanted: tuple[str, ...] | None = None
) -> tuple[list[str], list[list[Pair]]]:
    """Names of the columns of the bias table, and for each reward their cells as text: a figure and what stands under it.

    Columns that are empty for all are left out. `wanted` chooses columns and their order; all where it is None.
    """
    cells = [_cells(each) for _, each in biases]
    names = [name for name in wanted or cells[0] if any(row[name][0] != share(None) for row in cells)]
    return names, [[row[name] for name in names] for row in cells]


def _cells(figures: Bias) -> dict[str, Pair]:
    markdown = figures.markdown
    return {
        "pairs": (f"{figures.pairs:,}", ""),
        "correlation with length": _correlation(figures),
        "accuracy": _share(figures),
        "at equal length": _share(figures.length_controlled),
        "chosen longer": _share(figures.chosen_longer),
        "chosen shorter": _share(figures.chosen_shorter),
        "longer wins": (share(figures.longer_wins), ""),
        "longer is chosen": (share(figures.longer_is_chosen), ""),
        "more Markdown wins": (share(markdown.more_marks_win if markdown else None), ""),
        "more Markdown is chosen": (share(markdown.more_marks_is_chosen if markdown else None), ""),
    }


def _correlation(figures: Bias) -> Pair:
    """Of a response's reward with its tokens, and under it of the margin with the difference in tokens."""
    reward, margin = figures.reward_length_correlation, figures.margin_length_correlation
    first = share(None) if reward is None else minus(f"{reward:+.2f}")
    return first, "" if margin is None else minus(f"{margin:+.2f} in pairs")


def _share(figures: Bias | PairAccuracy | ControlledAccuracy | None) -> Pair:
    """An accuracy with its interval under it."""
    if figures is None or figures.accuracy is None:
        return share(None), ""
    return share(figures.accuracy), interval_text(figures.interval)
