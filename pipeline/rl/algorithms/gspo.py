"""Group sequence policy optimization (Zheng et al. 2025, arXiv 2507.18071, eqs. 5 to 7).

    A     = (R - mean of the group's R) / (standard deviation of the group's R + 1e-4)
    ratio = (pi(response) / pi_behaviour(response))^(1/H),  the geometric mean of its tokens' ratios
    loss  = -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)              of a response

The ratio of a whole response hardly leaves 1, so that the clip is three orders narrower than a token's. A response that is
clipped teaches nothing whole. A KL or entropy in the loss is a mean over the response's tokens. Rewards to go have no
place in a loss of whole responses: credit = tokens is refused, and GSPO-token (eq. 13) left out.

TRL 1.16: GRPOTrainer with importance_sampling_level = "sequence", loss_type = "grpo", use_bias_correction_kl = False and
scale_rewards = "group" or "none"; its entropy bonus is a mean over tokens, ours over responses of such means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch

from pipeline.rl.algorithms.base import Algorithm, refuse_rewards_to_go
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms, Unit
from pipeline.training.objectives.clip import clipped


@dataclass(frozen=True, kw_only=True)
class Gspo(Algorithm):
    """Metrics: those of `clipped`, shares of responses."""

    name: ClassVar[str] = "gspo"

    scale: Literal["group", "none"] = "group"
    epsilon: float = 3e-4
    epsilon_high: float = 4e-4

    @classmethod
    def of(cls, config: RlConfig) -> Self:
        refuse_rewards_to_go(config)
        return super().of(config)

    @property
    def unit(self) -> Unit:
        return "responses"

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, "group", self.scale)

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None and batch.behaviour is not None
        ratios = torch.exp(self.reduced(batch.logprobs - batch.behaviour, batch))
        return clipped(ratios, batch.advantages[batch.first], self.epsilon, self.epsilon_high)

    def reduced(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        return batch.sums(losses) / batch.lengths
