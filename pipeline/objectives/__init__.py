"""What a policy is trained to do with stored labels: one objective a file, each a loss for every pair, response or token.

    dpo, ipo, simpo     pairs
    awr, rwr            maximum likelihood, weighted by advantage or reward
    grpo, reinforce     policy gradients, off-policy against the stored log-probabilities
    sft                 maximum likelihood of selected responses

An objective sees log-probabilities only: no model, no optimiser, no other worker. Those that learn from samples of their
own, made as they go, are `pipeline.rl.algorithms`.
"""

from pipeline.objectives.awr import Awr, Rwr
from pipeline.objectives.base import Batch, LabelObjective, Objective, Terms, Unit
from pipeline.objectives.dpo import Dpo
from pipeline.objectives.grpo import Grpo
from pipeline.objectives.ipo import Ipo
from pipeline.objectives.reinforce import Reinforce
from pipeline.objectives.sft import Sft
from pipeline.objectives.simpo import Simpo
from pipeline.training.config import TrainConfig

OBJECTIVES: dict[str, type[LabelObjective]] = {
    made.name: made for made in (Dpo, Ipo, Simpo, Awr, Rwr, Grpo, Reinforce, Sft)
}

__all__ = ["OBJECTIVES", "Batch", "LabelObjective", "Objective", "Terms", "Unit", "objective_of"]


def objective_of(config: TrainConfig) -> LabelObjective:
    """The objective that a run is told, under its settings."""
    return OBJECTIVES[config.train.objective].of(config)
