"""The lease on a store in an object store: one holder, and no commit of a former one; against a real S3 endpoint on loopback
that delays, fails and drops on demand."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from faulty_s3 import FaultyS3, of_a_module, of_a_test  # noqa: F401 - fixtures `endpoint` and `s3`

from pipeline import storage
from pipeline.corpus import Shard
from pipeline.errors import RunError, StoreError
from pipeline.store import LabelStore, WriterLock, commit, documents, find_record, lock
from pipeline.store.lock import holder_of
from pipeline.store.schema import Failure

SHARD = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
FAILURE = Failure("a.jsonl:0", "a.jsonl:0", "a.jsonl", 0, "unreadable_row", "as the test asked")


@pytest.fixture
def store(s3: FaultyS3, request: pytest.FixtureRequest) -> str:
    return f"{s3.uri}/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the machine's clock that never stops shows; renewals come only as a test asks."""
    now = [1000.0]
    monkeypatch.setattr(lock, "_clock", lambda: now[0])
    monkeypatch.setattr(lock, "RENEW_S", 1e6)
    return now


def put_record(store: str, lease: str | None = None, detail: str = "as the test asked") -> Any:
    return commit(store, SHARD, "f" * 64, 0, [], [replace(FAILURE, detail=detail)], lease)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ran on a machine whose processes cannot be seen here."""
    monkeypatch.setattr(lock, "_where", lambda: "")


@contextlib.contextmanager
def without_guards() -> Iterator[None]:
    """For a second driver in the process of the first: a guard is one for a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "check_right", lambda uri: None)
        patch.setattr(storage, "guarding", lambda *_: contextlib.nullcontext())
        yield


def key(store: str, name: str = ".lock") -> str:
    return f"{store.split('://')[1].partition('/')[2]}/{name}"


def test_a_lease_is_taken_given_back_and_taken(store: str) -> None:
    for _ in range(2):
        with WriterLock(store) as held:
            assert held.lease and (holder_of(store) or "").startswith(f"process {os.getpid()} ")
            with (
                pytest.raises(StoreError, match=f"process {os.getpid()} .*wait for it, or stop it first"),
                WriterLock(store),
            ):
                pass
        assert holder_of(store) is None
    storage.create(f"{store}/..lock.{'0' * 32}.tmp", b"")  # of one that was killed as it asked for the store's time
    assert LabelStore(store).check_place() is None, "a lease that was given back is nothing foreign"


def test_a_lease_of_an_earlier_version_is_respected(store: str, s3: FaultyS3) -> None:
    old = {"host": "elsewhere", "pid": 1, "since": "2026", "token": "abc", "expires": time.time() - 1e6}
    storage.create(f"{store}/.lock", json.dumps(old).encode())
    with pytest.raises(StoreError, match="process 1 on elsewhere since 2026"), WriterLock(store):
        pass
    s3.backdate(key(store), lock.LEASE_S + 5)
    with WriterLock(store):
        pass


@pytest.mark.parametrize("off", [-86400, 86400])
def test_this_machine_s_time_of_day_plays_no_part(
    store: str, s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, off: float, clock: list[float]
) -> None:
    elsewhere(monkeypatch)
    real = time.time
    with pytest.raises(RunError, match="was lost"), WriterLock(store):
        monkeypatch.setattr(lock.time, "time", lambda: real() + off)
        with pytest.raises(StoreError, match="being written by another driver"), WriterLock(store):
            pass
        s3.backdate(key(store), lock.LEASE_S + 5)
        with without_guards(), WriterLock(store):
            pass
        monkeypatch.setattr(lock.time, "time", real)


def test_a_former_holder_writes_nothing(
    store: str, s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    elsewhere(monkeypatch)
    with pytest.raises(RunError, match="was lost"), WriterLock(store) as first:
        put_record(store, first.lease)
        documents.remove(f"{store}/records/{os.path.basename(s3.puts[-1][0])}")
        s3.backdate(key(store), lock.LEASE_S + 5)  # as if it had slept
        clock[0] += lock.LEASE_S + 5
        second = lock._Lease(store)
        with without_guards():
            assert second.take() is None
        s3.puts.clear()
        for write in (
            lambda: put_record(store, first.lease),  # in a worker
            lambda: put_record(store),  # in the driver
            lambda: documents.write_bytes(f"{store}/manifest.json", b"{}"),
            lambda: documents.remove(f"{store}/manifest.json"),
        ):
            with pytest.raises(
                RunError, match=rf"right to write {store} was lost, and process {os.getpid()} on .* has it"
            ):
                write()
        assert not s3.puts and s3.calls("DELETE", "manifest") == 0
    assert lock._holder(f"{store}/.lock")[0]["token"] == second.token, (
        "and takes nothing from the next one as it leaves"
    )
    second.give_back()


def test_a_worker_of_a_driver_that_is_gone_commits_nothing(store: str) -> None:
    with WriterLock(store) as held:
        lease = held.lease
    with pytest.raises(RunError, match=r"nobody has it now.*run the same again"):
        put_record(store, lease)
    assert find_record(store, SHARD) is None


def test_an_unsure_renewal_is_settled_by_reading(store: str, s3: FaultyS3, clock: list[float]) -> None:
    with WriterLock(store) as held:
        s3.fault("PUT", "lock", drop=True, after=True)
        held._lock._renew()  # type: ignore[union-attr]
        assert not held._lock._lost  # type: ignore[union-attr]
        put_record(store, held.lease)


def test_a_renewal_that_was_given_up_and_arrives_late(store: str, clock: list[float]) -> None:
    with WriterLock(store) as held:
        lease = held._lock
        assert isinstance(lease, lock._Lease) and lease._version is not None
        assert storage.replace(f"{store}/.lock", lease._content(), lease._version)
        clock[0] += lock.TRUST_S + 1
        put_record(store)
        assert storage.replace(f"{store}/.lock", lease._content(), lease._version)
    assert holder_of(store) is None


def test_a_store_that_was_out_of_reach_is_still_held(store: str, s3: FaultyS3, clock: list[float]) -> None:
    """Longer than the holder trusts its lease, and nobody took it: it is renewed before the next write."""
    with WriterLock(store) as held:
        clock[0] += lock.TRUST_S + 1
        s3.requests.clear()
        documents.write_bytes(f"{store}/manifest.json", b"{}")
        assert [call.split()[0] for call in s3.requests if ".lock" in call] == ["PUT"]
        put_record(store, held.lease)


def test_a_store_without_conditions_is_refused(store: str, s3: FaultyS3) -> None:
    s3.conditions = False
    with (
        pytest.raises(StoreError, match=r"takes no puts on a condition \(If-None-Match, If-Match\)"),
        WriterLock(store),
    ):
        pass


def test_one_takes_over_what_has_run_out(store: str, s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch)
    s3.jitter_s = 0.02
    with without_guards():
        assert lock._Lease(store).take() is None
    for _ in range(3):
        s3.backdate(key(store), lock.LEASE_S + 5)
        contenders = [lock._Lease(store) for _ in range(4)]
        with without_guards(), ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda each: each.take(), contenders))
        [winner] = [lease for lease, holder in zip(contenders, answers, strict=True) if holder is None]
        assert lock._holder(f"{store}/.lock")[0]["token"] == winner.token


@pytest.mark.parametrize("after_part", [True, False])
def test_a_late_record_does_not_stand_for_another_s_part(store: str, s3: FaultyS3, after_part: bool) -> None:
    """A former holder's record, long under way, lands between the new holder's part and record, or before both."""
    theirs = put_record(f"{store}-theirs", detail="of other hardware")
    name = storage.list_names(f"{store}-theirs/records")[0]
    late = storage.read_bytes(f"{store}-theirs/records/{name}")
    writes = documents.write_bytes

    def landing(uri: str, data: bytes, **how: bool) -> bool:
        if ("errors/" in uri) != after_part and "-theirs" not in uri:
            storage.create(f"{store}/records/{name}", late)
        done = writes(uri, data, **how)
        if "errors/" in uri and after_part and "-theirs" not in uri:
            storage.create(f"{store}/records/{name}", late)
        return done

    with pytest.MonkeyPatch.context() as patch, WriterLock(store) as held:
        patch.setattr(documents, "write_bytes", landing)
        ours = put_record(store, held.lease)
    standing = find_record(store, SHARD)
    part = storage.read_bytes(f"{store}/errors/part-{name.removesuffix('.json')}.parquet")
    assert standing == ours != theirs and standing.errors.sha256 == hashlib.sha256(part).hexdigest()
