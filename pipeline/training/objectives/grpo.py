"""Clipped policy gradient with a group's advantages (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    ratio = pi(a_h|s_h) / pi_behaviour(a_h|s_h)
    t_h   = -min(ratio * A_h, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A_h) + beta * kl_h         of a token

    dapo     mean of t_h over the tokens of the step                             (arXiv 2503.14476)
    grpo     mean over responses of the mean of t_h over their tokens            (eq. 3)
    dr_grpo  mean over responses of the sum of t_h / max_completion_length       (arXiv 2503.20783)

The behaviour is whoever wrote the stored responses, so this learns off-policy from the first step, within the clip. kl_h
is `Batch.kl`: eq. 4 multiplied by the ratio, which eq. 4 is not, so that its gradient is that of the KL. k1 in the loss is
not on offer: over the policy's own tokens the mean of its gradient is zero.

TRL 1.16: GRPOTrainer with these names of loss_type, importance_sampling_level = "token", use_bias_correction_kl = True
(its default), and none of delta, off_policy_mask_threshold, top_entropy_quantile or the entropy bonus.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from pipeline.training.objectives.base import Batch, LabelObjective, Terms, Unit, observed
from pipeline.training.objectives.clip import clipped

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig

LossType = Literal["dapo", "grpo", "dr_grpo"]


@dataclass(frozen=True)
class Grpo(LabelObjective):
    """Metrics: those of `clipped`."""

    name: ClassVar[str] = "grpo"
    uses_behaviour: ClassVar[bool] = True
    uses_advantages: ClassVar[bool] = True

    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    max_completion_length: int = 256

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        settings = config.grpo
        high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        return cls(settings.loss_type, settings.epsilon, high, settings.beta, settings.max_completion_length)

    @property
    def unit(self) -> Unit:
        return "tokens" if self.loss_type == "dapo" else "responses"

    @property
    def uses_reference(self) -> bool:
        return self.beta > 0

    def terms(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        policy = clipped(batch.ratios, batch.advantages, self.epsilon, self.epsilon_high)
        losses = policy.losses + self.beta * batch.kl if self.beta else policy.losses
        return Terms(
            by_loss_type(losses, batch, self.loss_type, self.max_completion_length),
            {**policy.metrics, **observed(batch)},
        )


def by_loss_type(losses: torch.Tensor, batch: Batch, loss_type: LossType, longest: int) -> torch.Tensor:
    """From tokens to the unit of the loss type: [P] -> [P] or [n]. `longest` is the constant of dr_grpo."""
    if loss_type == "dapo":
        return losses
    return batch.sums(losses) / (batch.lengths if loss_type == "grpo" else longest)
