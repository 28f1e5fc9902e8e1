"""The clipped surrogate of policy gradients (Schulman et al. 2017, arXiv 1707.06347, eq. 7), of tokens or whole responses.

    loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)

Where the ratio has already moved beyond the clip in the direction that A asks for, the loss is constant and its gradient 0.
"""

import torch

from pipeline.training.objectives.base import Terms


def clipped(ratios: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> Terms:
    """The losses, and as metrics `clip_ratio/low_mean`, `/high_mean` and `/region_mean`: where the clip took the gradient.

    Args:
        ratios: pi / pi_behaviour, of any shape, with a gradient.
        advantages: of the same shape.
    """
    losses = -torch.minimum(ratios * advantages, ratios.clamp(1 - low, 1 + high) * advantages)
    below = (ratios < 1 - low) & (advantages < 0)
    above = (ratios > 1 + high) & (advantages > 0)
    where = {"low": below, "high": above, "region": below | above}
    return Terms(losses, {f"clip_ratio/{side}_mean": clips.double() for side, clips in where.items()})
