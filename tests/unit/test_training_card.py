"""The model card as a model hub's library and a stranger read it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline.report.card import hub_name, model_card, without_places
from pipeline.training.config import OBJECTIVES, TrainConfig
from pipeline.training.documents import Run, RunManifest

PLACES = ("/home/jane/models/tiny-chat", "/data/labels/hh", "s3://secret-bucket/runs/dpo", "/etc/ds.json")


def described(objective: str = "dpo", policy: str = "org/tiny-chat") -> dict[str, Any]:
    """What every run.json has."""
    config = TrainConfig.model_validate(
        {
            "train": {"labels": ["/data/labels/hh"], "objective": objective},
            "policy": {"name": policy},
            "learner": {"deepspeed": "/etc/ds.json"},
            "output": {"path": "s3://secret-bucket/runs/dpo"},
        }
    )
    return {
        "created": "2025-11-23T17:40:00+00:00",
        "objective": objective,
        "config": config.model_dump(),
        "description": {},
        "fingerprint": "ab12" * 16,
        "policy": {"name": policy},
        "steps": 20,
    }


def run(objective: str = "dpo", policy: str = "org/tiny-chat", **others: Any) -> RunManifest:
    content = described(objective, policy) | {
        "command": "endoreward train --output s3://secret-bucket/runs/dpo",
        "versions": {"endoreward": "0.2.0", "torch": "2.13.0"},
        "labels": [
            {
                "path": "/data/labels/hh",
                "fingerprint": "ff00" * 16,
                "reward": {"aggregation": "mean", "alpha": 1.0},
                "model": "/home/jane/models/tiny-chat",
            }
        ],
        "examples": [["pairs", 11200]],
        "notes": ["2 rows were dropped; see /data/labels/hh/errors, or s3://secret-bucket/runs/dpo."],
        "seconds": 10.0,
        "tokens": 100,
        "last": METRICS[-1],
    }
    return RunManifest.parse(content | others, "manifest.json")


METRICS = [
    {"step": i, "loss": 0.7 - 0.01 * i, "rewards/accuracies": 0.5 + 0.01 * i, "eval_loss": 0.7 - 0.005 * i}
    for i in range(1, 21)
]


def test_the_hub_reads_the_front_matter() -> None:
    text = model_card(run(), METRICS)
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    assert front == {
        "base_model": "org/tiny-chat",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["endoreward", "dpo"],
    }
    card = ModelCard(text)
    assert card.data.base_model == "org/tiny-chat" and card.data.to_dict() == front
    assert card.text.lstrip().startswith("# tiny-chat, DPO on hh")


def test_a_machine_s_path_is_nowhere(tmp_path: Path) -> None:
    text = model_card(run(policy="/home/jane/models/tiny-chat"), METRICS)
    assert "base_model" not in text and "tiny-chat" in text
    for place in PLACES:
        assert place not in text
    assert "jane" not in text and "secret-bucket" not in text and not re.search(r"(?<![\w.`])/\w", text)
    assert "see errors, or dpo" in text


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("org/name-1.5B", True), ("gpt2", False), ("/models/x", False), ("./models/x", False), ("a/b/c", False),
        ("s3://b/k", False), ("~/x", False), ("C:\\models\\x", False), ("", False),
    ],
)  # fmt: skip
def test_base_model_is_a_hub_s_name(name: str, hub: bool) -> None:
    assert hub_name(run(policy=name)) == (name if hub else None)


def test_a_folder_that_looks_like_a_hub_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name(run(policy="models/tiny")) == "models/tiny"
    Path("models/tiny").mkdir(parents=True)
    assert hub_name(run(policy="models/tiny")) is None
    digest = {"policy.content": "ab12"}  # known by it: a folder of some machine
    assert hub_name(run(policy="org/tiny", description=digest)) is None


def test_the_card_says_what_was_done() -> None:
    text = model_card(run(), METRICS)
    assert "ff00" * 16 in text and "ab12" * 16 in text and "aggregation = mean, alpha = 1.0" in text
    assert "| loss | 0.6900 | 0.5000 |" in text and "| loss, kept prompts | 0.6950 | 0.6000 |" in text
    assert "| pairs | 11,200 |" in text and "endoreward 0.2.0 and torch 2.13.0" in text and "2025-11-23" in text
    assert "AutoModelForCausalLM.from_pretrained" in text and "not known" in text


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_configuration_is_what_the_objective_read(objective: str) -> None:
    settled = run(objective)
    for name in ("dpo", "ipo"):  # a run writes down what beta came to
        settled.config[name]["beta"] = 0.1
    given = tomllib.loads(re.search(r"```toml\n(.*?)\n```", model_card(settled, []), re.DOTALL)[1])
    config = TrainConfig.model_validate(given)
    expected = TrainConfig.model_validate(run(objective).config)
    assert config.train.model_copy(update={"labels": []}) == expected.train.model_copy(update={"labels": []})
    assert config.train.labels == ["hh"] and not {"output", "run", "tracking"} & given.keys()
    own = {"rwr": "awr"}.get(objective, objective)
    assert {name for name in given if name in OBJECTIVES} == {own}
    assert ("pairs" in given) == (objective in ("dpo", "ipo", "simpo"))
    assert ("advantage" in given) == (objective in ("awr", "rwr", "grpo", "reinforce"))


def test_only_what_is_always_there_is_needed() -> None:
    card = ModelCard(model_card(Run.parse(described(), "run.json"), []))
    assert card.data.base_model == "org/tiny-chat" and "## Labels" not in card.text and "## Figures" not in card.text


def test_places_within_a_sentence() -> None:
    assert without_places("see /a/b/c, ~/d/e and file:///f/g; and/or 3/4 of tokens/s") == (
        "see c, e and g; and/or 3/4 of tokens/s"
    )
    assert without_places("/home/Jane Doe/x") == "x" and without_places("hf://datasets/a/b") == "hf://datasets/a/b"
