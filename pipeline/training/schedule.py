"""The learning rate of every step: a function of the step's number, so that a resume needs no state."""

import math

from pipeline.training.config import OptimizerSection

RATE_BY_WIDTH = 0.002
"""Adam's rate for a hidden matrix goes as 1 / width (Yang et al. 2022, arXiv 2203.03466, table 3): about 5e-7 at 4,096, and
1.6e-5 at 128."""
LORA_FACTOR = 10  # adapters want about ten times the rate of full training (Biderman et al. 2024, arXiv 2405.09673)


def base_rate(optimizer: OptimizerSection, hidden_size: int, lora: bool) -> float:
    """`learning_rate` as told, or what its default comes to for a policy of this width."""
    if optimizer.learning_rate is not None:
        return optimizer.learning_rate
    return RATE_BY_WIDTH / hidden_size * (LORA_FACTOR if lora else 1)


def learning_rate(optimizer: OptimizerSection, base: float, step: int, steps: int) -> float:
    """The rate of step `step`, counted from 0, of `steps`: rises linearly to `base`, then follows `schedule`.

    The first step's is not 0, and with cosine or linear that behind the last would be.
    """
    warm = math.ceil(optimizer.warmup * steps)
    if step < warm:
        return base * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    if optimizer.schedule == "cosine":
        return base * (1 + math.cos(math.pi * done)) / 2
    return base * (1 - done) if optimizer.schedule == "linear" else base
