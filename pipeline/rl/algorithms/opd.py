"""On-policy distillation (Agarwal et al. 2023, arXiv 2306.13649; Gu et al. 2023, arXiv 2306.08543): the policy's own samples,
rewarded token by token with what a teacher makes of them.

    r_h  = log pi_T(a_h|s_h) - log pi(a_h|s_h)                                  `pipeline.rl.sources.teacher`
    A_h  = sum_{k>=h} gamma^(k-h) r_k, less the mean over the group where baseline = group
    loss = -min(ratio, max_ratio) * A_h * log pi(a_h|s_h),  the ratio without a gradient     of a token

At gamma = 0, the default, a token answers for itself: the gradient is that of KL(pi || pi_T) in the states at hand. At 1 it
also answers for the states that it leads to: that of KL(pi || pi_T) over responses. Both end at pi_T where nothing holds
them back; docs/rl.md says where under rl.kl_coefficient, and what this has to do with the endogenous reward, whose V(s_h)
would not telescope at gamma = 0. The noise of the gradient vanishes at the teacher, so no baseline is needed. Nothing is
rescaled. The equation is of sampled tokens; the divergence over the whole vocabulary, and others than this one, are left out.

TRL 1.16: at gamma = 0 its experimental IWOPDTrainer with iw_opd_gamma = 0, on-policy (it has no ratio). Its
DistillationTrainer with beta = 1 has the KL over the vocabulary, whose gradient this one's is on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.rollouts import Array
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch, Terms
from pipeline.training.objectives.clip import truncated


@dataclass(frozen=True, kw_only=True)
class Opd(Algorithm):
    """Metrics: those of `truncated`."""

    name: ClassVar[str] = "opd"

    credit: Literal["response", "tokens"] = "tokens"
    gamma: float = 0.0
    baseline: Literal["group", "none"] = "none"
    max_ratio: float = 5.0

    def advantages(self, groups: Sequence[Siblings]) -> list[list[Array]]:
        return self.compared(groups, self.baseline)

    def policy(self, batch: Batch) -> Terms:
        return truncated(batch, self.max_ratio)
