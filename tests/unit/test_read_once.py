"""A whole run of `label`, and whatever reads a finished store: no part and no record is read twice, counted at the file
system. The planner, the committer and the readers are those of real commands, with a scorer and without Ray."""

import json
from collections import Counter
from pathlib import Path

import pytest
from label_stores import _answers
from test_record_index import Reads
from tiny import CHATML, save_model

from jobs.label.plan import find_inputs, pending, plan_inputs
from jobs.stores.aggregate import aggregate
from jobs.stores.finalize import Timing, finish_store
from jobs.stores.sweep import sweep
from pipeline.config import LabelConfig
from pipeline.corpus import read_shards
from pipeline.rewards.labellers import Endogenous
from pipeline.store import LabelStore, RecordIndex, Survey, commit, fingerprint
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples

ROWS, SHARD_ROWS = 13, 2


def label(config: LabelConfig, most: int | None = None) -> None:
    """Plan, commit what is left, or `most` shards of it as a run that is killed then, and finish."""
    labeller, store = Endogenous(config, config.model), LabelStore(config.output.path)
    description = labeller.describe("float32")
    inputs = plan_inputs(store, find_inputs(config.input, store.uri), config.input)
    store.open_for_writing(description)
    for stored in inputs:
        store.add_input(stored)
    survey, index = Survey(), RecordIndex(store, 2)
    for work in pending(store, inputs, False):
        for shard, raw in read_shards(work.file, work.format, work.shards):
            if most is not None and len(survey) == most:
                return
            prepared = labeller.prepare(shard, 0, raw, work.shape)
            answers = _answers(labeller, prepared.requests)
            record = commit(store.uri, shard, fingerprint.digest(description), 0, *labeller.finish(prepared, answers))
            survey.add(record)
            index.add(record)
    index.close()
    finish_store(store, config, lambda ids: list(map(str, ids)), Timing().stop(), [], "", survey=survey, quiet=True)


@pytest.fixture
def config(tmp_path: Path) -> LabelConfig:
    source = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"q {i}", "chosen": "yes " * (i % 3 + 1), "rejected": "no" * (i != 4)} for i in range(ROWS))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "model": {"name": str(save_model(tmp_path / "model", CHATML))},
        "input": {"paths": [str(source)], "shard_rows": SHARD_ROWS},
        "output": {"path": str(tmp_path / "out")},
    }
    return LabelConfig.model_validate(sections)


def require_once(opened: Counter[str]) -> None:
    assert opened and set(opened.values()) == {1}, opened


@pytest.mark.parametrize("killed_at", [None, 3])
def test_a_whole_run_reads_no_part_and_no_record_twice(
    config: LabelConfig, killed_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if killed_at is not None:
        label(config, killed_at)
    reads = Reads(monkeypatch)
    label(config)
    require_once(reads.of())  # parts that the report shows, and of a run before its index and what is not in it
    assert LabelStore(config.output.path).progress().complete


def test_what_reads_a_finished_store_reads_it_once(
    config: LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(config)
    out = config.output.path
    reads = Reads(monkeypatch)
    sweep(out, [1.0, 0.9])
    require_once(reads.of())
    aggregate(out, str(tmp_path / "mean"), ["reward.aggregation=mean"])
    opened = reads.of()
    require_once(opened)
    assert sum(path.startswith(out) and "/labels/" in path for path in opened) == -(-ROWS // SHARD_ROWS)
    find_examples(TrainConfig.model_validate({"train": {"labels": [out], "objective": "dpo"}}))
    require_once(reads.of())
