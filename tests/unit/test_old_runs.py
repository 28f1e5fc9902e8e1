"""Training runs that earlier versions made (ce2f0be and e275d6a, each on the labels of its version; without their weights) are
read always, and go on where nothing that decides their numbers has changed its meaning since."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.rl.run import rl
from jobs.stores.inspect_run import read_results
from jobs.stores.inspect_store import status
from jobs.stores.redraw import redraw
from jobs.train.run import train
from pipeline.errors import StoreError
from pipeline.rl.config import RlConfig
from pipeline.store.reading import read_part
from pipeline.store.schema import LABELS, read_messages
from pipeline.training.config import TrainConfig
from pipeline.training.run import RunFolder, describe

DATA = Path(__file__).parents[1] / "data"
ADDITION = DATA.parents[1] / "examples/addition"
STORES = {"ce2f0be": "store-format-1", "e275d6a": "store-format-2"}


@pytest.fixture(params=STORES)
def commit(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(commit: str, tmp_path: Path) -> RunFolder:
    return RunFolder(str(shutil.copytree(DATA / f"run-{commit}", tmp_path / "run")))


def config_of(run: RunFolder, commit: str, **sections: Any) -> TrainConfig:
    """What `run` was described by, at the places where its parts lie now."""
    document = run.run()
    assert document is not None
    stored: dict[str, Any] = document.config
    model = {"name": str(ADDITION / "model")}
    places = {"policy": model, "output": {"path": run.uri}, "reference": {}}
    train = stored["train"] | {"labels": [str(DATA / STORES[commit])]} | sections
    return TrainConfig.model_validate(stored | places | {"train": train})


@pytest.mark.parametrize("folder", STORES.values())
def test_parts_that_are_read_by_their_columns_are_alike(folder: str) -> None:
    [name, *_] = sorted((DATA / folder / "labels").glob("*.parquet"))
    part = read_part(str(name), ["id", "prompt", "response_other"])
    assert part.schema.field("prompt").type == LABELS.field("prompt").type
    written = pq.read_table(name)["prompt"].to_pylist()
    assert [read_messages(prompt) for prompt in part["prompt"].to_pylist()] == list(map(read_messages, written))
    assert part.num_rows > 0
    pa.concat_tables([LABELS.empty_table().select(part.column_names), part])  # what is evaluated by prompt


def test_its_status_and_its_page_are_read(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path(run.at("manifest.json")).read_bytes()
    assert status(run.uri) == redraw(run.uri) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "State complete" in printed and "Objective dpo" in printed and "Steps 2 of 2" in printed
    page = Path(run.at("report.html")).read_text()
    assert "0.6931" in page and "store" in page
    assert Path(run.at("manifest.json")).read_bytes() == manifest
    Path(run.at("manifest.json")).unlink()
    assert status(run.uri) == redraw(run.uri) == 0 and "State incomplete" in " ".join(capsys.readouterr().out.split())


def test_what_it_was_is_read(run: RunFolder, commit: str) -> None:
    document, manifest = run.run(), run.manifest()
    assert document is not None and manifest is not None
    assert document.version == manifest.version == 0 and document.description == manifest.description
    assert (document.objective, document.steps, manifest.tokens, manifest.repeated) == ("dpo", 2, 650, [])
    assert manifest.last == json.loads(Path(run.at("metrics.jsonl")).read_text().splitlines()[-1])
    [labels] = document.labels
    assert labels.fingerprint == json.loads((DATA / STORES[commit] / "manifest.json").read_text())["fingerprint"]


def test_it_goes_on(run: RunFolder, commit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither version's training in float32 means anything else today, so the description is the same, every key of it."""
    assert train(config_of(run, commit)) == 0 and "all 2 steps are done already" in capsys.readouterr().out
    Path(run.at("manifest.json")).unlink()
    assert run.begun and train(config_of(run, commit), dry_run=True) == 0


def test_where_it_would_be_another_run_it_is_refused_and_said(run: RunFolder, commit: str) -> None:
    with pytest.raises(StoreError, match=r"holds another run: .*\n  train\.seed: the run there has 0, this run 1"):
        train(config_of(run, commit, seed=1), dry_run=True)
    other = next(name for name in STORES if name != commit)
    with pytest.raises(
        StoreError, match=r"the labels changed since the run began\. .*(?s:.*)labels\.fingerprints: the run"
    ):
        train(config_of(run, other), dry_run=True)


def test_a_run_whose_sums_meant_something_else_is_refused(run: RunFolder, commit: str) -> None:
    """In bfloat16 ce2f0be added up gradients in bfloat16, and did not say so."""
    config = config_of(run, commit)
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"dtype": "bfloat16"})})
    labels = {"stores": [{"fingerprint": "f", "records": "r"}], "examples": 8}
    description = describe(config, labels, "bfloat16", "cpu", 1, None)
    was = {name: value for name, value in description.items() if name != "learner.grad_accum_dtype"}
    document = run.run()
    assert document is not None
    document.model_copy(update={"description": was}).write(run.at("run.json"))
    with pytest.raises(StoreError, match=r"by a version that added up gradients in bfloat16\. Give another --output"):
        run.check(description)


def online(commit: str, tmp_path: Path) -> tuple[RunFolder, RlConfig]:
    """An online run, and its configuration at the places where its parts lie now."""
    run = RunFolder(str(shutil.copytree(DATA / f"rl-run-{commit}", tmp_path / "rl")))
    for name, rows in (("practice.jsonl", 8), ("held-out.jsonl", 4)):
        lines = (ADDITION / name).read_text().splitlines(keepends=True)[:rows]
        (tmp_path / name).write_text("".join(lines))
    document = run.run()
    assert document is not None
    stored: dict[str, Any] = document.config
    places: dict[str, Any] = {
        "input": stored["input"] | {"paths": [str(tmp_path / "practice.jsonl")]},
        "held_out": stored["held_out"]
        | {"prompts": [str(tmp_path / "held-out.jsonl")], "check": f"{ADDITION / 'problems.py'}:right"},
        "output": {"path": run.uri},
    }
    return run, RlConfig.model_validate(stored | places)


def test_an_online_run_is_read_and_goes_on_where_its_prompts_are_asked_alike(
    commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ADDITION.parents[1])  # its documents name the model so
    run, config = online(commit, tmp_path)
    assert status(run.uri) == redraw(run.uri) == 0 and "Steps 2 of 2" in " ".join(capsys.readouterr().out.split())
    assert "examples/addition/model" in Path(run.at("report.html")).read_text()
    results = read_results(run)
    assert results is not None and results.held_out == 4 and len(results.accuracy_after_interval or ()) == 2
    Path(run.at("manifest.json")).unlink()
    if commit == "e275d6a":
        assert rl(config, dry_run=True) == 0
    else:  # how its prompts become tokens, and of which columns, was no part of what it was
        sentence = r"the columns of the prompts are read otherwise than when the run began\. Give another --output"
        with pytest.raises(StoreError, match=sentence) as raised:
            rl(config, dry_run=True)
        assert "prompts.shapes: the run there has None" in str(raised.value)
