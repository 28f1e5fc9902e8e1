"""One driver at a time on a store.

Local disk: an operating-system lock, which dies with its holder. Object store, and a file system that has no such locks: a
lease that its holder renews; a holder that was killed is waited for until its lease runs out, unless it ran on this machine
and is seen to be gone.

Why no two hold a lease. It is created only where there is none, and replaced, by its holder who renews it or by another who
takes it over, only in the version that was looked at. It is taken over `LEASE_S` after its last renewal, both by the clock of
the store; its holder believes in it for `TRUST_S` after it began that renewal, by a clock that never stops; no machine's time
of day plays a part.

Why no commit of a former holder counts. Whatever is written below the store is put on a condition that was looked at before
the lease was (`storage.guarding`): in a driver by what it believes, in a worker by whose token is in the lease. A put that is
late all the same finds what the new holder wrote and changes nothing, or stands before the new holder comes there, and is
then seen.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import IO, Any, Self

from pipeline import storage
from pipeline.errors import RunError, StorageError, StoreError
from pipeline.store import documents
from pipeline.store.places import LOCK, is_lock

LEASE_S = 60.0
TRUST_S = 40.0
RENEW_S = 10.0
LOOKS = 10


class WriterLock:
    """A context manager that holds the right to write a store. Raises StoreError while another driver has it."""

    def __init__(self, store: str):
        self.store = store
        self.uri = storage.join(store, LOCK)
        self._lock: _FileLock | _Lease = _FileLock(self.uri) if storage.is_local(store) else _Lease(store)

    def __enter__(self) -> Self:
        if storage.exists(self.uri) and not is_lock(self.uri):
            raise StoreError(
                f"{self.uri} was not written by this program and is left as it is; move it away, or give another --output"
            )
        try:
            holder = self._lock.take()
        except _NoLocks:
            self._lock = _Lease(self.store)
            holder = self._lock.take()
        if holder is not None:
            raise StoreError(
                f"{self.store} is being written by another driver ({_who(holder)}); wait for it, or stop it first"
            )
        return self

    def __exit__(self, kind: object, *raised: object) -> None:
        """Raises RunError where it turns out only now that the store is another driver's."""
        self._lock.give_back()
        if kind is None and isinstance(self._lock, _Lease):
            self._lock.require()

    @property
    def lease(self) -> str | None:
        """What workers show of it (`working`); None of a lock of the operating system's, which cannot be lost."""
        return self._lock.token if isinstance(self._lock, _Lease) else None


@contextlib.contextmanager
def working(store: str, lease: str | None) -> Iterator[None]:
    """For the block, a worker of the driver that holds this lease: nothing is written below the store once it is another's.
    The lease is looked at before each write."""
    if lease is None:
        yield
        return
    uri = storage.join(store, LOCK)

    def check() -> None:
        holder = _holder(uri)[0]
        if holder.get("token") != lease:
            raise _lost(store, holder)

    with storage.guarding(store, check, uri):
        yield


def _lost(store: str, holder: dict[str, Any]) -> RunError:
    whose = f"{_who(holder)} has it now" if holder.get("token") else "nobody has it now"
    return RunError(
        f"the right to write {store} was lost, and {whose}: this run was out of reach of it for over {TRUST_S:.0f} s. Nothing "
        "more of this run is written, and what is committed is kept: when no other run writes it, run the same again"
    )


def holder_of(store: str) -> str | None:
    """Who writes the store now, for people; None when nobody does."""
    uri = storage.join(store, LOCK)
    if not is_lock(uri):
        return None
    lock: _FileLock | _Lease = _FileLock(uri) if storage.is_local(store) else _Lease(store)
    try:
        holder = lock.look()
    except _NoLocks:
        holder = _Lease(store).look()
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
    """A small file that says who holds the store; new with each renewal, so that no two versions are alike."""

    def __init__(self, store: str):
        self.store, self.uri = store, storage.join(store, LOCK)
        self.token = uuid.uuid4().hex
        self._since = _me()["since"]
        self._version: storage.Version | None = None
        self._trusted_until, self._lost = 0.0, False
        self._renewing, self._stop = threading.Lock(), threading.Event()
        self._guard = contextlib.ExitStack()

    def take(self) -> dict[str, Any] | None:
        began = _clock()
        for _ in range(3):  # whoever was faster is then the holder
            holder, version = _holder(self.uri)
            if version is None:
                taken = _create(self.uri, self._content())
            elif _is_held(holder) and not self._has_run_out(version):
                return holder
            else:
                began = _clock()
                taken = _replace(self.uri, self._content(), version)
            if taken is not None:
                break
        else:
            return holder
        self._version, self._trusted_until = taken, began + TRUST_S
        if storage.is_objects(self.uri):
            self._check_conditions()
        self._guard.enter_context(storage.guarding(self.store, self.check, self.uri))
        threading.Thread(target=self._keep, name="store-lease", daemon=True).start()
        return None

    def look(self) -> dict[str, Any] | None:
        """Who holds it, for people: by this machine's time of day."""
        holder, version = _holder(self.uri)
        renewed = 0.0 if version is None else version.modified or 0.0
        return holder if _is_held(holder) and time.time() < renewed + LEASE_S else None

    def check(self) -> None:
        """Raises RunError where the lease is another's. Where its store was out of reach for long, it is renewed first."""
        if not self._lost and _clock() >= self._trusted_until:
            self._renew()
        self.require()

    def require(self) -> None:
        """Raises RunError where the lease is known to be another's."""
        if self._lost:
            raise _lost(self.store, _holder(self.uri)[0])

    def give_back(self) -> None:
        self._stop.set()
        self._guard.close()
        with self._renewing, contextlib.suppress(OSError, RunError):  # one that cannot be given back runs out
            if not self._lost and self._version is not None:  # not deleted: that could be another's by then
                self._lost = self._put(self._version, token="", expires=0) is None

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S) and not self._lost:
            with contextlib.suppress(OSError, RunError):  # out of reach for a moment; the lease lasts for several tries
                self._renew(within=RENEW_S)

    def _renew(self, within: float | None = None) -> None:
        with self._renewing:
            if self._stop.is_set() or self._lost or self._version is None:
                return
            began = _clock()
            version = self._put(self._version, within)
            if version is None:
                self._lost = True
            else:
                self._version, self._trusted_until = version, began + TRUST_S

    def _put(self, version: storage.Version, within: float | None = None, **other: Any) -> storage.Version | None:
        """Replace the lease, also where an earlier put of ours, which we gave up, arrived late; None where it is another's."""
        content = self._content(**other)
        put = _replace(self.uri, content, version, within)
        if put is None:
            holder, standing = _holder(self.uri)
            if standing is not None and holder.get("token") == self.token:
                put = _replace(self.uri, content, standing, within)
        return put

    def _content(self, **other: Any) -> bytes:
        content = {
            **_me(),
            "since": self._since,
            "token": self.token,
            "expires": time.time() + LEASE_S,
            "where": _where(),
        }
        return json.dumps({**content, "renewal": uuid.uuid4().hex, **other}).encode()

    def _has_run_out(self, version: storage.Version) -> bool:
        """By the store's own clock, which a file of ours is written to ask for."""
        probe = storage.join(self.store, f".{LOCK}.{uuid.uuid4().hex}.tmp")
        _create(probe, b"")
        try:
            now = _holder(probe)[1]
        finally:
            documents.remove(probe)
        if now is None or now.modified is None or version.modified is None:
            return False
        return now.modified - version.modified > LEASE_S + 1  # whose clock may count whole seconds only

    def _check_conditions(self) -> None:
        """Raises StoreError where the store puts what it was told not to: then nothing here holds."""
        assert self._version is not None
        content = self._content()
        try:
            ignored = storage.create(self.uri, content)
            other = storage.Version('"00000000000000000000000000000000"', "1" if self._version.number else None)
            ignored = ignored or storage.replace(self.uri, content, other)
        except StorageError as error:
            raise StoreError(f"{error}. A store is written only where puts on a condition are known") from None
        if ignored is not None:
            raise StoreError(
                f"{self.store}: this object store takes no puts on a condition (If-None-Match, If-Match), so two runs could "
                "write one store; give another --output, or update it to a version that does"
            )


def _clock() -> float:
    """Seconds that go on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _where() -> str:
    """The running machine and its room for processes, within which a process's number means one process."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_held(holder: dict[str, Any]) -> bool:
    """Whether it was given to somebody who has not given it back and is not seen to be gone. Not whether it has run out."""
    if not holder.get("token"):
        return False
    here = bool(holder.get("where")) and holder["where"] == _where()
    return not (here and not os.path.exists(f"/proc/{holder['pid']}"))


# Reading and writing a lease. Where a file system has no locks it has no puts on a condition either: there the file is looked
# at, and then renamed over, which two in the same moment could both do.


def _holder(uri: str) -> tuple[dict[str, Any], storage.Version | None]:
    """What the lease says, and its version; None where there is none."""
    try:
        if not storage.is_local(uri):
            data, version = storage.read_version(uri)
        else:
            version = _file_version(uri)
            data = storage.read_bytes(uri)
    except FileNotFoundError:
        return {}, None
    return _parse(data.decode(errors="replace")) or {}, version


def _create(uri: str, data: bytes) -> storage.Version | None:
    if not storage.is_local(uri):
        return storage.create(uri, data)
    return _file_version(uri) if documents.write_bytes(uri, data, replace=False) else None


def _replace(uri: str, data: bytes, version: storage.Version, within: float | None = None) -> storage.Version | None:
    if not storage.is_local(uri):
        return storage.replace(uri, data, version, within)
    try:
        if _file_version(uri) != version:
            return None
    except FileNotFoundError:
        return None
    documents.write_bytes(uri, data)
    return _file_version(uri) if data == storage.read_bytes(uri) else None


def _file_version(uri: str) -> storage.Version:
    entry = os.stat(storage.locate(uri)[1])
    return storage.Version(f"{entry.st_ino}-{entry.st_mtime_ns}-{entry.st_size}", None, entry.st_mtime)


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
