"""`OUTPUT/status.json`: how a run of `label` goes, which its driver writes for whoever asks from anywhere.

It is written every ten seconds at most, from a thread of its own, so that its age tells a driver that is busy from one that is
gone. It says what the store cannot: the rate, the time left, actors and nodes, what is waited for. What is committed is the
store's to say.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, Self

from pipeline import storage
from pipeline.errors import EndorewardError
from pipeline.store import typed

NAME = "status.json"
EVERY_S = 10.0
WINDOW_S = 300.0
"""Rates are of as many last seconds."""
SILENT_S = 60.0
"""A driver that has written nothing for so long is gone, or cannot reach the store."""


class Workforce(typed.Entry):
    """Who works, and who is wanted. None: not known."""

    actors_wanted: int | None = None
    actors_running: int | None = None
    nodes: int | None = None
    nodes_pending: int | None = None
    waiting: str | None = None  # for what, as a sentence


class Status(typed.Document):
    """Of the last run that wrote. Times are seconds since 1970, UTC."""

    REMEDY = "delete it: the next run writes it anew"

    state: Literal["running", "finished", "stopped"]
    why: str | None = None  # it stopped
    host: str
    pid: int
    began: float
    updated: float
    rows: int  # of the input; of the files that are planned, while `whole` is false
    done_rows: int  # of these committed, by this run or before
    tokens: int  # response tokens that this run scored, those of shards that are not committed yet included
    errors: dict[str, int]  # rows by reason, of this run
    tokens_per_second: float | None = None  # of all actors together, over the last minutes
    rows_per_second: float | None = None
    seconds_left: float | None = None
    workforce: Workforce = Workforce()
    whole: bool = True

    @classmethod
    def find(cls, store: str) -> Self | None:
        """None where no run wrote one. Raises StoreError for a damaged one."""
        try:
            return cls.read_plain(storage.join(store, NAME))
        except FileNotFoundError:
            return None

    def age(self, now: float | None = None) -> float:
        """Seconds since it was written; of another machine's clock, never less than none."""
        return max(0.0, (time.time() if now is None else now) - self.updated)


class StatusFile:
    """What a driver tells of its run, for as long as the block runs. Safe to call from any thread; needs the writer's lock.

    A status that cannot be written stops no run: `trouble` says why, until one can.

    Args:
        store: the label store.
        rows: of the whole input.
        done_rows: of these committed before.
    """

    def __init__(self, store: str, rows: int, done_rows: int, clock: Callable[[], float] = time.time):
        self.uri, self.clock = storage.join(store, NAME), clock
        self.rows, self.done_rows, self.first_rows = rows, done_rows, done_rows
        self.trouble: str | None = None
        self.whole = True
        self._began = clock()
        self._errors: dict[str, int] = {}
        self._committed_tokens = self._scored_tokens = 0
        self._rows_in_hand, self._scoring = 0.0, False
        self._workforce = Workforce()
        self._points: deque[tuple[float, int, int]] = deque([(self._began, 0, done_rows)])  # time, tokens, rows
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="status", daemon=True)

    def __enter__(self) -> Self:
        self._write("running", None)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._write("finished", None)
        else:
            self._write("stopped", _why(error))

    def commit(self, rows: int, tokens: int, errors: dict[str, int]) -> None:
        """A shard is committed: its input rows, its response tokens, its error rows by reason."""
        with self._lock:
            self.done_rows += rows
            self._committed_tokens += tokens
            for reason, count in errors.items():
                self._errors[reason] = self._errors.get(reason, 0) + count

    def plan(self, rows: int, whole: bool) -> None:
        """So many rows are known of the input; whether these are all."""
        with self._lock:
            self.rows, self.whole = rows, whole

    def score(self, tokens: int, rows_in_hand: float = 0.0) -> None:
        """Actors scored so many response tokens more, whether or not their shard is committed; where actors report at all,
        all of them do. So many rows of shards in hand are answered, which counts until the first shard is committed."""
        with self._lock:
            self._scored_tokens += tokens
            self._rows_in_hand = rows_in_hand

    def staff(self, workforce: Workforce) -> None:
        """Who works now, and what is waited for."""
        with self._lock:
            if workforce.actors_running and not self._scoring:  # a rate is none of nodes that come and models that load
                self._scoring = True
                if self.done_rows == self.first_rows:
                    self._points = deque([(self.clock(), self._tokens, self.done_rows)])
            self._workforce = workforce

    def now(self) -> Status:
        """The status as it is written next."""
        with self._lock:
            return self._status("running", None)

    def _keep_writing(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._write("running", None)

    def _write(self, state: Literal["running", "finished", "stopped"], why: str | None) -> None:
        with self._lock:
            status = self._status(state, why)
        try:
            status.write_plain(self.uri)
            self.trouble = None
        except (EndorewardError, OSError) as error:
            self.trouble = f"{self.uri} could not be written: {error}"

    @property
    def _tokens(self) -> int:
        return max(self._committed_tokens, self._scored_tokens)

    def _status(self, state: Literal["running", "finished", "stopped"], why: str | None) -> Status:
        now, tokens = self.clock(), self._tokens
        whole, first = state != "running", self.done_rows == self.first_rows
        while not (whole or first) and len(self._points) > 1 and self._points[1][0] <= now - WINDOW_S:
            self._points.popleft()
        then, first_tokens, first_rows = (self._began, 0, self.first_rows) if whole else self._points[0]
        if now - self._points[-1][0] >= EVERY_S / 2:
            self._points.append((now, tokens, self.done_rows))
        seconds = now - then
        token_rate = (tokens - first_tokens) / seconds if seconds > 0 and tokens else None
        reached = self.done_rows + (self._rows_in_hand if first and not whole else 0)
        row_rate = (reached - first_rows) / seconds if seconds > 0 and reached > self.first_rows else None
        return Status(
            state=state,
            why=why,
            host=socket.gethostname(),
            pid=os.getpid(),
            began=self._began,
            updated=now,
            rows=self.rows,
            done_rows=self.done_rows,
            tokens=tokens,
            errors=dict(self._errors),
            tokens_per_second=token_rate,
            rows_per_second=row_rate,
            seconds_left=None if whole else self._left(token_rate, row_rate),
            workforce=self._workforce,
            whole=self.whole,
        )

    def _left(self, token_rate: float | None, row_rate: float | None) -> float | None:
        """By tokens where the committed rows say how many a row has; else by rows. None: nothing to tell it by."""
        if not self.whole:
            return None
        remaining, committed = self.rows - self.done_rows, self.done_rows - self.first_rows
        if not remaining:
            return 0.0
        if token_rate and committed and self._committed_tokens:
            ahead = max(0, self._scored_tokens - self._committed_tokens)
            return max(0.0, remaining * self._committed_tokens / committed - ahead) / token_rate
        in_hand = 0 if committed else self._rows_in_hand
        return max(0.0, remaining - in_hand) / row_rate if row_rate else None


def status_rows(status: Status, writer: bool, now: float | None = None) -> list[tuple[str, str]]:
    """Lines of a table for people, of what the store itself does not say. `writer`: whether somebody holds its lock."""
    age = status.age(now)
    by = f"process {status.pid} on {status.host}"
    lines = []
    if status.tokens_per_second:
        rows = f", {status.rows_per_second:,.2f} rows/s" if status.rows_per_second else ""
        lines.append(("Rate", f"{status.tokens_per_second:,.0f} tokens/s{rows}"))
    if status.state == "running":
        if status.seconds_left is not None and writer and age <= SILENT_S:
            lines.append(("Time left", f"about {duration(max(0.0, status.seconds_left - age))}"))
        if not status.whole:
            lines.append(
                ("Planning", f"at least {status.rows:,} rows; more files are planned while these are labelled")
            )
        lines += _staff_rows(status.workforce)
        silent = age > SILENT_S or not writer
        since = f"{duration(age)} ago, by {by}"
        lines.append(("Last heard", f"{since}: it is gone, or cannot reach the store" if silent else since))
    else:
        took = duration(status.updated - status.began)
        lines.append(("Last run", f"{status.state} {duration(age)} ago after {took}, by {by}"))
        if status.why:
            lines.append(("Stopped", status.why))
    return lines


def _staff_rows(staff: Workforce) -> list[tuple[str, str]]:
    lines = []
    if staff.actors_running is not None:
        wanted = f" of {staff.actors_wanted:,} wanted" if staff.actors_wanted is not None else ""
        lines.append(("Actors", f"{staff.actors_running:,} running{wanted}"))
    if staff.nodes is not None:
        pending = f", {staff.nodes_pending:,} pending" if staff.nodes_pending else ""
        lines.append(("Nodes", f"{staff.nodes:,}{pending}"))
    if staff.waiting:
        lines.append(("Waits for", staff.waiting))
    return lines


def duration(seconds: float) -> str:
    """As a person says it, in two units at most.

    >>> duration(8000)
    '2 h 13 min'
    """
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = int(seconds % size // part)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{int(seconds)} s"


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, EndorewardError) else f"{type(error).__name__}: {error}"
