"""One server over HTTP: requests that are sent again where that helps, no faster than it allows, no dearer than agreed.

    no answer in time, half an answer, no JSON, another form    again, after 1, 2, 4, ... seconds
    429 and 5xx                                                  again, after what Retry-After says
    401 and 403                                                  the run ends: no request would fare better
    other                                                        refused: this request alone fails

The key is read from the environment when it is sent, and is part of nothing else: not of a message, whoever wrote it.
"""

import datetime
import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import RowError, RunError
from pipeline.models.engines.base import Endpoint

Answer = TypeVar("Answer")

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 120.0
MOST_BYTES = 64 << 20
SHOWN_CHARACTERS = 200


class WrongForm(Exception):
    """An answer that is not of the form agreed; says what is wrong with it."""


class _Failed(Exception):
    """A request that may be sent again: why, and after how many seconds where the server says so."""

    def __init__(self, why: str, wait_s: float | None = None, paid: bool = False):
        super().__init__(why)
        self.why, self.wait_s, self.paid = why, wait_s, paid


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes where it was meant to go."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Safe to use from several threads.

    Attributes:
        again: why requests were sent again, and how often.
        tokens: spent so far, as the server counts them.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.opener = urllib.request.build_opener(_NoRedirects)
        self.again: Counter[str] = Counter()
        self.tokens = 0
        self._reserved = 0
        self._changed = threading.Condition()
        self._next = 0.0  # when the next request may be sent
        self.stopped = threading.Event()

    def get(self, path: str, read: Callable[[Any], Answer]) -> Answer:
        """Raises RowError and RunError, as `post`."""
        return self._sent(path, None, read, 0)

    def post(self, path: str, body: dict[str, Any], most_tokens: int, read: Callable[[Any], Answer]) -> Answer:
        """What `read` makes of the answer to a request.

        Args:
            most_tokens: that it may cost.
            read: raises WrongForm.

        Raises:
            RowError: endpoint_failed, where it has no answer after all tries; endpoint_refused.
            RunError: where no further request can be sent.
        """
        self._reserve(most_tokens)
        try:
            return self._sent(path, body, read, most_tokens)
        finally:
            self._spend(0, -most_tokens)

    def _sent(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], Answer], most_tokens: int) -> Answer:
        why = ""
        for attempt in range(self.endpoint.retries + 1):
            self._wait_for_turn()
            try:
                content = self._once(path, body)
                spent = _usage(content)
                self._spend(min(spent, most_tokens) if spent is not None else most_tokens)
                return read(content)
            except WrongForm as error:
                failed = _Failed(f"an answer of another form: {error}")
            except _Failed as error:
                failed = error
                self._spend(most_tokens if error.paid else 0)
            why = self.without_key(failed.why)
            self.again[why.partition(":")[0]] += 1
            wait = FIRST_WAIT_S * 2**attempt if failed.wait_s is None else failed.wait_s
            if attempt < self.endpoint.retries:
                self._hold(wait, everyone=failed.wait_s is not None)
        raise RowError(
            "endpoint_failed",
            f"{self.endpoint.retries + 1} requests to {self.endpoint.url} got no answer; the last: {why}",
        )

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON of one answer. Raises _Failed, RowError and RunError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.endpoint.url}{path}", data, headers)
        deadline = time.monotonic() + self.endpoint.timeout_s
        try:
            with self.opener.open(request, timeout=self.endpoint.timeout_s) as reply:
                content = _read(reply, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(error) from None
        except TimeoutError:
            raise _Failed(f"no answer within {self.endpoint.timeout_s:g} s", paid=True) from None
        except http.client.IncompleteRead:
            raise _Failed("half an answer", paid=True) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise _Failed(f"no answer within {self.endpoint.timeout_s:g} s", paid=True) from None
            raise _Failed(f"no connection: {str(cause) or type(cause).__name__}") from None
        try:
            return _json(content)
        except ValueError:
            raise _Failed("an answer that is not JSON", paid=True) from None

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer other than 200 means."""
        said = self.without_key(_sentence(error))
        if error.code == 429 or error.code >= 500 or error.code == 408:
            return _Failed(f"status {error.code}: {said}", _retry_after(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            return RunError(
                f"{self.endpoint.url} refuses the key (status {error.code}): {said}; set the environment variable "
                f"{self.endpoint.key_variable} where the run starts, or name another as endpoint.key_variable"
            )
        return RowError("endpoint_refused", f"status {error.code}: {said}")

    def _key(self) -> str:
        return os.environ.get(self.endpoint.key_variable, "").strip()

    def without_key(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "...") if key else text

    def _wait_for_turn(self) -> None:
        with self._changed:
            turn = max(time.monotonic(), self._next)
            if self.endpoint.requests_per_minute:
                self._next = turn + 60.0 / self.endpoint.requests_per_minute
        self._sleep(turn - time.monotonic())

    def _hold(self, seconds: float, everyone: bool) -> None:
        seconds = min(seconds, LONGEST_WAIT_S)
        if everyone:
            with self._changed:
                self._next = max(self._next, time.monotonic() + seconds)
        else:
            self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.stopped.wait(seconds)
        if self.stopped.is_set():
            raise RunError("the run was stopped")

    def _reserve(self, tokens: int) -> None:
        """Wait until the request's tokens are certain to be below the cap. Raises RunError where they cannot be."""
        most = self.endpoint.max_tokens
        with self._changed:
            while most and self.tokens + self._reserved + tokens > most and self._reserved:
                self._changed.wait(1.0)
            if most and self.tokens + tokens > most:
                raise RunError(
                    f"{self.tokens:,} tokens are spent, and another request of up to {tokens:,} would pass "
                    f"endpoint.max_tokens = {most:,}; what is committed is kept, raise that and run the same again"
                )
            self._reserved += tokens

    def _spend(self, tokens: int, reserved: int = 0) -> None:
        with self._changed:
            self.tokens += tokens
            self._reserved += reserved
            self._changed.notify_all()


def _read(reply: Any, deadline: float) -> bytes:
    """All of an answer. Raises TimeoutError where it trickles, and IncompleteRead."""
    parts, size = [], 0
    while part := reply.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MOST_BYTES:
            raise _Failed(f"an answer of more than {MOST_BYTES >> 20} MiB", paid=True)
    stated = reply.headers.get("Content-Length")
    if stated and stated.isdigit() and size < int(stated):
        raise http.client.IncompleteRead(b"")
    return b"".join(parts)


def _usage(content: Any) -> int | None:
    """Tokens of prompt and answer, where the server counts them."""
    usage = content.get("usage") if isinstance(content, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total >= 0 else None


def _sentence(error: urllib.error.HTTPError) -> str:
    """The server's own, shortened."""
    try:
        text = error.read(65536).decode(errors="replace")
        content = _json(text)
    except (OSError, ValueError, http.client.HTTPException):
        return " ".join(str(error.reason).split())[:SHOWN_CHARACTERS]
    said = content.get("error", content) if isinstance(content, dict) else content
    said = said.get("message", said) if isinstance(said, dict) else said
    shown = " ".join(str(said).split())[:SHOWN_CHARACTERS]
    return shown.encode(errors="replace").decode()  # halves of characters can be written nowhere


def _json(text: str | bytes) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number of them or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
    return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())
