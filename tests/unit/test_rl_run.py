"""What an online run is described by, and what a replay has to share with the run that it replays."""

from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_model

from pipeline.config import load_config_as
from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import Prompts, read_prompts
from pipeline.rl.rollout_store import describe_rollouts
from pipeline.rl.run import describe_rl, replay_differences


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("models") / "policy"))


def load(policy: str, *assignments: str) -> RlConfig:
    return load_config_as(RlConfig, None, [], [f"policy.name={policy}", f"reward_model.name={policy}", *assignments])


def described(config: RlConfig) -> dict[str, Any]:
    return describe_rl(config, Prompts([], [], 0, "digest"), None, "float32", "cpu", 1, None)


# What a run is


def test_a_chat_template_is_what_its_file_holds(policy: str, tmp_path: Path) -> None:
    def of(file: Path) -> dict[str, Any]:
        return described(load(policy, f"tokens.template={file}"))

    own, moved = tmp_path / "own.jinja", tmp_path / "elsewhere" / "moved.jinja"
    own.write_text(CHATML)
    first = of(own)
    moved.parent.mkdir()
    own.rename(moved)
    assert of(moved) == first
    moved.write_text(CHATML.replace("assistant", "robot"))
    assert {name for name, value in of(moved).items() if value != first[name]} == {"tokens.template"}
    with pytest.raises(ConfigError, match=r"tokens\.template: cannot read"):
        of(own)
    for name in ("auto", "none"):
        assert described(load(policy, f"tokens.template={name}"))["tokens.template"] == name


def test_prompts_that_are_read_otherwise_make_another_run(policy: str, tmp_path: Path) -> None:
    """The files' bytes alone do not say what was asked: a later version, or a later row, may read other columns."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "q", "context": "c", "text": "t"}\n')

    def of(*assignments: str) -> dict[str, Any]:
        config = load(policy, f'input.paths=["{file}"]', *assignments)
        return describe_rl(
            config, read_prompts(config, config.input.paths, "input.paths"), None, "float32", "cpu", 1, None
        )

    asked = of()
    assert asked["prompts.shapes"] == [{"responses": [], "prompt": "question", "context": "context"}]
    without = of("input.context_key=")
    differing = {name for name in asked.keys() | without.keys() if asked.get(name) != without.get(name)}
    assert differing == {"prompts.shapes", "input.context_key"}


# What a replay shares


def differences(policy: str, kept: list[str], now: list[str]) -> list[str]:
    config = load(policy, *kept)
    return replay_differences(describe_rollouts(config, described(config), "float32"), described(load(policy, *now)))


OWN = ["rewards.endogenous.kind=endogenous"]
RULE = ["rewards.rule.kind=length", "rewards.rule.weight=0.5"]


def test_a_replay_may_learn_otherwise(policy: str) -> None:
    assert differences(policy, OWN, [*OWN, "rl.algorithm=reinforce", "rl.learning_rate=0.1", "lora.rank=4"]) == []


def test_a_source_that_was_taken_away_is_named(policy: str) -> None:
    found = differences(policy, [*OWN, *RULE], OWN)
    assert "rewards.rule.kind was 'length' and is not set" in found
    assert "rewards.rule.weight was 0.5 and is not set" in found
    assert all(line.startswith("rewards.rule.") for line in found)


def test_a_source_that_was_added_is_named(policy: str) -> None:
    found = differences(policy, OWN, [*OWN, *RULE])
    assert "rewards.rule.kind was not set and is 'length'" in found
    assert all(line.startswith("rewards.rule.") for line in found)


def test_a_reference_that_one_of_them_names_is_named(policy: str) -> None:
    reference = f"reference.name={policy}"
    [there, *_] = differences(policy, [reference], [])
    assert there.startswith("reference.") and there.endswith("and is not set")
    [here, *_] = differences(policy, [], [reference])
    assert here.startswith("reference.") and " was not set and is " in here


def test_a_value_that_differs_is_named_with_both(policy: str) -> None:
    assert differences(policy, ["rl.batch_size=4"], ["rl.batch_size=5"]) == ["rl.batch_size was 4 and is 5"]


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        (["ppo.value=critic"], True),
        (["ppo.value=critic", "rl.credit=response"], False),
        (["rl.algorithm=reinforce"], False),
    ],
)
def test_a_run_whose_critic_forecasts_behind_a_cut_is_another_than_one_of_a_version_before(
    policy: str, settings: list[str], due: bool
) -> None:
    relative = ["rewards.r.kind=relative", f"rewards.r.reference={policy}", "rl.algorithm=ppo"]
    assert ("ppo.after_cut" in described(load(policy, *relative, *settings))) == due
