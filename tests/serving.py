"""A server that tests start in this process, on a port of its own, and a client of it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from tiny import CHATML, save_model

import endoreward
from jobs.serve.app import app_of
from jobs.serve.connections import server_of
from jobs.serve.desk import Desk
from jobs.serve.run import desk_of, in_process, listening, open_renderers
from pipeline.config import ServeConfig


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def sentence(self) -> str:
        return str(self.json["error"]["message"])


class Client:
    def __init__(self, port: int, desk: Desk, server: uvicorn.Server):
        self.port, self.desk, self.server = port, desk, server
        self.url = f"http://127.0.0.1:{port}"

    def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}, raw: bytes | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.send("POST", path, body, headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, None, headers)


@contextlib.contextmanager
def served(
    config: ServeConfig, token: str = "", desk: Desk | None = None, ready: bool = True, send_buffer: int | None = None
) -> Iterator[Client]:
    """Args: desk: in the place of the one that `config` describes. ready: wait for its models. send_buffer: bytes of an answer
    that the kernel takes off the server."""
    desk = desk or desk_of(config, open_renderers(config), in_process(config))
    with listening("127.0.0.1", 0) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = server_of(app_of(desk, token), config.serve)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        client = Client(listener.getsockname()[1], desk, server)
        until = time.monotonic() + 30
        while not (server.started and (desk.ready or not ready)):
            assert time.monotonic() < until and thread.is_alive()
            time.sleep(0.005)
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def described(model: Any, **sections: Any) -> ServeConfig:
    return ServeConfig.model_validate({"model": {"name": str(model)}, **sections})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m", CHATML)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    """Of a server of `model`, with every default."""
    with served(described(model)) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(model: Path) -> endoreward.Scorer:
    """What that server should say."""
    return endoreward.Scorer.from_pretrained(model, device="cpu")
