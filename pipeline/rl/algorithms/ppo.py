"""Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347), advantages by GAE (arXiv 1506.02438, eq. 16).

    delta_h = r_h + gamma * V(s_{h+1}) - V(s_h),        V(s_{H+1}) = 0, but see below
    A_h     = sum_{k>=h} (gamma * gae_lambda)^(k-h) * delta_k
    ratio   = pi(a_h|s_h) / pi_behaviour(a_h|s_h)
    loss    = -min(ratio * A_h, clip(ratio, 1 - epsilon, 1 + epsilon) * A_h)
              + value_coefficient * (V(s_h) - return_h)^2 / 2                      of a token, with a critic

V is the reward model's own (value = reward-model), for which nothing is learnt, or a critic's, whose return_h is A_h + V(s_h)
with the V of sampling time: the lambda-return. For the endogenous reward and its own V and gamma, without other rewards,
delta_h = alpha * log pi_reward(a_h|s_h), less the KL in the reward: the level of the logits is gone. With credit = response
the whole reward is r_H.

What was cut off did not end in s_{H+1}. The endogenous r_H has gamma * V(s_{H+1}) of the reward model in it
(`pipeline.rewards.endogenous`), and a reward of the whole response has been paid for it as it stands, so that 0 is right
for both.
Where all rewards are of single tokens and forecast nothing (`pipeline.rl.experience.goes_on`), V(s_{H+1}) is the critic's.

With normalize, advantages get mean 0 and deviation 1 over the batch's tokens. Where all rewards of the batch are the same,
only a KL and the errors of the values differ, and the division would blow them up: every advantage is 0.

TRL 1.16: its experimental PPOTrainer has the critic, always normalises advantages, takes V(s_{H+1}) = 0 of whatever was cut
off, and clips the critic's step as well; that clip, and a target for the KL that stops an epoch, are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.rl.algorithms.base import Algorithm, normalized
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings, alike, cut, padded, to_go
from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.clip import clipped


@dataclass(frozen=True, kw_only=True)
class Ppo(Algorithm):
    """Metrics: those of `clipped`, and `value_loss`, the critic's squared error over 2."""

    name: ClassVar[str] = "ppo"

    value: Literal["reward-model", "critic"] = "reward-model"
    gae_lambda: float = 1.0
    epsilon: float = 0.2
    value_coefficient: float = 0.5
    normalize: bool = False

    @property
    def uses_critic(self) -> bool:
        return self.value == "critic"

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        """Raises ConfigError where a response has no values."""
        found = [cut(self._gae(siblings), siblings.lengths) for siblings in groups]
        if not self.normalize:
            return found
        if alike(np.concatenate([siblings.earned for siblings in groups])):
            return [[np.zeros_like(response) for response in group] for group in found]
        return normalized(found)

    def returns(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return [cut(self._gae(siblings) + _values(siblings), siblings.lengths) for siblings in groups]

    def _gae(self, siblings: Siblings) -> Array:
        """[n, longest]."""
        values = _values(siblings)
        following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
        if siblings.after is not None:
            following[np.arange(len(values)), np.asarray(siblings.lengths) - 1] = siblings.after
        return to_go(self._rewards(siblings) + self.gamma * following - values, self.gamma * self.gae_lambda)

    def _rewards(self, siblings: Siblings) -> Array:
        """r_h, [n, longest]."""
        if self.credit == "tokens":
            return padded(siblings.token_rewards, siblings.lengths)
        rewards = np.zeros((len(siblings.lengths), max(siblings.lengths)))
        rewards[np.arange(len(rewards)), np.asarray(siblings.lengths) - 1] = siblings.rewards
        return rewards

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        return clipped(batch.ratios, batch.advantages, self.epsilon, self.epsilon)

    def terms(self, batch: Batch) -> Terms:
        terms = super().terms(batch)
        if not self.uses_critic:
            return terms
        assert batch.values is not None and batch.returns is not None
        errors = (batch.values - batch.returns).square() / 2
        return Terms(terms.losses + self.value_coefficient * errors, {**terms.metrics, "value_loss": errors.detach()})


def _values(siblings: Siblings) -> Array:
    """V(s_h), [n, longest], 0 after the end."""
    if [np.size(values) for values in siblings.token_values] != list(siblings.lengths):
        raise ConfigError(
            "ppo.value = reward-model needs V(s_h) of every token, and there are responses that no reward of this run "
            "forecasts: set ppo.value = critic, or use an endogenous reward for all prompts"
        )
    return padded(siblings.token_values, siblings.lengths)
