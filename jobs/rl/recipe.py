"""What `rl` gives the loop on its workers (`jobs.learning.loop`): the policy learns from its own samples.

    waiting    the first worker asks samplers and rewarders; all hear of it     jobs.rl.source
    learning   advantages of every token                                        the algorithm
               each worker its part, under DeepSpeed                            actors.learner
    weights    the new ones to the samplers, under the number of the step       jobs.rl.source

Sampling waits for learning and learning for sampling: what is learnt from comes from the weights that learn. Under rl.lag = 1
sampling runs one step ahead, from the weights before the last step, and `pipeline.rl.corrections` weighs what that changes.
Each sample says which version it comes from and how likely it was there. `jobs.rl.logbook` has what the first worker writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch.distributed as dist

from actors.learner import Learner, LearnerSpec
from jobs.learning.loop import Clock, Recipe
from jobs.learning.worker import read_kept
from jobs.rl.logbook import Logbook
from jobs.rl.pool import ActorPool
from jobs.rl.source import Older, ReplaySource, RolloutSource, SharedSource, read_version, version_name
from pipeline.errors import StoreError
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.corrections import corrected, mismatch, with_sample_size
from pipeline.rl.experience import Experience, forecast, learnable, plan
from pipeline.rl.rollouts import Group, Tokens
from pipeline.training.batch import Response
from pipeline.training.metrics import MetricRow

Micros = list[list[Response]]  # micro-batches


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
        return SharedSource(self._own_source(step) if learner.rank == 0 else None, probed)

    def _own_source(self, step: int) -> RolloutSource | ReplaySource:
        if self.samplers is None or self.rewarders is None:
            return ReplaySource(self.config)
        source = RolloutSource(self.config, ray.get(self.prompts), self.samplers, self.rewarders, self.steps)
        if step < self.steps:
            for version in range(max(0, step - self.config.rl.lag), step):
                source.give(version, _kept_version(version))
        return source

    def book(self, source: SharedSource, step: int, notes: Sequence[str]) -> Logbook:
        assert source.own is not None, "the first worker's"
        return Logbook(self, source.own, step, notes)

    def step(self, learner: Learner, step: int, data: list[Group]) -> tuple[MetricRow, int]:
        """All minibatches, as often as there are epochs; metrics are means over these steps of the optimizer."""
        config, algorithm = self.config, algorithm_of(self.config)
        values = _of_all(config, learner, data, learner.values, True) if algorithm.uses_critic else None
        corrects = config.correction != "none"
        before = _of_all(config, learner, data, learner.logprobs, False) if corrects else None
        experience = Experience(config, algorithm, data, values, before)
        rows, tokens = [], 0
        for epoch in range(config.rl.epochs):
            for numbers in experience.minibatches(step, epoch):
                part = experience.part(numbers, learner.rank, learner.world)
                rows.append(learner.step(part.micro_batches, part.totals, self.rate_of(step)))
                tokens += part.tokens
        means = _means(rows)
        means.pop("reference_drift", None)  # `kl` says it better
        # how far samplers are from the learner shows before its first step
        first = with_sample_size({name: value for name, value in rows[0].items() if name.startswith("sampling/")})
        return means | first | _mismatch(config, data, before), tokens

    def progress(self, step: int, tokens: int, clock: Clock) -> MetricRow:
        return clock.spent()


def _kept_version(version: int) -> Older:
    """Older weights, of the checkpoint that the run goes on from. Raises StoreError."""
    content = read_kept(version_name(version))
    if content is None:
        raise StoreError(
            f"the checkpoint lacks {version_name(version)}, the weights that the next step's samples come from under rl.lag: "
            "put it back from a copy, or begin anew in another --output"
        )
    return read_version(content)


def _means(rows: Sequence[MetricRow]) -> MetricRow:
    """Over the rows that have a name: a minibatch of nothing but masked responses has few."""
    names = dict.fromkeys(name for row in rows for name in row)
    of = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in of.items()}


def _of_all(
    config: RlConfig, learner: Learner, groups: Sequence[Group], compute: Callable[[Micros], list[Tokens]], ahead: bool
) -> list[Tokens]:
    """What `compute` says of every response of the batch, in order: every worker asks for its part, and hears the others'.

    Args:
        ahead: of the responses as `forecast` has them.
    """
    mine = plan(config, groups, range(len(groups)), learner.world)[learner.rank]
    responses = forecast(config, groups) if ahead else learnable(groups)
    values = compute([[responses[position] for position in micro] for micro in mine])
    parts: list[Any] = [None] * learner.world
    dist.all_gather_object(parts, list(zip((p for micro in mine for p in micro), values, strict=True)))
    return [each for _, each in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]


def _mismatch(config: RlConfig, data: Sequence[Group], before: Sequence[Tokens] | None) -> MetricRow:
    """How far samples are from the policy before its first step on them, where that is known of all."""
    if before is None:
        return {}
    sampled = [rollout.logprobs for group in data for rollout in group.rollouts]
    own = corrected(config.correction, config.rl.correction_cap, before, sampled)
    return {**mismatch(before, sampled), **own}
