"""A server that tests start in this process, on a port of its own, and a client of it."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import uvicorn

from jobs.serve.app import app_of
from jobs.serve.run import listening, open_renderer, service_of
from jobs.serve.service import Service
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
    def __init__(self, port: int, service: Service):
        self.port, self.service = port, service
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
    config: ServeConfig, token: str = "", service: Service | None = None, ready: bool = True
) -> Iterator[Client]:
    """Args: service: in the place of the one that `config` describes. ready: wait for its model."""
    service = service or service_of(config, open_renderer(config))
    assert isinstance(service, Service)
    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app_of(service, token), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        client = Client(listener.getsockname()[1], service)
        until = time.monotonic() + 30
        while not (server.started and (service.batcher.ready or not ready)):
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
