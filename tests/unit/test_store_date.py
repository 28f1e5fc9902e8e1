"""A template that asks for the date gets the day on which the store began, whenever it is asked."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES
from tiny import save_model

from jobs.evaluate import run as evaluate
from jobs.label.label_run import LabelRun
from jobs.rl import run as rl
from pipeline.config import EvaluateConfig, LabelConfig
from pipeline.corpus import find_files
from pipeline.rewards.labellers import Endogenous
from pipeline.rl.config import RlConfig
from pipeline.store import WriterLock, documents, fingerprint
from pipeline.training.documents import Run
from pipeline.training.rows import stored_renderer


def today() -> str:
    return str(datetime.now(UTC).date())


def opened(tmp_path: Path, template: str, **tokens: Any) -> LabelRun:
    """A run held against its store, as `label` does it."""
    model = tmp_path / template
    if not model.exists():
        save_model(model, TEMPLATES[template], context=1024)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"prompt": "hi", "chosen": "yes", "rejected": "no"}\n')
    config = LabelConfig.model_validate({"model": {"name": str(model)}, "tokens": tokens})
    files = find_files([str(corpus)])
    return LabelRun.open(Endogenous(config, config.model), str(tmp_path / f"{template}-store"), "cpu", files)


def began(tmp_path: Path, template: str, day: str) -> LabelRun:
    """The same once the store is there and began on another day."""
    run = opened(tmp_path, template, date=day)
    with WriterLock(run.store.uri):
        run.store.open_for_writing(run.description)
    return opened(tmp_path, template)


def test_a_new_store_begins_today(tmp_path: Path) -> None:
    before = today()
    assert opened(tmp_path, "dated").description["tokens.date"] in (before, today())  # it may be midnight
    assert opened(tmp_path, "chatml").description["tokens.date"] is None  # that one does not ask


def test_a_store_keeps_the_day_on_which_it_began(tmp_path: Path) -> None:
    """At the base commit a run that was resumed on another day rendered other prompts under one fingerprint."""
    again = began(tmp_path, "dated", "2020-02-03")
    assert again.description["tokens.date"] == "2020-02-03"
    renderer = again.labeller.renderer
    prompt = renderer.prompt_ids([{"role": "user", "content": "hi"}], True)
    assert "03 Feb 2020" in renderer.encoding.text(prompt)
    trained = stored_renderer(renderer.tokenizer, again.description)
    assert trained.prompt_ids([{"role": "user", "content": "hi"}], True) == prompt
    assert fingerprint.digest(again.description) == again.store.fingerprint()


def test_another_day_makes_another_store(tmp_path: Path) -> None:
    began(tmp_path, "dated", "2020-02-03")
    with pytest.raises(Exception, match=r"tokens\.date: the store has '2020-02-03', this run '2021-01-01'"):
        opened(tmp_path, "dated", date="2021-01-01")
    assert began(tmp_path, "chatml", "2020-02-03").description["tokens.date"] is None


def test_all_rewards_of_an_evaluation_have_the_day_on_which_it_began(tmp_path: Path) -> None:
    config = EvaluateConfig.model_validate({"output": {"path": str(tmp_path / "out")}})
    before = today()
    assert evaluate._dated(config).tokens.date in (before, today())
    began = config.model_copy(update={"tokens": config.tokens.model_copy(update={"date": "2020-02-03"})})
    evaluate._claim(evaluate._dated(began), ["a.jsonl"])
    assert evaluate._dated(config).tokens.date == "2020-02-03"


def test_an_online_run_goes_on_with_its_day_and_a_replay_has_that_of_what_it_replays(tmp_path: Path) -> None:
    run = {"created": "", "objective": "grpo", "config": {}, "fingerprint": "f", "policy": {"name": "m"}, "steps": 1}
    Run.model_validate(run | {"description": {"tokens.date": "2020-02-03"}}).create(str(tmp_path / "run/run.json"))
    kept = {"description": {"run.tokens.date": "2021-04-05"}, "fingerprint": "f"}
    documents.create(str(tmp_path / "rollouts/records/run.json"), kept)
    for output, replay, day in (("run", None, "2020-02-03"), ("new", str(tmp_path / "rollouts"), "2021-04-05")):
        config = RlConfig.model_validate({"output": {"path": str(tmp_path / output)}, "rl": {"replay": replay}})
        assert config.tokens.dated(rl._known_date(config)).date == day
