"""Places of a configuration, absolute and otherwise as they were."""

import os
from pathlib import Path

import pytest

from pipeline.config.places import with_absolute_places
from pipeline.config.section import changed, value_at
from pipeline.rl.config import RlConfig
from pipeline.storage import absolute_folder


def test_local_places_become_absolute_and_words_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RlConfig.model_validate(
        {
            "output": {"path": "out"},
            "input": {"paths": ["a.jsonl", "s3://bucket/b"]},
            "tokens": {"template": "auto"},
            "held_out": {"check": "checks.py:right"},
            "rewards": {"rule": {"kind": "function", "function": "rules.py:right"}, "other": {}},
        }
    )
    fields = ("output.path", "input.paths", "tokens.template", "held_out.check", "learner.deepspeed", "rl.replay")
    absolute = with_absolute_places(config, *fields, "rewards.rule.function", "rewards.other.function")
    here = os.getcwd()
    assert [value_at(absolute, field) for field in fields] == [
        f"{here}/out",
        [f"{here}/a.jsonl", "s3://bucket/b"],
        "auto",
        f"{here}/checks.py:right",
        None,
        None,
    ]
    assert absolute.rewards["rule"].function == f"{here}/rules.py:right" and absolute.rewards["other"].function == ""
    assert config.output.path == "out" and changed(config, {"held_out.check": "maths"}).held_out.check == "maths"


def test_a_model_is_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert [absolute_folder(name) for name in ("model", "org/name", "")] == [f"{os.getcwd()}/model", "org/name", ""]
