"""The reward's closed forms, on logits small enough to enumerate, in float64."""

from typing import get_args

import numpy as np
import pytest

from pipeline.config import RewardConfig
from pipeline.rewards.aggregations import AGGREGATIONS
from pipeline.rewards.endogenous import action_values, aggregate, soft_value, token_rewards


@pytest.fixture
def walk() -> tuple[np.ndarray, np.ndarray]:
    """Logits of H + 1 states over a small vocabulary, and the H actions taken."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(9, 13)) * 5, rng.integers(13, size=8)


def _brute_values(logits: np.ndarray, alpha: float) -> np.ndarray:
    return np.array([alpha * np.log(sum(np.exp(x / alpha) for x in row)) for row in logits])


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_soft_value_is_the_enumerated_sum(walk, alpha) -> None:
    np.testing.assert_allclose(soft_value(walk[0], alpha), _brute_values(walk[0], alpha), rtol=1e-12)


def test_soft_value_survives_large_logits() -> None:
    assert soft_value([[1e4, 1e4 - 1]], 0.01) == pytest.approx(1e4)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_equation_11_is_equation_12(walk, alpha, gamma) -> None:
    logits, actions = walk
    values = _brute_values(logits[:8], alpha)
    q = logits[np.arange(8), actions]
    log_pi = (q - values) / alpha
    following = np.append(values[1:], 0.0)
    rewards = token_rewards(q, values, gamma)
    np.testing.assert_allclose(rewards, q - gamma * following, rtol=1e-12)
    np.testing.assert_allclose(rewards, alpha * log_pi + values - gamma * following, rtol=1e-12)
    np.testing.assert_allclose(action_values(rewards, values, gamma), q, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_the_discounted_return_telescopes(walk, gamma) -> None:
    logits, actions = walk
    alpha = 0.7
    values = soft_value(logits[:8], alpha)
    q = logits[np.arange(8), actions]
    log_pi = (q - values) / alpha
    rewards = token_rewards(q, values, gamma)
    config = RewardConfig(alpha=alpha, gamma=gamma, aggregation="discounted_sum")
    expected = values[0] + alpha * sum(gamma**h * log_pi[h] for h in range(8))
    assert aggregate(rewards, values, config) == pytest.approx(expected, rel=1e-12)
    without = config.model_copy(update={"subtract_initial_value": True})
    assert aggregate(rewards, values, without) == pytest.approx(expected - values[0], rel=1e-12)
    if gamma == 1:
        assert aggregate(rewards, values, RewardConfig(alpha=alpha)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_mean_is_of_log_pi(walk, gamma) -> None:
    logits, actions = walk
    values = soft_value(logits[:8], 0.7)
    q = logits[np.arange(8), actions]
    config = RewardConfig(alpha=0.7, gamma=gamma, aggregation="mean")
    assert aggregate(token_rewards(q, values, gamma), values, config) == pytest.approx(np.mean(q - values), rel=1e-12)


@pytest.mark.parametrize("aggregation", ["mean", "discounted_sum"])
def test_the_level_of_the_logits_cancels_between_responses_to_one_prompt(aggregation) -> None:
    """Adding c(s) to f(s,.) leaves pi alone, so it may move a reward by c(s_1) at most, which siblings share."""
    rng = np.random.default_rng(0)
    gamma = 0.9
    config = RewardConfig(gamma=gamma, aggregation=aggregation)
    prompt = rng.normal(size=(1, 7))
    margins = []
    for level in (0.0, 10.0):
        shifts = np.random.default_rng(5)
        first_shift = level * shifts.normal()
        rewards = []
        for length in (3, 8):
            rest = np.random.default_rng(length).normal(size=(length - 1, 7))
            logits = np.concatenate([prompt + first_shift, rest + level * shifts.normal(size=(length - 1, 1))])
            values, q = soft_value(logits), logits[:, 2]
            rewards.append(aggregate(token_rewards(q, values, gamma), values, config))
        margins.append(rewards[0] - rewards[1])
    assert margins[0] == pytest.approx(margins[1], abs=1e-9)


def test_a_floor_on_the_weights() -> None:
    config = RewardConfig(gamma=0.5, aggregation="discounted_sum", min_weight=0.25)
    assert aggregate([1.0, 1.0, 1.0, 1.0], [0.0] * 4, config) == 1 + 0.5 + 0.25 + 0.25
    assert "telescop" in config.warnings()[0]


def test_an_undiscounted_sum_of_discounted_rewards_warns() -> None:
    assert "discounted_sum" in RewardConfig(gamma=0.9).warnings()[0]
    assert RewardConfig().warnings() == RewardConfig(gamma=0.9, aggregation="discounted_sum").warnings() == []


def test_every_aggregation_has_an_entry_that_one_response_and_a_store_share() -> None:
    assert get_args(RewardConfig.model_fields["aggregation"].annotation) == (*AGGREGATIONS,)
