"""Clients that misbehave on their connection: each gets a status or an end, leaves nothing behind, and the server goes on."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from serving import Client, described, served
from tiny import save_model

from jobs.serve import connections
from jobs.serve.batching import Answers
from jobs.serve.run import desk_of, open_renderers
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn

IDLE_S = 0.1
ONE = {"inputs": [{"prompt_token_ids": [1], "response_token_ids": [[2]]}]}
LARGE = {"inputs": [{"prompt_token_ids": [1], "response_token_ids": [[2] * 200] * 300}]}
COLUMNS = ["token_rewards", "token_logprobs", "token_values"]


class Zeros:
    batch_tokens, at_once = 100, 1

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        return [Scores(*[np.zeros(len(turn.response_ids))] * 3) for turn in turns]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    model = save_model(tmp_path_factory.mktemp("model") / "m")
    config = described(model, serve={"max_requests": 2, "timeout_s": 0.5, "max_body_mb": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "IDLE_S", IDLE_S)
        patch.setattr(connections, "SPARE", 4)
        desk = desk_of(config, open_renderers(config), lambda name, model: Zeros())
        with served(config, desk=desk, send_buffer=8192) as client:
            yield client


def head(length: int, *more: str) -> bytes:
    lines = (
        "POST /v1/rewards HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {length}",
    )
    return "\r\n".join((*lines, *more, "", "")).encode()


def whole(body: Any) -> bytes:
    data = json.dumps(body).encode()
    return head(len(data)) + data


def nothing(own: socket.socket) -> None:
    pass


def goes(own: socket.socket) -> None:
    own.close()


def resets(own: socket.socket) -> None:
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    own.close()


CASES: dict[str, tuple[bytes, Callable[[socket.socket], None], bytes]] = {
    "says nothing": (b"", nothing, b""),
    "half a request line": (b"POST /v1/rew", nothing, b""),
    "half of its headers": (head(5)[:-2], nothing, b""),
    "headers without an end": (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 30_000, nothing, b"HTTP/1.1 400 "),
    "no HTTP": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", nothing, b"HTTP/1.1 400 "),
    "a body that stops": (head(100) + b"{", nothing, b"HTTP/1.1 408 "),
    "a body that is too large": (head(2**40), nothing, b"HTTP/1.1 413 "),
    "a length below zero": (head(-1), nothing, b"HTTP/1.1 400 "),
    "a client that goes within its body": (head(100) + b"{", goes, b""),
    "a client that resets": (whole(LARGE), resets, b""),
    "a client that goes before its answer": (whole(ONE), goes, b""),
    "an upgrade that is not to be had": (
        whole(ONE).replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 1), nothing, b"HTTP/1.1 ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_ends_and_leaves_nothing(client: Client, case: str) -> None:
    sent, then, answer = CASES[case]
    own = socket.create_connection(("127.0.0.1", client.port), timeout=10)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
        own.sendall(sent)
    then(own)
    if then is nothing:
        assert _received(own).startswith(answer)
        own.close()
    _until_nothing_is_left(client)
    assert client.post("/v1/rewards", ONE).status == 200


def test_a_client_that_does_not_read_is_cut_off(client: Client) -> None:
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.connect(("127.0.0.1", client.port))
    own.sendall(whole({**LARGE, "include": COLUMNS}))
    _until(lambda: any(each.transport.get_write_buffer_size() for each in client.server.server_state.connections))
    assert client.post("/v1/rewards", ONE).status == 200  # meanwhile
    _until_nothing_is_left(client)
    own.close()


def test_nor_one_that_reads_too_slowly(client: Client) -> None:
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.settimeout(5)
    own.connect(("127.0.0.1", client.port))
    own.sendall(whole({**LARGE, "include": COLUMNS}))
    begun, size = time.monotonic(), 0
    with contextlib.suppress(ConnectionResetError):
        while part := own.recv(2000):
            size += len(part)
            time.sleep(IDLE_S / 5)
            assert time.monotonic() - begun < 10
    assert 0 < size < 500_000 < len(client.post("/v1/rewards", {**LARGE, "include": COLUMNS}).content)
    assert time.monotonic() - begun > 0.5  # serve.timeout_s
    own.close()
    _until_nothing_is_left(client)


def test_connections_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 2 max_requests + SPARE are open, others are told so; those that are idle make room."""
    monkeypatch.setattr(connections, "IDLE_S", 0.5)
    open_ = [socket.create_connection(("127.0.0.1", client.port), timeout=10) for _ in range(8)]
    _until(lambda: len(client.server.server_state.connections) == 8)
    one_more = socket.create_connection(("127.0.0.1", client.port), timeout=10)
    answer = _received(one_more)
    assert (
        answer.startswith(b"HTTP/1.1 503 ")
        and b"retry-after: 1" in answer
        and b"as many connections are open" in answer
    )
    for each in open_:
        assert _received(each) == b""
        each.close()
    one_more.close()
    assert client.post("/v1/rewards", ONE).status == 200


def test_a_connection_in_use_stays(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.4)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    sockets = set()
    for _ in range(10):
        connection.request("POST", "/v1/rewards", json.dumps(ONE), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        sockets.add(connection.sock)  # another, or none, where it was closed
        time.sleep(0.1)
    assert len(sockets) == 1 and None not in sockets
    connection.close()


def _received(own: socket.socket) -> bytes:
    """All until the end."""
    parts = b""
    with contextlib.suppress(ConnectionResetError):
        while part := own.recv(65536):
            parts += part
    return parts


def _until_nothing_is_left(client: Client) -> None:
    state = client.server.server_state
    _until(lambda: not state.connections and not state.tasks and client.desk.in_hand == 0)
    assert client.desk.batchers["m"].waiting == 0


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)
