"""Advantages of one prompt's responses against loops over the equations, and the reward's closed form."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.rewards.endogenous import soft_value, token_rewards
from pipeline.training.advantages import Siblings, advantages
from pipeline.training.config import TrainConfig


def config(objective: str = "grpo", temperature: float = 1.0, **told) -> TrainConfig:
    sections = {"train": {"objective": objective}, "advantage": told, "awr": {"temperature": temperature}}
    return TrainConfig.model_validate(sections)


def siblings(seed: int = 0, n: int = 4) -> Siblings:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, n).tolist()
    rewards, values = ([rng.normal(size=h) for h in lengths] for _ in range(2))
    return Siblings(rng.normal(scale=3, size=n), lengths, rewards, values)


def to_go(rewards: np.ndarray, gamma: float) -> list[float]:
    return [sum(gamma ** (k - h) * rewards[k] for k in range(h, len(rewards))) for h in range(len(rewards))]


def compare(found: list[np.ndarray], wanted: list) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("baseline", ["group", "leave-one-out", "value", "none"])
def test_of_responses(baseline: str, scale: str, seed: int) -> None:
    given = siblings(seed)
    rewards = [float(r) for r in given.rewards]
    mean = sum(rewards) / 4
    divisor = 1.0 if scale == "none" else (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5 + 1e-4
    wanted = []
    for i, length in enumerate(given.lengths):
        others = sum(rewards[j] for j in range(4) if j != i) / 3
        off = {"group": mean, "leave-one-out": others, "value": given.token_values[i], "none": 0.0}[baseline]
        wanted.append((rewards[i] - np.broadcast_to(off, length)) / divisor)
    compare(advantages(config(baseline=baseline, scale=scale), given, 0.7), wanted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [1.0, 0.8, 0.0])
@pytest.mark.parametrize("baseline", ["group", "leave-one-out", "value", "none"])
def test_of_tokens(baseline: str, gamma: float, seed: int) -> None:
    given = siblings(seed)
    returns = [to_go(np.asarray(r), gamma) for r in given.token_rewards]
    divisor = np.std([row[0] for row in returns], ddof=1) + 1e-4

    def off(i: int, h: int) -> float:
        if baseline in ("none", "value"):
            return 0.0 if baseline == "none" else given.token_values[i][h]
        compared = [j for j in range(4) if baseline == "group" or j != i]
        return sum(returns[j][h] if h < len(returns[j]) else 0.0 for j in compared) / len(compared)

    wanted = [[(row[h] - off(i, h)) / divisor for h in range(len(row))] for i, row in enumerate(returns)]
    compare(advantages(config(credit="tokens", baseline=baseline), given, gamma), wanted)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_against_the_values_the_endogenous_reward_leaves_log_probabilities(gamma: float) -> None:
    rng = np.random.default_rng(5)
    alpha = 0.7
    rewards, values, wanted = [], [], []
    for length in (3, 8):
        logits = rng.normal(size=(length, 11)) * 4
        q, v = logits[:, 2], soft_value(logits, alpha)
        rewards.append(token_rewards(q, v, gamma))
        values.append(v)
        wanted.append([alpha * x for x in to_go((q - v) / alpha, gamma)])
    given = Siblings([0.0, 0.0], [3, 8], rewards, values)
    compare(advantages(config(credit="tokens", baseline="value", scale="none"), given, gamma), wanted)


def test_rewards_to_go_of_one_response() -> None:
    given = Siblings([0.0], [3], [[1.0, 2.0, 4.0]])
    compare(advantages(config(credit="tokens", baseline="none", scale="none"), given, 0.5), [[3.0, 4.0, 4.0]])


def test_leave_one_out_is_the_group_stretched() -> None:
    given = siblings(7)
    group, out = (advantages(config(baseline=b, scale="none"), given, 1.0) for b in ("group", "leave-one-out"))
    compare(out, [row * 4 / 3 for row in group])


@pytest.mark.parametrize("baseline", ["group", "leave-one-out", "value", "none"])
def test_a_group_that_is_all_alike_says_nothing(baseline: str) -> None:
    given = Siblings([0.1] * 3, [1, 2, 3], [], [np.ones(h) for h in (1, 2, 3)])
    compare(advantages(config(baseline=baseline), given, 1.0), [np.zeros(h) for h in (1, 2, 3)])


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("credit", ["response", "tokens"])
def test_weights_of_rwr(credit: str, scale: str) -> None:
    given = siblings(1)
    returns = given.rewards if credit == "response" else [to_go(np.asarray(r), 0.9)[0] for r in given.token_rewards]
    divisor = 1.0 if scale == "none" else np.std(returns, ddof=1) + 1e-4
    raised = [np.exp(r / divisor / 0.5) for r in returns]
    wanted = [[4 * w / sum(raised)] * length for w, length in zip(raised, given.lengths, strict=True)]
    found = advantages(config("rwr", 0.5, credit=credit, scale=scale), given, 0.9)
    compare(found, wanted)
    assert sum(row[0] for row in found) == pytest.approx(4)


def test_weights_of_rwr_do_not_see_the_level_of_rewards() -> None:
    given = siblings(2)
    lifted = Siblings(np.asarray(given.rewards) + 1000, given.lengths)
    for scale in ("group", "none"):
        low, high = (advantages(config("rwr", scale=scale), each, 1.0) for each in (given, lifted))
        for one, other in zip(low, high, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)
    compare(advantages(config("rwr"), Siblings([5.0, 5.0], [1, 2]), 1.0), [[1.0], [1.0, 1.0]])


def test_weights_of_rwr_are_those_of_awr_normalised() -> None:
    given = siblings(3)
    free = np.array([np.exp(row[0] / 0.5) for row in advantages(config("awr"), given, 1.0)])
    found = np.array([row[0] for row in advantages(config("rwr", 0.5), given, 1.0)])
    np.testing.assert_allclose(found, 4 * free / free.sum())


@pytest.mark.parametrize(
    ("told", "given", "said"),
    [
        ({"credit": "tokens"}, Siblings([1.0, 2.0], [2, 2], [[], []], [[], []]), "credit = tokens needs token_rewards"),
        ({"credit": "tokens"}, Siblings([1.0, 2.0], [2, 2]), "credit = tokens needs token_rewards"),
        (
            {"baseline": "value"},
            Siblings([1.0, 2.0], [2, 2], [[], []], [[], []]),
            "baseline = value needs token_values",
        ),
        ({"baseline": "group"}, Siblings([1.0], [2]), "baseline = group compares"),
        ({"baseline": "leave-one-out"}, Siblings([1.0], [2]), "baseline = leave-one-out compares"),
        ({"baseline": "none"}, Siblings([1.0], [2]), "scale = group compares"),
    ],
)
def test_what_labels_cannot_give_is_refused(told: dict, given: Siblings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        advantages(config(**told), given, 1.0)
