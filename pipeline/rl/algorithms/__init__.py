"""How a policy learns from its own samples: one algorithm a file, each with its advantages and its loss.

    ppo                   GAE against a value, clipped ratio of a token
    grpo                  a group's mean and spread, clipped ratio of a token
    gspo                  the same, clipped ratio of a response, by its length
    cispo                 the same, truncated ratio of a token
    rloo                  the mean of the others of a group, clipped ratio of a response
    reinforce             the policy gradient itself
    reinforce_plus_plus   rewards to go normalised over the batch, clipped ratio of a token
    opd                   log-ratio to a teacher, truncated ratio of a token

An algorithm is an objective (`pipeline.training.objectives.base`): it sees rewards and log-probabilities, no model and no
worker. A file here is read by being here; its name in the configuration and its settings are in
`pipeline.rl.algorithm_sections`.
"""

import pkgutil
from importlib import import_module

from pipeline.rl.algorithms.base import Algorithm
from pipeline.rl.config import RlConfig

ALGORITHMS: dict[str, type[Algorithm]] = {
    each.name: each
    for file in pkgutil.iter_modules(__path__)
    for each in vars(import_module(f"{__name__}.{file.name}")).values()
    if isinstance(each, type) and issubclass(each, Algorithm) and "name" in vars(each)
}

__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of"]


def algorithm_of(config: RlConfig) -> Algorithm:
    """The algorithm that a run is told, under its settings. Raises ConfigError for settings that it has no meaning for."""
    return ALGORITHMS[config.rl.algorithm].of(config)
