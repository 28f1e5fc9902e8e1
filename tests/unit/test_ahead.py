"""What a thread draws ahead: in order, no more than asked for, and it ends when it is closed, whoever waits."""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError

import pytest

from jobs.label.ahead import Ahead


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_everything_comes_once_in_order_as_much_as_is_there() -> None:
    begun = threading.Event()

    def items() -> Generator[int]:
        begun.set()
        yield from range(1000)

    ahead = Ahead(items(), 7)
    assert not begun.is_set()
    drawn = list(ahead)
    assert [item for some in drawn for item in some] == list(range(1000))
    assert all(1 <= len(some) <= 7 for some in drawn)
    assert list(Ahead((item for item in ()), 1)) == []


def test_no_more_is_drawn_than_may_wait() -> None:
    drawn: list[int] = []

    def items() -> Generator[int]:
        try:
            for number in range(100):
                drawn.append(number)
                yield number
        finally:
            drawn.append(-1)

    ahead = Ahead(items(), 3)
    iterator = iter(ahead)
    first = next(iterator)
    until(lambda: len(drawn) == len(first) + 3)
    time.sleep(0.01)
    assert len(drawn) == len(first) + 3
    ahead.close()
    assert len(drawn) == len(first) + 4 and drawn[-1] == -1 and not ahead._thread.is_alive()
    with pytest.raises(CancelledError):
        next(iterator)


def test_an_error_comes_after_what_came_before_it() -> None:
    def items() -> Generator[int]:
        yield from (1, 2)
        raise OSError("gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="gone"):
        for some in Ahead(items(), 10):
            seen += some
    assert seen == [1, 2]


def test_closing_wakes_whoever_waits() -> None:
    go_on = threading.Event()

    def items() -> Generator[int]:
        go_on.wait(5)
        yield 1

    ahead, ends = Ahead(items(), 10), []

    def take() -> None:
        try:
            list(ahead)
        except CancelledError:
            ends.append(True)

    taker = threading.Thread(target=take)
    taker.start()
    until(ahead._thread.is_alive)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    taker.join(5)
    assert ends and not go_on.is_set()
    go_on.set()
    closing.join(5)
    assert not closing.is_alive() and not ahead._thread.is_alive()
    with pytest.raises(CancelledError):
        list(Ahead.__iter__(ahead))
