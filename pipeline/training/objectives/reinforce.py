"""Policy gradient with truncated importance weights (Williams 1992; Espeholt et al. 2018, arXiv 1802.01561, section 4.2).

    ratio = pi(a_h|s_h) / pi_behaviour(a_h|s_h)                                           without a gradient
    loss  = -min(ratio, max_ratio) * A_h * log pi(a_h|s_h) + beta * kl_h                  of a token

At max_ratio = infinity and on tokens that pi_behaviour wrote in the states at hand, its gradient is the policy gradient;
truncation trades a bias towards the behaviour for a bounded variance. kl_h is `Batch.kl`, whose own ratio is not truncated.

V-trace's value targets are left out: the advantages come from the stored labels. TRL 1.16: the policy term of GRPOTrainer
with loss_type = "cispo" and epsilon_high = max_ratio; its RLOOTrainer has clipped ratios of sequences and k1 in the reward.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.training.objectives.base import Batch, LabelObjective, Terms, observed
from pipeline.training.objectives.clip import truncated

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Reinforce(LabelObjective):
    """Metrics: those of `truncated`."""

    name: ClassVar[str] = "reinforce"
    uses_behaviour: ClassVar[bool] = True
    uses_advantages: ClassVar[bool] = True

    max_ratio: float = 2.0
    beta: float = 0.0

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls(config.reinforce.max_ratio, config.reinforce.beta)

    @property
    def uses_reference(self) -> bool:
        return self.beta > 0

    def terms(self, batch: Batch) -> Terms:
        policy = truncated(batch, self.max_ratio)
        losses = policy.losses + self.beta * batch.kl if self.beta else policy.losses
        return Terms(losses, {**policy.metrics, **observed(batch)})
