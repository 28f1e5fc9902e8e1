"""How far a ratio may carry a policy gradient, of tokens or whole responses.

    clipped     -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)       (Schulman et al. 2017, arXiv 1707.06347, eq. 7)
    truncated   -min(ratio, most) * A * log pi, the ratio without a gradient
                                       (Espeholt et al. 2018, arXiv 1802.01561, section 4.2; MiniMax 2025, arXiv 2506.13585)

Where the ratio has already moved beyond the clip in the direction that A asks for, the first is constant and its gradient 0;
the second still learns from such a token, as much as from one at the limit.
"""

import torch

from pipeline.training.objectives.base import Batch, Terms


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


def truncated(batch: Batch, most: float) -> Terms:
    """The losses, [P], and as metrics `ratio`, truncated, and `ratio_clipped`, the share of tokens where it was."""
    assert batch.advantages is not None
    ratios = batch.ratios.detach()
    clamped = ratios.clamp(max=most)
    metrics = {"ratio": clamped, "ratio_clipped": (ratios > most).double()}
    return Terms(-clamped * batch.advantages * batch.logprobs, metrics)
