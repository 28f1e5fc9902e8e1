"""What samplers, rewarders and learners get of the machine."""

from dataclasses import dataclass

from jobs.cluster import joins_cluster
from jobs.learning.trainer import cpus_of, gpus_of
from pipeline.rl.config import PoolSection, RlConfig

MOST_SAMPLERS = 4  # on CPUs, where nothing else is said


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
    rewarders = config.rewarder.actors or 1
    if joins_cluster(config.run):  # there, what another one has reserved is gone
        cpus -= (config.learner.workers or 1) * config.learner.cpus_per_worker
        cpus -= rewarders * config.rewarder.cpus_per_actor
    samplers = config.sampler.actors or (
        1 if on_gpus else max(1, min(MOST_SAMPLERS, cpus // config.sampler.cpus_per_actor))
    )
    part = {1: 0.3, 2: 0.5}.get(gpus, 1.0)

    def of(pool: PoolSection) -> float:
        return (pool.gpus_per_actor or part) if on_gpus else 0.0

    return Placement(samplers, rewarders, of(config.sampler), of(config.rewarder), 0.4 if gpus == 1 else 1.0)
