"""The endogenous reward of what the policy sampled (arXiv 2506.23235, eq. 11)."""

from collections.abc import Sequence

import numpy as np

from pipeline.config import RewardConfig
from pipeline.errors import ConfigError
from pipeline.models.scores import Scores
from pipeline.rewards.aggregations import AGGREGATIONS, Tokens
from pipeline.rewards.endogenous import aggregate, token_rewards
from pipeline.rewards.labelling import certainty_of
from pipeline.rl.config import RlConfig
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models, reward_model
from pipeline.rl.sources.readers import open_reader


class Endogenous(Source):
    """With the policy's tokenizer, of each of its tokens; with another, of the whole response."""

    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        self.reader = open_reader(self.who, reward_model(config, self.section), config, self.section.system_prompt)
        self.readers = (self.reader,)
        self.forecasts = self.reader.same and config.reward.sums_rewards
        if self.reader.same:
            return
        own, policy = self.reader.model.name, config.policy.name
        both = f"{self.who}: the reward model {own} has another tokenizer than the policy {policy}"
        if config.rewarding.other_tokenizer == "refuse":
            raise ConfigError(f"{both}, and rewarding.other_tokenizer = refuse; take one of the policy's family")
        self.reader.remarks.append(f"{both}: its rewards are of whole responses, of text tokenised anew")

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        of, found = self.config.reward, self.reader.scores(sampled, models)
        if self.reader.same:
            return [earned(scores, of) for scores in found]
        return [
            Earned.whole(earned(scores, of).reward, len(rollout.ids))
            for (_, rollout), scores in zip(sampled, found, strict=True)
        ]


def earned(scores: Scores, reward: RewardConfig) -> Earned:
    """The reward of H tokens and their shares of it.

    - `sum`: r_h. They add up to the reward.
    - `mean`: alpha * log pi_h / H. They add up to the reward; there are no values. So of any other whose terms add up; of one
      whose terms do not, the last token gets the whole reward.
    - `discounted_sum`: r_h, undiscounted: rewards to go are discounted by who adds them up.

    `subtract_initial_value` takes V(s_1) off the first reward, and off the value of s_1, which forecasts it.
    """
    rewards, values = token_rewards(scores.q, scores.values, reward.gamma), scores.values.copy()
    certainty = certainty_of([scores])
    total = aggregate(rewards, values, reward, certainty)
    if not reward.sums_rewards:
        way = AGGREGATIONS[reward.aggregation]
        if way.combine is not np.add:
            return Earned.whole(total, len(values))
        terms = way.terms(Tokens(rewards, scores.q, values, np.arange(len(values)), certainty), reward)
        return Earned(total, terms / (len(values) if way.by_length else 1))
    if reward.subtract_initial_value:
        rewards[0] -= values[0]
        values[0] = 0.0
    return Earned(total, rewards, values)
