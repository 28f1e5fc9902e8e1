"""A real process beside this one: what it answers, how it dies, and that it never outlasts what it stands beside."""

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.apart import Apart, Died, TimedOut, reporting
from pipeline.errors import RowError, RunError

HOPELESS = "(a+)+$", "a" * 40 + "b"  # 2^40 ways, without ever letting go of the interpreter's lock


def die(how: int) -> None:
    os.kill(os.getpid(), how)


def refuse() -> None:
    raise RowError("too_long", "by one")


def write_late(path: str, seconds: float) -> None:
    time.sleep(seconds)
    Path(path).write_text("done")


def allocate(size: int) -> int:
    return len(bytearray(size))


def leave_a_child() -> None:
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    os._exit(3)


@pytest.fixture
def beside() -> Iterator[Apart]:
    apart = Apart()
    yield apart
    apart.stop()


def test_it_begins_with_something_and_the_next_call_waits_for_that(beside: Apart, tmp_path: Path) -> None:
    began = time.monotonic()
    beside.begin(write_late, str(tmp_path / "done"), 0.3)
    assert time.monotonic() - began < 0.3
    while not beside.alive:
        time.sleep(0.01)
    assert beside.call(os.path.exists, str(tmp_path / "done"))
    beside.begin(refuse)  # which is nobody's
    assert beside.call(len, "ab") == 2


def test_what_has_begun_is_closed_at_once() -> None:
    closed = Apart()
    closed.begin(time.sleep, 60)
    while not closed.alive:
        time.sleep(0.01)
    began = time.monotonic()
    closed.close()
    assert time.monotonic() - began < 10 and not closed.alive


def test_it_answers_and_stays(beside: Apart) -> None:
    assert beside.call(re.findall, "a(b|c)", "abac") == ["b", "c"]
    first = beside.call(os.getpid)
    assert first != os.getpid() and beside.call(os.getpid) == first
    with pytest.raises(RowError) as raised:
        beside.call(refuse)
    assert raised.value.reason == "too_long" and beside.call(os.getpid) == first
    assert beside.call(len, b"x" * (5 << 20)) == 5 << 20


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGSEGV, "signal SIGSEGV"), (signal.SIGKILL, "signal SIGKILL"), (0, "exit code 3")]
)
def test_how_it_died_is_known_and_the_next_call_has_another(beside: Apart, number: int, how: str) -> None:
    with pytest.raises(Died) as died:
        beside.call(die, number) if number else beside.call(os._exit, 3)
    assert died.value.how == how and not beside.alive
    assert beside.call(len, "abc") == 3


def test_what_never_ends_is_killed_in_time_and_so_from_threads(beside: Apart) -> None:
    beside.call(len, "")
    process = psutil.Process(beside.call(os.getpid))
    started, raised = time.perf_counter(), []

    def call() -> None:
        try:
            beside.call(re.search, *HOPELESS, timeout_s=0.2)
        except TimedOut as error:
            raised.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(raised) == 2 and time.perf_counter() - started < 5 and not process.is_running()


def test_a_child_that_it_leaves_behind_hides_no_death(beside: Apart) -> None:
    started = time.perf_counter()
    with pytest.raises(Died, match="exit code 3"):
        beside.call(leave_a_child)
    assert time.perf_counter() - started < 4


@pytest.mark.parametrize("work", [(time.sleep, 60), (re.search, *HOPELESS)], ids=["waiting", "never letting go"])
def test_closing_ends_a_call_under_way_and_takes_no_other(beside: Apart, work: tuple[Any, ...]) -> None:
    process = psutil.Process(beside.call(os.getpid))
    raised: list[RunError] = []

    def call() -> None:
        try:
            beside.call(*work, timeout_s=60)
        except RunError as error:
            raised.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]  # one waits for the other
    for each in callers:
        each.start()
    time.sleep(0.1)
    started = time.perf_counter()
    beside.close()
    for each in callers:
        each.join()
    assert time.perf_counter() - started < 4 and not process.is_running() and not beside.alive
    with pytest.raises(RunError, match="closed and takes no more calls"):
        beside.call(len, "")
    assert len(raised) == 2 and not beside.alive
    beside.close()


def test_its_memory_is_bounded() -> None:
    apart = Apart(memory=1 << 30)
    with pytest.raises(MemoryError):
        apart.call(allocate, 2 << 30)
    assert apart.call(allocate, 1 << 20) == 1 << 20
    apart.stop()


def test_a_process_that_cannot_start_is_nobodys_death(beside: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="/bin/false cannot be started"):
        beside.call(len, "")


def test_a_signal_that_is_meant_for_others_does_not_end_it(beside: Apart) -> None:
    beside.call(die, signal.SIGTERM)
    beside.call(die, signal.SIGINT)


@pytest.mark.parametrize("work", ["time.sleep, 60", f"re.search, *{HOPELESS!r}"], ids=["waiting", "never letting go"])
def test_it_ends_with_what_it_stands_beside(work: str) -> None:
    code = (
        "import os, re, threading, time; from pipeline.apart import reporting, Apart; apart = Apart(); "
        "print(apart.call(os.getpid), flush=True); "
        f"threading.Thread(target=apart.call, args=({work}), daemon=True).start(); time.sleep(60)"
    )
    root = Path(__file__).parent.parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)  # it has begun
    parent.kill()
    parent.wait()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(timeout=10)
    left = process.is_running()
    if left:
        process.kill()
    assert not left


def test_modules_that_it_goes_without_and_its_own_variables() -> None:
    beside = Apart(without=("torch",), environment={"BESIDE": "1"})
    with pytest.raises(ModuleNotFoundError):
        beside.call(importlib.import_module, "torch")
    assert beside.call(os.getenv, "BESIDE") == "1" and os.getenv("BESIDE") is None
    beside.stop()


def three_figures() -> str:
    figures = iter((10, 20, 30))
    ended = threading.Event()

    def figure() -> int:
        number = next(figures, None)
        if number is None:
            ended.set()
        return number or 30

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.apart.REPORT_S", 0.01)
        with reporting(figure):
            assert ended.wait(10)
    return "done"


def test_the_caller_hears_what_is_reported_while_it_waits(beside: Apart) -> None:
    heard: list[int] = []
    assert beside.call(three_figures, hear=heard.append) == "done" and heard[:3] == [10, 20, 30]
    assert beside.call(os.getpid, hear=heard.append) != os.getpid()
