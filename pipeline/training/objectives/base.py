"""What an objective sees of a micro-batch, and what it gives back.

A step's examples are spread over workers and micro-batches by length, so an objective never averages: it gives one loss
for each pair, response or token (`unit`), and the learner divides their sum over the whole step by how many there are in
the whole step. The gradient then does not depend on how the step was cut.

Shapes: n responses of a micro-batch, P response tokens of all of them one after another, n/2 pairs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from pipeline.training.divergence import k2, weighted_k3

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig

Unit = Literal["pairs", "responses", "tokens"]


@dataclass(frozen=True)
class Batch:
    """The responses of a micro-batch. For objectives of pairs: chosen, rejected, chosen, rejected, ...

    Log-probabilities are float32 (float64 for a float64 policy) and natural logarithms. A column that the objective does
    not ask for may be absent; `reference` may be there all the same, for the metric `kl`.
    """

    logprobs: torch.Tensor  # [P], log pi of the policy; the only one with a gradient
    lengths: torch.Tensor  # [n] int64, tokens of each response, at least 1; they sum to P
    rewards: torch.Tensor  # [n] float64, as stored
    reference: torch.Tensor | None = None  # [P], log pi_ref
    behaviour: torch.Tensor | None = None  # [P], log pi of who wrote the responses
    advantages: torch.Tensor | None = None  # [P]
    entropies: torch.Tensor | None = None  # [P], of the policy in each token's state, with a gradient
    values: torch.Tensor | None = None  # [P], the critic's forecast in each token's state, with a gradient
    returns: torch.Tensor | None = None  # [P], what the critic should have forecast

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over each response: [P] -> [n]."""
        out = torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device)
        return out.index_add(0, self.owners, values)

    @property
    def owners(self) -> torch.Tensor:
        """[P], which response a token is of."""
        responses = torch.arange(len(self.lengths), device=self.lengths.device)
        return torch.repeat_interleave(responses, self.lengths, output_size=len(self.logprobs))

    @property
    def first(self) -> torch.Tensor:
        """[n], where the first token of each response is."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def ratios(self) -> torch.Tensor:
        """pi / pi_behaviour of each token, [P], with a gradient."""
        assert self.behaviour is not None
        return torch.exp(self.logprobs - self.behaviour)

    @property
    def log_ratios(self) -> torch.Tensor:
        """log pi_ref - log pi of each token, [P] float64, with a gradient."""
        assert self.reference is not None
        return self.reference - self.logprobs.double()

    @property
    def kl(self) -> torch.Tensor:
        """An estimate of KL(pi || pi_ref) in each token's state, [P] float64, with a gradient; not negative but for rounding.

        With `behaviour`, who drew the tokens is known, and k3 is weighted by it. Without, this is k2, which says how far pi
        has moved on these tokens, and is the KL only while pi is near who wrote them.
        """
        assert self.reference is not None
        if self.behaviour is None:
            return k2(self.log_ratios)
        return weighted_k3(self.logprobs.double(), self.reference, self.behaviour)


@dataclass(frozen=True)
class Terms:
    """What an objective makes of a micro-batch.

    Args:
        losses: [n/2], [n] or [P] by the objective's `unit`.
        metrics: name (TRL's where TRL has one) to a value for each pair, response or token, without a gradient; the
            learner reports the mean over the step. A metric need not be of the losses' unit.
    """

    losses: torch.Tensor
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """Base of all, as a learner uses it. An instance holds its settings; it pickles."""

    name: ClassVar[str]

    @property
    def unit(self) -> Unit:
        """What a loss is of, and so what the step's sum is divided by the number of."""
        return "tokens"

    def terms(self, batch: Batch) -> Terms:
        raise NotImplementedError


@dataclass(frozen=True)
class LabelObjective(Objective):
    """Base of what is learnt from stored labels, and what it needs of them."""

    pairs: ClassVar[bool] = False  # examples are pairs; else a prompt's responses
    uses_behaviour: ClassVar[bool] = False
    uses_advantages: ClassVar[bool] = False

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        """The objective under the settings of a run."""
        raise NotImplementedError

    @property
    def uses_reference(self) -> bool:
        """Whether the losses need `Batch.reference`."""
        return False


def observed(batch: Batch) -> dict[str, torch.Tensor]:
    """Metrics of any objective of responses: `reward` [n], as stored, and `kl` [P] where there is a reference."""
    return {"reward": batch.rewards, **divergence(batch)}


def divergence(batch: Batch) -> dict[str, torch.Tensor]:
    """`kl` [P] where there is a reference: `Batch.kl` says what it estimates."""
    return {} if batch.reference is None else {"kl": batch.kl.detach()}
