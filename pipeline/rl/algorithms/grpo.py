"""Group-relative policy optimization (Shao et al. 2024, arXiv 2402.03300, eq. 3), on the policy's own samples.

    A_h   = (R - mean of the group's R) / (standard deviation of the group's R + 1e-4)
    ratio = pi(a_h|s_h) / pi_behaviour(a_h|s_h)
    t_h   = -min(ratio * A_h, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A_h)          of a token

    dapo     mean of t_h over the tokens of the step                             (arXiv 2503.14476)
    grpo     mean over responses of the mean of t_h over their tokens            (eq. 3)
    dr_grpo  mean over responses of the sum of t_h / rl.max_new_tokens           (arXiv 2503.20783)

scale = none leaves the division out (arXiv 2503.20783 says why): a group whose rewards hardly differ then weighs little, and
a KL in the loss keeps its worth in units of the reward. With credit = tokens, R is R_h, the rewards to go from the token.

TRL 1.16: GRPOTrainer with these names of loss_type, scale_rewards = "group" or "none", importance_sampling_level = "token"
and use_bias_correction_kl = False; its entropy bonus is a mean over tokens whatever the loss_type is, ours follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms, Unit
from pipeline.training.objectives.clip import clipped
from pipeline.training.objectives.grpo import LossType, by_loss_type


@dataclass(frozen=True, kw_only=True)
class Grpo(Algorithm):
    """Metrics: those of `clipped`."""

    name: ClassVar[str] = "grpo"

    loss_type: LossType = "dapo"
    scale: Literal["group", "none"] = "group"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # epsilon
    max_new_tokens: int = 256  # of dr_grpo

    @classmethod
    def of(cls, config: RlConfig) -> Self:
        return replace(super().of(config), max_new_tokens=config.rl.max_new_tokens)

    @property
    def unit(self) -> Unit:
        return "tokens" if self.loss_type == "dapo" else "responses"

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, "group", self.scale)

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        policy = clipped(batch.ratios, batch.advantages, self.epsilon, high)
        return Terms(self.reduced(policy.losses, batch), policy.metrics)

    def reduced(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        return by_loss_type(losses, batch, self.loss_type, self.max_new_tokens)
