"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740), with a clipped ratio for several steps a batch.

    A     = R - mean of the R of the group's other responses
    ratio = pi(response) / pi_behaviour(response),  the product over its tokens
    loss  = -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A)                   of a response

The paper is on-policy and has no ratio; on-policy the gradients agree. The ratio of a long response leaves the clip
long before that of its tokens does. Rewards to go have no place in a loss of whole responses: credit = tokens is refused.

TRL 1.16: RLOOTrainer with epsilon_high = epsilon and normalize_advantages = False. It takes k1 off the reward, as kl_in =
reward does, and has no KL or entropy in the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from pipeline.rl.algorithms.base import Algorithm, refuse_rewards_to_go
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms, Unit
from pipeline.training.objectives.clip import clipped


@dataclass(frozen=True, kw_only=True)
class Rloo(Algorithm):
    """Metrics: those of `clipped`, shares of responses."""

    name: ClassVar[str] = "rloo"

    epsilon: float = 0.2

    @classmethod
    def of(cls, config: RlConfig) -> Self:
        refuse_rewards_to_go(config)
        return super().of(config)

    @property
    def unit(self) -> Unit:
        return "responses"

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, "leave-one-out")

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None and batch.behaviour is not None
        ratios = torch.exp(batch.sums(batch.logprobs - batch.behaviour))
        return clipped(ratios, batch.advantages[batch.first], self.epsilon, self.epsilon)
