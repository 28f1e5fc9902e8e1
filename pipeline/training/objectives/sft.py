"""Maximum likelihood.

    loss = -log pi(a_h|s_h)          of a token

Which responses are learned from is the reader's: with sft.select = best it is best-of-n distillation. The learner divides
by the tokens of the step. TRL 1.16: SFTTrainer with completion_only_loss on the same token ids, whose mean is over the
tokens of the step too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.training.objectives.base import Batch, LabelObjective, Terms, observed

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig


@dataclass(frozen=True)
class Sft(LabelObjective):
    name: ClassVar[str] = "sft"

    @classmethod
    def of(cls, config: "TrainConfig") -> Self:
        return cls()

    def terms(self, batch: Batch) -> Terms:
        return Terms(-batch.logprobs, observed(batch))
