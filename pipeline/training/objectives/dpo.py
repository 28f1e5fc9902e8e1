"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    reward(y) = beta * (log pi(y|x) - log pi_ref(y|x))
    z         = reward(chosen) - reward(rejected)
    loss      = -logsigmoid(z)                          of a pair

Not in the paper: soft targets and label smoothing (`preference.py`). TRL 1.16: DPOTrainer with loss_type = "sigmoid", the
same at p = 1; it has no label smoothing there (its "robust" is another loss), and no soft targets.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.preference import PreferenceObjective, beta_of

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Dpo(PreferenceObjective):
    name: ClassVar[str] = "dpo"

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls(beta_of(config.dpo.beta, config), config.pairs.label_smoothing, config.pairs.margin_temperature)

    @property
    def uses_reference(self) -> bool:
        return True

    def terms(self, batch: Batch) -> Terms:
        assert batch.reference is not None
        rewards = self.beta * batch.sums(batch.logprobs - batch.reference)
        z = rewards[::2] - rewards[1::2]
        return Terms(self.cross_entropy(z, batch), self.metrics(rewards, batch))
