"""The configuration of online runs: what is refused, and with which sentence."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config_as
from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig

ROOT = Path(__file__).parents[2]


def load(*assignments: str) -> RlConfig:
    return load_config_as(RlConfig, None, [], list(assignments))


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rl.algorithm=trpo", "rl.algorithm: Input should be 'ppo', 'grpo', 'rloo', 'reinforce' or"),
        ("rl.group_size=1", "rl.algorithm = grpo compares the responses to a prompt, and rl.group_size = 1"),
        ("rewards.rule.kind=function", "is not path.py:name"),
        ("rewards.dense.kind=relative", "kind = relative needs reference"),
        ("rewards.rule.wieght=2", "rewards.rule.wieght: no such field; there are kind, weight"),
        ("tokens.rubrics=r.toml", "rubrics of the reward are rewards.NAME.system_prompt"),
        ("policy.dtype=float16", "say it with learner.dtype"),
    ],
)
def test_mistakes_are_named(assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(assignment)
    assert sentence in str(raised.value)


def test_k1_in_the_loss_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="its gradient is zero on average"):
        load("rl.kl_in=loss", "rl.kl_estimator=k1")
    with pytest.raises(ConfigError, match="in the reward it is k1"):
        load("rl.kl_estimator=k3")
    assert load().rl.kl == "k1" and load("rl.kl_in=loss").rl.kl == "k3"


@pytest.mark.parametrize(("algorithm", "credit"), [("ppo", "tokens"), ("grpo", "response"), ("rloo", "response")])
def test_credit_follows_the_algorithm(algorithm: str, credit: Any) -> None:
    assert load(f"rl.algorithm={algorithm}").credit == credit
    assert load(f"rl.algorithm={algorithm}", "rl.credit=tokens").credit == "tokens"


def test_rewards_that_are_given_replace_the_default() -> None:
    assert list(load().rewards) == ["endogenous"]
    given = load("rewards.brief.kind=length", "rewards.brief.weight=0.1").rewards
    assert list(given) == ["brief"] and given["brief"].weight == 0.1


def test_the_example_parses() -> None:
    found = load_config_as(RlConfig, str(ROOT / "examples" / "addition" / "rl.toml"), [], [])
    assert found.rl.algorithm == "grpo" and found.held_out.check
