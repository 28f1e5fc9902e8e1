"""What samplers, rewarders and learners get of the machine.

They take turns, so a step lasts as long as its three turns together; under rl.lag = 1, where samples are made and rewarded
while a batch is learnt from, as long as the longer of the two. Of several GPUs each kind gets as many as make that sum
least, where the configuration leaves it open. A turn is estimated in forward passes of a response (`turns`), with n responses,
s samplers, r rewarders and l learners:

    sampling    batches of a sampler x max(rows of one, DECODE_ROWS)    each token reads all weights, however few its rows;
                                                                       one batch, where the budget is left to the memory
    rewarding   models x n / r
    learning    epochs x 3 x n / l                                      backward costs two forwards; 4 with checkpointing

Left out: that models differ in size, and what they hold of a GPU's memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jobs.cluster import joins_cluster
from jobs.learning.trainer import cpus_of, gpus_of
from pipeline.rl.config import PoolSection, RlConfig

MOST_SAMPLERS = 4  # on CPUs, where nothing else is said
DECODE_ROWS = 200
"""Rows of a decoding batch that take as long as one: what an H100 multiplies (some 400e12 a second, in bfloat16) while it
reads a weight (some 2e12 bytes a second), estimated."""
MODELLED = ("endogenous", "relative", "teacher")  # kinds of rewards that forward a model


@dataclass(frozen=True)
class Placement:
    """How many there are of each kind of actor, and how much of a GPU each reserves."""

    samplers: int
    rewarders: int
    sampler_gpus: float
    rewarder_gpus: float
    learner_gpus: float  # of a learner, where they are on GPUs

    def actor_cpus(self, config: RlConfig) -> int:
        """That samplers and rewarders reserve together."""
        return self.samplers * config.sampler.cpus_per_actor + self.rewarders * config.rewarder.cpus_per_actor

    @property
    def actor_gpus(self) -> float:
        return self.samplers * self.sampler_gpus + self.rewarders * self.rewarder_gpus


def place_actors(config: RlConfig) -> Placement:
    """Samplers, rewarders and learners take turns. On CPUs they share them; of few GPUs each gets a part of one."""
    gpus = gpus_of(config) if config.learner.device != "cpu" else 0
    on_gpus = gpus > 0 or config.learner.device == "cuda"  # a cluster that has shrunk to its head grows again
    cpus = cpus_of(config)
    rewarders, samplers = config.rewarder.actors, config.sampler.actors
    if on_gpus:
        samplers, rewarders = _shares(config, gpus)
    rewarders = rewarders or 1
    if joins_cluster(config.run):  # there, what another one has reserved is gone
        cpus -= (config.learner.workers or 1) * config.learner.cpus_per_worker
        cpus -= rewarders * config.rewarder.cpus_per_actor
    samplers = samplers or max(1, min(MOST_SAMPLERS, cpus // config.sampler.cpus_per_actor))
    part = {1: 0.3, 2: 0.5}.get(gpus, 1.0)

    def of(pool: PoolSection) -> float:
        return (pool.gpus_per_actor or part) if on_gpus else 0.0

    return Placement(samplers, rewarders, of(config.sampler), of(config.rewarder), 0.4 if gpus == 1 else 1.0)


class Turns(NamedTuple):
    """What a step waits for, in forward passes of a response."""

    sampling: float
    rewarding: float
    learning: float


def turns(config: RlConfig, samplers: int, rewarders: int, learners: int) -> Turns:
    """Estimated for so many of each, on a GPU of its own."""
    responses = config.rl.batch_size * config.rl.group_size
    rows = math.ceil(responses / samplers)
    budget = config.sampler.budget_tokens
    held = max(1, budget // config.rl.max_new_tokens) if budget else rows
    models = sum(source.kind in MODELLED for source in config.rewards.values())
    passes = 4 if config.learner.gradient_checkpointing else 3
    return Turns(
        math.ceil(rows / held) * max(min(rows, held), DECODE_ROWS),
        models * math.ceil(responses / rewarders),
        config.rl.epochs * passes * math.ceil(responses / learners),
    )


def _length(config: RlConfig, each: Turns) -> float:
    """Of a step."""
    ahead = each.sampling + each.rewarding
    return max(ahead, each.learning) if config.rl.lag else ahead + each.learning


def _shares(config: RlConfig, gpus: int) -> tuple[int, int]:
    """Samplers and rewarders, where there are GPUs: what is configured, else those of the shortest step, the fewest of several
    such. One of each where they have to share."""

    def counts(pool: PoolSection) -> Sequence[int]:
        whole = (pool.gpus_per_actor or 1) >= 1  # two on one GPU are no faster than one
        return [pool.actors] if pool.actors else range(1, gpus) if whole else [1]

    def steps() -> Iterator[tuple[float, int, int]]:
        for samplers in counts(config.sampler):
            for rewarders in counts(config.rewarder):
                taken = samplers * (config.sampler.gpus_per_actor or 1) + rewarders * (
                    config.rewarder.gpus_per_actor or 1
                )
                left = gpus - math.ceil(round(taken, 6))
                if left >= (config.learner.workers or 1):
                    learners = config.learner.workers or left
                    yield _length(config, turns(config, samplers, rewarders, learners)), samplers, rewarders

    fewest = (0.0, config.sampler.actors or 1, config.rewarder.actors or 1)
    return min(steps(), default=fewest)[1:] if gpus > 2 else fewest[1:]
