"""Simple preference optimization, without a reference (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    reward(y) = beta * log pi(y|x) / tokens of y
    z         = reward(chosen) - reward(rejected) - target_margin
    loss      = -logsigmoid(z)                          of a pair

target_margin is the paper's gamma, in the unit of the rewards. Not in the paper: soft targets and label smoothing
(`preference.py`); the margin stays on the chosen side when a preference is flipped. TRL 1.16: CPOTrainer with
loss_type = "simpo" and cpo_alpha = 0, label smoothing included, which has the margin as simpo_gamma. Its logps/ are means
over tokens; ours are sums, as those of dpo and ipo.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.preference import PreferenceObjective

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Simpo(PreferenceObjective):
    name: ClassVar[str] = "simpo"

    target_margin: float = 1.0

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        pairs, simpo = config.pairs, config.simpo
        return cls(simpo.beta, pairs.label_smoothing, pairs.margin_temperature, simpo.target_margin)

    def terms(self, batch: Batch) -> Terms:
        rewards = self.beta * batch.sums(batch.logprobs) / batch.lengths
        z = rewards[::2] - rewards[1::2] - self.target_margin
        return Terms(self.cross_entropy(z, batch), self.metrics(rewards, batch))
