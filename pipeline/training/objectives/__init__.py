"""What a policy is trained to do with stored labels: one objective a file, each a loss for every pair, response or token.

    dpo, ipo, simpo     pairs
    awr, rwr            maximum likelihood, weighted by advantage or reward
    grpo, reinforce     policy gradients, off-policy against the stored log-probabilities
    sft                 maximum likelihood of selected responses

An objective sees log-probabilities only: no model, no optimiser, no other worker. Those that learn from samples of their
own, made as they go, are `pipeline.rl.algorithms`. A file here is read by being here; its name in the configuration and its
settings are in `pipeline.training.config`.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.training.objectives.base import Batch, LabelObjective, Objective, Terms, Unit

if TYPE_CHECKING:
    from pipeline.training.config import TrainConfig

OBJECTIVES: dict[str, type[LabelObjective]] = {
    each.name: each
    for file in pkgutil.iter_modules(__path__)
    for each in vars(import_module(f"{__name__}.{file.name}")).values()
    if isinstance(each, type) and issubclass(each, LabelObjective) and "name" in vars(each)
}

__all__ = ["OBJECTIVES", "Batch", "LabelObjective", "Objective", "Terms", "Unit", "objective_of"]


def objective_of(config: "TrainConfig") -> LabelObjective:
    """The objective that a run is told, under its settings."""
    return OBJECTIVES[config.train.objective].of(config)
