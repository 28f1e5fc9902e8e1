"""Work as it is asked for is the work of a list; files that are planned later come last, or end the run."""

import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label.ahead import Ahead
from jobs.label.backlog import RUN, Backlog
from jobs.label.later import Later, Planning, beyond, look
from jobs.label.plan import pending, plan_first, plan_inputs
from pipeline.config import InputConfig
from pipeline.corpus import InputFile, Shard, detect, find_files
from pipeline.errors import InputError, RunError
from pipeline.store import LabelStore, StoredInput, problems, shard_name

CONFIG = InputConfig(shard_rows=2)


def pairs(number: int) -> list[dict[str, str]]:
    return [{"prompt": f"q {i}", "chosen": "x", "rejected": "y"} for i in range(number)]


def text(number: int) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in pairs(number))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that are read by ranges, from the front, and a row group at a time."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_bytes(text(2 * RUN + 9))
    (tmp_path / "corpus/b.jsonl.gz").write_bytes(gzip.compress(text(11)))
    pq.write_table(pa.Table.from_pylist(pairs(21)), tmp_path / "corpus/c.parquet", row_group_size=8)
    return tmp_path / "corpus"


def enumerated(inputs: list[StoredInput], done: set[str]) -> list[Shard]:
    return [shard for stored in inputs for shard in stored.plan.shards if shard_name(shard) not in done]


@pytest.mark.parametrize("every", [0, 1, 2, 3, 7])
def test_work_is_that_of_a_list(folder: Path, every: int) -> None:
    inputs = plan_inputs(None, find_files([str(folder)]), CONFIG)
    names = [shard_name(shard) for stored in inputs for shard in stored.plan.shards]
    done = set(names[::every] if every else [])
    again = {names[0]: 3} if every else {}
    backlog, expected = Backlog(inputs, done, again), enumerated(inputs, done - again.keys())
    work = list(backlog)
    assert [shard for each in work for shard in each.shards] == expected
    assert (backlog.shards, backlog.rows) == (len(expected), sum(shard.rows for shard in expected))
    assert backlog.total_rows == 2 * RUN + 9 + 11 + 21 and backlog.whole
    assert work == list(backlog)  # as often as it is asked for
    for each in work:
        assert [again.get(shard_name(shard), 0) for shard in each.shards] == list(each.generations)
        assert each.apart or len({shard.offset for shard in each.shards}) == 1
        assert len(each.shards) <= RUN or each.file.name == "b.jsonl.gz"
    together = [each.shards for each in work if each.file.name != "a.jsonl" and not each.apart]
    assert len({(shards[0].file, shards[0].offset) for shards in together}) == len(together)  # each read by one task


def files_of(folder: Path, number: int) -> list[InputFile]:
    for index in range(number):
        (folder / f"{index}.jsonl").write_bytes(text(5 + index))
    return list(find_files([str(folder)]))


def test_what_is_planned_later_is_the_same_plan(folder: Path) -> None:
    files = list(find_files([str(folder)]))
    inputs, later = plan_first(None, files, CONFIG, first_bytes=1)
    assert [each.file.name for each in inputs] == ["a.jsonl"]
    assert [each.file.name for each in later] == ["b.jsonl.gz", "c.parquet"]
    everything = plan_inputs(None, files, CONFIG)

    def comparable(stored: StoredInput) -> tuple[object, ...]:
        return stored.file, stored.shape, stored.plan.digest, stored.plan.rows, stored.plan.shards

    rest = list(Planning(later, CONFIG, by_tasks=False))
    assert list(map(comparable, [*inputs, *rest])) == list(map(comparable, everything))
    backlog = Backlog(inputs, later=(stored for stored in rest))
    assert not backlog.whole and backlog.total_rows == inputs[0].plan.rows
    shards = [shard for work in backlog for shard in work.shards]
    assert shards == enumerated(everything, set()) and backlog.whole and backlog.shards == len(shards)


def test_work_of_planned_files_is_there_before_later_ones_are_planned(tmp_path: Path) -> None:
    inputs, later = plan_first(None, files_of(tmp_path, 3), CONFIG, first_bytes=1)

    def never() -> Iterator[StoredInput]:
        raise AssertionError("planned too early")
        yield

    work = iter(Backlog(inputs, later=never()))
    assert [shard.file for shard in next(work).shards] == ["0.jsonl"] * 3
    assert len(later) == 2


@pytest.mark.parametrize("change", ["touched", "shortened", "gone", "cut"])
def test_a_file_that_is_not_what_it_was_ends_the_run_with_its_name(tmp_path: Path, change: str) -> None:
    name = "1.jsonl.gz" if change == "cut" else "1.jsonl"
    (tmp_path / "0.jsonl").write_bytes(text(4))
    whole = gzip.compress(
        b"".join(json.dumps({**row, "n": os.urandom(300).hex()}).encode() + b"\n" for row in pairs(4000))
    )
    (tmp_path / name).write_bytes(whole[:-1000] if change == "cut" else text(40))
    inputs, later = plan_first(None, list(find_files([str(tmp_path)])), CONFIG, first_bytes=1)
    path = tmp_path / name
    if change == "touched":
        path.write_bytes(text(40).replace(b"q 30", b"q 31"))
    elif change == "shortened":
        path.write_bytes(text(39))
    elif change == "gone":
        path.unlink()
    backlog = Backlog(inputs, later=Planning(later, CONFIG, by_tasks=False))
    seen = []
    with pytest.raises(InputError, match=rf"{name}.*(is not what it was when the run began|breaks after)"):
        for work in backlog:
            seen += [shard.file for shard in work.shards]
    assert set(seen) == {"0.jsonl"} and not backlog.whole


def test_labels_that_one_row_disproves_are_held_against_all_rows_first(tmp_path: Path) -> None:
    config = InputConfig(prompt_key="input", response_key=["output_1", "output_2"], label_key="label")
    row = {"input": "q", "output_1": "x", "output_2": "y"}
    for name, last in (("a", 1), ("b", 0)):
        rows = [{**row, "label": value} for value in (*[1, 2] * 30, last)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(InputError, match=r"b\.jsonl, row 60: column 'label' says '0'"):
        plan_first(None, list(find_files([str(tmp_path)])), config, first_bytes=1)


def test_columns_of_all_files_come_first(tmp_path: Path) -> None:
    files_of(tmp_path, 2)
    (tmp_path / "odd.jsonl").write_text('{"left": "x", "right": "y"}\n')
    with pytest.raises(InputError, match=r"odd\.jsonl"):
        plan_first(None, list(find_files([str(tmp_path)])), CONFIG, first_bytes=1)


def test_an_empty_file_is_not_left_for_later(tmp_path: Path) -> None:
    files_of(tmp_path, 1)
    (tmp_path / "x.jsonl").write_text("\n\n")
    inputs, later = plan_first(None, list(find_files([str(tmp_path)])), CONFIG, first_bytes=1)
    assert len(inputs) == 1 and later == []


def test_the_first_file_is_planned_first_whatever_its_size() -> None:
    files = [InputFile("a.jsonl", "", 10, 1), InputFile("b.jsonl.gz", "", 2, 1), InputFile("c.jsonl", "", 2, 1)]
    assert [file.name for file in beyond(files, 5)] == ["b.jsonl.gz", "c.jsonl"]
    assert [file.name for file in beyond(files, 18)] == ["c.jsonl"] and beyond(files, 20) == []


def test_a_store_whose_files_are_not_all_planned_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    inputs, later = plan_first(None, files_of(tmp_path / "corpus", 3), CONFIG, first_bytes=1)
    store = LabelStore(str(tmp_path / "store"))
    store.open_for_writing({"format": 2})
    store.expect_inputs([each.file.name for each in later])
    assert not store.progress().complete and store.unplanned() == ["1.jsonl", "2.jsonl"]
    assert any("2 input files are not planned yet (1.jsonl" in problem for problem in problems(store))
    [first, _] = Planning(later, CONFIG, by_tasks=False)
    store.add_input(first)
    assert store.unplanned() == ["2.jsonl"]
    store.expect_inputs([], ["1.jsonl"])  # the run ends that read only this one
    assert store.unplanned() == ["2.jsonl"]
    store.expect_inputs([], ["2.jsonl"])
    assert store.unplanned() == [] and not Path(store.uri, "records/run.expected.json").exists()
    assert pending(store, inputs, False).shards == len(inputs[0].plan.shards)
    store.discard()
    assert not Path(store.uri).exists()


def test_a_look_gives_the_head_of_the_plan(folder: Path) -> None:
    from pipeline.corpus import head_of, plan_file

    for file in find_files([str(folder)]):
        head, plan = head_of(file), plan_file(file)
        assert (head.rows, head.trouble) == (plan.head, plan.trouble)
    assert [type(each) for each in look(list(find_files([str(folder)])), CONFIG, detect)] == [Later] * 3


def test_a_row_that_is_not_equal_to_itself_is_what_it_was(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{**row, "margin": float("nan")} for row in pairs(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    _, later = plan_first(None, list(find_files([str(tmp_path)])), CONFIG, first_bytes=1)
    assert later[0].head[0]["margin"] != later[0].head[0]["margin"]
    assert [stored.plan.rows for stored in Planning(later, CONFIG, by_tasks=False)] == [3]


def test_planning_ends_when_it_is_closed_and_writes_nothing_more(tmp_path: Path) -> None:
    """In the middle of a file that takes long, while whoever is to label it waits."""
    (tmp_path / "0.jsonl").write_bytes(text(1))
    (tmp_path / "1.jsonl").write_bytes(text(3))
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(text(5000)) * 2000)  # ten million rows
    inputs, later = plan_first(None, list(find_files([str(tmp_path)])), CONFIG, first_bytes=1)
    added: list[str] = []
    planning = Planning(later, CONFIG, by_tasks=False, add=lambda stored: added.append(stored.file.name))
    backlog = Backlog(inputs, later=planning)
    ahead = Ahead(backlog.planned_later(), 10)
    waiting = iter(ahead)
    assert [work.file.name for work in next(waiting)] == ["1.jsonl"]
    started = time.perf_counter()
    closing = threading.Timer(0.1, lambda: [backlog.close(), ahead.close()])
    closing.start()
    with pytest.raises((CancelledError, RunError)):
        next(waiting)
    closing.join()
    assert time.perf_counter() - started < 4 and added == ["1.jsonl"] and not backlog.whole
    with pytest.raises((CancelledError, RunError)):
        list(planning)
    assert added == ["1.jsonl"] and not planning.beside.alive
