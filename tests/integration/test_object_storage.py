"""Stores on S3 under trouble: two drivers that race for one, a server that is killed, storms of errors."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_s3
import pytest
from faulty_s3 import FaultyS3
from front import Front, front
from racing import race
from tiny import CHATML, save_model

from pipeline import objects, storage
from pipeline.corpus import Shard
from pipeline.errors import StorageError
from pipeline.store import LabelStore, WriterLock, commit, part_uri
from pipeline.store.schema import Failure
from pipeline.store.store import read_part


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with faulty_s3.serve(monkeypatch) as s3:
        yield s3


@pytest.fixture
def server(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A process that clients see as the endpoint, and that can be killed."""
    with front(faulty.port) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
        yield made


def test_two_drivers_race_for_one_store(faulty: FaultyS3) -> None:
    outcomes = race(faulty, rounds=20, stopped=1, delay_s=0.05, seed=1)
    assert outcomes["held"] >= 20 and outcomes["lost"] >= 1 and outcomes["refused"] >= 1, outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_drivers_race_for_500_rounds(faulty: FaultyS3) -> None:
    outcomes = race(faulty, rounds=500, stopped=50, delay_s=0.2, seed=2)
    print(f"500 rounds: {dict(outcomes)}")
    assert outcomes["held"] >= 500 and outcomes["lost"] >= 50 and outcomes["refused"] >= 100, outcomes


def put(store: str, number: int, lease: str | None) -> None:
    shard = Shard("a.jsonl", number, number, number + 1, 1, "0" * 64, 0, 10)
    commit(store, shard, "f" * 64, 0, [], [Failure(f"a:{number}", f"a:{number}", "a.jsonl", number, "x", "y")], lease)


def test_a_server_that_is_killed_and_comes_back(
    faulty: FaultyS3, server: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits wait for it; where it stays away the error names it, and the same again goes on."""
    store = LabelStore(f"{faulty.uri}/killed")
    with WriterLock(store.uri) as held:
        put(store.uri, 0, held.lease)
        server.kill()
        back = threading.Timer(0.4, server.start)
        back.start()
        put(store.uri, 1, held.lease)
        back.join()
        slow = faulty.fault("PUT", "/records/.*-000002", delay_s=0.3)  # then it is stored, and nobody hears of it

        def kill_amid() -> None:
            while not slow.hits:
                time.sleep(0.01)
            server.kill()
            time.sleep(0.4)
            server.start()

        killer = threading.Thread(target=kill_amid, daemon=True)
        killer.start()
        put(store.uri, 2, held.lease)
        killer.join(10)
        assert not killer.is_alive() and faulty.calls("PUT", "/records/.*-000002") > 1
    server.kill()
    monkeypatch.setattr(objects, "RETRY_S", 0.2)
    with pytest.raises(StorageError, match=rf"{faulty.uri}/killed/records/.*: cannot read it: no answer, \d tries"):
        put(store.uri, 3, None)
    server.start()
    put(store.uri, 3, None)
    assert [record.shard.index for record in store.records()] == [0, 1, 2, 3]


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
def test_a_run_in_a_storm(
    faulty: FaultyS3, server: Front, tmp_path: Path, cli: Callable[..., Any], here: Callable[..., Any]
) -> None:
    """Configuration, model, corpus and labels, from and to S3, while a tenth of the requests fail and the server is killed on
    the way: every id once, and nothing is damaged."""
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    storage.upload(f"{faulty.uri}/in/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    model, output = save_model(tmp_path / "model", CHATML), f"{faulty.uri}/out"
    faulty.storm = 0.1

    def kill_on_the_way() -> None:
        while not faulty.calls("PUT", "/records/.*-0000"):
            time.sleep(0.05)
        server.kill()
        time.sleep(3)
        server.start()

    killer = threading.Thread(target=kill_on_the_way, daemon=True)
    killer.start()
    ran = cli(
        "label", "--model", model, "--input", f"{faulty.uri}/in", "--output", output,
        "--set", "run.num_cpus=2", "--set", "input.shard_rows=4", "--set", "scorer.cpus_per_actor=1", timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    killer.join(10)
    assert not killer.is_alive() and "test-secret" not in ran.stdout + ran.stderr
    faulty.storm = 0.0
    assert here("validate", output).returncode == 0
    store = LabelStore(output)
    ids = [
        id for record in store.records() for id in read_part(part_uri(output, "labels", record.shard))["id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 120
