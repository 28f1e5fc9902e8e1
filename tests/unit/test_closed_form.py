"""On a token MDP whose sequences are all listed the algorithms end in the optimum that theory gives: one seed, a short run.

`benchmarks/closed_form.py` does it with several seeds and coefficients.
"""

import os
import sys
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "examples", "token_mdp"))

import mdp
import online

from pipeline.rl.config import RlConfig

LOGITS = mdp.random_table(np.random.default_rng(0), 1, 3, 3)
NEAR = 0.02
every_required = pytest.mark.parametrize("name", online.REQUIRED)


def config_of(name: str) -> RlConfig:
    return online.configured(online.REQUIRED[name], 0.8, 0.8)


def apart(config: RlConfig, weight: float = 1.0, away: float = 0.0, responses: int = 512, steps: int = 150) -> float:
    found = online.train(config, LOGITS, 0, responses, steps, 0.1, weight, away)
    return online.total_variation(found, online.optimum(config, LOGITS, weight))


def test_the_optimum_is_that_of_planning() -> None:
    log_pi = mdp.log_policy(LOGITS, 0.8)
    planned = mdp.over_sequences(mdp.plan_with_kl(mdp.elicit(LOGITS, 0.8), log_pi, 0.8))[0]
    np.testing.assert_allclose(online.optimum(config_of("ppo"), LOGITS), np.exp(planned), rtol=1e-12)


def test_there_is_something_to_learn() -> None:
    pi, sharp = (online.optimum(config_of("ppo"), LOGITS, weight) for weight in (0.0, 1.0))
    assert online.total_variation(pi, sharp) > 10 * NEAR


@every_required
def test_with_the_reward_it_ends_in_the_sharpened_policy(name: str) -> None:
    assert apart(config_of(name)) < NEAR


@every_required
def test_without_a_reward_there_is_nothing_to_learn_at_the_base_and_it_comes_back_to_it(name: str) -> None:
    config = config_of(name)
    assert apart(config, weight=0.0, steps=1) < 1e-8
    assert apart(config, weight=0.0, away=1.0) < NEAR


LAG: dict[str, Any] = {"lag": 1}


@pytest.mark.parametrize("correction", [None, "none"])
@every_required
def test_a_step_behind_it_ends_in_the_same_policy(name: str, correction: str | None) -> None:
    told = online.REQUIRED[name]
    config = online.configured({**told, "rl": {**told["rl"], **LAG, "correction": correction}}, 0.8, 0.8)
    assert apart(config) < 0.03


TEACHER = mdp.random_table(np.random.default_rng(1), 1, 3, 3)


@pytest.mark.parametrize("name", online.DISTILLED)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_distillation_ends_at_the_teacher_or_between_it_and_the_reference(name: str, beta: float) -> None:
    config = online.configured(online.DISTILLED[name], 1.0, beta)
    wanted = online.distilled(config, LOGITS, TEACHER)
    teacher = np.exp(mdp.over_sequences(mdp.log_policy(TEACHER, 1.0))[0])
    assert (online.total_variation(wanted, teacher) < 1e-12) == (beta == 0)
    base = online.optimum(config_of("ppo"), LOGITS, weight=0.0)
    assert online.total_variation(base, wanted) > 10 * NEAR
    found = online.train(config, LOGITS, 0, 512, 150, 0.1, teacher=TEACHER)
    assert online.total_variation(found, wanted) < NEAR


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_with_the_kl_in_the_loss_it_ends_elsewhere(kl: str) -> None:
    told = online.REQUIRED["reinforce"]
    config = online.configured({**told, "rl": {**told["rl"], "kl_in": "loss", "kl_estimator": kl}}, 0.8, 0.8)
    assert apart(config) > 0.01
    assert apart(config, weight=0.0, away=1.0) < NEAR  # though where there is no reward it does not matter
