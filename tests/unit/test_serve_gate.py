"""What a server refuses: each with its status and a sentence, without a word of the request in the log, and it goes on."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Client, described, served
from tiny import CHATML, save_model

from jobs.serve.batching import Answers
from jobs.serve.desk import Desk
from jobs.serve.run import desk_of, open_renderers
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn

SECRET = "xyzzy"
ONE = {"inputs": [{"prompt": f"ab {SECRET}", "responses": ["cd"]}]}


class Held:
    """A scorer that waits until it is let go."""

    batch_tokens, at_once = 100, 1

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Event()
        self.calls: list[int] = []
        self.error: Exception | None = None

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        self.calls.append(len(turns))
        self.began.set()
        self.go.wait(10)
        if self.error:
            raise self.error
        return [Scores(*[np.zeros(len(turn.response_ids))] * 3) for turn in turns]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m", CHATML)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with served(described(model, tokens={"over_length": "reject"}, serve={"max_body_mb": 0.1})) as client:
        yield client


@pytest.fixture
def held() -> Iterator[Held]:
    scorer = Held()
    yield scorer
    scorer.go.set()


def desk_with(model: Path, scorer: Any, **serve: Any) -> Desk:
    config = described(model, serve=serve)
    return desk_of(config, open_renderers(config), lambda name, model: scorer)


def with_desk(desk: Desk, token: str = "") -> contextlib.AbstractContextManager[Client]:
    return served(desk.config, token, desk)


def in_background(client: Client, answers: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(client.post("/v1/rewards", ONE)))
    thread.start()
    return thread


BAD = {
    "no JSON": (b"{", 400, "the body is not JSON"),
    "nothing": (b"", 400, "Field required"),
    "a list": (b"[]", 400, "Input should be a valid dictionary"),
    "no inputs": ({}, 400, "inputs: Field required"),
    "empty inputs": ({"inputs": []}, 400, "inputs: List should have at least 1 item"),
    "an input of no kind": ({"inputs": [{"prompt": "a"}]}, 400, "inputs.0: give messages; or prompt and responses"),
    "an unknown field": ({**ONE, "rewards": 1}, 400, "rewards: Extra inputs are not permitted"),
    "a path": ({"inputs": [{"prompt": {"path": "/etc/passwd"}, "responses": ["a"]}]}, 400, "inputs.0.prompt"),
    "ids that are text": ({"inputs": [{"prompt_token_ids": ["a"], "response_token_ids": [[1]]}]}, 400, "valid integer"),
    "an unknown model": ({**ONE, "model": "../other"}, 404, "no such model is served here; there are m"),
    "NaN": (b'{"inputs":[{"prompt":"a","responses":["b"]}],"reward":{"gamma":NaN}}', 400, "reward: gamma: "),
    "deep": (b'{"inputs":' + b"[" * 20000 + b"]" * 20000 + b"}", 400, ""),
    "huge": ({"inputs": [{"prompt": "a" * 200_000, "responses": ["b"]}]}, 413, "the body is larger than 0.1 MiB; send less"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies(client: Client, case: str) -> None:
    body, status, sentence = BAD[case]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.send("POST", "/v1/rewards", raw=raw)
    assert answer.status == status and sentence in answer.sentence, answer.content
    assert "aaaa" not in answer.sentence
    assert client.post("/v1/rewards", ONE).status == 200  # still serving


PICTURE = {"role": "user", "content": [{"type": "image", "image": "file:///etc/passwd"}, {"type": "text", "text": "a"}]}
ROWS = {
    "too long": ({"prompt": "a" * 300, "responses": ["b"]}, "too_long"),
    "an empty response": ({"prompt": "a", "responses": [""]}, "empty_response"),
    "no token": ({"prompt_token_ids": [1], "response_token_ids": [[]]}, "empty_response"),
    "a negative token": ({"prompt_token_ids": [1], "response_token_ids": [[-1]]}, "unknown_token"),
    "no token of the model's": ({"prompt_token_ids": [1], "response_token_ids": [[5000]]}, "unknown_token"),
    "an endless number": ({"prompt_token_ids": [1], "response_token_ids": [[2**40]]}, "unknown_token"),
    "half a character": ({"prompt": "a", "responses": ["\ud800"]}, "lone_surrogate"),
    "no role": ({"messages": [{"content": "a"}]}, "bad_message"),
    "no assistant": ({"messages": [{"role": "user", "content": "a"}]}, "no_assistant_turn"),
    "a picture": ({"messages": [PICTURE, {"role": "assistant", "content": "b"}]}, "not_text"),
}


@pytest.mark.parametrize("case", ROWS)
def test_what_cannot_be_scored_says_why(client: Client, case: str) -> None:
    row, reason = ROWS[case]
    answer = client.post("/v1/rewards", {"inputs": [row]})
    assert answer.status == 422 and [each["error"]["reason"] for each in answer.json["data"]] == [reason]
    both = client.post("/v1/rewards", {"inputs": [row, *ONE["inputs"]]})
    assert both.status == 200 and [("reward" in each) for each in both.json["data"]] == [False, True]


def test_a_body_that_does_not_say_how_long_it_is(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    parts = (b'{"inputs": "' + b"a" * 30_000 for _ in range(8))
    connection.request("POST", "/v1/rewards", parts, {"content-type": "application/json"}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and b"larger than 0.1 MiB" in answer.read()
    connection.close()


def test_other_routes_and_methods(client: Client) -> None:
    assert (client.get("/nowhere").status, client.get("/v1/rewards").status) == (404, 405)
    assert client.get("/nowhere").sentence == "there is no such route; /docs lists them"
    assert (
        b'route="other",status="404"' in client.get("/metrics").content
        and b"nowhere" not in client.get("/metrics").content
    )


def test_a_token_is_asked_for(model: Path, held: Held) -> None:
    held.go.set()
    with with_desk(desk_with(model, held), token="t0ken") as client:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "t0ken"}):
            answer = client.post("/v1/rewards", ONE, **headers)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", **headers).status == client.get("/v1/models", **headers).status == 401
        assert client.post("/v1/rewards", ONE, authorization="Bearer t0ken").status == 200
        assert client.get("/health").status == 200


def test_without_a_token_only_loopback_by_its_name(client: Client) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        answer = client.post("/v1/rewards", ONE, host=host)
        assert answer.status == 403 and "answers only on loopback" in answer.sentence
    assert client.post("/v1/rewards", ONE, host="localhost").status == 200
    assert client.post("/v1/rewards", ONE, host="[::1]:8000").status == 200


def test_more_than_may_be_in_hand_comes_back_later(model: Path, held: Held) -> None:
    answers: list[Any] = []
    with with_desk(desk_with(model, held, max_requests=1)) as client:
        thread = in_background(client, answers)
        assert held.began.wait(10)
        busy = client.post("/v1/rewards", ONE)
        assert (busy.status, busy.headers["retry-after"]) == (429, "1")
        assert busy.sentence == "1 requests are in hand already; try again in 1 s"
        assert client.get("/health").status == 200
        held.go.set()
        thread.join(10)
        assert answers[0].status == 200 and client.post("/v1/rewards", ONE).status == 200


def test_time_is_up(model: Path, held: Held) -> None:
    with with_desk(desk_with(model, held, timeout_s=0.3)) as client:
        late = client.post("/v1/rewards", ONE)
        assert (late.status, late.sentence[:23]) == (504, "no answer within 0.3 s ")
        assert client.post("/v1/rewards", ONE).status == 504  # waits behind the first, and is never computed
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(b"POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        slow.close()
        held.go.set()
        assert client.post("/v1/rewards", ONE).status == 200
        assert held.calls == [1, 1]


def test_a_client_that_goes_is_taken_out_of_the_queue(model: Path, held: Held) -> None:
    answers: list[Any] = []
    with with_desk(desk_with(model, held)) as client:
        thread = in_background(client, answers)
        assert held.began.wait(10)
        body = json.dumps(ONE).encode()
        gone = socket.create_connection(("127.0.0.1", client.port))
        head = f"POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        gone.sendall(head.encode() + b"\r\n\r\n" + body)
        _until(lambda: client.desk.batchers["m"].waiting == 1)
        gone.close()
        _until(lambda: client.desk.in_hand == 1)
        held.go.set()
        thread.join(10)
        assert answers[0].status == 200 and client.post("/v1/rewards", ONE).status == 200
        assert held.calls == [1, 1]
        assert b'status="499"' in client.get("/metrics").content


def test_before_the_model_is_loaded_and_on_the_way_down(model: Path) -> None:
    held, loaded = Held(), threading.Event()
    held.go.set()
    config = described(model)
    desk = desk_of(config, open_renderers(config), lambda name, model: held if loaded.wait(10) else Held())
    with served(config, desk=desk, ready=False) as client:
        assert client.get("/health").status == 503
        early = client.post("/v1/rewards", ONE)
        assert (early.status, early.headers["retry-after"]) == (503, "5")
        assert early.sentence == "the model is being loaded, or has no replica now; try again"
        loaded.set()
        _until(lambda: client.get("/health").status == 200)
        desk.close()
        assert client.get("/health").status == 503
        assert client.post("/v1/rewards", ONE).sentence == "the server is going down; try again"


def test_requests_in_hand_end_before_the_server_does(model: Path) -> None:
    answers: list[Any] = []
    held = Held()
    with with_desk(desk_with(model, held)) as client:
        thread = in_background(client, answers)
        assert held.began.wait(10)
        threading.Timer(0.3, held.go.set).start()
    thread.join(10)
    assert answers[0].status == 200


def test_a_failure_is_not_told_in_the_words_of_the_request(
    model: Path, held: Held, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    held.error = ValueError(f"cannot do {SECRET}")
    held.go.set()
    with with_desk(desk_with(model, held)) as client:
        answer = client.post("/v1/rewards", ONE)
        assert answer.status == 500 and answer.sentence == "the server failed on this request; its log names the error"
        held.error = None
        assert client.post("/v1/rewards", ONE).status == 200
        assert client.get(f"/{SECRET}").status == 404
    out = capfd.readouterr()
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text + out.out + out.err


def _until(holds: Any) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
