"""An S3 endpoint on loopback that fails on demand: moto behind a lock of our own (its look-then-put is not atomic, which S3's
is), with delays, errors, and connections that drop before or after the request took effect."""

import contextlib
import io
import itertools
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from pipeline import objects

_BUCKETS = itertools.count()
ERROR = '<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{code}, as the test asked</Message></Error>'

STORM: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 500, "after": True},
    {"status": 503, "code": "SlowDown"},
    {"status": 429, "code": "TooManyRequests"},
    {"drop": True},
    {"drop": True, "after": True},
]


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose key matches."""

    method: str
    key: str  # a regular expression, searched for in the path
    times: float = 1
    status: int | None = None  # answered in place of the endpoint's answer
    code: str = "InternalError"
    delay_s: float = 0.0
    drop: bool = False  # the connection ends without an answer
    after: bool = False  # the request takes effect all the same
    hits: int = 0


@dataclass
class FaultyS3:
    """A running endpoint with one bucket."""

    port: int
    bucket: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # `METHOD /bucket/key`
    puts: list[tuple[str, bytes]] = field(default_factory=list)  # path and content of those that took effect, in order
    jitter_s: float = 0.0  # each put waits up to this long before it is looked at
    conditions: bool = True  # whether the endpoint knows puts on a condition
    keys: set[str] = field(default_factory=set)  # the names of the credentials that requests were signed with
    storm: float = 0.0  # the share of requests that fail in one way or another
    lock: Any = field(default_factory=threading.Lock)
    _server: Any = None
    _sockets: set[socket.socket] = field(default_factory=set)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def fault(self, method: str, key: str = "", **named: Any) -> Fault:
        self.faults.insert(0, Fault(method, key, **named))
        return self.faults[0]

    def calls(self, method: str, key: str = "") -> int:
        return sum(each.startswith(f"{method} ") and bool(re.search(key, each)) for each in list(self.requests))

    def handle(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query = environ.get("QUERY_STRING", "")
        if not self.conditions:
            environ = {
                name: value for name, value in environ.items() if name not in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")
            }
        with self.lock:
            self.keys |= set(re.findall(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", "")))
            self.requests.append(f"{method} {path}" + ("?" + query if query else ""))
            fault = next(
                (f for f in self.faults if f.hits < f.times and f.method in (method, "*") and re.search(f.key, path)),
                None,
            )
            if fault is not None:
                fault.hits += 1
            elif random.random() < self.storm:
                fault = random.choice([Fault(method, "", **how) for how in STORM])
        if method == "PUT" and self.jitter_s:
            time.sleep(random.uniform(0, self.jitter_s))
        if fault is None:
            return self._pass(app, environ, start)
        time.sleep(fault.delay_s)
        if fault.after or (fault.status is None and not fault.drop):
            body = self._pass(app, environ, start if fault.status is None and not fault.drop else _discard)
            if fault.status is None and not fault.drop:
                return body
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.drop:
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("dropped, as the test asked")
        answer = ERROR.format(code=fault.code).encode() * (method != "HEAD")
        start(
            f"{fault.status} {fault.code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))]
        )
        return [answer]

    def _pass(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any], start: Any) -> list[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0) if environ["REQUEST_METHOD"] == "PUT" else 0
        data = environ["wsgi.input"].read(length) if length else b""
        if data:
            environ = {**environ, "wsgi.input": io.BytesIO(data)}
        answers: list[Any] = []

        def started(status: str, *rest: Any) -> Any:
            answers.append(status)
            return start(status, *rest)

        with self.lock:
            body = [b"".join(app(environ, started))]
            if environ["REQUEST_METHOD"] == "PUT" and answers[0].startswith("200"):
                self.puts.append((environ["PATH_INFO"], data))
            return body

    def start(self) -> None:
        """Answer, on the port of before, with what was stored before."""
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Handler(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: Any) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                open_sockets.add(self.connection)

        app, open_sockets = DomainDispatcherApplication(create_backend_app), self._sockets
        self._server = make_server(
            "127.0.0.1", self.port, lambda environ, begin: self.handle(app, environ, begin), threaded=True,
            request_handler=Handler,
        )  # fmt: skip
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """As if the server were killed: no connection is answered, and those that are open end."""
        self._server.shutdown()
        self._server.server_close()
        while self._sockets:
            with contextlib.suppress(OSError):
                self._sockets.pop().shutdown(socket.SHUT_RDWR)

    def backdate(self, key: str, seconds: float) -> None:
        """Let the endpoint hold an object as if it had been put so much earlier."""
        from moto.s3.models import s3_backends

        [backend] = (each["aws"] for each in s3_backends.values() if self.bucket in each["aws"].buckets)
        stored = backend.buckets[self.bucket].keys[key]
        stored.last_modified -= timedelta(seconds=seconds)


def _discard(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
    return lambda data: None


@contextlib.contextmanager
def serve(patch: pytest.MonkeyPatch, bucket: str | None = None) -> Iterator[FaultyS3]:
    """Run the endpoint with one bucket, and point the environment at it."""
    import boto3

    s3 = FaultyS3(0, bucket or f"faulty-{next(_BUCKETS)}-{random.randrange(16**6):06x}")
    s3.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}",
    }.items():
        patch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=s3.bucket)
    s3.requests.clear()
    try:
        yield s3
    finally:
        s3.stop()


@pytest.fixture(name="endpoint", scope="module")
def of_a_module() -> Iterator[FaultyS3]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as s3:
        yield s3


@pytest.fixture(name="s3")
def of_a_test(endpoint: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> FaultyS3:
    """The module's endpoint as it is without faults, and a client that does not wait long."""
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(objects, "LONGEST_PAUSE_S", 0.002)
    endpoint.faults.clear()
    endpoint.requests.clear()
    endpoint.puts.clear()
    endpoint.jitter_s, endpoint.conditions = 0.0, True
    return endpoint
