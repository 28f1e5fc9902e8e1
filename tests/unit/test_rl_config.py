"""The configuration of online runs: what is refused, and with which sentence."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config_as
from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.reward_sections import READ_BY

ROOT = Path(__file__).parents[2]


def load(*assignments: str) -> RlConfig:
    return load_config_as(RlConfig, None, [], list(assignments))


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rl.algorithm=trpo", "rl.algorithm: Input should be 'ppo', 'grpo', 'gspo', 'cispo', 'rloo'"),
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


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (
            {"function": "rules.py:right"},
            "kind = endogenous, the default, does not read function (read by kind = function); set kind, or leave that out",
        ),
        ({"answer_key": "answer"}, "does not read answer_key (read by kind = maths)"),  # the default of another kind's
        (
            {"kind": "maths", "function": "rules.py:right"},
            "kind = maths does not read function (read by kind = function)",
        ),
        ({"kind": "maths", "model": "m"}, "does not read model (read by kind = endogenous, relative or teacher)"),
        (
            {"kind": "length", "system_prompt": "Be brief."},
            "system_prompt (read by kind = endogenous, relative or teacher)",
        ),
        ({"kind": "endogenous", "reference": "m"}, "does not read reference (read by kind = relative)"),
        (
            {"kind": "function", "function": "a.py:b", "free_tokens": 3, "reference_revision": "main"},
            "reference_revision (read by kind = relative), free_tokens (read by kind = length)",
        ),
    ],
)
def test_a_field_that_the_kind_does_not_read_is_refused(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(*(f"rewards.rule.{name}={value}" for name, value in told.items()))
    assert sentence in str(raised.value) and "rewards.rule: " in str(raised.value)


def test_every_kind_reads_what_is_its_own() -> None:
    own = {"weight": 2.0, "share": 0.5}
    told = {
        "endogenous": {"model": "m", "revision": "main", "system_prompt": "Be brief."},
        "relative": {"model": "m", "system_prompt": "Be brief.", "reference": "n", "reference_revision": "main"},
        "teacher": {"model": "m", "revision": "main", "system_prompt": "You know the answer."},
        "maths": {"answer_key": "solution"},
        "function": {"function": "rules.py:right"},
        "length": {"free_tokens": 3},
    }
    assert {field for fields in told.values() for field in fields} == set(READ_BY)
    config = RlConfig.model_validate({"rewards": {kind: {"kind": kind, **own, **of} for kind, of in told.items()}})
    assert list(config.rewards) == list(told)


def test_what_was_written_out_whole_is_read_again() -> None:
    """As a run's page and a second `rl` of its settings do."""
    config = load("rewards.right.kind=maths", "rewards.own.weight=2", "rewards.brief.kind=length")
    moved = {name: source.model_copy(update={"model": "", "revision": None}) for name, source in config.rewards.items()}
    for each in (config, config.model_copy(update={"rewards": moved})):
        assert RlConfig.model_validate(each.model_dump(mode="json")) == config


def test_the_example_parses() -> None:
    found = load_config_as(RlConfig, str(ROOT / "examples" / "addition" / "rl.toml"), [], [])
    assert found.rl.algorithm == "grpo" and found.held_out.check


def test_a_lag_is_corrected_for_and_has_no_place_in_a_replay() -> None:
    assert load().correction == "none" and load("rl.lag=1").correction == "sequence-mask"
    assert load("rl.lag=1", "rl.correction=none").correction == "none" and load("rl.lag=1").rl.correction_cap == 3
    with pytest.raises(ConfigError, match=r"rl\.lag = 1 under rl\.replay: a replay samples nothing"):
        load("rl.lag=1", "rl.replay=out/kept/rollouts")
    with pytest.raises(ConfigError, match=r"rl\.lag: Input should be less than or equal to 1"):
        load("rl.lag=2")


def test_under_opd_the_reward_is_a_teacher() -> None:
    [(name, source)] = load("rl.algorithm=opd").rewards.items()
    assert (name, source.kind) == ("teacher", "teacher") and load("rl.algorithm=opd").credit == "tokens"
    given = load("rl.algorithm=opd", "opd.gamma=1", "rewards.t.kind=teacher", "rewards.right.kind=maths").rewards
    assert list(given) == ["t", "right"]
    assert RlConfig(rl=load("rl.algorithm=opd").rl).rewards == load("rl.algorithm=opd").rewards


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["rewards.own.kind=endogenous", "rewards.t.kind=teacher"], "rewards.own is endogenous, whose V(s_h) is noise"),
        (["rewards.right.kind=maths"], "no reward is one for all prompts: name it, as rewards.teacher.kind = teacher"),
        (["rewards.t.kind=teacher", "rewards.t.share=0.5"], "no reward is one for all prompts"),
        (["rewards.t.kind=teacher", "rewards.right.kind=maths"], "rewards.right is of whole responses, and under opd.gamma"),
        (["opd.baseline=group", "rl.group_size=1"], "rl.algorithm = opd compares the responses to a prompt"),
    ],
)  # fmt: skip
def test_what_opd_cannot_learn_from_is_refused(assignments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load("rl.algorithm=opd", *assignments)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [("rl.gamma=0.5", "rl.gamma: has no effect under rl.algorithm = opd; set opd.gamma"),
     ("rl.credit=response", "rl.credit: has no effect under rl.algorithm = opd, whose opd.gamma says it")],
)  # fmt: skip
def test_what_opd_says_itself_has_no_effect_elsewhere(assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load("rl.algorithm=opd", assignment)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("gpus", [0.25, 1, 2])
def test_an_actor_takes_a_part_of_a_gpu_or_whole_ones(gpus: float) -> None:
    assert RlConfig.model_validate({"sampler": {"gpus_per_actor": gpus}}).sampler.gpus_per_actor == gpus
    with pytest.raises(ValueError, match=r"gpus_per_actor = 1\.5 is neither a part of a GPU nor a whole number"):
        RlConfig.model_validate({"rewarder": {"gpus_per_actor": 1.5}})
