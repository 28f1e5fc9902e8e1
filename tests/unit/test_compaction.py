"""`compact`: every id once at any moment, whatever was killed at which step; what reads a store reads it afterwards."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_store import (
    DESCRIPTION,
    changes_until_killed,
    commit_all,
    contents,
    make_label,
    rows_of,
    shards_of,
    store,
)

from endoreward.labels import read_errors, read_labels
from jobs.evaluate.run import evaluate
from jobs.label.plan import pending
from jobs.stores.aggregate import aggregate
from jobs.stores.compact import compact as compact_command
from jobs.stores.export import export
from jobs.stores.inspect_store import status, validate
from jobs.stores.redraw import redraw
from jobs.stores.sweep import sweep
from pipeline import storage
from pipeline.config import EvaluateConfig, ModelConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.store import (
    LabelStore,
    StatusFile,
    WriterLock,
    commit,
    documents,
    fingerprint,
    part_uri,
    problems,
)
from pipeline.store.compaction import compact, settle
from pipeline.store.manifest import Manifest
from pipeline.store.segments import segment_names, segment_uri
from pipeline.store.store import KINDS
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.rows import RowReader

__all__ = ["store"]  # the fixture

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/addition/model"


def merge(store: LabelStore, target_bytes: int = 2**20) -> None:
    for _ in compact(store.uri, target_bytes):
        pass


def ids(store: LabelStore) -> list[str]:
    """By the records, sorted."""
    shards = LabelStore(store.uri).survey().shards
    return sorted(id for kind in KINDS for _, table in store.read(kind, shards) for id in table["id"].to_pylist())


def globbed(store: LabelStore) -> list[str]:
    """By a plain glob, sorted."""
    files = [path for kind in KINDS for path in Path(store.uri, kind).glob("*.parquet")]
    return sorted(id for path in files for id in pq.ParquetFile(path).read()["id"].to_pylist())


def rows(store: LabelStore) -> list[dict[str, object]]:
    return [row for kind in KINDS for _, table in store.read(kind, store.survey().shards) for row in table.to_pylist()]


def summary(store: LabelStore) -> dict[str, object]:
    manifest = Manifest.of(store, config={}, inputs=[], notes=[], timing=None, versions={})
    return {**manifest.content(), "created": ""}


def retry(store: LabelStore, number: int = 0) -> None:
    """Label a shard once more, this time without errors."""
    shard = shards_of(store)[number]
    labels = [make_label(r, p) for r in range(shard.start, shard.stop) for p in ("chosen", "rejected")]
    commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 1, labels, [])


def test_a_compacted_store_says_what_it_said_before_in_fewer_files(store: LabelStore) -> None:
    commit_all(store)
    before = (ids(store), rows(store), summary(store), [replace(r) for r in store.records()])
    merge(store)
    store = LabelStore(store.uri)
    assert (ids(store), rows(store), summary(store)) == before[:3] and globbed(store) == before[0]
    assert [r.labels.sha256 for r in store.records()] == [r.labels.sha256 for r in before[3]]
    names = [name for name in contents(store) if not name.startswith("records/input-") and name != "records/run.json"]
    assert len(names) == 3, names  # labels, errors, segment
    assert list(problems(store)) == [] and list(problems(store, 16)) == []
    assert store.progress().complete and not pending(store, store.inputs(), False).shards


def test_a_second_time_changes_nothing(store: LabelStore) -> None:
    commit_all(store)
    merge(store)
    before = contents(store)
    merge(store)
    assert contents(store) == before


def test_files_are_closed_at_their_size_and_the_small_are_merged_later(store: LabelStore) -> None:
    commit_all(store)
    merge(store, 1)
    assert len(segment_names(store.uri)) == 3 and list(problems(store)) == []
    wanted = ids(store)
    merge(store, 2**20)
    assert len(segment_names(store.uri)) == 1 and list(problems(store)) == []
    assert ids(store) == globbed(store) == wanted


def test_an_unfinished_store_is_compacted_and_goes_on(store: LabelStore) -> None:
    second = shards_of(store)[1]
    commit_all(store)
    wanted = ids(store)
    os.unlink(store.at("records", f"{part_uri('', '', second).rpartition('part-')[2].removesuffix('.parquet')}.json"))
    merge(store)
    store.open_for_writing(DESCRIPTION)
    assert [shard for work in pending(store, store.inputs(), False) for shard in work.shards] == [second]
    commit(store.uri, second, fingerprint.digest(DESCRIPTION), 0, *rows_of(second))
    assert ids(store) == globbed(store) == wanted and list(problems(store)) == []
    merge(store)
    assert ids(store) == globbed(store) == wanted and len(segment_names(store.uri)) == 1


def test_a_retry_of_a_compacted_shard_counts_and_its_old_rows_go(store: LabelStore) -> None:
    commit_all(store)
    merge(store)
    assert [g for work in pending(store, store.inputs(), True) for g in work.generations] == [1, 1, 1]
    retry(store)
    assert "rejected:0:0" in " ".join(ids(store)) and len(ids(store)) == len(set(ids(store)))
    assert len(globbed(store)) > len(ids(store))  # until the run is finished
    assert any("merged again" in problem for problem in problems(store))
    settle(store.uri)
    assert globbed(store) == ids(store) and list(problems(store)) == []
    for number in (1, 2):
        retry(store, number)
    settle(store.uri)  # nothing is left of the segment
    assert segment_names(store.uri) == [] and globbed(store) == ids(store) and list(problems(store)) == []
    merge(store)
    assert globbed(store) == ids(store) and [r.generation for r in store.records()] == [1, 1, 1]


def test_what_an_orphan_writes_once_more_does_not_count_and_goes(store: LabelStore) -> None:
    commit_all(store)
    wanted = ids(store)
    merge(store)
    commit_all(store)  # workers of a driver that is gone
    assert ids(store) == wanted and any("does not count" in problem for problem in problems(store))
    store.open_for_writing(DESCRIPTION)
    assert globbed(store) == wanted and list(problems(store)) == []


def kills(store: LabelStore, work_on: int, target_bytes: int) -> Iterator[int]:
    """Kill `compact` before each of its changes in turn; yields with the store as it was left."""
    before = contents(store)
    for step in count():
        for name in contents(store):
            os.unlink(os.path.join(store.uri, name))
        for name, data in before.items():
            documents.write_bytes(os.path.join(store.uri, name), data)
        if changes_until_killed(lambda: merge(store, target_bytes), step) >= 0:
            assert step > work_on
            return
        yield step


@pytest.mark.parametrize(
    ("begin", "target_bytes"),
    [
        ("parts", 2**20),
        ("retried", 1),
        pytest.param("parts", 1, marks=pytest.mark.slow),
        pytest.param("segments", 2**20, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_every_step_leaves_every_id_once(store: LabelStore, begin: str, target_bytes: int) -> None:
    commit_all(store)
    if begin != "parts":
        merge(store, 1)
    if begin == "retried":
        retry(store)
    wanted = ids(store), rows(store), summary(store)
    for step in kills(store, 6, target_bytes):
        left = LabelStore(store.uri)
        assert (ids(left), rows(left), summary(left)) == wanted, f"killed before change {step}"
        assert left.progress().complete and not pending(left, left.inputs(), False).shards
        for problem in problems(left):
            assert "does not count" in problem or "merged again" in problem or "no record knows" in problem, problem
        if step % 2:
            merge(left, 1)
        else:
            left.open_for_writing(DESCRIPTION)
            settle(left.uri)
        left = LabelStore(store.uri)
        assert (ids(left), rows(left), summary(left)) == wanted and globbed(left) == wanted[0]
        assert list(problems(left)) == []


def test_a_reader_that_looked_before_reads_on_after(store: LabelStore) -> None:
    commit_all(store)
    wanted = ids(store)
    reader = LabelStore(store.uri)
    survey, records = reader.survey(), reader.look()
    merge(store)
    found = [i for kind in KINDS for _, table in reader.read(kind, survey.shards) for i in table["id"].to_pylist()]
    assert sorted(found) == wanted
    assert sum(record.labels.rows for record in records.records(records.names())) == 9


def test_readers_beside_it_meet_every_id_once(store: LabelStore) -> None:
    commit_all(store)
    wanted, rounds = ids(store), 0
    with ThreadPoolExecutor(1) as writer:
        for target_bytes in (1, 2**20):
            merging = writer.submit(merge, store, target_bytes)
            while not merging.done():
                assert ids(store) == wanted
                rounds += 1
            merging.result()
    assert rounds and ids(store) == wanted


def test_a_damaged_part_is_not_merged_and_nothing_is_removed(store: LabelStore) -> None:
    commit_all(store)
    part = Path(part_uri(store.uri, "labels", shards_of(store)[1]))
    part.write_bytes(part.read_bytes()[:-9] + b"x" + part.read_bytes()[-8:])
    before = contents(store)
    with pytest.raises(StoreError, match="is damaged; endoreward validate"):
        merge(store)
    assert {n: d for n, d in contents(store).items() if n != "records/run.json"} == {
        n: d for n, d in before.items() if n != "records/run.json"
    }


def test_every_flipped_byte_of_a_compacted_store_is_found(store: LabelStore) -> None:
    commit_all(store)
    merge(store)
    files = [name for name in contents(store) if name.startswith(("labels/", "errors/", "records/segments"))]
    assert len(files) == 3
    for name in files:
        path = Path(store.uri, name)
        intact = path.read_bytes()
        for place in range(0, len(intact), max(1, len(intact) // 60)):
            data = bytearray(intact)
            data[place] ^= 4
            path.write_bytes(data)
            assert list(problems(LabelStore(store.uri))), f"byte {place} of {name}"
        path.write_bytes(intact)
    assert list(problems(LabelStore(store.uri))) == []


def test_a_damaged_segment_stops_a_run_before_it_labels_again(store: LabelStore) -> None:
    commit_all(store)
    merge(store)
    [name] = segment_names(store.uri)
    path = Path(segment_uri(store.uri, name))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = LabelStore(store.uri)
    for call in (again.done, lambda: list(again.records()), lambda: again.open_for_writing(DESCRIPTION)):
        with pytest.raises(StoreError, match=r"checksum does not match.*delete it, with the files part-segment-"):
            call()
    path.unlink()  # and literally so
    for kind in KINDS:
        Path(again.at(kind, f"part-segment-{name}.parquet")).unlink()
    assert not again.done() and ["not labelled yet" in problem for problem in problems(again)] == [True]


def test_earlier_versions_refuse_a_compacted_store(store: LabelStore) -> None:
    commit_all(store)
    run = json.loads(Path(store.at("records", "run.json")).read_bytes())
    assert run["version"] == 1
    merge(store)
    assert json.loads(Path(store.at("records", "run.json")).read_bytes())["version"] == 2
    assert LabelStore(store.uri).fingerprint() == run["fingerprint"]


def test_it_is_discarded_whole(store: LabelStore) -> None:
    commit_all(store)
    merge(store)
    store.discard()
    assert contents(store) == {}


# What is made of a store


def found(uri: str) -> tuple[object, ...]:
    """What training takes from a store: which rows of which parts, and the rows themselves."""
    config = TrainConfig.model_validate(
        {"train": {"labels": [uri], "objective": "dpo"}, "policy": {"name": str(MODEL)}}
    )
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, ModelConfig(name=str(MODEL)), 8)
    read = reader.read(examples, range(len(examples.rows)))
    tokens = [(row.id, row.reward, row.prompt_ids.tolist(), row.response_ids.tolist()) for row in read]
    return examples.describe(), examples.rows_digest, tokens


@pytest.mark.parametrize("format", [1, 2])
def test_whatever_is_made_of_a_store_is_made_of_it_compacted(
    format: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # its manifest names the model so
    uri = str(shutil.copytree(ROOT / f"tests/data/store-format-{format}", tmp_path / "store"))
    evaluation = {"evaluate": {"benchmark": "pairs", "labels": uri, "resamples": 100}}

    def made(name: str) -> dict[str, object]:
        out = tmp_path / name
        out.mkdir()
        assert export(uri, "trl", str(out / "pairs.jsonl")) == sweep(uri, [1.0, 0.9], str(out / "sweep.json")) == 0
        assert aggregate(uri, str(out / "mean"), ["reward.aggregation=mean"]) == 0 == validate(str(out / "mean"))
        assert evaluate(EvaluateConfig.model_validate(evaluation | {"output": {"path": str(out / "evaluation")}})) == 0
        assert redraw(uri) == 0
        results = json.loads((out / "evaluation/results.json").read_text())
        digests = [(record.name, record.labels, record.stats) for record in LabelStore(str(out / "mean")).records()]
        return {
            "files": [(out / file).read_bytes() for file in ("pairs.jsonl", "sweep.json")],
            "aggregated": digests,
            "values": [reward["values"] for reward in results["rewards"]],
            "page": Path(uri, "report.html").read_bytes(),
            "labels": read_labels(uri).to_pylist(),
            "errors": read_errors(uri).to_pylist(),
            "training": found(uri),
        }

    before, manifest = made("before"), Path(uri, "manifest.json").read_bytes()
    assert compact_command(uri) == 0 and validate(uri) == 0 == status(uri)
    assert len(list(Path(uri, "labels").iterdir())) == 1 and Path(uri, "manifest.json").read_bytes() == manifest
    assert "nothing to merge" not in capsys.readouterr().out
    after = made("after")
    for name, value in before.items():
        assert after[name] == value, name
    assert compact_command(uri) == 0 and "nothing to merge" in capsys.readouterr().out


@pytest.mark.slow
def test_a_store_on_s3(store: LabelStore, s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    commit_all(store)
    documents.put_folder(store.uri, f"{s3}/out")
    there = LabelStore(f"{s3}/out")
    wanted = ids(store), rows(store), summary(store)
    assert compact_command(there.uri) == 0 and validate(there.uri) == status(there.uri) == 0
    again = LabelStore(there.uri)
    assert (ids(again), rows(again), summary(again)) == wanted
    assert [len(storage.list_names(there.at(folder))) for folder in ("labels", "errors", "records/segments")] == [
        1,
        1,
        1,
    ]
    shard = shards_of(store)[0]
    commit(there.uri, shard, fingerprint.digest(DESCRIPTION), 1, [make_label(0, "chosen"), make_label(1, "chosen")], [])
    settle(there.uri)
    assert validate(there.uri) == 0 and LabelStore(there.uri).progress().labels == 8
    with StatusFile(there.uri, 6, 6):
        pass
    assert status(there.uri) == 0 and "finished" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_merge(store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--file-mb 0"):
        compact_command(store.uri, 0)
    with pytest.raises(StoreError, match="is not a label store"):
        compact_command(str(tmp_path / "nothing"))
    with WriterLock(store.uri), pytest.raises(StoreError, match="is being written by another driver"):
        compact_command(store.uri)
    rollouts = LabelStore(str(tmp_path / "rollouts"))
    rollouts.open_for_writing({"run.seed": 1})
    with pytest.raises(StoreError, match="holds kept rollouts"):
        compact_command(rollouts.uri)
