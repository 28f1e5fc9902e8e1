"""What a policy is trained to do with stored labels: one objective a file, each a loss for every pair, response or token.

    dpo, ipo, simpo     pairs
    awr, rwr            maximum likelihood, weighted by advantage or reward
    grpo, reinforce     policy gradients, off-policy against the stored log-probabilities
    sft                 maximum likelihood of selected responses

An objective sees log-probabilities only: no model, no optimiser, no other worker. Those that learn from samples of their
own, made as they go, are `pipeline.rl.algorithms`.
"""

from pipeline.training.config import TrainConfig
from pipeline.training.objectives.awr import Awr, Rwr
from pipeline.training.objectives.base import Batch, LabelObjective, Objective, Terms, Unit
from pipeline.training.objectives.dpo import Dpo
from pipeline.training.objectives.grpo import Grpo
from pipeline.training.objectives.ipo import Ipo
from pipeline.training.objectives.reinforce import Reinforce
from pipeline.training.objectives.sft import Sft
from pipeline.training.objectives.simpo import Simpo

OBJECTIVES: dict[str, type[LabelObjective]] = {
    made.name: made for made in (Dpo, Ipo, Simpo, Awr, Rwr, Grpo, Reinforce, Sft)
}

__all__ = ["OBJECTIVES", "Batch", "LabelObjective", "Objective", "Terms", "Unit", "objective_of"]


def objective_of(config: TrainConfig) -> LabelObjective:
    """The objective that a run is told, under its settings."""
    return OBJECTIVES[config.train.objective].of(config)
