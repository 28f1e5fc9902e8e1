"""Stores that earlier versions made (ce2f0be: format 1, e275d6a: format 2; eight pairs of examples/addition and one that is no
text) are read always; more is labelled into one whose format is ours, and nothing into another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.evaluate.run import evaluate
from jobs.label.label_run import LabelRun
from jobs.label.plan import pending
from jobs.stores.aggregate import aggregate
from jobs.stores.export import export
from jobs.stores.inspect_store import status, validate
from jobs.stores.redraw import redraw
from jobs.stores.sweep import sweep
from jobs.train.run import train
from pipeline.config import EvaluateConfig, LabelConfig, ModelConfig
from pipeline.corpus import find_files
from pipeline.errors import StoreError
from pipeline.rewards.labellers import Endogenous
from pipeline.store import LabelStore, documents
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.rows import RowReader, check_rows

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/addition/model"


@pytest.fixture(params=[1, 2])
def format(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def old(format: int, tmp_path: Path) -> str:
    return str(shutil.copytree(ROOT / f"tests/data/store-format-{format}", tmp_path / "old"))


def test_it_is_whole_and_its_figures_are_read(old: str, format: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert LabelStore(old).description()["format"] == format
    assert status(old) == validate(old) == 0 and "16 labels and 1 errors of 9 input rows" in capsys.readouterr().out
    assert sweep(old) == 0


def test_its_page_is_drawn_anew(old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # its manifest names the model so
    manifest = Path(old, "manifest.json").read_bytes()
    assert redraw(old) == 0 and "753+939=" in Path(old, "report.html").read_text()
    assert Path(old, "manifest.json").read_bytes() == manifest


def test_it_is_evaluated(old: str, tmp_path: Path) -> None:
    options = {"benchmark": "pairs", "labels": old, "resamples": 100}
    config = EvaluateConfig.model_validate({"evaluate": options, "output": {"path": str(tmp_path / "evaluation")}})
    assert evaluate(config) == 0
    [first, *_] = json.loads((tmp_path / "evaluation/results.json").read_text())["rewards"]
    assert first["values"]["accuracy"] == 1 and first["items"] == 8 and first["incomplete"]["items"] == 1
    assert first["model"] == "examples/addition/model" and first["forwarded_tokens"] == 562


def test_it_is_exported(old: str, tmp_path: Path) -> None:
    assert export(old, "trl", str(tmp_path / "pairs.parquet")) == 0
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    first = json.loads((ROOT / "examples/addition/pairs.jsonl").read_text().splitlines()[0])
    said = [rows[0][name][-1]["content"] for name in ("prompt", "chosen", "rejected")]
    assert len(rows) == 8 and said == [first["prompt"], first["chosen"], first["rejected"]]


def test_another_aggregation_is_made_of_it(old: str, format: int, tmp_path: Path) -> None:
    assert aggregate(old, str(tmp_path / "mean"), ["reward.aggregation=mean"]) == 0
    made = LabelStore(str(tmp_path / "mean"))
    assert made.description()["format"] == format and made.progress().labels == 16 and validate(made.uri) == 0


def test_a_policy_is_trained_on_its_rows(old: str) -> None:
    config = TrainConfig.model_validate({"train": {"labels": [old], "objective": "sft"}, "sft": {"select": "all"}})
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, ModelConfig(name=str(MODEL)), 8)
    check_rows(reader, examples)
    parts = [pq.read_table(path) for path in sorted(Path(old, "labels").glob("*.parquet"))]
    stored = {row["id"]: row for part in parts for row in part.to_pylist()}
    for row in reader.read(examples, range(len(examples.rows))):
        assert row.response_ids.tolist() == stored[row.id]["token_ids"]
        assert len(row.prompt_ids) == stored[row.id]["num_prompt_tokens"]


def test_it_goes_on_where_its_labels_mean_what_ours_do(
    old: str, format: int, tmp_path: Path, unchanged: Callable[[str], Any]
) -> None:
    corpus = tmp_path / "pairs.jsonl"
    pairs = (ROOT / "examples/addition/pairs.jsonl").read_text().splitlines(keepends=True)[:8]
    corpus.write_text("".join(pairs) + '{"prompt": 7, "chosen": "7", "rejected": "8"}\n')
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    config = LabelConfig.model_validate({"model": {"name": str(MODEL)}})
    before = unchanged(old)
    labeller, files = Endogenous(config, config.model), find_files([str(corpus), str(more)])
    if format == 1:
        with pytest.raises(StoreError, match=r"labels of format 1, .* nothing is added to it; give another --output"):
            LabelRun.open(labeller, old, "cpu", files)
    else:
        run = LabelRun.open(labeller, old, "cpu", files)
        run.store.open_for_writing(run.description)
        run.store.add_input(next(each for each in run.inputs if each.file.name == "pairs.jsonl"))
        [work] = pending(run.store, run.inputs, retry_errors=False)
        assert work.file.name == "more.jsonl"
        again = pending(run.store, run.inputs, retry_errors=True)
        assert [(w.file.name, w.generations) for w in again] == [("more.jsonl", [0]), ("pairs.jsonl", [1])]
    changed = {name for name, data in unchanged(old).items() if before[name] != data}
    assert all("/input-" in name for name in changed)  # where the corpus lies now


def test_a_guess_is_said_by_whatever_is_made_of_it(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only `status` and `evaluate` said it: pairs that may be swapped were exported, compared and learnt from in silence."""
    [path] = Path(old, "records").glob("input-*.json")
    known = json.loads(path.read_text())
    known.pop("sha256")
    guess = {"label": "label", "first_label": 0}
    documents.write(str(path), known | {"shape": known["shape"] | guess})
    policy = {"policy": {"name": str(MODEL)}, "output": {"path": str(tmp_path / "run")}}
    learning = TrainConfig.model_validate(
        {"train": {"labels": [old], "batch_size": 4}, "learner": {"device": "cpu"}, **policy}
    )
    for command in (
        lambda: sweep(old),
        lambda: export(old, "trl", str(tmp_path / "pairs.jsonl")),
        lambda: aggregate(old, str(tmp_path / "mean"), ["reward.aggregation=mean"]),
        lambda: train(learning, dry_run=True),
    ):
        assert command() == 0
        assert "guessed for pairs.jsonl: 0 in column 'label'" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def unchanged() -> Callable[[str], Any]:
    """Every file below a folder and its bytes."""
    return lambda folder: {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
