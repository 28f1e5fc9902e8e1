"""One driver at a time on a store.

Local disk: an operating-system lock, which dies with its holder. Object store, and a file system that has no such locks: a
lease that its holder renews; a holder that was killed is waited for until its lease runs out, unless it ran on this machine
and is seen to be gone.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from typing import IO, Any, Self

from pipeline import storage
from pipeline.errors import RunError, StoreError
from pipeline.store import documents
from pipeline.store.places import LOCK, is_lock

LEASE_S = 60.0
RENEW_S = 15.0
LOOKS = 10


class WriterLock:
    """A context manager that holds the right to write a store. Raises StoreError while another driver has it."""

    def __init__(self, store: str):
        self.store = store
        self.uri = storage.join(store, LOCK)
        self._lock: _FileLock | _Lease = _FileLock(self.uri) if storage.is_local(store) else _Lease(self.uri)

    def __enter__(self) -> Self:
        if storage.exists(self.uri) and not is_lock(self.uri):
            raise StoreError(
                f"{self.uri} was not written by this program and is left as it is; move it away, or give another --output"
            )
        try:
            holder = self._lock.take()
        except _NoLocks:
            self._lock = _Lease(self.uri)
            holder = self._lock.take()
        if holder is not None:
            raise StoreError(
                f"{self.store} is being written by another driver ({_who(holder)}); wait for it, or stop it first"
            )
        return self

    def __exit__(self, *raised: object) -> None:
        self._lock.give_back()


def holder_of(store: str) -> str | None:
    """Who writes the store now, for people; None when nobody does."""
    uri = storage.join(store, LOCK)
    if not is_lock(uri):
        return None
    lock: _FileLock | _Lease = _FileLock(uri) if storage.is_local(store) else _Lease(uri)
    try:
        holder = lock.look()
    except _NoLocks:
        holder = _Lease(uri).look()
    return _who(holder) if holder is not None else None


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"


class _NoLocks(Exception):
    """The file system has no locks of the operating system's."""


def _flock(file: IO[str], how: int) -> bool:
    """Whether the lock was free. Raises _NoLocks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _NoLocks(str(error)) from error
    return True


class _FileLock:
    def __init__(self, uri: str):
        self.path = storage.locate(uri)[1]
        self.file: IO[str] | None = None

    def take(self) -> dict[str, Any] | None:
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            file = open(self.path, "a+")  # noqa: SIM115 - held for as long as the lock is
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}; give another --output") from error
        try:
            for _ in range(LOOKS):  # somebody may just be looking, which takes a moment
                if _flock(file, fcntl.LOCK_EX):
                    break
                time.sleep(0.1)
            else:
                holder = _parse(_read(file))
                file.close()
                return holder
        except _NoLocks:
            file.close()
            raise
        file.seek(0)
        file.truncate()
        json.dump(_me(), file)
        file.flush()
        self.file = file
        return None

    def look(self) -> dict[str, Any] | None:
        with open(self.path) as file:
            return None if _flock(file, fcntl.LOCK_SH) else _parse(_read(file))

    def give_back(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class _Lease:
    def __init__(self, uri: str):
        self.uri = uri
        self.token = uuid.uuid4().hex
        self.stop = threading.Event()

    def take(self) -> dict[str, Any] | None:
        holder = self.look()
        if holder is not None:
            return holder
        self._renew()
        time.sleep(0.5)  # two that came together: the last to write stays
        holder = self._read()
        if holder.get("token") != self.token:
            return holder
        threading.Thread(target=self._keep, name="store-lease", daemon=True).start()
        return None

    def look(self) -> dict[str, Any] | None:
        holder = self._read()
        if holder.get("expires", 0) < time.time():
            return None
        gone = holder["host"] == socket.gethostname() and not os.path.exists(f"/proc/{holder['pid']}")
        return None if gone and os.path.isdir("/proc") else holder

    def give_back(self) -> None:
        self.stop.set()
        if self._read().get("token") == self.token:
            documents.remove(self.uri)

    def _keep(self) -> None:
        while not self.stop.wait(RENEW_S):
            try:
                if self._read().get("token") == self.token:
                    self._renew()
            except (OSError, RunError):
                continue  # the store is out of reach for a moment; the lease lasts for several tries

    def _renew(self) -> None:
        content = {**_me(), "token": self.token, "expires": time.time() + LEASE_S}
        documents.write_bytes(self.uri, json.dumps(content).encode())

    def _read(self) -> dict[str, Any]:
        try:
            return _parse(storage.read_bytes(self.uri).decode()) or {}
        except FileNotFoundError:
            return {}


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
