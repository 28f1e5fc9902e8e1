"""The policy gradient (Williams 1992, "Simple statistical gradient-following algorithms").

    loss = -sum_h A_h * log pi(a_h|s_h)          of a response

    A_h = R_h - baseline,    R_h the response's reward, or with credit = tokens its discounted rewards to go

The baseline is the mean of R_h over the prompt's responses (group; its gradient is (n - 1)/n of the unbiased one), or none.
Nothing is clipped and no ratio corrects for who sampled: with several steps a batch, the later ones are off-policy and
do not know it. TRL 1.16 has no such trainer; on-policy it is RLOOTrainer with another baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms, Unit


@dataclass(frozen=True, kw_only=True)
class Reinforce(Algorithm):
    name: ClassVar[str] = "reinforce"

    baseline: Literal["group", "none"] = "group"

    @property
    def unit(self) -> Unit:
        return "responses"

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, self.baseline)

    def policy(self, batch: Batch) -> Terms:
        assert batch.advantages is not None
        return Terms(batch.sums(-batch.advantages * batch.logprobs), {})
