"""How a policy learns from its own samples: one algorithm a file, each with its advantages and its loss.

    ppo                   GAE against a value, clipped ratio of a token
    grpo                  a group's mean and spread, clipped ratio of a token
    rloo                  the mean of the others of a group, clipped ratio of a response
    reinforce             the policy gradient itself
    reinforce_plus_plus   rewards to go normalised over the batch, clipped ratio of a token

An algorithm is an objective (`pipeline.training.objectives.base`): it sees rewards and log-probabilities, no model and no
worker.
"""

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.algorithms.grpo import Grpo
from pipeline.rl.algorithms.ppo import Ppo
from pipeline.rl.algorithms.reinforce import Reinforce
from pipeline.rl.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from pipeline.rl.algorithms.rloo import Rloo
from pipeline.rl.config import RlConfig

ALGORITHMS: dict[str, type[Algorithm]] = {made.name: made for made in (Ppo, Grpo, Rloo, Reinforce, ReinforcePlusPlus)}

__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of"]


def algorithm_of(config: RlConfig) -> Algorithm:
    """The algorithm that a run is told, under its settings. Raises ConfigError for settings that it has no meaning for."""
    return ALGORITHMS[config.rl.algorithm].of(config)
