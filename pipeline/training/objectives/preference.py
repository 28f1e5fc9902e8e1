"""What objectives of pairs share: how probable it is that the chosen response is better, and what is reported.

The target probability p is 1, or, with a margin temperature T, what Bradley and Terry's model makes of the stored rewards,
sigmoid((reward_chosen - reward_rejected) / T). A preference is wrong with probability e, the label smoothing:

    p <- (1 - 2e) p + e                             the preference as it is seen, after that noise

    loss = -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z))

The cross-entropy is smallest at sigmoid(z) = p. p = 1 - e is conservative DPO (Mitchell 2023, "A note on DPO with noisy
preferences"). Left out: other divergences than the reverse KL, and the losses that only TRL's `loss_type` names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import logsigmoid

from pipeline.training.objectives.base import Batch, LabelObjective, Unit, divergence

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig

BETA = {"known": 0.1, "reward": 1.0}
"""Default of beta by `pairs.preference`. The rewards that make pairs are nats (at alpha = 1): under Bradley and Terry's model
of them, beta = 1 learns pi_ref * exp(reward), and 0.1 its tenth power. 0.1 is what is usual for people's preferences."""


def beta_of(beta: float | None, config: "TrainConfig") -> float:
    """What beta comes to where it may be left open."""
    return BETA[config.pairs.preference] if beta is None else beta


@dataclass(frozen=True)
class PreferenceObjective(LabelObjective):
    """Base of dpo, ipo and simpo."""

    pairs: ClassVar[bool] = True

    beta: float = 0.1
    label_smoothing: float = 0.0
    margin_temperature: float | None = None

    @property
    def unit(self) -> Unit:
        return "pairs"

    def targets(self, batch: Batch) -> torch.Tensor:
        """p of each pair, [n/2] float64."""
        if self.margin_temperature is None:
            p = torch.ones_like(batch.rewards[::2])
        else:
            p = torch.sigmoid((batch.rewards[::2] - batch.rewards[1::2]) / self.margin_temperature)
        return (1 - 2 * self.label_smoothing) * p + self.label_smoothing

    def cross_entropy(self, z: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss above: [n/2] -> [n/2]."""
        p = self.targets(batch)
        return -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z))

    def metrics(self, rewards: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """TRL's, a value for each pair.

        Args:
            rewards: [n], the implicit rewards of the responses.
        """
        chosen, rejected = rewards.detach().double().view(-1, 2).unbind(1)
        logps = batch.sums(batch.logprobs.detach())
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).double(),
            "rewards/margins": chosen - rejected,
            "logps/chosen": logps[::2],
            "logps/rejected": logps[1::2],
            **divergence(batch),
        }
