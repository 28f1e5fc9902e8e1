"""All that a server has, by the names that requests call it, and how many requests may be in hand at once."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request

from jobs.serve.batching import Batcher
from jobs.serve.service import Refused, Service
from pipeline.config import ServeConfig

LONGEST_WAIT_S = 60  # that a client is asked for before it tries again


class Full(Exception):
    """As many requests are in hand as may be; `retry_after_s` is about when there will be room."""

    def __init__(self, most: int, retry_after_s: int):
        super().__init__(f"{most} requests are in hand already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Desk:
    """Args:
    batchers: of each model.
    services: of each name in requests: a model, or a model under a rubric.
    tokenizing: the services' thread.
    """

    def __init__(
        self,
        config: ServeConfig,
        batchers: Mapping[str, Batcher],
        services: Mapping[str, Service],
        tokenizing: ThreadPoolExecutor,
    ):
        self.config, self.batchers, self.services = config, batchers, services
        self.in_hand = 0
        self._tokenizing = tokenizing
        self._changed = threading.Lock()

    def start(self) -> None:
        for batcher in self.batchers.values():
            batcher.start()

    def close(self) -> None:
        """Take nothing more, and answer what waits, within `serve.shutdown_s` for all models together."""
        until = time.monotonic() + self.config.serve.shutdown_s
        for batcher in self.batchers.values():
            batcher.refuse()
        for batcher in self.batchers.values():
            batcher.close(max(0.0, until - time.monotonic()))
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether every model can answer."""
        return all(batcher.ready for batcher in self.batchers.values())

    def service(self, request: Request, name: str | None = None) -> Service:
        """The service that a request names in its body, else by ?model=; without a name, the only one that there is. Raises
        Refused, and Unready where its model cannot answer now."""
        service = self._named(name or request.query_params.get("model"))
        service.batcher.require_ready()
        return service

    def _named(self, name: str | None) -> Service:
        names = ", ".join(self.services)
        if name is None:
            if len(self.services) > 1:
                raise Refused(
                    400,
                    f"several models are served here: give model, or ?model=NAME behind the route; there are {names}",
                )
            return next(iter(self.services.values()))
        if name not in self.services:
            raise Refused(404, f"no such model is served here; there are {names}")
        return self.services[name]

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """A request's place, from its arrival to its answer. Raises Full."""
        with self._changed:
            most = self.config.serve.max_requests
            if self.in_hand >= most:
                raise Full(most, self._wait_s())
            self.in_hand += 1
        try:
            yield
        finally:
            with self._changed:
                self.in_hand -= 1

    def _wait_s(self) -> int:
        """About how long what waits will take, in whole seconds, 1 at least."""
        longest = max(batcher.wait_s() for batcher in self.batchers.values())
        return min(LONGEST_WAIT_S, max(1, math.ceil(longest)))
