"""Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177, algorithm 1), and its self-normalised sister.

    awr:  loss = -min(exp(A_h / temperature), max_weight) * log pi(a_h|s_h)          of a token
    rwr:  loss = -w * log pi(a_h|s_h),   w = n * softmax(A / temperature) over a prompt's n responses

Weighted maximum likelihood: it needs neither a reference nor to know who wrote the responses. The learner divides by the
tokens of the step, as the paper averages over state-action pairs, so a rate suits short responses and long ones alike,
and within a step a response counts by its weight times its tokens. Without the weights it is `sft`.

The paper fits V to returns of a replay buffer; here the advantages come from the stored labels. rwr's weights are made
where a prompt's responses are together, in `pipeline.training.advantages`, and come as `Batch.advantages`; they are
reward-weighted regression (Peters and Schaal 2007) with the normalisation of exp over the prompt's responses, so that
what all of them share cancels. TRL 1.16 has neither.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from pipeline.training.objectives.base import Batch, LabelObjective, Terms, observed

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Awr(LabelObjective):
    """Metrics: `weight`, and `weight_clipped`, the share of tokens whose weight was cut off."""

    name: ClassVar[str] = "awr"
    uses_advantages: ClassVar[bool] = True

    temperature: float = 1.0
    max_weight: float = 20.0

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls(config.awr.temperature, config.awr.max_weight)

    def terms(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        weights = torch.exp(batch.advantages / self.temperature)
        clamped = weights.clamp(max=self.max_weight)
        metrics = {"weight": clamped, "weight_clipped": (weights > self.max_weight).double()}
        return Terms(-clamped * batch.logprobs, {**metrics, **observed(batch)})


@dataclass(frozen=True)
class Rwr(LabelObjective):
    """Its advantages are the weights. Metric: `weight`."""

    name: ClassVar[str] = "rwr"
    uses_advantages: ClassVar[bool] = True

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls()

    def terms(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        return Terms(-batch.advantages * batch.logprobs, {"weight": batch.advantages, **observed(batch)})
