"""A Python process beside this one, for what may kill its process or never come to an end.

    beside = Apart()
    beside.call(re.findall, pattern, text, timeout_s=10.0)

Functions and values travel pickled through a pair of sockets. It is started anew, never forked, so it may stand beside
threads and CUDA; it is used again until it dies or is killed, and started when it is next needed. It ends when the process
that started it ends, however that happens and whatever it is doing: the kernel signals it as that one's end of a pipe closes.
"""

import contextlib
import fcntl
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from pipeline.errors import RunError

Value = TypeVar("Value")

STARTED_WITHIN_S = 120.0
LOOK_S = 1.0  # how often the process is looked at while its answer is waited for
ENDS_WITHIN_S = 5.0  # once it has closed its socket
REPORT_S = 1.0
LEFT_ALONE_S = 5.0  # how long after its time-out a process lives that nobody is left to kill
MAIN = "import sys; sys.path[:] = sys.argv[2:]; from pipeline.apart import serve; serve(*map(int, sys.argv[1].split()))"


class Died(Exception):
    """The process ended in a call. `how` is what ended it: `signal SIGSEGV`, or `exit code 3`."""

    def __init__(self, how: str):
        super().__init__(how)
        self.how = how


class TimedOut(Exception):
    """The process did not answer in time, and was killed."""


class Apart:
    """Calls functions in a process of its own; safe to use from several threads, which wait for each other.

    Args:
        memory: most bytes of address space that it may have; more raises MemoryError there.
        without: modules that it cannot import, because they take long and others import them where they are.
        environment: variables that it has beside this process's.
    """

    def __init__(
        self, memory: int | None = None, without: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ):
        self.memory, self.without, self.environment = memory, tuple(without), dict(environment or {})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._life: Connection | None = None  # a pipe that nothing is written to
        self._owner = 0  # a fork of this process has no share in the one beside it
        self._closed = False

    def call(
        self,
        function: Callable[..., Value],
        *arguments: Any,
        timeout_s: float | None = None,
        hear: Callable[[Any], None] = lambda value: None,
    ) -> Value:
        """`function(*arguments)`, in the process beside this one.

        Args:
            function: of a module, found there by its name.
            timeout_s: after which the process is killed; what starting it takes does not count.
            hear: is called with what the function reports meanwhile (`reporting`).

        Raises:
            Died: where the process ended meanwhile.
            TimedOut: after `timeout_s`.
            RunError: where no process can be started, or none is to be any more (`close`).
            Exception: what the function raised.
        """
        with self._lock:
            self._ensure()
            value: Value = self._ask((function, arguments, timeout_s), timeout_s, hear)
            return value

    def begin(self, function: Callable[..., object], *arguments: Any) -> None:
        """Start the process and have it call a function, without waiting for either: the next call does. An exception of the
        function is nobody's."""

        def call() -> None:
            with contextlib.suppress(Exception):
                self.call(function, *arguments)

        threading.Thread(target=call, daemon=True).start()

    def stop(self) -> None:
        """Kill the process; the next call starts another."""
        with self._lock:
            self._stop()

    def close(self) -> None:
        """Kill the process for good, whatever it is doing: a call under way, and those that come, raise RunError."""
        self._closed = True
        if (process := self._process) is not None and self._owner == os.getpid():
            process.kill()
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether there is a process, so that a call need not start one."""
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def _ensure(self) -> None:
        if self.alive or self._closed:
            return
        if self._owner == os.getpid():
            self._stop()
        ours, theirs = Pipe()
        end, self._life = Pipe(duplex=False)
        with theirs, end:
            place = [sys.executable, "-c", MAIN, f"{theirs.fileno()} {end.fileno()}", *map(os.path.abspath, sys.path)]
            self._process = subprocess.Popen(
                place,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                pass_fds=[theirs.fileno(), end.fileno()],
            )
        self._connection, self._owner = ours, os.getpid()
        try:
            self._ask((_limited, (self.memory, self.without), None), STARTED_WITHIN_S)
        except (Died, TimedOut) as error:  # before it was given anything
            raise RunError(f"{sys.executable} cannot be started beside this process: {error}") from error

    def _ask(self, asked: Any, timeout_s: float | None, hear: Callable[[Any], None] = lambda value: None) -> Any:
        if self._closed:  # looked at once the process is where `close` finds it
            raise self._is_closed()
        assert self._connection is not None
        message = pickle.dumps(asked, pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(message)
            raised = None
            while raised is None:
                self._await(timeout_s)
                raised, value = unpickled(self._connection.recv_bytes())  # ours: written by `serve`
                if raised is None:
                    hear(value)
        except (EOFError, ConnectionError):
            how = self._stop(ending=True)
            raise (self._is_closed() if self._closed else Died(how)) from None
        except BaseException:  # else the next call would get this one's answer
            self._stop()
            raise
        if raised:
            raise value
        return value

    def _is_closed(self) -> RunError:
        return RunError(
            "the process beside this one is closed and takes no more calls, because what asked it is ending"
        )

    def _await(self, timeout_s: float | None) -> None:
        """Until there is an answer. Raises TimedOut, and EOFError where the process ended without one."""
        assert self._connection is not None and self._process is not None
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._connection.poll(LOOK_S if ends is None else max(0.0, min(LOOK_S, ends - time.monotonic()))):
            ended = self._process.poll() is not None  # a fork of it may hold the socket open
            if ended and not self._connection.poll():
                raise EOFError
            if ends is not None and time.monotonic() >= ends:
                raise TimedOut(f"no answer within {timeout_s:g} s")

    def _stop(self, ending: bool = False) -> str:
        """Kill what is left of the process, at once unless it is `ending` by itself. Returns how it ended."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return "nothing"
        if ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_WITHIN_S)
        process.kill()
        code = process.wait()
        assert self._life is not None
        self._life.close()  # not before: it would be what ended the process
        return f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of a real-time one
        return str(number)


def serve(descriptor: int, life: int) -> None:
    """What the process does: answer calls until the other end of its socket is closed. As that of `life` is, it is killed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends a process also while it holds the interpreter's lock
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the process that it stands beside
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.set_inheritable(descriptor, False)
    os.set_inheritable(life, False)
    connection = Connection(descriptor)
    sending = threading.Lock()

    def send(data: bytes) -> None:
        with sending:
            connection.send_bytes(data)

    global _to_caller
    _to_caller = send
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            function, arguments, timeout_s = unpickled(message)
            if timeout_s is not None:  # ends what holds the interpreter's lock, too
                signal.setitimer(signal.ITIMER_REAL, timeout_s + LEFT_ALONE_S)
            answer = False, function(*arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply = _pickled_error(error)
        send(reply)
        if not gc.get_freeze_count():
            gc.freeze()  # what has been loaded by now stays: modules, a tokenizer, a model


_to_caller: Callable[[bytes], None] | None = None  # in the process beside: what sends to the one that called


@contextlib.contextmanager
def reporting(figure: Callable[[], Any]) -> Iterator[None]:
    """In the process beside, while the block runs: `figure()` is what the caller hears, every second."""
    ended = threading.Event()

    def report() -> None:
        while _to_caller is not None and not ended.wait(REPORT_S):
            _to_caller(pickle.dumps((None, figure())))

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def unpickled(data: bytes) -> Any:
    """`pickle.loads` without the garbage collector, which would look through all that it makes, over and over, for cycles
    that a pickle seldom has."""
    with uncollected():
        return pickle.loads(data)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the garbage collector while many objects without cycles are made."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _pickled_error(error: Exception) -> bytes:
    try:
        reply = pickle.dumps((True, error))
        pickle.loads(reply)
    except Exception:
        reply = pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return reply


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _limited(memory: int | None, without: Sequence[str]) -> None:
    for name in without:
        sys.modules[name] = None  # type: ignore[assignment]  # as import reads it: there is no such module
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
