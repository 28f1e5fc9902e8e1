"""Which responses are forwarded together: families that share a prompt, under a token budget.

A family's prompt is computed once. The last token of a response predicts nothing that is scored, so it is not forwarded:
a response of H tokens costs H - 1, and its prompt, whose last state is s_1, is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.corpus.pictures import Picture
    from pipeline.tokens import Ids, TokenizedTurn


@dataclass(frozen=True, eq=False)
class Family:
    """A prompt and the responses to it: `members` are positions in the list that was scored."""

    prompt_ids: Ids
    members: tuple[int, ...]
    responses: tuple[Ids, ...]
    pictures: tuple[Picture, ...] = ()  # of the prompt

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(r) - 1 for r in self.responses)

    @property
    def longest(self) -> int:
        return len(self.prompt_ids) + max(len(r) - 1 for r in self.responses)


def families(turns: Sequence[TokenizedTurn], positions: Sequence[int], budget_tokens: int) -> list[Family]:
    """Group turns by equal prompt and pictures, longest family first; one too large for the budget is split, its prompt
    repeated."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for position in positions:
        seen = (picture.digest.encode() for picture in _pictures(turns[position]))
        groups.setdefault((_array(turns[position].prompt_ids).tobytes(), *seen), []).append(position)
    grouped = []
    for members in groups.values():
        prompt = _array(turns[members[0]].prompt_ids)
        part: list[int] = []
        size = len(prompt)
        for member in members:
            cost = len(turns[member].response_ids) - 1
            if part and size + cost > budget_tokens:
                grouped.append(_family(prompt, part, turns))
                part, size = [], len(prompt)
            part.append(member)
            size += cost
        grouped.append(_family(prompt, part, turns))
    return sorted(grouped, key=lambda f: (-f.longest, f.members))


def _family(prompt: Ids, members: list[int], turns: Sequence[TokenizedTurn]) -> Family:
    responses = tuple(_array(turns[m].response_ids) for m in members)
    return Family(prompt, tuple(members), responses, _pictures(turns[members[0]]))


def _pictures(turn: TokenizedTurn) -> tuple[Picture, ...]:
    """None of a learner's responses, which have none."""
    return getattr(turn, "pictures", ())


def _array(ids: Sequence[int] | Ids) -> Ids:
    """Of a learner's responses, which may hold lists."""
    return np.asarray(ids, np.int32)


def token_batches(ordered: Sequence[Family], budget_tokens: int) -> list[list[Family]]:
    """Cut a list of families into batches of at most `budget_tokens` tokens (one family may exceed it alone)."""
    batches: list[list[Family]] = []
    size = 0
    for family in ordered:
        if not batches or size + family.tokens > budget_tokens:
            batches.append([])
            size = 0
        batches[-1].append(family)
        size += family.tokens
    return batches


def padded_batches(ordered: Sequence[Family], budget_tokens: int) -> list[list[Family]]:
    """The same for a model that needs rectangles: families alone where they share, the others by padded size."""
    batches: list[list[Family]] = []
    width = 0
    for family in ordered:
        alone = len(family.members) > 1
        if alone or not batches or not width or (len(batches[-1]) + 1) * width > budget_tokens:
            batches.append([])
            width = 0 if alone else family.longest
        batches[-1].append(family)
    return batches
