"""Stores on S3 under trouble: two drivers that race for one, a server that is killed, storms of errors."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_s3
import pytest
from faulty_s3 import FaultyS3
from racing import race

from pipeline import objects, storage
from pipeline.corpus import Shard
from pipeline.errors import StorageError
from pipeline.store import LabelStore, WriterLock, commit
from pipeline.store.schema import Failure


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with faulty_s3.serve(monkeypatch) as s3:
        yield s3


def test_two_drivers_race_for_one_store(faulty: FaultyS3) -> None:
    outcomes = race(faulty, rounds=20, stopped=1, delay_s=0.05, seed=1)
    assert outcomes["held"] >= 20 and outcomes["lost"] >= 1 and outcomes["refused"] >= 1, outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_drivers_race_for_500_rounds(faulty: FaultyS3) -> None:
    outcomes = race(faulty, rounds=500, stopped=50, delay_s=0.2, seed=2)
    assert outcomes["held"] >= 500 and outcomes["lost"] >= 50 and outcomes["refused"] >= 100, outcomes


def put(store: str, number: int, lease: str | None) -> None:
    shard = Shard("a.jsonl", number, number, number + 1, 1, "0" * 64, 0, 10)
    commit(store, shard, "f" * 64, 0, [], [Failure(f"a:{number}", f"a:{number}", "a.jsonl", number, "x", "y")], lease)


def test_a_server_that_is_killed_and_comes_back(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits wait for it; where it stays away the error names it, and the same again goes on."""
    store = LabelStore(f"{faulty.uri}/killed")
    with WriterLock(store.uri) as held:
        put(store.uri, 0, held.lease)
        faulty.stop()
        back = threading.Timer(0.4, faulty.start)
        back.start()
        put(store.uri, 1, held.lease)
        back.join()
    faulty.stop()
    monkeypatch.setattr(objects, "RETRY_S", 0.2)
    with pytest.raises(StorageError, match=rf"{faulty.uri}/killed/records/.*: cannot read it: no answer, \d tries"):
        put(store.uri, 2, None)
    faulty.start()
    put(store.uri, 2, None)
    assert [record.shard.index for record in store.records()] == [0, 1, 2]


def test_commits_in_a_storm(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.005)
    store = LabelStore(f"{faulty.uri}/storm")
    faulty.storm = 0.3
    with WriterLock(store.uri) as held:
        for number in range(8):
            put(store.uri, number, held.lease)
    assert [record.shard.index for record in store.records()] == list(range(8))
    assert storage.list_names(store.at("errors")) == sorted(storage.list_names(store.at("errors")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_storm(faulty: FaultyS3, tmp_path: Path, cli: Callable[..., Any], here: Callable[..., Any]) -> None:
    """Configuration, corpus and labels on S3, while a fifth of the requests fail and the server is killed on the way."""
    from corpora import pairs  # noqa: F401
