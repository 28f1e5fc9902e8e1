"""Labels read back as items: the rows of a label store, put together as the input rows they came from.

The labels do not say which responses failed, so a row that lost one still gives an item here. Who evaluates takes
those out: their ids are in the store's errors.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.ranking import MARGIN, RANK, SCORE, ranked_pairs
from pipeline.corpus.samples import STEP_STARTS, Message
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.rewards.labelling import KEPT
from pipeline.store.schema import read_messages
from pipeline.store.turns import last_turns

OWN = ("response_key", STEP_STARTS, SCORE, RANK, MARGIN)  # what the input says of one response alone
PROMPT = "prompt"
COLUMNS = (
    "prompt_id", "rubric", "preference", "response_index", "turn", "response", "reward", "num_tokens", "truncated",
    "extra_info",
)  # fmt: skip


def items_of(labels: pa.Table, rewards: np.ndarray | None = None) -> list[Item]:
    """The items of one table: see `LabelRows`."""
    return LabelRows(labels).items(labels["reward"].to_numpy() if rewards is None else rewards)


class LabelRows:
    """A label store's table as the input rows that its labels came from, ready to become items under several rewards,
    which share its texts.

    There is one item for each (prompt_id, rubric), in the order in which they first occur. Where several turns of a
    response are labelled, its last labelled turn stands for it. Responses stand in the order
    of their response_index. An item's `extra` is what extra_info says of the input row; an answer's is its
    `response_key`, its score or rank, and what its labeller kept.

    Args:
        labels: with all siblings of each prompt; needs `COLUMNS` only, and `PROMPT` where `prompts` are asked for.
        prompts: whether items know their prompts.
    """

    def __init__(self, labels: pa.Table, prompts: bool = False):
        columns = {name: labels[name].to_pylist() for name in COLUMNS if name != "reward"}
        last = last_turns(labels)
        groups: dict[tuple[str, str | None], list[int]] = {}
        for (prompt_id, rubric, _, _), row in last.items():
            groups.setdefault((prompt_id, rubric), []).append(row)
        self.columns = columns
        self.groups = [sorted(rows, key=columns["response_index"].__getitem__) for rows in groups.values()]
        self.last_turns = {response: columns["turn"][row] for response, row in last.items()}
        self.prompts = _prompts(labels, self.groups) if prompts else {}
        self.extras: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        for rows in self.groups:
            self.extras |= _extras(columns["extra_info"], rows)

    def items(self, rewards: np.ndarray, steps: Sequence[tuple[float, ...]] = ()) -> list[Item]:
        """[rows] rewards, and where a benchmark is of them the rewards of each row's steps -> one item for each group."""
        values = np.asarray(rewards, np.float64).tolist()
        return [self._item(rows, values, steps) for rows in self.groups]

    def _item(self, rows: Sequence[int], rewards: Sequence[float], steps: Sequence[tuple[float, ...]]) -> Item:
        answers: dict[str | None, list[Answer]] = {"chosen": [], "rejected": [], None: []}
        for row in rows:
            answers[self.columns["preference"][row]].append(
                Answer(
                    reward=rewards[row],
                    num_tokens=self.columns["num_tokens"][row],
                    text=self.columns["response"][row],
                    truncated=self.columns["truncated"][row],
                    extra=self.extras[row][1],
                    steps=steps[row] if steps else (),
                )
            )
        return Item(
            id=self.columns["prompt_id"][rows[0]],
            chosen=tuple(answers["chosen"]),
            rejected=tuple(answers["rejected"]),
            others=tuple(answers[None]),
            ranking=tuple(ranked_pairs([answer.extra for answer in answers[None]])),
            rubric=self.columns["rubric"][rows[0]],
            extra=self.extras[rows[0]][0],
            prompt=self.prompts.get(rows[0], ()),
        )


def _prompts(labels: pa.Table, groups: Sequence[Sequence[int]]) -> dict[int, tuple[Message, ...]]:
    """By the first row of each group."""
    column = labels[PROMPT].combine_chunks()
    return {rows[0]: tuple(read_messages(column[rows[0]].as_py())) for rows in groups}


def _extras(texts: Sequence[str], rows: Sequence[int]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """What extra_info says of the input row and of each of its responses; siblings share the row's."""
    parsed = {row: json.loads(texts[row]) for row in rows}
    first = parsed[rows[0]]
    shared = {key: value for key, value in first.items() if key not in (*OWN, KEPT)}
    return {row: (shared, _own(extra)) for row, extra in parsed.items()}


def response_extra(text: str) -> dict[str, Any]:
    """What an extra_info says of its response alone."""
    return _own(json.loads(text))


def _own(extra: dict[str, Any]) -> dict[str, Any]:
    key = {name: extra[name] for name in OWN if name in extra}
    info = extra.get(KEPT)
    return {**key, **info} if isinstance(info, dict) else key
