"""The endogenous reward (Li et al. 2025, arXiv 2506.23235) as pure functions on token arrays.

A causal LM's logits are a soft Q-function. For one response of H tokens, with s_1 the prompt and s_{h+1} = s_h + a_h:

    Q(s,a)  the logit of a after s
    V(s)    = alpha * logsumexp_a(Q(s,a) / alpha)
    r_h     = Q(s_h,a_h) - gamma * V(s_{h+1})          (eq. 11), with V(s_{H+1}) = 0
            = alpha*log pi(a_h|s_h) + V(s_h) - gamma*V(s_{h+1})      (eq. 12)

V(s_{H+1}) = 0 is the truth after an end. Of a response that was cut off, r_H so holds its own reward and the value of what it
leaves open: Q(s_H,a_H) = [Q(s_H,a_H) - gamma * V(s_{H+1})] + gamma * V(s_{H+1}). Its rewards to go are bootstrapped (Pardo et
al. 2018, arXiv 1712.00378) and telescope as any others, to V(s_h) + alpha * sum_k gamma^(k-h) log pi, whatever V(s_{H+1}) is.
Without the bootstrap they would hold -V(s_{H+1}), whose level next-token training leaves open.

Arrays are `q`, `values` and `rewards`, each of shape [H], of the taken actions and the states they were taken in; or of
several responses behind one another, with their `lengths`. All is computed in float64. The logits themselves never come here:
see `pipeline.models.scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.rewards.aggregations import AGGREGATIONS, Certainty, Tokens

if TYPE_CHECKING:
    from pipeline.config import RewardConfig

Array = NDArray[np.float64]
Lengths = Sequence[int] | None  # of responses; None of one


def soft_value(q_all: ArrayLike, alpha: float = 1.0) -> Array:
    """V(s) = alpha * logsumexp(Q(s,.)/alpha) over the last axis: [..., vocabulary] -> [...].

    >>> soft_value([[0.0, 0.0]]).round(3).tolist()
    [0.693]
    """
    scaled = np.asarray(q_all, np.float64) / alpha
    top = scaled.max(axis=-1)
    values: Array = alpha * (top + np.log(np.exp(scaled - top[..., None]).sum(axis=-1)))
    return values


def token_rewards(q: ArrayLike, values: ArrayLike, gamma: float = 1.0, lengths: Lengths = None) -> Array:
    """r_h = Q(s_h,a_h) - gamma * V(s_{h+1}), eq. 11: [H], [H] -> [H]."""
    return np.asarray(q, np.float64) - gamma * _next(values, lengths)


def action_values(rewards: ArrayLike, values: ArrayLike, gamma: float = 1.0, lengths: Lengths = None) -> Array:
    """Q(s_h,a_h) back from stored rewards and values: the inverse of `token_rewards`."""
    return np.asarray(rewards, np.float64) + gamma * _next(values, lengths)


def stored_action_values(
    logprobs: ArrayLike, values: ArrayLike, rewards: ArrayLike, alpha: float, gamma: float, lengths: Lengths = None
) -> Array:
    """Q(s_h,a_h) from the three stored columns of a response, [H] each; `gamma` is that of `rewards`.

    At alpha = 1 it is log pi + V, whatever gamma the store was made with: so another gamma or aggregation gives, to the
    last bit, what labelling anew gives. At another alpha, log pi at temperature 1 does not help, and Q comes back from
    `rewards` but for the rounding of float32.
    """
    if alpha == 1:
        return np.asarray(logprobs, np.float64) + np.asarray(values, np.float64)
    return action_values(rewards, values, gamma, lengths)


def reward_columns(
    q: ArrayLike, values: ArrayLike, config: RewardConfig, certainty: Certainty | None = None
) -> tuple[NDArray[np.float32], float]:
    """What a store holds of a response under `config`, from its Q and stored values, [H] each.

    Returns:
        token_rewards [H], rounded to float32, and the aggregate of these rounded rewards.
    """
    rewards = token_rewards(q, values, config.gamma).astype(np.float32)
    return rewards, aggregate(rewards, values, config, certainty)


def _next(values: ArrayLike, lengths: Lengths) -> Array:
    """V of the state behind each token; 0 behind the last of each response."""
    following = np.zeros(np.shape(values))
    following[:-1] = np.asarray(values)[1:]
    if lengths is not None:
        following[np.cumsum(lengths) - 1] = 0.0
    return following


def aggregate(rewards: ArrayLike, values: ArrayLike, config: RewardConfig, certainty: Certainty | None = None) -> float:
    """One number for a response, from its token rewards and values at `config.alpha` and `config.gamma`, as
    `pipeline.rewards.aggregations` has it.

    Args:
        rewards, values: shape [H], H >= 1.
        certainty: [H] each, which self_certainty and negative_entropy need.

    Returns:
        The reward in nats times alpha. `subtract_initial_value` takes V(s_1) off the sums.
    """
    [total] = aggregates(rewards, values, config, [len(np.asarray(rewards))], certainty)
    return total


def aggregates(
    rewards: ArrayLike,
    values: ArrayLike,
    config: RewardConfig,
    lengths: Sequence[int],
    certainty: Certainty | None = None,
) -> list[float]:
    """`aggregate` of each response, to the bit, of several behind one another."""
    r, v = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    way = AGGREGATIONS[config.aggregation]
    ends = np.cumsum(lengths)
    positions = np.arange(len(r)) - np.repeat(ends - lengths, lengths)
    terms = way.terms(Tokens(r, action_values(r, v, config.gamma, lengths), v, positions, certainty), config)
    totals = []
    for length, end in zip(lengths, ends.tolist(), strict=True):
        total = float(way.combine.reduce(terms[end - length : end])) / (length if way.by_length else 1)
        totals.append(total - float(v[end - length]) if config.subtract_initial_value else total)
    return totals
