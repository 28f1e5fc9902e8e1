"""A token MDP small enough to enumerate: every prefix of up to H tokens over a vocabulary of A.

The state s_h is the prefix of h - 1 tokens and the action a_h the next token, so s_{h+1} = s_h + a_h for certain. A
function of state and action is a `Table`: one array per step, the h-th of shape [..., A^(h-1), A]. A prefix is numbered
in base A, so that the child of prefix i by token a is i * A + a, and a value of shape [..., A^h] reshaped to
[..., A^(h-1), A] is the value of the state that each action leads to. Leading axes are independent instances. One
prompt; gamma = 1; every response has exactly H tokens.

Whatever runs over sequences is of shape [..., A^H], in the order of their numbers. This costs A^H numbers and is meant to.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.rewards.endogenous import soft_value

Array = NDArray[np.float64]
Table = list[Array]


def random_table(rng: np.random.Generator, instances: int, vocabulary: int, horizon: int, scale: float = 1.0) -> Table:
    """Independent normal entries of standard deviation `scale`."""
    return [scale * rng.normal(size=(instances, vocabulary**h, vocabulary)) for h in range(horizon)]


def plus(first: Table, second: Table, weight: float = 1.0) -> Table:
    """first + weight * second, entry by entry."""
    return [a + weight * b for a, b in zip(first, second, strict=True)]


def log_policy(q: Table, alpha: float) -> Table:
    """log pi(a|s) = (Q(s,a) - V(s)) / alpha."""
    return [(level - soft_value(level, alpha)[..., None]) / alpha for level in q]


def elicit(q: Table, alpha: float) -> Table:
    """The endogenous reward r(s_h,a_h) = Q(s_h,a_h) - V(s_{h+1}) of logits Q, with V(s_{H+1}) = 0 (eq. 11)."""
    following = [soft_value(level, alpha).reshape(before.shape) for before, level in pairwise(q)]
    return [level - value for level, value in zip(q, [*following, np.zeros_like(q[-1])], strict=True)]


def plan(rewards: Table, alpha: float = 0.0) -> Table:
    """Q of the best policy under E[sum r] + alpha * entropy, by dynamic programming; alpha = 0 is plain RL."""
    q = [rewards[-1]]
    for level in reversed(rewards[:-1]):
        value = soft_value(q[0], alpha) if alpha else q[0].max(-1)
        q.insert(0, level + value.reshape(level.shape))
    return q


def plan_with_kl(rewards: Table, log_reference: Table, beta: float) -> Table:
    """log pi of the best policy under E[sum r] - beta * KL(pi || reference).

    The penalty is beta * entropy plus the reward beta * log pi_ref, so this is maximum-entropy RL at temperature beta.
    """
    return log_policy(plan(plus(rewards, log_reference, beta), beta), beta)


def over_sequences(table: Table) -> Array:
    """sum_h table(s_h,a_h) of every sequence: the return of a reward, the log-probability of a log policy."""
    total = table[0][..., 0, :]
    for level in table[1:]:
        total = (total[..., None] + level).reshape(*level.shape[:-2], -1)
    return total


def masses(sequence_probabilities: Array, vocabulary: int, horizon: int) -> Table:
    """P(s_h, a_h), the occupancy of every state and action, from P(sequence): [..., A^H]."""
    lead = sequence_probabilities.shape[:-1]
    return [sequence_probabilities.reshape(*lead, vocabulary**h, vocabulary, -1).sum(-1) for h in range(horizon)]


def expected_return(log_pi: Table, rewards: Table) -> Array:
    """V^pi(s_1) = E_pi[sum_h r_h], by dynamic programming: [...]."""
    value = np.zeros_like(rewards[-1])
    for log_p, level in zip(reversed(log_pi), reversed(rewards), strict=True):
        value = (np.exp(log_p) * (level + value.reshape(level.shape))).sum(-1)
    return value[..., 0]


def best_sequence(q: Table) -> NDArray[np.int64]:
    """The number of the sequence that takes the best action of Q at every step: [...]."""
    prefix = np.zeros(q[0].shape[:-2], np.int64)
    for level in q:
        actions = np.take_along_axis(level, prefix[..., None, None], -2)[..., 0, :].argmax(-1)
        prefix = prefix * level.shape[-1] + actions
    return prefix
