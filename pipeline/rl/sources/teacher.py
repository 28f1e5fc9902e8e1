"""What a teacher makes of the policy's tokens: r_h = log pi_T(a_h|s_h) - log pi(a_h|s_h), on-policy distillation
(arXiv 2306.13649, arXiv 2306.08543).

pi is the policy that sampled. The mean of a response's reward is -KL(pi || pi_T), 0 at the teacher.
"""

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models, reward_model
from pipeline.rl.sources.readers import open_reader


class Teacher(Source):
    """Of each token that the policy sampled; the reward is their sum."""

    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        model = reward_model(config, self.section)
        self.reader = open_reader(self.who, model, config, self.section.system_prompt)
        self.readers = (self.reader,)
        if not self.reader.same:
            raise ConfigError(
                f"{self.who}: the teacher {model.name} has another tokenizer than the policy {config.policy.name}, and is "
                "compared with it token by token; take a teacher of the policy's family, or kind = endogenous"
            )
        if (model.name, model.revision) == (
            config.policy.name,
            config.policy.revision,
        ) and not self.section.system_prompt:
            raise ConfigError(
                f"{self.who}: the teacher is the policy as it begins, {model.name}, which has nothing to teach it: give "
                f"--reward-model, {self.who}.model or, for what it would say under other instructions, "
                f"{self.who}.system_prompt"
            )

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        found = self.reader.scores(sampled, models)
        gains = [scores.logprobs - rollout.logprobs for scores, (_, rollout) in zip(found, sampled, strict=True)]
        return [Earned(float(gain.sum()), gain) for gain in gains]
