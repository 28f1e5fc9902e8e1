"""What `rl` gives the loop on its workers (`jobs.learning.loop`): the policy learns from its own samples.

    waiting    the first worker asks samplers and rewarders; all hear of it     jobs.rl.source
    learning   advantages of every token                                        the algorithm
               each worker its part, under DeepSpeed                            actors.learner
    weights    the new ones to the samplers, under the number of the step       jobs.rl.source

Sampling waits for learning and learning for sampling: what is learnt from always comes from the weights that learn. Each
sample says which version it comes from and how likely it was there, so an algorithm with importance ratios would bear it
if sampling ran ahead. `jobs.rl.logbook` has what the first worker writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch.distributed as dist

from actors.learner import Learner, LearnerSpec
from jobs.learning.loop import Clock, Recipe
from jobs.rl.logbook import Logbook
from jobs.rl.pool import ActorPool
from jobs.rl.source import ReplaySource, RolloutSource, SharedSource
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.experience import Experience, forecast, plan
from pipeline.rl.rollouts import Group, Tokens
from pipeline.training.metrics import MetricRow


@dataclass(frozen=True, kw_only=True)
class RlRecipe(Recipe[list[Group]]):
    """A run of `rl`, as its workers know it."""

    config: RlConfig
    rollouts: dict[str, Any] | None  # the description of the store of rollouts, where they are kept
    prompts: Any  # a Ray reference to a PromptSet
    samplers: ActorPool | None  # None where another run is replayed
    rewarders: ActorPool | None

    def learner(self) -> LearnerSpec:
        algorithm = algorithm_of(self.config)
        return LearnerSpec(
            self.config, algorithm, self.device, self.deepspeed, critic=algorithm.uses_critic, entropies=True
        )

    def source(self, learner: Learner, step: int) -> SharedSource:
        probed = self.samplers is not None and self.config.sampler.engine != "transformers"
        return SharedSource(self._own_source() if learner.rank == 0 else None, probed)

    def _own_source(self) -> RolloutSource | ReplaySource:
        if self.samplers is None or self.rewarders is None:
            return ReplaySource(self.config)
        return RolloutSource(self.config, ray.get(self.prompts), self.samplers, self.rewarders)

    def book(self, source: SharedSource, step: int, notes: Sequence[str]) -> Logbook:
        assert source.own is not None, "the first worker's"
        return Logbook(self, source.own, step, notes)

    def step(self, learner: Learner, step: int, data: list[Group]) -> tuple[MetricRow, int]:
        """All minibatches, as often as there are epochs; metrics are means over these steps of the optimizer."""
        config, algorithm = self.config, algorithm_of(self.config)
        values = _critic_values(config, learner, data) if algorithm.uses_critic else None
        experience = Experience(config, algorithm, data, values)
        rows, tokens = [], 0
        for epoch in range(config.rl.epochs):
            for numbers in experience.minibatches(step, epoch):
                part = experience.part(numbers, learner.rank, learner.world)
                rows.append(learner.step(part.micro_batches, part.totals, self.rate_of(step)))
                tokens += part.tokens
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        means.pop("reference_drift", None)  # `kl` says it better
        sampled = {name: value for name, value in rows[0].items() if name.startswith("sampling/")}
        return means | sampled, tokens  # how far samplers are from the learner shows before its first step

    def progress(self, step: int, tokens: int, clock: Clock) -> MetricRow:
        return clock.spent()


def _critic_values(config: RlConfig, learner: Learner, groups: Sequence[Group]) -> list[Tokens]:
    """V(s_h) of every response of the batch, as `forecast` has them: every worker computes its part, and hears the others'."""
    mine = plan(config, groups, range(len(groups)), learner.world)[learner.rank]
    responses = forecast(config, groups)
    values = learner.values([[responses[position] for position in micro] for micro in mine])
    parts: list[Any] = [None] * learner.world
    dist.all_gather_object(parts, list(zip((p for micro in mine for p in micro), values, strict=True)))
    return [each for _, each in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]
