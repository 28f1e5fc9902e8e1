"""The bias section of both pages: what length and Markdown do to the accuracy of rewards.

The figures and sentences are those of `pipeline.evaluation.bias`, of several rewards side by side.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RewardConfig
from pipeline.evaluation.bias import bias
from pipeline.evaluation.reading import items_of
from pipeline.report.markup import esc, minus
from pipeline.report.page import multiples, table, wide_section
from pipeline.report.shares import draw_by_length, interval_text, share
from pipeline.rewards.derive import TOKEN_COLUMNS, TokenArrays, aggregations

Bias = dict[str, Any]  # what `pipeline.evaluation.bias.bias` gives
Cell = tuple[str, str]  # a figure, and what stands under it (empty: nothing)


def draw_bias(found: list[tuple[str, Bias]], said: list[str]) -> str:
    """The section: for each (reward, its bias) accuracy by difference in length, a table, and sentences. Empty of none.

    `said` is what a person should know of the pairs.
    """
    if not found:
        return ""
    charts = [
        f"<figure><h3>{esc(name)}</h3>{draw_by_length(given['deciles'], name)}<figcaption>"
        f"{''.join(f'<p>{esc(minus(sentence))}</p>' for sentence in given['summary'])}</figcaption></figure>"
        for name, given in found
    ]
    legend = (
        "Accuracy by how many tokens the chosen response has more than the rejected one. A dot is a group of pairs with its "
        "95% interval; its area grows with the number of pairs, but no dot is too small to see. The broken line is chance. "
        "Where a reward goes by length, the dots rise or fall."
    )
    body = f'{multiples(charts)}<div class="scroll">{_table(found)}</div>'
    return wide_section("Bias", [legend, *said], body)


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
        tokens = TokenArrays.of(labels.select(TOKEN_COLUMNS), stored)
        for wanted in aggregations(stored.alpha):
            if named(wanted) not in rewards:
                rewards[named(wanted)] = tokens.rewards(wanted)
    found = [(name, bias(items_of(labels, given))) for name, given in rewards.items()]
    return [(name, given) for name, given in found if given]


def named(reward: RewardConfig) -> str:
    """An aggregation as people call it, with what sets it apart: `discounted_sum, gamma = 0.95`."""
    said: str = reward.aggregation
    if said == "discounted_sum" or (said == "sum" and reward.gamma != 1):
        said += f", gamma = {reward.gamma:g}"
    return said + (f", min_weight = {reward.min_weight:g}" if reward.min_weight else "")


def has_tokens(labels: pa.Table) -> bool:
    """Whether every label says what each of its tokens got; rewards of a whole response have empty lists."""
    return all(bool((np.diff(labels[name].combine_chunks().offsets) > 0).all()) for name in TOKEN_COLUMNS)


def bias_columns(
    found: list[tuple[str, Bias]], wanted: tuple[str, ...] | None = None
) -> tuple[list[str], list[list[Cell]]]:
    """Names of the columns of the bias table, and for each reward their cells as text: a figure and what stands under it.

    Columns that are empty for all are left out. `wanted` chooses columns and their order; all where it is None.
    """
    made = [_cells(given) for _, given in found]
    names = [name for name in wanted or made[0] if any(cells[name][0] != share(None) for cells in made)]
    return names, [[cells[name] for name in names] for cells in made]


def _cells(given: Bias) -> dict[str, Cell]:
    markdown = given["markdown"] or {}
    return {
        "pairs": (f"{given['pairs']:,}", ""),
        "correlation with length": _correlation(given),
        "accuracy": _share(given),
        "at equal length": _share(given["length_controlled"]),
        "chosen longer": _share(given["chosen_longer"]),
        "chosen shorter": _share(given["chosen_shorter"]),
        "longer wins": (share(given["longer_wins"]), ""),
        "longer is chosen": (share(given["longer_is_chosen"]), ""),
        "more Markdown wins": (share(markdown.get("more_marks_win")), ""),
        "more Markdown is chosen": (share(markdown.get("more_marks_is_chosen")), ""),
    }


def _table(found: list[tuple[str, Bias]]) -> str:
    head, rows = bias_columns(found)
    cells = [
        [esc(name), *(value + (f"<small>{note}</small>" if note else "") for value, note in row)]
        for (name, _), row in zip(found, rows, strict=True)
    ]
    return table(cells, ["reward", *head], "figures many")


def _correlation(given: Bias) -> Cell:
    """Of a response's reward with its tokens, and under it of the margin with the difference in tokens."""
    reward, margin = given["reward_length_correlation"], given["margin_length_correlation"]
    first = share(None) if reward is None else minus(f"{reward:+.2f}")
    return first, "" if margin is None else minus(f"{margin:+.2f} in pairs")


def _share(given: dict[str, Any] | None) -> Cell:
    """An accuracy with its interval under it."""
    if not given or given["accuracy"] is None:
        return share(None), ""
    return share(given["accuracy"]), interval_text(given["interval"])
