"""Clipped importance sampling of the policy gradient, CISPO (MiniMax 2025, arXiv 2506.13585, eqs. 4 and 5).

    A_h   = (R - mean of the group's R) / (standard deviation of the group's R + 1e-4)
    ratio = pi(a_h|s_h) / pi_behaviour(a_h|s_h)                                           without a gradient
    loss  = -min(ratio, max_ratio) * A_h * log pi(a_h|s_h)                                of a token

No token is left out: one whose ratio is beyond the limit weighs as much as one at it, where ppo and grpo would learn nothing
from it. Like the paper's runs without a limit from below. With credit = tokens, R is R_h, the rewards to go.

TRL 1.16: GRPOTrainer with loss_type = "cispo", whose epsilon_high is max_ratio itself, and use_bias_correction_kl = False.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.clip import truncated


@dataclass(frozen=True, kw_only=True)
class Cispo(Algorithm):
    """Metrics: those of `truncated`, and `cispo_clip_ratio`, TRL's: tokens of positive advantage whose ratio was."""

    name: ClassVar[str] = "cispo"

    scale: Literal["group", "none"] = "group"
    max_ratio: float = 5.0

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, "group", self.scale)

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        policy = truncated(batch, self.max_ratio)
        rising = policy.metrics["ratio_clipped"] * (batch.advantages > 0)
        return Terms(policy.losses, {**policy.metrics, "cispo_clip_ratio": rising})
