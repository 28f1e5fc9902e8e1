"""Configuration: every mistake at once, under its dotted path, before anything heavy is imported."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import EvaluateConfig, LabelConfig, load_config, load_config_as
from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.training.config import TrainConfig


def test_later_sources_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[reward]\nalpha = 2.0\ngamma = 0.5\n[input]\npaths = ["a"]\n')
    config = load_config(str(path), [("input.paths", ["b"])], ["reward.alpha=0.5", "input.prompt_key=question"])
    assert (config.reward.alpha, config.reward.gamma, config.input.paths) == (0.5, 0.5, ["b"])
    assert config.input.prompt_key == "question"  # text that is no TOML value is taken as it is


def test_defaults_are_the_papers() -> None:
    reward = load_config(None, [], []).reward
    assert (reward.alpha, reward.gamma, reward.aggregation) == (1.0, 1.0, "sum")


def test_every_mistake_is_reported_at_once() -> None:
    wrong = ["reward.alpha=-1", "reward.beta=2", "nowhere.x=1", "run.max_error_rate=7", "tokens.over_length=shrink"]
    with pytest.raises(ConfigError) as raised:
        load_config(None, [], wrong)
    lines = str(raised.value).splitlines()
    assert raised.value.exit_code == 2 and len(lines) == 1 + len(wrong)
    for path in ("reward.alpha", "reward.beta", "nowhere", "run.max_error_rate", "tokens.over_length"):
        assert sum(line.startswith(f"  {path}: ") for line in lines) == 1
    assert "there are alpha, gamma, aggregation" in str(raised.value)


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["reward.alpha"], "section.field=value"),
        (["reward.alpha=1", "reward.alpha.x=2"], "is a value, not a section"),
        (["reward.aggregation=mean", "reward.subtract_initial_value=true"], "mean holds no V"),
        (["reward.min_weight=0.1"], "discounted_sum"),
        (['tokens.system_prompt="a"', "tokens.rubrics=b"], "not both"),
        (["reward.alpha=nan"], "finite"),
    ],
)
def test_what_does_not_fit_is_said(assignments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, [], assignments)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(str(tmp_path / "absent.toml"), [], [])
    (tmp_path / "bad.toml").write_text("[reward\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(str(tmp_path / "bad.toml"), [], [])


SECRETS = [
    "s3://AKIA:hunter2@bucket/x",
    "s3://hunter2@bucket/x",
    "s3://bucket/x?access_key=AKIA&secret_key=hunter2",
    "s3://bucket/x?session_token=hunter2",
    "s3://bucket/x?endpoint_override=http://me:hunter2@host",
    "https://bucket.s3.amazonaws.com/x?AWSAccessKeyId=AKIA&Expires=1&Signature=hunter2",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=hunter2",
    "https://bucket.s3.amazonaws.com/x?x-amz-signature=hunter2",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Security-Token=hunter2",
    "https://bucket.s3.amazonaws.com/x?X-Amz%2DSignature=hunter2",
    "https://storage.googleapis.com/b/x?GoogleAccessId=me&Signature=hunter2",
    "https://storage.googleapis.com/b/x?X-Goog-Signature=hunter2",
    "https://account.blob.core.windows.net/c/x?se=2030&sp=r&sig=hunter2",
    "abfs://c@account.dfs.core.windows.net/x?sas_token=hunter2",
    "https://host/x?page=1&token=hunter2",
    "https://host/x?access_token=hunter2#top",
    "https://host/x#access_token=hunter2",
    "https://host/x?api_key=hunter2",
    "https://d1.cloudfront.net/x?Policy=p&Key-Pair-Id=K&Signature=hunter2",
    "oss://bucket/x?OSSAccessKeyId=hunter2",
    "ray://me:hunter2@head:10001",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2",
]
HARMLESS = [
    "s3://bucket/x?region=eu-central-1&endpoint_override=http://host:9000&scheme=http",
    "hf://datasets/org/name@main/data/*.parquet",
    "out/token=1/signature.jsonl",
    "data/part-??.jsonl",
    "gs://bucket/keys/x",
    "data/C#/token.jsonl",
    "s3://bucket/x?allow_bucket_creation=true",
    "folder;with;semicolons",
    "./me@home/x",
]
FIELDS = {
    LabelConfig: ("input.paths", "output.path", "model.name", "tokens.template", "tokens.rubrics", "run.ray_address"),
    EvaluateConfig: ("evaluate.labels", "implicit.reference", "verifier.model", "judge.model", "classifier.model"),
    TrainConfig: ("train.labels", "policy.name", "reference.name", "learner.deepspeed"),
    RlConfig: (
        "rl.replay", "held_out.prompts", "held_out.check", "reward_model.name", "rewards.x.model", "rewards.x.reference",
        "rewards.x.function",
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", SECRETS)
def test_locations_with_secrets_are_refused_and_not_repeated(place: str) -> None:
    for kind, fields in FIELDS.items():
        for field in fields:
            listed = field in ("input.paths", "train.labels", "held_out.prompts")
            with pytest.raises(ConfigError, match="holds credentials") as raised:
                load_config_as(kind, None, [(field, [place] if listed else place)], [])
            assert "hunter2" not in str(raised.value) and field in str(raised.value)


@pytest.mark.parametrize("place", SECRETS)
@pytest.mark.parametrize(
    "words",
    [["export", "out/x", "--output"], ["sweep", "out/x", "--output"], ["aggregate", "x", "--output"], ["report"]],
)
def test_no_command_repeats_a_secret(
    words: list[str], place: str, here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ran = here(*words, place)
    assert ran.returncode == 2 and "hunter2" not in ran.stderr + ran.stdout and "holds credentials" in ran.stderr


@pytest.mark.parametrize(
    "wrong", ["", "reward.alpha=", "model.nam=", "nowhere.x=", "tokens.over_length=", "input.format="]
)
def test_a_misplaced_secret_is_not_repeated(wrong: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, [], [wrong + "s3://me:hunter2@bucket"])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("place", HARMLESS)
def test_other_locations_are_taken(place: str) -> None:
    assert load_config(None, [("input.paths", [place])], []).input.paths == [place]


@pytest.mark.parametrize(
    "typed",
    [
        "12345e67",
        "4e12",
        "1e5",
        "0123",
        "1_000",
        "0x1f",
        "0b1",
        "7",
        "1.0",
        "true",
        "inf",
        "nan",
        "2026-01-01",
        "07:32:00",
    ],
)
def test_text_is_what_was_typed(typed: str) -> None:
    """A commit of digits and one e is no number, nor is anything else where text is due."""
    config = load_config_as(EvaluateConfig, None, [], [f"model.revision={typed}", f"evaluate.benchmark={typed}"])
    assert (config.model.revision, config.evaluate.benchmark) == (typed, typed)
    config = load_config_as(EvaluateConfig, None, [], [f'model.revision="{typed}"', f"input.prompt_key={typed}"])
    assert (config.model.revision, config.input.prompt_key) == (typed, typed)
    online = load_config_as(RlConfig, None, [], [f"rewards.x.model={typed}", f"rewards.x.revision={typed}"])
    assert (online.rewards["x"].model, online.rewards["x"].revision) == (typed, typed)


def test_what_is_no_text_is_read_as_before(tmp_path: Path) -> None:
    config = load_config(
        None, [], ["reward.gamma=0.5", "model.trust_remote_code=true", 'input.response_key=["a", "b"]']
    )
    assert (config.reward.gamma, config.model.trust_remote_code, config.input.response_key) == (0.5, True, ["a", "b"])
    tables = ["tokens.template_kwargs={ enable_thinking = false }", "input.label_key=x", 'input.label_values={1="a"}']
    config = load_config(None, [], tables)
    assert config.tokens.template_kwargs == {"enable_thinking": False} and config.input.label_values == {"1": "a"}
    (tmp_path / "run.toml").write_text("[model]\nrevision = 12345e67\n")
    with pytest.raises(ConfigError, match=r"model\.revision: .* write it in quotes"):
        load_config(str(tmp_path / "run.toml"), [], [])


def test_a_section_alone_is_no_field():
    with pytest.raises(ConfigError, match=r"--set reward=1: expected section\.field=value"):
        load_config(None, [], ["reward=1"])
