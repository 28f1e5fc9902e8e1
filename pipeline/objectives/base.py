"""What an objective sees of a micro-batch, and what it gives back.

A step's examples are spread over workers and micro-batches by length, so an objective never averages: it gives one loss
for each pair, response or token (`unit`), and the learner divides their sum over the whole step by how many there are in
the whole step. The gradient then does not depend on how the step was cut.

Shapes: n responses of a micro-batch, P response tokens of all of them one after another, n/2 pairs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

Unit = Literal["pairs", "responses", "tokens"]


@dataclass(frozen=True)
class Batch:
    """The responses of a micro-batch. For objectives of pairs: chosen, rejected, chosen, rejected, ...

    Log-probabilities are float32 (float64 for a float64 policy) and natural logarithms.
    """

    logprobs: torch.Tensor  # [P], log pi of the policy; the only one with a gradient
    lengths: torch.Tensor  # [n] int64, tokens of each response; they sum to P
    rewards: torch.Tensor  # [n] float64, as stored
    reference: torch.Tensor | None = None  # [P], log pi_ref
    behaviour: torch.Tensor | None = None  # [P], log pi of who wrote the responses
    advantages: torch.Tensor | None = None  # [P]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over each response: [P] -> [n]."""
        out = torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device)
        return out.index_add(0, self.owners, values)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Each response's value at each of its tokens: [n] -> [P]."""
        return values[self.owners]

    @property
    def owners(self) -> torch.Tensor:
        """[P], which response a token is of."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)


@dataclass(frozen=True)
class Terms:
    """What an objective makes of a micro-batch.

    Args:
        losses: [n/2], [n] or [P] by the objective's `unit`.
        metrics: name (TRL's where TRL has one) to a value for each pair, response or token, without a gradient; the
            learner reports the mean over the step.
    """

    losses: torch.Tensor
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """Base of all. An instance holds its settings; it pickles."""

    name: ClassVar[str]
    pairs: ClassVar[bool] = False  # examples are pairs; else a prompt's responses
    unit: Unit = "responses"
    uses_reference: ClassVar[bool] = False
    uses_behaviour: ClassVar[bool] = False
    uses_advantages: ClassVar[bool] = False

    def terms(self, batch: Batch) -> Terms:
        raise NotImplementedError
