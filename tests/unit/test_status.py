"""`status.json`: what a driver says of its run, and what `endoreward status` makes of it."""

import json
import threading
import time
from pathlib import Path

import pytest
from test_store import DESCRIPTION, rows_of, shards_of, store

from jobs.stores.inspect_store import status
from pipeline.errors import RunError, StoreError
from pipeline.store import LabelStore, Status, StatusFile, Workforce, WriterLock, commit, fingerprint
from pipeline.store import status as module
from pipeline.store.status import duration, status_rows

__all__ = ["store"]  # the fixture


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rate_and_time_left_are_of_the_last_minutes(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(str(tmp_path), rows=1000, done_rows=200, clock=clock)
    assert (file.now().tokens_per_second, file.now().seconds_left) == (None, None)
    for _ in range(10):  # 10 rows of 50 tokens each ten seconds: slow
        clock.time += 10
        file.commit(10, 500, {"too_long": 1})
        file.now()
    assert file.now().rows_per_second == pytest.approx(1) and file.now().tokens_per_second == pytest.approx(50)
    assert file.now().seconds_left == pytest.approx(700) and file.now().errors == {"too_long": 10}
    for _ in range(60):  # then faster, for longer than what counts
        clock.time += 10
        file.commit(11, 550, {})
        now = file.now()
    assert now.rows_per_second == pytest.approx(1.1) and now.done_rows == 960
    assert now.seconds_left == pytest.approx(40 / 1.1)


def test_no_time_is_left_of_an_input_that_is_not_planned(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(str(tmp_path), rows=100, done_rows=0, clock=clock)
    file.plan(100, False)
    clock.time += 10
    file.commit(50, 500, {})
    now = file.now()
    assert (now.seconds_left, now.whole) == (None, False)
    assert ("Planning", "at least 100 rows; more files are planned while these are labelled") in status_rows(now, True)
    file.plan(150, True)
    assert file.now().seconds_left == pytest.approx(20) and Status.parse(file.now().content(), "").rows == 150


def test_tokens_of_a_shard_that_is_not_committed_move_the_time_left(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(str(tmp_path), rows=100, done_rows=0, clock=clock)
    clock.time += 10
    file.score(1000)
    assert file.now().tokens_per_second == pytest.approx(100) and file.now().seconds_left is None
    file.commit(10, 1000, {})
    assert file.now().seconds_left == pytest.approx(90)  # 90 rows of 100 tokens at 100 a second
    lefts = []
    for _ in range(3):
        clock.time += 10
        file.score(1000)
        lefts.append(file.now().seconds_left)
    assert lefts == pytest.approx([80, 70, 60]) and file.now().done_rows == 10


def test_it_is_written_at_once_then_by_the_clock_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    with StatusFile(str(tmp_path), 10, 0) as file:
        assert Status.find(str(tmp_path)).state == "running"  # type: ignore[union-attr]
        file.commit(4, 40, {})
        file.staff(
            Workforce(actors_wanted=3, actors_running=1, nodes=2, nodes_pending=2, waiting="2 nodes are pending")
        )
        deadline = time.monotonic() + 10
        while (seen := Status.find(str(tmp_path))) is None or seen.done_rows < 4:  # by its own thread
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert seen.workforce.actors_running == 1
    last = Status.find(str(tmp_path))
    assert last is not None and (last.state, last.done_rows, last.seconds_left) == ("finished", 4, None)
    assert "status" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RunError("the disk is full"), "the disk is full"),
        (KeyboardInterrupt(), "interrupted"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_run_that_stops_says_why(tmp_path: Path, error: BaseException, why: str) -> None:
    with pytest.raises(type(error)), StatusFile(str(tmp_path), 10, 0):
        raise error
    last = Status.find(str(tmp_path))
    assert last is not None and (last.state, last.why) == ("stopped", why)
    assert ("Stopped", why) in status_rows(last, writer=False)


def test_one_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    with StatusFile(str(tmp_path), 10, 0) as file:
        file.commit(1, 1, {})
    assert file.trouble is not None and "could not be written" in file.trouble


def test_what_a_person_reads(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(str(tmp_path), rows=10_000, done_rows=0, clock=clock)
    clock.time += 100
    file.commit(100, 50_000, {})
    file.staff(Workforce(actors_wanted=3, actors_running=1, nodes=1, nodes_pending=2, waiting="2 nodes to join"))
    status = file.now()
    lines = dict(status_rows(status, writer=True, now=clock.time + 4))
    assert lines.pop("Last heard").startswith("4 s ago, by process ")
    assert lines == {
        "Rate": "500 tokens/s, 1.00 rows/s",
        "Time left": "about 2 h 44 min",
        "Actors": "1 running of 3 wanted",
        "Nodes": "1, 2 pending",
        "Waits for": "2 nodes to join",
    }
    for writer, later in ((False, 4), (True, 61)):
        gone = dict(status_rows(status, writer=writer, now=clock.time + later))
        assert "it is gone" in gone["Last heard"] and "Time left" not in gone


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 61, 3600, 8000, 90_000)] == [
        "0 s", "59 s", "1 min", "1 min 1 s", "1 h", "2 h 13 min", "1 d 1 h"
    ]  # fmt: skip


def test_the_command_joins_it_with_what_the_store_says(store: LabelStore, capsys: pytest.CaptureFixture[str]) -> None:
    status(store.uri)
    assert "Last" not in capsys.readouterr().out  # a store of an earlier version has none
    first = shards_of(store)[0]
    with WriterLock(store.uri), StatusFile(store.uri, 6, 0) as file:
        record = commit(store.uri, first, fingerprint.digest(DESCRIPTION), 0, *rows_of(first))
        file.commit(record.shard.rows, record.stats.tokens, record.reasons)
        status(store.uri)
        running = capsys.readouterr().out
    status(store.uri)
    after = capsys.readouterr().out
    assert "being written by process" in running and "Last heard" in running and "2 of 6 rows" in running
    assert "incomplete" in after and "finished" in after and "empty_response" in after
    store.discard()
    assert not Path(store.at("status.json")).exists()


def test_a_damaged_one_says_what_to_do(store: LabelStore) -> None:
    Path(store.at("status.json")).write_text(json.dumps({"state": "asleep"}))
    with pytest.raises(StoreError, match=r"status\.json: .*delete it: the next run writes it anew"):
        status(store.uri)
