"""Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    h(y) = (log pi(y|x) - log pi_ref(y|x)) / tokens of y
    z    = h(chosen) - h(rejected)
    loss = p * (z - 1/(2 beta))^2 + (1 - p) * (z + 1/(2 beta))^2         of a pair

beta is the paper's tau. p is the probability that the chosen response is better (`preference.py`), 1 in eq. 17; where it
is not, the loss is the expectation over the flip, smallest at z = (2p - 1)/(2 beta).

The paper has sums of log-ratios where we have means over tokens. TRL 1.16: DPOTrainer with loss_type = "ipo", the same at
p = 1, means over tokens included. The rewards that are reported are DPO's, beta times sums, as TRL reports them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.preference import PreferenceObjective, beta_of

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Ipo(PreferenceObjective):
    name: ClassVar[str] = "ipo"

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls(beta_of(config.ipo.beta, config), config.pairs.label_smoothing, config.pairs.margin_temperature)

    @property
    def uses_reference(self) -> bool:
        return True

    def terms(self, batch: Batch) -> Terms:
        assert batch.reference is not None
        log_ratios = batch.sums(batch.logprobs - batch.reference)
        h = log_ratios / batch.lengths
        z, goal, p = h[::2] - h[1::2], 1 / (2 * self.beta), self.targets(batch)
        return Terms(p * (z - goal) ** 2 + (1 - p) * (z + goal) ** 2, self.metrics(self.beta * log_ratios, batch))
