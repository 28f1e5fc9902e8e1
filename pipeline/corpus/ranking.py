"""All pairs of a ranking: every response against every other that the input's scores or ranks put below it.

A response of a store has one side, and these pairs are no product of two sides. So `input.pairs_from` = "all" stores no
side: beside its number, each response has in extra_info the margin that makes a pair, and whoever reads a store's pairs
makes these of the two.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCORE, RANK = "response_score", "response_rank"  # in extra_info: higher is better, lower is better
MARGIN = (
    "input.min_margin"  # in extra_info, of a response that is compared by its number: pairs differ by more than this
)


def is_ranked(extra: Mapping[str, Any]) -> bool:
    """Whether a response is compared by its score or rank; it may still have none."""
    return MARGIN in extra and (SCORE in extra or RANK in extra)


def ranked_pairs(extras: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Positions (better, worse) of the responses to one prompt, from what extra_info says of each. A tie is no pair, and
    a response without a number is in none."""
    numbers = [_number(extra) for extra in extras]
    return [
        (i, j)
        for i, better in enumerate(numbers)
        for j, worse in enumerate(numbers)
        if better is not None and worse is not None and better - worse > extras[i][MARGIN]
    ]


def _number(extra: Mapping[str, Any]) -> float | None:
    """[better is larger]"""
    if not is_ranked(extra):
        return None
    rank = extra.get(RANK)
    return extra.get(SCORE) if rank is None else -rank


def ranked_rows(labels: pa.Table) -> dict[int, dict[str, Any]]:
    """extra_info by row, of the responses that are compared by their scores or ranks. Needs preference and extra_info; a
    table without the latter has none."""
    if "extra_info" not in labels.column_names:
        return {}
    texts = labels["extra_info"]
    marked = pc.and_(pc.is_null(labels["preference"]), pc.match_substring(texts, f'"{MARGIN}"'))
    extras = {row: json.loads(texts[row].as_py()) for row in np.flatnonzero(marked.to_numpy()).tolist()}
    return {row: extra for row, extra in extras.items() if is_ranked(extra)}
