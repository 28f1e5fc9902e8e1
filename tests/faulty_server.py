"""A small server that speaks OpenAI's protocol on loopback, and fails as it is told to."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]


class Server:
    """Attributes:
    faults: of the next requests, in order; each writes an answer of its own. Then all is well.
    asked: what came, with the path and the header of its key.
    """

    def __init__(self, answer: Callable[[Request], Any]):
        self.answer, self.faults, self.asked = answer, list[Callable[[BaseHTTPRequestHandler], None]](), list[Request]()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.times: list[float] = []

        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply({"data": [{"id": name} for name in outer.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.times.append(time.monotonic())
                    outer.asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
                    fault = outer.faults.pop(0) if outer.faults else None
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                with contextlib.suppress(ConnectionError):
                    if fault:
                        fault(self)
                    else:
                        self.reply(outer.answer(body))
                with outer.lock:
                    outer.under_way -= 1

            def reply(self, content: Any, status: int = 200, **headers: str) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

        self.models = ["served"]
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextlib.contextmanager
def serving(answer: Callable[[Request], Any]) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=lambda: server.http.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


# Faults


def status(code: int, said: str = "not now", **headers: str) -> Callable[[Any], None]:
    return lambda handler: handler.reply({"error": {"message": said}}, code, **headers)


def wrong_json(handler: Any) -> None:
    handler.reply(b'{"choices": [')


def too_deep(handler: Any) -> None:
    handler.reply(b"[" * 100_000)


def other_form(handler: Any) -> None:
    handler.reply({"choices": []})


def half_an_answer(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def hangs(handler: Any) -> None:
    time.sleep(0.35)


def closes(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
