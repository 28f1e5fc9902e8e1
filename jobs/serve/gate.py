"""What stands before every route: who may ask, how much, for how long, and whether the client is still there.

A request's body is read here, within its bounds, and the route runs as a task that ends with its time, or with its client.
Nothing of a request is logged.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from jobs.serve.desk import Desk, Full
from jobs.serve.metrics import Metrics
from jobs.serve.service import Refused

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/docs", "/openapi.json")  # to everyone
READ_ON = 4  # times the largest body that is read of a larger one, and thrown away
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
GONE = 499  # no status that is sent: the client has gone
RETRY_LOADING_S = 5
FAILED = "the server failed on this request; its log names the error"


class Gate:
    """Args:
    app: the routes; a request's scope has `deadline`, of `time.monotonic`.
    routes: their paths.
    token: that requests must bear; empty for none.
    """

    def __init__(self, app: App, desk: Desk, metrics: Metrics, routes: set[str], token: str):
        self.app, self.desk, self.metrics, self.routes = app, desk, metrics, routes
        self.settings = desk.config.serve
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = time.monotonic()
        scope["deadline"] = begun + self.settings.timeout_s
        answer = _Answer(send)
        try:
            await self._pass(scope, receive, answer)
        except Full as error:
            await answer.refuse(429, str(error), error.retry_after_s)
        except Refused as error:
            await answer.refuse(error.status, str(error))
        except Exception as error:  # whose message may quote the request
            log.error("%s answered with %s", scope["path"], type(error).__name__)
            await answer.refuse(500, FAILED)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.answered(route, answer.status or GONE, time.monotonic() - begun)

    async def _pass(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if scope["path"] not in OPEN:
            self._require_right(dict(scope["headers"]))
        if scope["method"] != "POST":
            return await self.app(scope, receive, answer.send)
        with self.desk.room():
            try:
                async with asyncio.timeout_at(_loop_time(scope["deadline"])):
                    body = await self._body(scope, receive)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {self.settings.timeout_s:g} s") from None
            if body is not None:
                await self._run(scope, receive, answer, body)

    def _require_right(self, headers: dict[bytes, bytes]) -> None:
        """Raises Refused. Without a token only who names this machine's loopback is answered: a page in a browser here, which
        reaches it by a name of its own, is not."""
        if self._token:
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
                raise Refused(401, "this server wants its token: send the header Authorization: Bearer TOKEN")
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if (host if host.endswith("]") else host.rpartition(":")[0] or host) not in LOOPBACK:
            raise Refused(403, "without a token this server answers only on loopback; address it as localhost")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """None where the client goes before it is whole. Raises Refused."""
        most = int(self.settings.max_body_mb * 2**20)
        too_large = Refused(413, f"the body is larger than {self.settings.max_body_mb:g} MiB; send less at once")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) >= READ_ON * most:
            raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most and message.get("more_body") and size < READ_ON * most:
                parts.clear()  # read on for a while, so that a client that writes before it reads hears of it
            elif size > most:
                raise too_large
            elif not message.get("more_body"):
                return b"".join(parts)

    async def _run(self, scope: Scope, receive: Receive, answer: "_Answer", body: bytes) -> None:
        """The route, for as long as there is time and somebody to answer. Raises Refused where time is up."""
        route = asyncio.ensure_future(self.app(scope, _replay(body), answer.send))
        gone = asyncio.ensure_future(_disconnect(receive))
        left = scope["deadline"] - time.monotonic()
        await asyncio.wait({route, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        late = not route.done() and not gone.done()
        for task in (route, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await route
        if late:
            raise Refused(
                504, f"no answer within {self.settings.timeout_s:g} s (serve.timeout_s); ask for less at once"
            )


class _Answer:
    """What was sent; one answer a request."""

    def __init__(self, send: Send):
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, status: int, sentence: str, retry_after_s: int | None = None) -> None:
        """Nothing where an answer has begun."""
        if self.status:
            return
        headers = [(b"content-type", b"application/json")]
        headers += [(b"retry-after", str(retry_after_s).encode())] if retry_after_s is not None else []
        headers += [(b"connection", b"close")] if status in (408, 413) else []  # the rest of a body is not read
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": refusal(status, sentence)})


def refusal(status: int, sentence: str) -> bytes:
    return json.dumps({"error": {"code": status, "message": sentence}}).encode()


def _replay(body: bytes) -> Receive:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        message = next(messages, None)
        return message if message is not None else await asyncio.Future()

    return receive


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
