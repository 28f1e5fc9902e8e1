"""What a benchmark is computed from: items, each a prompt with its responses as one reward sees them.

An item is one input row (under one rubric) all of whose responses have a reward. A row of which any response could not
be scored is not an item: it leaves the denominator and is counted as incomplete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pipeline.corpus.samples import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """One response and its reward."""

    reward: float
    num_tokens: int
    text: str
    truncated: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the input says of this response alone: `response_key`
    steps: tuple[float, ...] = ()  # the reward of each step, where a benchmark is of those; NaN of one without a token


@dataclass(frozen=True, slots=True)
class Item:
    """One complete input row under one rubric.

    Responses stand in the order of their `response_index`. `verdicts` is what a pairwise judge decided, by (position in
    chosen, position in rejected): 1 for the chosen, -1 for the rejected, 0 where the two orders disagree; None for
    every reward that gives each response a number of its own. Of a ranking they are by (better, worse).
    """

    id: str  # prompt_id
    chosen: tuple[Answer, ...] = ()
    rejected: tuple[Answer, ...] = ()
    others: tuple[Answer, ...] = ()  # responses without a side
    ranking: tuple[tuple[int, int], ...] = ()  # (better, worse), positions in `others`, where scores or ranks say so
    rubric: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns
    prompt: tuple[Message, ...] = ()  # its messages, where a benchmark asks for them with `by_prompt`
    verdicts: Mapping[tuple[int, int], float] | None = None

    @property
    def file(self) -> str:
        """Name of the input file."""
        return self.id.rpartition(":")[0]

    def margin(self, chosen: int, rejected: int) -> float:
        """By how much a chosen response is above a rejected one; 0 is a tie."""
        if self.verdicts is not None:
            return self.verdicts[chosen, rejected]
        return self.chosen[chosen].reward - self.rejected[rejected].reward

    def pairs(self) -> list[tuple[Answer, Answer, float]]:
        """(better, worse, margin) of every chosen and rejected response, or of every two that a ranking tells apart."""
        sides = product(range(len(self.chosen)), range(len(self.rejected)))
        pairs = [(self.chosen[i], self.rejected[j], self.margin(i, j)) for i, j in sides]
        for i, j in self.ranking:
            better, worse = self.others[i], self.others[j]
            margin = better.reward - worse.reward if self.verdicts is None else self.verdicts[i, j]
            pairs.append((better, worse, margin))
        return pairs

    def margins(self) -> list[list[float]]:
        """[chosen][rejected]: every pair's margin."""
        return [[self.margin(i, j) for j in range(len(self.rejected))] for i in range(len(self.chosen))]
