"""Settings without effect: refused under their dotted path, with a remedy that removes the refusal."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EvaluateConfig, LabelConfig, SampleConfig, Section, load_config_as
from pipeline.errors import ConfigError
from pipeline.report.toml import to_toml
from pipeline.rl.config import RlConfig
from pipeline.training.config import TrainConfig

FOLDER = str(Path(__file__).parent)
REVISION = f"model.name={FOLDER}"

# what is set; the field that has no effect; what else would give it one
UNREAD: list[tuple[type[Section], list[str], str, list[str]]] = [
    (LabelConfig, ["scorer.device=cpu", "scorer.gpus_per_actor=2"], "scorer.gpus_per_actor", ["scorer.device=cuda"]),
    (LabelConfig, ["run.ray_address=a:1", "run.num_cpus=2"], "run.num_cpus", []),
    (LabelConfig, ["tokens.template=chat.jinja", "tokens.append_eos=false"], "tokens.append_eos", ["tokens.template=none"]),
    (LabelConfig, [REVISION, "model.revision=main"], "model.revision", ["model.name=org/model"]),
    (
        EvaluateConfig,
        ['evaluate.rewards=["verifier"]', "verifier.revision=main"],
        "verifier.revision",
        ["verifier.model=org/model"],
    ),
    (EvaluateConfig, ["evaluate.labels=out/x", "model.name=org/model"], "model.name", ["evaluate.labels="]),
    (EvaluateConfig, ["evaluate.labels=out/x", "tokens.max_length=9"], "tokens.max_length", ["evaluate.labels="]),
    (
        EvaluateConfig,
        ["evaluate.labels=out/x", "evaluate.check_responses=9"],
        "evaluate.check_responses",
        ["evaluate.labels="],
    ),
    (EvaluateConfig, ["answers.seed=3"], "answers.seed", ["answers.temperature=1"]),
    (
        SampleConfig,
        ["sample.num_responses=1", "sample.temperature=0", "sample.top_p=0.5"],
        "sample.top_p",
        ["sample.temperature=1"],
    ),
    (SampleConfig, ["input.turns=all"], "input.turns", []),
    (SampleConfig, ["input.score_key=x"], "input.score_key", []),
    (SampleConfig, ["tokens.thoughts=given"], "tokens.thoughts", []),
    (RlConfig, ['input.label_values={1="a"}'], "input.label_values", []),
    (RlConfig, ["tokens.template=none", "tokens.date=2026-02-03"], "tokens.date", ["tokens.template=auto"]),
    (LabelConfig, ["tokens.template=none", "tokens.thoughts=given"], "tokens.thoughts", ["tokens.template=auto"]),
    (LabelConfig, ["tokens.template=none", "tokens.control=refuse"], "tokens.control", ["tokens.template=auto"]),
    (
        LabelConfig,
        ["tokens.template=none", "tokens.template_kwargs={enable_thinking=false}"],
        "tokens.template_kwargs",
        ["tokens.template=auto"],
    ),
    (SampleConfig, ["tokens.over_length=reject"], "tokens.over_length", []),
    (SampleConfig, ["scorer.head_chunk_mb=8"], "scorer.head_chunk_mb", []),
    (TrainConfig, ["grpo.beta=1"], "grpo.beta", ["train.objective=grpo"]),
    (TrainConfig, ["ipo.beta=1"], "ipo.beta", ["train.objective=ipo"]),
    (TrainConfig, ["train.objective=sft", "pairs.select=all"], "pairs.select", ["train.objective=dpo"]),
    (TrainConfig, ["advantage.scale=none"], "advantage.scale", ["train.objective=reinforce"]),
    (TrainConfig, ["train.objective=rwr", "awr.max_weight=3"], "awr.max_weight", ["train.objective=awr"]),
    (TrainConfig, ["train.objective=rwr", "advantage.baseline=none"], "advantage.baseline", ["train.objective=awr"]),
    (TrainConfig, ["train.objective=awr", "advantage.gamma=0.5"], "advantage.gamma", ["advantage.credit=tokens"]),
    (
        TrainConfig,
        ["train.objective=grpo", "grpo.max_completion_length=9"],
        "grpo.max_completion_length",
        ["grpo.loss_type=dr_grpo"],
    ),
    (TrainConfig, ["lora.alpha=8"], "lora.alpha", ["lora.rank=4"]),
    (TrainConfig, ["reference.revision=main"], "reference.revision", ["reference.name=org/model"]),
    (RlConfig, ["rl.algorithm=ppo", "grpo.epsilon=0.1"], "grpo.epsilon", ["rl.algorithm=grpo"]),
    (RlConfig, ["ppo.gae_lambda=0.9"], "ppo.gae_lambda", ["rl.algorithm=ppo"]),
    (RlConfig, ["rl.algorithm=reinforce", "rl.epochs=4"], "rl.epochs", ["rl.algorithm=grpo"]),
    (RlConfig, ["rl.gamma=0.9"], "rl.gamma", ["rl.credit=tokens"]),
    (RlConfig, ["rl.algorithm=ppo", "ppo.value_coefficient=1"], "ppo.value_coefficient", ["ppo.value=critic"]),
    (RlConfig, ["rewards.x.kind=length", "reward.alpha=2"], "reward.alpha", ["rewards.x.kind=endogenous"]),
    (RlConfig, ["rewards.x.kind=length", "reward_model.name=org/model"], "reward_model.name", ["rewards.x.kind=endogenous"]),
    (RlConfig, ["rewards.x.revision=main", "rewards.x.kind=endogenous"], "rewards.x.revision", ["rewards.x.model=org/model"]),
    (RlConfig, ["reward_model.revision=main"], "reward_model.revision", ["reward_model.name=org/model"]),
    (RlConfig, ["held_out.answer_key=gold", 'held_out.prompts=["a.jsonl"]'], "held_out.answer_key", ["held_out.check=maths"]),
    (RlConfig, ["learner.device=cpu", "sampler.gpus_per_actor=1"], "sampler.gpus_per_actor", ["learner.device=cuda"]),
    (RlConfig, ["input.turns=all"], "input.turns", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "field", "remedy"), UNREAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_has_no_effect_is_refused(kind: type[Section], settings: list[str], field: str, remedy: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {field}: has no effect ") as refused:
        load_config_as(kind, None, [], settings)
    assert refused.value.exit_code == 2 and str(refused.value).count("\n") == 1
    if remedy:
        load_config_as(kind, None, [], [*settings, *remedy])
    load_config_as(kind, None, [], [each for each in settings if not each.startswith(f"{field}=")])


@pytest.mark.parametrize("kind", [LabelConfig, EvaluateConfig, TrainConfig, RlConfig])
def test_a_configuration_that_was_written_out_whole_is_taken(kind: type[Section], tmp_path: Path) -> None:
    """As --dry-run prints it: every field is there, at its default."""
    whole: dict[str, Any] = kind().model_dump(exclude_none=True)
    (tmp_path / "run.toml").write_text(to_toml(whole))
    assert load_config_as(kind, str(tmp_path / "run.toml"), [], []) == kind()


def test_every_field_without_effect_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config_as(
            RlConfig, None, [], ["rl.algorithm=ppo", "grpo.epsilon=0.1", "grpo.scale=none", "rloo.epsilon=0.1"]
        )
    assert [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]] == [
        "grpo.epsilon", "grpo.scale", "rloo.epsilon",
    ]  # fmt: skip


def test_ratings_need_a_range() -> None:
    with pytest.raises(ConfigError, match="lowest = 5 is not less than highest = 1"):
        load_config_as(EvaluateConfig, None, [], ["judge.lowest=5", "judge.highest=1"])


@pytest.mark.parametrize(
    ("setting", "rewards"),
    [
        ("judge.max_new_tokens=9", "judge-pairwise"),
        ("judge.lowest=0", "judge-pointwise"),
        ("judge.pairwise_prompt={prompt} {first} {second}", "judge-pairwise"),
        ("implicit.beta=1", "implicit"),
        ("verifier.answer=No", "verifier"),
        ("classifier.output=1", "classifier"),
        ("reward.gamma=0.5", "likelihood"),
    ],
)
def test_what_other_rewards_read_is_said(setting: str, rewards: str) -> None:
    """One file may describe all rewards, which are asked one by one."""

    def idle(asked: str) -> list[str]:
        config = load_config_as(EvaluateConfig, None, [("evaluate.rewards", [asked])], [setting])
        assert isinstance(config, EvaluateConfig)
        return config.idle()

    assert idle(rewards) == []
    [said] = idle("classifier" if rewards != "classifier" else "verifier")
    assert said.startswith(setting.partition("=")[0]) and rewards in said


def test_what_may_stay_is_said() -> None:
    config = load_config_as(RlConfig, None, [], ["rl.replay=out/x", 'held_out.prompts=["a"]', "sampler.actors=2"])
    assert isinstance(config, RlConfig)
    assert [line.partition(":")[0] for line in config.idle()] == ["sampler.actors", "held_out.prompts"]
    nothing = load_config_as(RlConfig, None, [], ["rl.kl_coefficient=0", "rl.kl_in=loss", "held_out.check=maths"])
    assert isinstance(nothing, RlConfig)
    assert [line.partition(":")[0] for line in nothing.idle()] == ["rl.kl_in", "held_out.check"]
    long = load_config_as(TrainConfig, None, [], ["train.max_steps=3", "train.epochs=9"])
    assert isinstance(long, TrainConfig) and long.idle() == ["train.epochs: has no effect beside train.max_steps"]
    clipped = load_config_as(RlConfig, None, [], ["grpo.epsilon=0.1"])
    assert isinstance(clipped, RlConfig) and "while rl.epochs and rl.minibatches are 1" in clipped.idle()[0]
    more = load_config_as(RlConfig, None, [], ["grpo.epsilon=0.1", "rl.epochs=2"])
    assert isinstance(more, RlConfig) and more.idle() == []
