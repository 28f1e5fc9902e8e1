"""Records in an index: what a run committed is folded as it comes, and read once by whoever comes later."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_store import DESCRIPTION, make_label, rows_of, shards_of, store

from jobs.label.plan import pending
from jobs.stores.export import export
from jobs.stores.inspect_store import status, validate
from pipeline import storage
from pipeline.store import LabelStore, RecordIndex, Survey, commit, find_record, fingerprint, problems
from pipeline.store.compaction import compact
from pipeline.store.manifest import Manifest
from pipeline.store.segments import segment_names, segment_uri
from pipeline.store.store import KINDS

__all__ = ["store"]  # the fixture


def without_errors(store: LabelStore) -> Iterator[Any]:
    """Commit each shard, without error rows but for the last."""
    for number, shard in enumerate(shards_of(store)):
        labels, failures = rows_of(shard)
        yield commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 0, labels, failures if number == 2 else [])


def summary(store: LabelStore, survey: Survey | None = None) -> dict[str, object]:
    manifest = Manifest.of(store, survey=survey, config={}, inputs=[], notes=[], timing=None, versions={})
    return {**manifest.content(), "created": ""}


class Reads:
    """Counts what is opened for reading, and the bytes that are read of each file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.opened: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        real = storage.locate
        monkeypatch.setattr(storage, "locate", lambda uri: (_Counting(real(uri)[0], self), real(uri)[1]))

    def of(self, *below: str) -> Counter[str]:
        """How often each part, record or segment was opened since this was asked last, or what is in some folders."""
        folders = below or ("labels", "errors", "records")
        opened = Counter({path: n for path, n in self.opened.items() if any(f"/{f}/" in path for f in folders)})
        for path in list(opened):
            if "/input-" in path or path.endswith("/run.json"):
                del opened[path]
        self.opened.clear()
        self.bytes.clear()
        return opened


class _Counting:
    def __init__(self, real: Any, reads: Reads):
        self.real, self.reads = real, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def open_input_file(self, path: str) -> pa.NativeFile:
        file = _File(path, self.reads)  # of which there is none where a commit looks for what came first
        self.reads.opened[path] += 1
        return pa.PythonFile(file, "r")

    def open_input_stream(self, path: str, compression: str | None = None) -> pa.NativeFile:
        if compression is None:
            return self.open_input_file(path)
        self.reads.opened[path] += 1
        return self.real.open_input_stream(path, compression=compression)


class _File(io.FileIO):
    def __init__(self, path: str, reads: Reads):
        super().__init__(path)
        self.path, self.reads = path, reads

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        data = super().read(-1 if size is None else size)
        self.reads.bytes[self.path] += len(data)
        return data


def test_a_run_reads_back_nothing_of_what_it_committed(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, survey, index = Reads(monkeypatch), Survey(), RecordIndex(store, 2)
    assert not store.done()
    for record in without_errors(store):
        reads.of()  # a commit looks for a record that came first
        survey.add(record)
        index.add(record)
    index.close()
    told = summary(store, store.survey(survey))
    assert not reads.of(), "records, parts and segments"
    assert told == summary(LabelStore(store.uri)) and told["counts"] == {
        "rows": 0, "responses": 10, "labels": 9, "errors": 1, "shards": 3
    }  # fmt: skip


def test_a_run_that_goes_on_reads_what_was_there_once(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = without_errors(store)
    index = RecordIndex(store, 8)
    for record in (next(committed), next(committed)):
        index.add(record)
    index.close()
    reads, again, survey = Reads(monkeypatch), LabelStore(store.uri), Survey()
    again.open_for_writing(DESCRIPTION)
    assert len(again.done()) == 2
    survey.add(next(committed))
    again.settle()
    again.survey(survey)
    assert len(survey) == 3 and survey.errors == {"empty_response": 1}
    [(segment, times)] = {path: n for path, n in reads.of().items() if "000002" not in path}.items()  # the last is new
    assert segment.endswith(".segment") and times == 1


@pytest.mark.parametrize("indexed", [False, True])
def test_a_run_that_retries_errors_reads_each_record_once(
    store: LabelStore, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = RecordIndex(store, 2)
    for record in without_errors(store):
        if indexed:
            index.add(record)
    survey, again = Survey(), LabelStore(store.uri)
    reads = Reads(monkeypatch)
    again.open_for_writing(DESCRIPTION)
    backlog = pending(again, again.inputs(), True, None, survey)
    [work] = list(backlog)
    assert (backlog.shards, list(work.generations)) == (1, [1]) and len(survey) == 2
    opened = reads.of()
    labels = [make_label(r, p) for r in (4, 5) for p in ("chosen", "rejected")]
    record = commit(store.uri, work.shards[0], fingerprint.digest(DESCRIPTION), 1, labels, [])
    reads.of()  # a commit looks for a record that came first
    survey.add(record)
    again.settle()
    told = summary(again, again.survey(survey))
    opened.update(reads.of())
    assert opened and set(opened.values()) == {1}, opened
    assert told == summary(LabelStore(store.uri)) and told["counts"]["errors"] == 0


@pytest.mark.parametrize("form", ["files", "index", "merged"])
def test_no_part_and_no_record_is_read_twice(
    store: LabelStore, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = RecordIndex(store, 2)
    for record in without_errors(store):
        if form == "index":
            index.add(record)
    if form == "merged":
        for _ in compact(store.uri):
            pass
    merged = {
        storage.join(store.uri, kind, n) for kind in KINDS for n in storage.list_names(store.at(kind)) if "segment" in n
    }
    assert bool(merged) == (form == "merged")
    reads = Reads(monkeypatch)
    for command in (
        lambda: status(store.uri),
        lambda: validate(store.uri, 3),
        lambda: export(store.uri, "trl", str(tmp_path / "pairs.jsonl")),
        lambda: list(LabelStore(store.uri).read("labels", LabelStore(store.uri).survey().shards, ["id", "reward"])),
    ):
        command()
        opened = reads.of()
        assert opened and all(times == 1 for path, times in opened.items() if path not in merged), opened
    validate(store.uri, 3)
    sizes = {path: (reads.bytes[path], os.path.getsize(path)) for path in merged}
    assert all(read == size for read, size in sizes.values()), "every byte once"


def test_statistics_are_the_same_bits_in_any_order(store: LabelStore) -> None:
    records = list(without_errors(store))
    orders = []
    for order in (records, records[::-1], [records[1], records[2], records[0]]):
        survey = Survey()
        for record in [*order, order[0]]:
            survey.add(record)
        orders.append(survey)
    assert orders[0].stats == orders[1].stats == orders[2].stats == LabelStore(store.uri).survey().stats
    assert [len(each) for each in orders] == [3, 3, 3] and orders[1].shards == orders[0].shards


def test_a_shard_that_may_be_retried_is_not_in_the_index(store: LabelStore) -> None:
    index = RecordIndex(store, 8)
    for record in without_errors(store):
        index.add(record)
    index.close()
    look = store.look()
    assert len(look.indexed) == 2 and len(look.files) == 3
    last = shards_of(store)[2]
    labels = [make_label(r, p) for r in (4, 5) for p in ("chosen", "rejected")]
    record = commit(store.uri, last, fingerprint.digest(DESCRIPTION), 1, labels, [])
    assert record in list(LabelStore(store.uri).records()) and list(problems(store)) == []


def test_an_entry_without_its_record_does_not_count_and_goes(store: LabelStore) -> None:
    index = RecordIndex(store, 8)
    for record in without_errors(store):
        index.add(record)
    index.close()
    first = shards_of(store)[0]
    record = find_record(store.uri, first)
    assert record is not None
    os.unlink(store.at("records", f"{record.name}.json"))  # how a damaged part is mended
    again = LabelStore(store.uri)
    assert record.name not in again.done() and len(list(again.records())) == 2
    again.open_for_writing(DESCRIPTION)
    assert segment_names(store.uri) == [] and len(list(again.records())) == 2


def test_an_index_that_says_something_else_is_found(store: LabelStore) -> None:
    index = RecordIndex(store, 8)
    records = list(without_errors(store))
    index.add(replace(records[0], generation=7))
    index.close()
    [problem] = problems(store)
    [name] = segment_names(store.uri)
    assert problem.startswith(segment_uri(store.uri, name)) and problem.endswith("delete it")
    os.unlink(segment_uri(store.uri, name))  # and literally so
    assert list(problems(LabelStore(store.uri))) == []


def test_a_few_records_make_no_index(store: LabelStore) -> None:
    index = RecordIndex(store)
    for record in without_errors(store):
        index.add(record)
    index.close()
    assert segment_names(store.uri) == []


def test_an_indexed_store_is_compacted(store: LabelStore) -> None:
    index = RecordIndex(store, 8)
    for record in without_errors(store):
        index.add(record)
    index.close()
    told = summary(store)
    for _ in compact(store.uri):
        pass
    again = LabelStore(store.uri)
    assert summary(again) == told and list(problems(again)) == []
    assert [segment.merged for segment in again.look().segments] == [True]


def test_of_two_entries_the_later_counts(store: LabelStore) -> None:
    """As where a shard was mended, and both of its segments stand. Records come in the order of their shards, or the
    statistics of all would wait for the first."""
    records = list(without_errors(store))[:2]
    for number, labels in enumerate((7, 8)):
        index = RecordIndex(store, 8)
        for record in records[number:]:
            index.add(replace(record, labels=replace(record.labels, rows=labels)))
        index.close()
    look = LabelStore(store.uri).look()
    assert [record.labels.rows for record in look.records_of(lambda name: name in look.indexed)] == [7, 8]
    assert [record.labels.rows for record in look.records(sorted(look.indexed))] == [7, 8]
    survey = LabelStore(store.uri).survey()
    assert len(survey) == 3 and all(not file.stats.waiting for file in survey._files.values())
