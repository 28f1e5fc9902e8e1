"""Connections, within bounds: how many, and how long one may be open without a request, or without taking its answer.

uvicorn closes a connection that is idle after an answer, but waits for ever for the first request of one, for the rest of its
headers, and for a client that does not read.
"""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol  # whose headers have a bound, of 64 KiB

from jobs.serve.gate import refusal
from pipeline.config.serving import ServeSection

IDLE_S = 15.0
SPARE = 100  # connections beside twice those of the requests that may be in hand
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s"
)
TOO_MANY = refusal(503, "as many connections are open as may be; try again")


def server_of(app: Any, settings: ServeSection) -> uvicorn.Server:
    """uvicorn for an application, with these bounds."""

    class Bounded(H11Protocol):
        """One of so many, on which a request or a part of an answer moves within IDLE_S, and an answer is taken in the time
        that a request has."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._before: Any = None
            self._untaken_s = 0.0
            self._next = self.loop.call_later(IDLE_S, self._look)
            if len(self.connections) > 2 * settings.max_requests + SPARE:
                transport.write(REFUSED % (len(TOO_MANY), TOO_MANY))
                transport.close()

        def _look(self) -> None:
            untaken = self.transport.get_write_buffer_size()
            now = (self.cycle, untaken)
            waits = untaken or self.cycle is None or self.cycle.response_complete  # for its client
            self._untaken_s = self._untaken_s + IDLE_S if untaken else 0.0
            if waits and (now == self._before or self._untaken_s > settings.timeout_s):
                self.transport.abort()
                return
            self._before = now
            self._next = self.loop.call_later(IDLE_S, self._look)

        def connection_lost(self, error: Exception | None) -> None:
            self._next.cancel()
            super().connection_lost(error)

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Bounded,
            loop="asyncio",
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(settings.shutdown_s),
            lifespan="on",
        )
    )
