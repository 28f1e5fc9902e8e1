"""The reward relative to an earlier checkpoint: r_h = log pi(a_h|s_h) - log pi_0(a_h|s_h) (arXiv 2510.02493)."""

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models, reward_model
from pipeline.rl.sources.readers import open_reader


class Relative(Source):
    """Of each token that the policy sampled; the reward is their sum. Both models see the same prompt."""

    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        section = self.section
        earlier = config.reward_model.named(section.reference, section.reference_revision)
        models = (reward_model(config, section), earlier)
        self.readers = tuple(open_reader(self.who, model, config, section.system_prompt) for model in models)
        for reader in self.readers:
            if not reader.same:
                raise ConfigError(
                    f"{self.who}: {reader.model.name} has another tokenizer than the policy {config.policy.name}, and "
                    "kind = relative compares token by token; take two checkpoints of the policy's family"
                )

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        model, earlier = (reader.scores(sampled, models) for reader in self.readers)
        gains = [now.logprobs - before.logprobs for now, before in zip(model, earlier, strict=True)]
        return [Earned(float(gain.sum()), gain) for gain in gains]
