"""What follows from a store's labels without a model: their rewards under another configuration.

The stored tokens give Q back (`reward.stored_action_values`), and Q and V give every reward of the same alpha. Two ways:

relabel      one response at a time, by the functions that label: at alpha = 1, the very bits of labelling anew
TokenArrays  all tokens of a part in flat arrays, many configurations fast: the same but for the order of summation

Left out: another alpha, which needs the logsumexp of all logits and so the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import CERTAINTY, DISCOUNTED, SUMS, RewardConfig
from pipeline.errors import ConfigError
from pipeline.rewards.aggregations import AGGREGATIONS, Certainty, Tokens
from pipeline.rewards.endogenous import reward_columns, stored_action_values
from pipeline.store.schema import Label, read_messages
from pipeline.store.summary import Moments, Tally, find_pairs

Array = NDArray[np.float64]

TOKEN_COLUMNS = ["token_logprobs", "token_values", "token_rewards"]
CERTAINTY_COLUMNS = [f"token_{name}" for name in Certainty._fields]  # of stores with reward.token_certainty
SWEEP_COLUMNS = [*TOKEN_COLUMNS, "reward", "prompt_id", "rubric", "preference", "response_index", "turn", "extra_info"]
GAMMA = 0.95  # of the discounted sum that is shown beside a reward without discount
SAME = 0.01  # relative, and in nats: rewards of one kind agree far closer, those of two kinds do not
DIFFERING = "the token columns of a label differ in length: the store is damaged; see endoreward validate"
NO_TOKENS = "this store holds no token rewards that another reward could be made of: its rewards are not endogenous"


# Rewards


def stored_reward(description: Mapping[str, Any]) -> RewardConfig:
    """The reward that a store was made with, of the description that its fingerprint stands for. Raises ConfigError."""
    if "reward.alpha" not in description:
        raise ConfigError(NO_TOKENS)
    names = (name for name in RewardConfig.model_fields if f"reward.{name}" in description)
    return RewardConfig(**{name: description[f"reward.{name}"] for name in names})


def aggregations(alpha: float, gamma: float = GAMMA, certainty: bool = False) -> list[RewardConfig]:
    """The aggregations as they are shown beside each other, with a discount where that is what they are about; none that
    repeats another. `certainty`: whether the tokens have the columns that `reward.token_certainty` stores."""
    shared = {"alpha": alpha, "token_certainty": certainty}
    return [
        RewardConfig.model_validate({**shared, "aggregation": name, **({"gamma": gamma} if way.discounts else {})})
        for name, way in AGGREGATIONS.items()
        if not way.repeats and (certainty or not way.certainty)
    ]


def rewards_of(labels: pa.Table, stored: RewardConfig, wanted: RewardConfig) -> Array:
    """The reward of every label under `wanted`, [n]. See `TokenArrays.rewards`, which is for several of them."""
    return TokenArrays.of(labels, stored).rewards(wanted)


@dataclass(frozen=True)
class TokenArrays:
    """The tokens of n responses one after another, T in all, in float64."""

    q: Array  # [T]
    values: Array  # [T]
    starts: NDArray[np.int64]  # [n], where each response begins
    lengths: NDArray[np.int64]  # [n], at least 1
    alpha: float
    certainty: Certainty | None = None  # [T] each

    @classmethod
    def of(cls, labels: pa.Table, stored: RewardConfig) -> Self:
        """Of a labels table, which needs TOKEN_COLUMNS, and for some rewards all of `token_columns(stored)`. `stored` is what
        its `token_rewards` were made with.

        Raises ConfigError where a response has no tokens.
        """
        known = stored.token_certainty and set(CERTAINTY_COLUMNS) <= set(labels.column_names)
        columns = _token_columns(labels, token_columns(stored) if known else TOKEN_COLUMNS)
        (logprobs, lengths), (values, _), (rewards, _), *optional = columns
        certainty = Certainty(*(flat for flat, _ in optional)) if known else None
        starts = np.cumsum(lengths) - lengths
        if stored.alpha == 1:
            q = logprobs.astype(np.float64) + values
        else:
            q = rewards + stored.gamma * _next(values.astype(np.float64), starts)
        return cls(q, values.astype(np.float64), starts, lengths, stored.alpha, certainty)

    def token_rewards(self, wanted: RewardConfig) -> Array:
        """r of every token, [T], rounded to float32 as the store rounds it. Raises ConfigError for another alpha."""
        _same_alpha(self.alpha, wanted)
        following = wanted.gamma * _next(self.values, self.starts)
        return (self.q - following).astype(np.float32).astype(np.float64)

    def rewards(self, wanted: RewardConfig) -> Array:
        """The aggregated reward of every response, [n]: `reward.reward_columns`, all responses at once.

        Raises ConfigError for another alpha.
        """
        _same_alpha(self.alpha, wanted)
        if not len(self.starts):
            return np.zeros(0)
        r = self.token_rewards(wanted)
        following = wanted.gamma * _next(self.values, self.starts)
        positions = np.arange(len(r)) - np.repeat(self.starts, self.lengths)
        way = AGGREGATIONS[wanted.aggregation]
        terms = way.terms(Tokens(r, r + following, self.values, positions, self.certainty), wanted)
        total: Array = way.combine.reduceat(terms, self.starts) / (self.lengths if way.by_length else 1)
        return total - self.values[self.starts] if wanted.subtract_initial_value else total


def relabel(labels: pa.Table, stored: RewardConfig, wanted: RewardConfig) -> list[Label]:
    """The labels as `labelling.label` would have made them under `wanted`; to the last bit where alpha = 1.

    At another alpha, Q comes back from the stored token rewards but for their rounding to float32; with the gamma that
    the store has, the bits are the same there too.

    Args:
        labels: whole rows of a store that was made with `stored`.

    Raises:
        ConfigError: for another alpha, or where the rewards are not those of the tokens.
    """
    _same_alpha(stored.alpha, wanted)
    _checked_tokens(labels, stored)
    names = token_columns(stored)
    columns = _token_columns(labels, names)
    if not labels.num_rows:
        return []
    cuts = np.cumsum(columns[0][1])[:-1]
    tokens = zip(*(np.split(flat, cuts) for flat, _ in columns), strict=True)
    rows = labels.drop_columns([*names, "reward"]).to_pylist()
    relabelled = []
    for row, (logprobs, values, rewards, *optional) in zip(rows, tokens, strict=True):
        row["prompt"] = read_messages(row["prompt"])
        row |= zip(CERTAINTY_COLUMNS, optional, strict=False)
        q = stored_action_values(logprobs, values, rewards, stored.alpha, stored.gamma)
        anew, total = reward_columns(q, values, wanted, Certainty(*optional) if optional else None)
        relabelled.append(Label(**row, reward=total, token_logprobs=logprobs, token_values=values, token_rewards=anew))
    return relabelled


def token_columns(stored: RewardConfig) -> list[str]:
    """The token columns of a store that was made with `stored`."""
    return [*TOKEN_COLUMNS, *(CERTAINTY_COLUMNS if stored.token_certainty else [])]


def _checked_tokens(labels: pa.Table, stored: RewardConfig) -> TokenArrays:
    """The tokens of a labels table. Raises ConfigError where its rewards do not follow from them under `stored`."""
    tokens = TokenArrays.of(labels, stored)
    if not np.allclose(tokens.rewards(stored), labels["reward"].to_numpy(), rtol=SAME, atol=SAME):
        raise ConfigError(NO_TOKENS)
    return tokens


def _same_alpha(alpha: float, wanted: RewardConfig) -> None:
    if wanted.alpha != alpha:
        raise ConfigError(
            f"reward.alpha = {wanted.alpha:g} is not the store's, {alpha:g}: another alpha needs the model; label anew"
        )


def flat_column(labels: pa.Table, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A column of TOKEN_COLUMNS: the values of all rows one after another, [T], and the number of each row, [n].

    Raises ConfigError where a row has none.
    """
    column = labels[name].combine_chunks()
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    if column.null_count or (lengths == 0).any():
        raise ConfigError(NO_TOKENS)
    return column.flatten().to_numpy(zero_copy_only=False), lengths


def _token_columns(labels: pa.Table, names: Sequence[str]) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """These columns, flat."""
    if not set(names) <= set(labels.column_names):
        raise ConfigError(NO_TOKENS)
    columns = [flat_column(labels, name) for name in names]
    if any((lengths != columns[0][1]).any() for _, lengths in columns):
        raise ConfigError(DIFFERING)
    return columns


def _next(values: Array, starts: NDArray[np.int64]) -> Array:
    """V(s_{h+1}) of every token, 0 after the last of each response."""
    following = np.append(values[1:], 0.0)
    following[starts[1:] - 1] = 0.0
    return following


# Outcomes


def reward_grid(stored: RewardConfig, gammas: Sequence[float], floor: float | None = None) -> list[RewardConfig]:
    """Every aggregation at every gamma, `stored` among them; once those that do not depend on gamma. Those of the optional
    columns only where the store has them, those of discounted log pi only where a floor sets them apart.

    The sums keep the store's `subtract_initial_value`; all that are discounted have the floor `floor`, by default the store's.
    """
    least = stored.min_weight if floor is None else floor
    without = {"subtract_initial_value": False, "min_weight": 0.0}
    falling = sorted({*gammas, stored.gamma} if stored.depends_on_gamma else set(gammas), reverse=True)
    others = [
        stored.model_copy(update={"aggregation": name, **without})
        for name in AGGREGATIONS
        if name not in (*SUMS, *DISCOUNTED) and (stored.token_certainty or name not in CERTAINTY)
    ]
    grid = others + [
        stored.model_copy(
            update={
                "aggregation": name,
                "gamma": gamma,
                "min_weight": least if way.discounts else 0.0,
                "subtract_initial_value": stored.subtract_initial_value and name in SUMS,
            }
        )
        for name, way in AGGREGATIONS.items()
        if name in (*SUMS, *DISCOUNTED) and (not way.repeats or least or stored.aggregation == name)
        for gamma in falling
    ]
    return grid if stored in grid else [stored, *grid]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How labels come out under one reward; `a + b` is of both sets, as pairs never cross a shard."""

    labels: Moments = field(default_factory=Moments)  # of (reward, num_tokens)
    margin: Moments = field(default_factory=Moments)  # of chosen less rejected of both
    pairs: Tally = field(default_factory=Tally)

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.labels + other.labels, self.margin + other.margin, self.pairs + other.pairs)


def outcomes(labels: pa.Table, stored: RewardConfig, wanted: list[RewardConfig]) -> list[Outcome]:
    """How the labels of one part come out under each of `wanted`. Needs SWEEP_COLUMNS and `token_columns(stored)`."""
    tokens = _checked_tokens(labels, stored)
    lengths = tokens.lengths
    chosen, rejected = find_pairs(labels).T
    of_each = []
    for config in wanted:
        rewards = tokens.rewards(config)
        margins = rewards[chosen] - rewards[rejected]
        longer = lengths[chosen] - lengths[rejected]
        of_each.append(Outcome(Moments.of(rewards, lengths), Moments.of(margins, longer), Tally.of(margins)))
    return of_each
