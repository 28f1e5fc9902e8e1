"""What is learnt from was sampled by other weights, or by the same ones computed otherwise: measured, and corrected for.

    w_h = pi_before(a_h|s_h) / pi_sampler(a_h|s_h),      w = the product of a response's w_h

pi_before is the learner's own before a batch's first step, without a gradient. An advantage is multiplied by its weight, and
the ratio that an algorithm clips or truncates is pi / pi_before alone: nothing is counted twice, and while a loss is not
clipped the two multiply to pi / pi_sampler.

    token-truncate      min(w_h, cap)                    (Espeholt et al. 2018, arXiv 1802.01561)
    token-mask          w_h, 0 where it is above cap
    sequence-truncate   min(w, cap) at every token
    sequence-mask       w at every token, 0 where it is above cap

Weights of tokens leave out that other states are met; those of whole responses do not, and vary more the longer these are.
Names, defaults and equations are TRL 1.16's (GRPOTrainer, `vllm_importance_sampling_mode`, `..._clip_max`); its lower limit is
left out. There too the KL and the entropy in a loss are not weighted. NumPy, in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline.rl.rollouts import Array
from pipeline.training.metrics import MetricRow

TAIL = 0.2
"""Nats by which a log-probability differs in the tail: ratios beyond what ppo and grpo clip by default."""
MOST = 20.0  # nats of a response's log-ratio that count, as in TRL: exp of more says nothing further

Columns = Sequence[ArrayLike]  # a response each, [H]


def weights(correction: str, cap: float, before: Columns, sampled: Columns) -> list[Array]:
    """Of every token of each response, [H].

    Args:
        correction: one of the names above.
        before, sampled: log pi_before and log pi_sampler.
    """
    level, limit = correction.split("-")
    found = []
    for differences in _differences(before, sampled):
        logs = differences if level == "token" else np.full_like(differences, differences.sum())
        ratios = np.exp(np.minimum(logs, MOST))
        found.append(np.minimum(ratios, cap) if limit == "truncate" else np.where(ratios > cap, 0.0, ratios))
    return found


def mismatch(before: Columns, sampled: Columns) -> MetricRow:
    """How far the sampler is from the learner, before a batch's first step; of at least one response.

    - `sampling/sampling_logp_difference/mean`, `/max` (TRL's), `/tail`: |log pi_before - log pi_sampler| of a token, nats, and
      the share of tokens where it is above `TAIL`;
    - `sampling/response_ratio/mean`, `/mean_square`: of w and its square, over responses. The first is 1 on average;
    - `sampling/effective_sample_size`: mean^2 / mean of squares (Kong 1992), 1 where all w are alike: the share of the
      responses that a weighted mean is worth.
    """
    differences = _differences(before, sampled)
    apart = np.abs(np.concatenate(differences))
    ratios = np.exp(np.clip([each.sum() for each in differences], -MOST, MOST))
    row = {
        "sampling/sampling_logp_difference/mean": float(apart.mean()),
        "sampling/sampling_logp_difference/max": float(apart.max()),
        "sampling/sampling_logp_difference/tail": float((apart > TAIL).mean()),
        "sampling/response_ratio/mean": float(ratios.mean()),
        "sampling/response_ratio/mean_square": float((ratios**2).mean()),
    }
    return with_sample_size(row)


def corrected(correction: str, cap: float, before: Columns, sampled: Columns) -> MetricRow:
    """What a correction does: `sampling/importance_sampling_ratio/min`, `/mean`, `/max`, its weights (of tokens or responses,
    as TRL has them), and `sampling/capped`, the share of these that are above the cap."""
    first = slice(None) if correction.startswith("token") else slice(1)  # one for the whole response
    used, whole = (
        np.concatenate([each[first] for each in weights(correction, limit, before, sampled)]) for limit in (cap, np.inf)
    )
    ratio = "sampling/importance_sampling_ratio"
    of = {"min": used.min(), "mean": used.mean(), "max": used.max()}
    return {
        **{f"{ratio}/{name}": float(value) for name, value in of.items()},
        "sampling/capped": float((whole > cap).mean()),
    }


def with_sample_size(row: MetricRow) -> MetricRow:
    """The row with `sampling/effective_sample_size`, where it has what that is made of."""
    mean, square = (row.get(f"sampling/response_ratio/{what}") for what in ("mean", "mean_square"))
    return row if mean is None or not square else {**row, "sampling/effective_sample_size": mean**2 / square}


def _differences(before: Columns, sampled: Columns) -> list[Array]:
    return [np.asarray(b, np.float64) - np.asarray(s, np.float64) for b, s in zip(before, sampled, strict=True)]
