"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): no critic, advantages normalised over the whole batch.

    G_h   = sum_{k>=h} gamma^(k-h) r_k                       with credit = response: the whole reward at every token
    B_h   = G_h - mean of the group's G_h                    baseline = none: G_h
    A_h   = (B_h - mean of B) / standard deviation of B      over all tokens of the batch
    ratio = pi(a_h|s_h) / pi_behaviour(a_h|s_h)
    loss  = -min(ratio * A_h, clip(ratio, 1 - epsilon, 1 + epsilon) * A_h)               of a token

The paper's first form is baseline = none with k1 in the reward, its REINFORCE++-baseline is baseline = group with credit =
response and k2 in the loss. The division is by one number for the whole batch, where grpo's favours groups whose rewards
hardly differ. Where no two rewards differ that are compared (of a group; baseline = none: of the batch), only a KL would, and
the division would blow it up: every advantage is 0. TRL 1.16 has no such trainer (its GRPOTrainer's scale_rewards = "batch"
does not centre again, and adds 1e-4 to the deviation). Left out: clipping the rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pipeline.rl.algorithms.base import Algorithm, normalized
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings, alike
from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.clip import clipped


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(Algorithm):
    """Metrics: those of `clipped`."""

    name: ClassVar[str] = "reinforce_plus_plus"

    baseline: Literal["group", "none"] = "group"
    epsilon: float = 0.2

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        advantages = self.compared(groups, self.baseline)
        together = [group.earned for group in groups]
        if all(alike(earned) for earned in ([np.concatenate(together)] if self.baseline == "none" else together)):
            return [[np.zeros_like(response) for response in group] for group in advantages]
        return normalized(advantages)

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        return clipped(batch.ratios, batch.advantages, self.epsilon, self.epsilon)
