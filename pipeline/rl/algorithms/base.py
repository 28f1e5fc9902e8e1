"""What every algorithm of online RL shares: where its advantages come from, and what may be added to its loss.

    loss = the algorithm's own + kl_coefficient * kl_h - entropy_coefficient * entropy_h

The two terms on the right are of a token and are reduced to the loss's unit as the algorithm reduces its own: left as they
are for losses of tokens, else summed over the response (grpo: as its loss_type says). kl_h is one of two estimators of
`pipeline.training.divergence`:

    k2   over pi's own tokens its gradient is that of KL(pi || pi_ref) in the states at hand
    k3   its mean is KL(pi || pi_ref), but its gradient is that of KL(pi_ref || pi)

Neither sees that a token changes which states follow; k1 in the reward does, and it is the only one of the three under which
a run ends in the optimum of E[reward] - beta * KL. In the reward it is part of what `Siblings` holds. Where advantages are
rescaled, a KL in the loss is weighed against rewards in units of their spread, which shrinks as a policy sharpens: k2 may
then hold nothing back, while k1, rescaled with the rewards, keeps its worth. k1 in the loss is not on offer: over
pi's own tokens the mean of its gradient is zero. TRL 1.16 has k1 in the reward (RLOOTrainer) and k3 in the
loss (GRPOTrainer, this one with use_bias_correction_kl = False). Left out: k3 weighted by the ratio, which the objective
`grpo` of stored labels has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.corrections import MOST, TAIL
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings, compared
from pipeline.training.config import AdvantageConfig
from pipeline.training.divergence import k2, k3
from pipeline.training.objectives.base import Batch, Objective, Terms

TINY = 1e-8  # keeps rounding from being blown up where all advantages of a batch are alike


@dataclass(frozen=True, kw_only=True)
class Algorithm(Objective):
    """Base of all. Fields beyond these are those of the configuration's section of the algorithm's name.

    Metrics of all: `reward` [n], before any KL is taken off; `kl` [P], k3, where there is a reference; `entropy` [P], where it
    is known; `sampling/...`, how far pi is from `Batch.behaviour` (`pipeline.rl.corrections.mismatch`): what two ways of
    computing differ by while nothing has been learnt from the batch, and what its steps have moved after.
    """

    credit: Literal["response", "tokens"] = "response"
    gamma: float = 1.0
    kl_coefficient: float = 0.0  # of the KL in the loss
    kl_estimator: Literal["k2", "k3"] = "k3"
    entropy_coefficient: float = 0.0

    @classmethod
    def of(cls, config: RlConfig) -> Self:
        """The algorithm under the settings of a run."""
        rl = config.rl
        of_all: dict[str, Any] = {
            "credit": config.credit,
            "gamma": rl.gamma,
            "kl_coefficient": rl.kl_coefficient if rl.kl_in == "loss" else 0.0,
            "kl_estimator": "k2" if config.rl.kl == "k2" else "k3",
            "entropy_coefficient": rl.entropy_coefficient,
        }
        return cls(**of_all | dict(getattr(config, cls.name, {})))

    @property
    def uses_critic(self) -> bool:
        """Whether `Siblings.token_values` are to be a critic's, and `Batch.values` and `returns` there."""
        return False

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        """What `Batch.advantages` is to be: for each group and response [H].

        Args:
            groups: of the whole batch, as some algorithms normalise over it; any KL in the reward is taken off.
        """
        raise NotImplementedError

    def returns(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        """What the critic should have forecast, likewise; where `uses_critic`."""
        raise NotImplementedError

    def policy(self, batch: Batch) -> Terms:
        """The algorithm's own loss, of its unit."""
        raise NotImplementedError

    def reduced(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        """From tokens to the unit: [P] -> [P] or [n]."""
        return losses if self.unit == "tokens" else batch.sums(losses)

    def terms(self, batch: Batch) -> Terms:
        policy = self.policy(batch)
        losses, metrics = policy.losses, {"reward": batch.rewards, **policy.metrics}
        if batch.reference is not None:
            metrics["kl"] = k3(batch.log_ratios).detach()
        if self.kl_coefficient:
            kl = (k2 if self.kl_estimator == "k2" else k3)(batch.log_ratios)
            losses = losses + self.kl_coefficient * self.reduced(kl, batch)
        if batch.entropies is not None:
            metrics["entropy"] = batch.entropies.detach()
        if self.entropy_coefficient:
            assert batch.entropies is not None
            losses = losses - self.entropy_coefficient * self.reduced(batch.entropies, batch)
        if batch.behaviour is not None:
            metrics |= _mismatch(batch.logprobs.detach() - batch.behaviour, batch)
        return Terms(losses, metrics)

    def compared(
        self,
        groups: Sequence[Siblings],
        baseline: Literal["group", "leave-one-out", "none"],
        scale: Literal["group", "none"] = "none",
    ) -> list[list[Array]]:
        """Advantages within each group, by `pipeline.training.advantages`."""
        settings = AdvantageConfig(credit=self.credit, baseline=baseline, scale=scale)
        return [compared(settings, siblings, self.gamma) for siblings in groups]


def _mismatch(differences: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """What `pipeline.rl.corrections.mismatch` is made of, of each token or response."""
    apart, difference = differences.abs(), "sampling/sampling_logp_difference"
    ratios = batch.sums(differences.double()).clamp(-MOST, MOST).exp()
    return {
        **{f"{difference}/{what}": apart for what in ("mean", "max")},
        f"{difference}/tail": (apart > TAIL).double(),
        "sampling/response_ratio/mean": ratios,
        "sampling/response_ratio/mean_square": ratios.square(),
    }


def refuse_rewards_to_go(config: RlConfig) -> None:
    """For a loss of whole responses. Raises ConfigError."""
    if config.credit == "tokens":
        raise ConfigError(
            f"rl.algorithm = {config.rl.algorithm} weighs whole responses, and rl.credit = tokens gives each token a weight "
            "of its own: leave rl.credit out, or set rl.algorithm = reinforce"
        )


def normalized(groups: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """To mean 0 and standard deviation 1 over all tokens of the batch; a batch that is all alike to 0."""
    tokens = np.concatenate([response for group in groups for response in group])
    mean, spread = tokens.mean(), tokens.std() + TINY
    return [[(response - mean) / spread for response in group] for group in groups]
