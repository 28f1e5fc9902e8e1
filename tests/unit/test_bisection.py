"""Rows that end their process, found by bisection: the search with a process that is counted, not started."""

from collections.abc import Iterator, Sequence

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError

from jobs.label.limits import explained
from jobs.label.work import Done
from pipeline.apart import Died
from pipeline.errors import RunError
from pipeline.killers import DEATHS, Bisection, killed


class Process:
    """Dies of some rows, of some only now and then; `lives` counts how many processes there were, `alone` the rows that were
    given alone to a fresh one."""

    def __init__(self, killers: dict[int, int], most: int = 1000):
        self.left = dict(killers)  # how often each of them still kills
        self.most = most  # rows at once
        self.fresh, self.lives = True, 1
        self.alone: list[int] = []
        self.given = 0

    def work(self, positions: Sequence[int]) -> list[int]:
        self.given += len(positions)
        if self.fresh and len(positions) == 1:
            self.alone.append(positions[0])
        self.fresh = False
        deadly = [position for position in positions if self.left.get(position)]
        if deadly or len(positions) > self.most:
            for position in deadly[:1]:
                self.left[position] -= 1
            self.renew()
            raise Died("signal SIGSEGV")
        return list(positions)

    def renew(self) -> None:
        self.lives += not self.fresh
        self.fresh = True


def search(process: Process, lived: bool = True) -> Bisection[list[int]]:
    return Bisection(process.work, process.renew, "rows 0 to 127 of a.jsonl", lived)


@pytest.mark.parametrize("killers", [[0], [127], [64], [3, 4], [0, 63, 64, 127], list(range(40, 48))])
def test_who_kills_every_time_is_blamed_and_nobody_else(killers: list[int]) -> None:
    process = Process(dict.fromkeys(killers, 10**6))
    found = search(process)
    assert found.run(128) == [i for i in range(128) if i not in killers]
    assert found.killers == dict.fromkeys(killers, "signal SIGSEGV")
    assert all(process.alone.count(each) >= DEATHS for each in killers)
    assert process.lives < 16 * len(killers) + 8  # log2(128) + 3 for each, and not each row


def test_a_process_that_dies_once_blames_nobody() -> None:
    process = Process({5: 1})
    found = search(process)
    assert found.run(8) == list(range(8)) and not found.killers
    assert process.given == 2 * 8  # in a fresh process once more, and no search
    assert "started again" in found.notes("answering")[0] and "signal SIGSEGV" in found.notes("answering")[0]


@pytest.mark.parametrize("times", range(2, 2 + 3 + DEATHS))
def test_a_row_is_blamed_only_after_three_deaths_alone(times: int) -> None:
    """Of 8 rows: two deaths of all together, three of the halves that the row is in, and three alone and fresh."""
    found = search(Process({0: times}))
    assert found.run(8) == list(range(8)) and not found.killers
    blamed = search(Process({0: 2 + 3 + DEATHS}))
    assert blamed.run(8) == list(range(1, 8)) and list(blamed.killers) == [0]


def test_rows_that_kill_only_together_are_said_and_not_blamed() -> None:
    with pytest.raises(RunError, match=r"rows 0 to 127 of a\.jsonl end their process together .*input\.shard_rows"):
        search(Process({}, most=100)).run(128)


def test_a_process_that_never_lives_blames_no_row() -> None:
    process = Process(dict.fromkeys(range(128), 10**6))
    with pytest.raises(RunError, match="not the rows but the model"):
        search(process, lived=False).run(128)
    assert process.lives < 24
    alone = search(Process({0: 10**6}), lived=False)  # a corpus of one row, which is its own
    assert alone.run(1) == [] and list(alone.killers) == [0]


def test_the_error_says_what_ended_it_and_what_to_do() -> None:
    error = killed("signal SIGSEGV", "tokenising")
    assert error.reason == "killed_process" and "signal SIGSEGV" in error.detail and "--retry-errors" in error.detail
    assert "memory" in killed("signal SIGKILL", "answering").detail and "memory" not in error.detail


LOW = "1 worker(s) were killed due to the node running low on memory.\nMemory on the node was 15 GB / 16 GB"


@pytest.mark.parametrize("of_an_actor", [False, True])
def test_what_rays_memory_monitor_did_is_said(of_an_actor: bool) -> None:
    """Of an actor Ray's first line is that it died unexpectedly; why stands six lines below."""
    context = ActorDiedErrorContext(class_name="MapWorker", actor_id=b"1" * 16, error_message=f"is dead: {LOW}")
    death = ActorDiedError(context) if of_an_actor else OutOfMemoryError(LOW)

    def flow() -> Iterator[Done]:
        raise death
        yield

    with pytest.raises(RunError, match=r"ran low on memory.*no row is blamed.*scorer\.max_actors"):
        list(explained(flow()))
