"""How sure the policy is of what it writes, by its own logits at each step: no label, no other model.

    self_certainty      mean_h KL(uniform || pi(.|s_h))       (Zhao et al. 2025, arXiv 2505.19590)
    negative_entropy    -mean_h entropy of pi(.|s_h)          (Agarwal et al. 2025, arXiv 2505.22660)

pi is the policy that sampled, at temperature 1, over every row of its output matrix. The reward moves with the policy; that of
a reward model that stays as it is has `kind = endogenous` with `reward.aggregation`.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import ConfigError, RunError
from pipeline.rl.config import RlConfig
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models

OF_THE_POLICY = ("self_certainty", "negative_entropy")  # kinds


class Certainty(Source):
    """Each token gets its share of the mean."""

    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        if config.sampler.engine != "transformers" and not config.rl.replay:
            raise ConfigError(
                f"{self.who}: sampler.engine = {config.sampler.engine} gives no logits but those of the tokens that it drew; "
                "set sampler.engine = transformers"
            )

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        return [self._earned(prompt.id, rollout.certainty) for prompt, rollout in sampled]

    def _earned(self, prompt: str, certainty: np.ndarray | None) -> Earned:
        assert certainty is not None  # the run asks its samplers for it
        entropies, certainties = certainty.astype(np.float64).T
        tokens = certainties if self.section.kind == "self_certainty" else -entropies
        if not np.isfinite(tokens).all():
            raise RunError(
                f"{self.who}: the policy gives a token of a response to prompt {prompt} a logit that is not finite, and so "
                "has no such mean; take another kind of reward"
            )
        return Earned(float(tokens.mean()), tokens / len(tokens))
