"""Preference pairs of a store's labels: which rows make a pair, and pairs as messages, as trainers of preferences read
them. `export` writes the latter, training takes the former: both pair alike.

The columns are those of TRL's conversational preference format with an explicit prompt (huggingface.co/docs/trl,
"Dataset formats and types"), and after them what the store knows besides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.corpus.ranking import ranked_rows
from pipeline.corpus.samples import Message
from pipeline.store.schema import read_message, read_messages
from pipeline.store.summary import find_pairs
from pipeline.store.turns import last_turns

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PREFERENCES = pa.schema(
    {
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "chosen_reward": pa.float64(),
        "rejected_reward": pa.float64(),
        "margin": pa.float64(),  # chosen_reward - rejected_reward
        "prompt_id": pa.string(),
        "rubric": pa.string(),
    }
)
CHOICE_COLUMNS = ["prompt_id", "rubric", "preference", "response_index", "turn", "reward"]
RANKING = "extra_info"  # beside them, where a store has rankings
PAIR_COLUMNS = [*CHOICE_COLUMNS, RANKING, "prompt", "response", "response_other"]

Group = tuple[str, str | None]  # prompt_id and rubric
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What became of the prompts (under each rubric) of a store that is turned into pairs."""

    known: int = 0  # pairs whose preference the input gave
    by_score: int = 0  # of these, pairs of a ranking: the input's scores or ranks make them
    against: int = 0  # of the known, pairs whose rewards say the opposite
    by_reward: int = 0  # pairs of a higher and a lower reward, where no preference was known or it was not asked for
    undecided: int = 0  # prompts whose scores or ranks put no response far enough above another: no pair
    ties: int = 0  # prompts told apart by reward whose rewards are all the same: no pair
    alone: int = 0  # prompts without two responses to compare: no pair
    close: int = 0  # pairs left out of prompts whose rewards differ, because this margin is too small

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def preference_pairs(labels: pa.Table, extra: Sequence[str] = ()) -> tuple[list[dict[str, Any]], PairCounts]:
    """The pairs of whole shards' labels, a row each with the columns PREFERENCES, messages whole, and `extra`, columns of the
    chosen response's label as they are. Needs the columns PAIR_COLUMNS.

    `choose_pairs` says which. The messages that both sides share are the prompt; what a conversation has of its own
    after them goes before its response.
    """
    pairs, counts = choose_pairs(labels)
    return _rows(labels, pairs, extra), counts


def choose_pairs(
    labels: pa.Table,
    preference: Literal["known", "reward"] = "known",
    select: Literal["best-worst", "all"] = "best-worst",
    min_margin: float = 0.0,
) -> tuple[Rows, PairCounts]:
    """Rows of whole shards' labels that make a pair, [pairs, 2]: (chosen, rejected). Needs the columns CHOICE_COLUMNS,
    and RANKING where the store has rankings.

    Where preferences are known: every chosen response with every rejected one, and of a ranking every response with
    every lower one, whatever their rewards; a ranking that tells none apart makes no pair. Where nothing is known of any
    response to a prompt, or with `preference` = "reward" everywhere: the highest reward against the lowest, of equals the
    first, or with `select` = "all" every higher reward against every lower one; their margin has to be larger than
    `min_margin`. The last labelled turn of a response stands for it.
    """
    known = find_pairs(labels) if preference == "known" else np.zeros((0, 2), np.int64)
    rewards = labels["reward"].to_numpy()
    against = int((rewards[known[:, 0]] < rewards[known[:, 1]]).sum())
    paired = {(labels["prompt_id"][i].as_py(), labels["rubric"][i].as_py()) for i in known[:, 0].tolist()}
    by_score = sum(labels["preference"][i].as_py() is None for i in known[:, 0].tolist())
    ranked = ranked_rows(labels) if preference == "known" else {}
    found, undecided, ties, alone, close = [known], 0, 0, 0, 0
    for group, (rows, unknown) in last_turns_by_prompt(labels).items():
        if group in paired:
            continue
        if len(rows) < 2 or not (unknown or preference == "reward"):
            alone += 1
        elif any(row in ranked for row in rows):
            undecided += 1
        elif (rewards[rows] == rewards[rows[0]]).all():
            ties += 1
        else:
            pairs = _ranked(rows, rewards, select)
            wide = rewards[pairs[:, 0]] - rewards[pairs[:, 1]] > min_margin
            found.append(pairs[wide])
            close += int((~wide).sum())
    pairs = np.concatenate(found)
    return pairs, PairCounts(len(known), by_score, against, len(pairs) - len(known), undecided, ties, alone, close)


def _ranked(rows: Sequence[int], rewards: NDArray[np.float64], select: str) -> Rows:
    """Pairs of a prompt's rows, no lower reward first: [pairs, 2]."""
    ranked = np.array(rows)[np.argsort(-rewards[rows], kind="stable")]
    if select == "all":
        return np.stack([ranked[side] for side in np.triu_indices(len(ranked), 1)], axis=1)
    worst = min(rows, key=lambda row: rewards[row])
    return np.array([[ranked[0], worst]])


def last_turns_by_prompt(labels: pa.Table) -> dict[Group, tuple[list[int], bool]]:
    """Of each (prompt_id, rubric) the rows of its responses' last labelled turns, and whether no preference is known.

    Groups and rows stand in the order in which they first occur. Needs CHOICE_COLUMNS but for the reward.
    """
    groups: dict[Group, tuple[list[int], bool]] = {}
    for (prompt_id, rubric, preference, _), row in last_turns(labels).items():
        rows, unknown = groups.get((prompt_id, rubric), ([], True))
        groups[prompt_id, rubric] = ([*rows, row], unknown and preference is None)
    return groups


def _rows(labels: pa.Table, pairs: Rows, extra: Sequence[str]) -> list[dict[str, Any]]:
    columns = ["prompt", "response", "response_other", "reward"]
    sides = [labels.select(columns).take(pairs[:, side]).to_pylist() for side in (0, 1)]
    names = labels.select(["prompt_id", "rubric", *extra]).take(pairs[:, 0]).to_pylist()
    rows = []
    for chosen, rejected, name in zip(*sides, names, strict=True):
        left, right = (read_messages(side["prompt"]) for side in (chosen, rejected))
        shared = _shared(left, right)
        rows.append(
            {
                "prompt": left[:shared],
                "chosen": [*left[shared:], read_message("assistant", chosen["response"], chosen["response_other"])],
                "rejected": [
                    *right[shared:],
                    read_message("assistant", rejected["response"], rejected["response_other"]),
                ],
                "chosen_reward": chosen["reward"],
                "rejected_reward": rejected["reward"],
                "margin": chosen["reward"] - rejected["reward"],
                **name,
            }
        )
    return rows


def _shared(left: list[Message], right: list[Message]) -> int:
    """How many messages two conversations begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
