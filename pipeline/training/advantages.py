"""How the stored rewards of one prompt's responses become advantages, one for each token.

    credit = response    R_h = the response's stored reward, at every token
    credit = tokens      R_h = sum_{k>=h} gamma^(k-h) r_k, its discounted rewards to go (G_h)

    A_h = (R_h - baseline_h) / scale

For the endogenous reward, gamma being the one the labels were made with, G_h - V(s_h) = alpha * sum_{k>=h} gamma^(k-h)
log pi(a_k|s_k): with credit = tokens and baseline = value, the level of the logits, which next-token training leaves open,
is gone. With any other baseline, or another gamma, V(s_h) stays in the advantages of credit = tokens. Of a response that was
cut off r_H has gamma * V(s_{H+1}) in it (`pipeline.rewards.endogenous`): its G_h is bootstrapped, and the equation
holds for it too.

Baselines, over the prompt's n responses:

- group: the mean of R_h. A response that has ended has 0 to go, so with credit = tokens the baseline at token h is what is
  still to come on average at that point of time: known from h and the prompt, and right for long responses too.
- leave-one-out: the same without the response itself (RLOO, arXiv 2402.14740), which leaves the gradient unbiased; group
  is (n - 1)/n of it.
- value: the stored V(s_h). With credit = response it suits a V that forecasts the final reward. The endogenous V(s_h) is of
  what is still to come, so only the first token's advantage is centred; later ones are credited with what lies behind too.
- none.

scale = group divides by the standard deviation of R_1 over the responses (n - 1 in the denominator) plus 1e-4, as TRL's
GRPOTrainer (arXiv 2402.03300, section 4.1.2); where all R_1 are equal, every advantage is 0, and so it is where only a KL
tells them apart, which the division would blow up to the size of rewards. NumPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError
from pipeline.training.config import AdvantageConfig, TrainConfig

Array = NDArray[np.float64]
EPSILON = 1e-4  # TRL's, in rewards' units


@dataclass(frozen=True)
class Siblings:
    """What a store holds of the responses to one prompt under one rubric.

    Args:
        rewards: [n].
        before: [n], the rewards before a KL was taken off; None where none was.
        lengths: tokens of each, [n].
        token_rewards, token_values: n arrays [H_i]; empty arrays, or none at all, where rewards are of whole responses.
        after: V(s_{H+1}) of each, [n]: of one that was cut off what it was still to earn, where its rewards do not say it
            themselves, else 0; None: 0 of all.
    """

    rewards: ArrayLike
    lengths: Sequence[int]
    token_rewards: Sequence[ArrayLike] = field(default=())
    token_values: Sequence[ArrayLike] = field(default=())
    before: ArrayLike | None = None
    after: ArrayLike | None = None

    @property
    def earned(self) -> Array:
        """The rewards before any KL, [n]."""
        return np.asarray(self.rewards if self.before is None else self.before, np.float64)


def advantages(config: TrainConfig, siblings: Siblings, gamma: float) -> list[Array]:
    """What `Batch.advantages` is to be for the responses to one prompt, under the run's objective: n arrays [H_i].

    For rwr these are weights, n * softmax(R_1 / scale / awr.temperature) at every token: they add up to n over the
    responses, and baselines, like V(s_1) in sums of rewards, would cancel.

    Args:
        gamma: the discount of credit = tokens.

    Raises:
        ConfigError: where the settings ask for tokens' rewards or values and there are none, or for a comparison of a
            single response.
    """
    section = config.advantage
    if config.train.objective != "rwr":
        return compared(section, siblings, gamma)
    first = _returns(section, siblings, gamma)[:, 0]
    weights = len(first) * _softmax(first / _scale(section, first, siblings) / config.awr.temperature)
    return [np.full(length, weight) for weight, length in zip(weights, siblings.lengths, strict=True)]


def compared(section: AdvantageConfig, siblings: Siblings, gamma: float) -> list[Array]:
    """A_h of the responses to one prompt, by the equation above: n arrays [H_i]. Raises ConfigError as `advantages`."""
    returns = _returns(section, siblings, gamma)
    values = (returns - _baseline(section, siblings, returns)) / _scale(section, returns[:, 0], siblings)
    return cut(values, siblings.lengths)


def padded(columns: Sequence[ArrayLike], lengths: Sequence[int]) -> Array:
    """n arrays [H_i] as [n, longest], 0 after the end of each."""
    table = np.zeros((len(lengths), max(lengths)))
    for row, column, length in zip(table, columns, lengths, strict=True):
        row[:length] = column
    return table


def cut(rows: Array, lengths: Sequence[int]) -> list[Array]:
    """`padded` undone: [n, longest] -> n arrays [H_i]."""
    return [row[:length].copy() for row, length in zip(rows, lengths, strict=True)]


def to_go(rewards: Array, gamma: float) -> Array:
    """sum_{k>=h} gamma^(k-h) r_k: [n, longest] -> the same."""
    sums = rewards.copy()
    for h in range(rewards.shape[1] - 2, -1, -1):
        sums[:, h] += gamma * sums[:, h + 1]
    return sums


def _returns(section: AdvantageConfig, siblings: Siblings, gamma: float) -> Array:
    """R_h, [n, longest]; after the end of a response 0, or with credit = response its reward."""
    if section.credit == "response":
        return np.repeat(np.asarray(siblings.rewards, np.float64)[:, None], max(siblings.lengths), axis=1)
    return to_go(_column(siblings.token_rewards, siblings, "advantage.credit = tokens", "token_rewards"), gamma)


def _baseline(section: AdvantageConfig, siblings: Siblings, returns: Array) -> Array | float:
    if section.baseline == "none":
        return 0.0
    if section.baseline == "value":
        return _column(siblings.token_values, siblings, "advantage.baseline = value", "token_values")
    _several(returns, f"advantage.baseline = {section.baseline}")
    if section.baseline == "group":
        mean: Array = returns.mean(axis=0)
        return mean
    others: Array = (returns.sum(axis=0) - returns) / (len(returns) - 1)
    return others


def _scale(section: AdvantageConfig, first: Array, siblings: Siblings) -> float:
    """What is divided by; infinite where the responses are all worth the same. `first`: R_1, [n]."""
    if section.scale == "none":
        return 1.0
    _several(first, "advantage.scale = group")
    nothing = np.ptp(first) == 0 or (siblings.before is not None and alike(siblings.earned))
    return float("inf") if nothing else float(first.std(ddof=1)) + EPSILON


def alike(earned: Array) -> bool:
    """Whether rewards are all the same: nothing to compare."""
    return bool(np.isclose(np.std(earned), 0))


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max())
    weights: Array = raised / raised.sum()
    return weights


def _several(rows: Array, setting: str) -> None:
    if len(rows) < 2:
        raise ConfigError(
            f"{setting} compares the responses to a prompt, and a prompt has only one: label several responses to each, or "
            "set advantage.baseline = none (or value) and advantage.scale = none"
        )


def _column(columns: Sequence[ArrayLike], siblings: Siblings, setting: str, name: str) -> Array:
    """`padded`. Raises ConfigError where a response lacks the column."""
    if [np.size(column) for column in columns] != list(siblings.lengths):
        raise ConfigError(
            f"{setting} needs {name} of every token, and these labels have rewards of whole responses: use labels of the "
            "endogenous reward, or set advantage.credit = response and advantage.baseline = group"
        )
    return padded(columns, siblings.lengths)
