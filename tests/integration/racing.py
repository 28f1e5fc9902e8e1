"""Two drivers in processes of their own that race for one store on S3, round after round, while puts are delayed.

In most rounds both come at once. In some the holder is stopped (SIGSTOP) for longer than its lease lasts, the other takes
over, and the first goes on where it was. A driver that holds the store commits shards, under its own name in the place of the
fingerprint. The times are those of `pipeline.store.lock`, each made as much shorter.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faulty_s3 import FaultyS3

SHARDS = 3
LEASE_S, TRUST_S, RENEW_S = 1.5, 1.0, 0.2
ROOT = Path(__file__).parents[2]


def drive(name: str) -> None:
    """A driver: takes stores as they are named on stdin, and says how each went."""
    from pipeline.corpus import Shard
    from pipeline.errors import RunError, StoreError
    from pipeline.store import WriterLock, commit, lock
    from pipeline.store.schema import Failure

    lock.LEASE_S, lock.TRUST_S, lock.RENEW_S = LEASE_S, TRUST_S, RENEW_S
    for line in sys.stdin:
        order = json.loads(line)
        until, outcome, recorded = time.monotonic() + order["patience"], "refused", []
        while outcome == "refused":
            try:
                with WriterLock(order["store"]) as held:
                    outcome = "held"
                    for number in range(SHARDS):
                        if number == order["stop_at"]:
                            print(json.dumps("stopped"), flush=True)
                            os.kill(os.getpid(), signal.SIGSTOP)
                        shard = Shard("a.jsonl", number, number, number + 1, 1, "0" * 64, 0, 10)
                        failure = Failure(f"a:{number}", f"a:{number}", "a.jsonl", number, "x", f"of {name}")
                        record = commit(
                            order["store"], shard, name, 0, [], [failure], held.lease if order["worker"] else None
                        )
                        recorded.append(record.fingerprint)
            except StoreError:
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
            except RunError:
                outcome = "lost"
        print(json.dumps({"outcome": outcome, "recorded": recorded}), flush=True)


class Driver:
    def __init__(self, name: str):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def go(self, store: str, worker: bool, patience: float = 0.0, stop_at: int | None = None) -> None:
        """`worker`: its commits look at the lease in the store, as Ray's workers do; else at what the driver knows of it."""
        order = {"store": store, "worker": worker, "patience": patience, "stop_at": stop_at}
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"driver {self.name} ended with {self.process.wait(10)}"
        return json.loads(line)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


def race(s3: "FaultyS3", rounds: int, stopped: int, delay_s: float, seed: int) -> Counter[str]:
    """Run the rounds, `stopped` of them with a holder that is stopped; each put is up to `delay_s` late, which is less
    than what a lease lasts longer than its holder trusts it. Returns how often a driver held, was refused, lost.

    Raises AssertionError where a store had two holders, or a commit of one that was not its holder.
    """
    chance, outcomes = random.Random(seed), Counter[str]()
    drivers = [Driver("A"), Driver("B")]
    s3.jitter_s = delay_s
    with_stop = set(chance.sample(range(rounds), stopped))
    try:
        for number in range(rounds):
            store = f"{s3.uri}/race-{number}"
            (first, second), worker = chance.sample(drivers, 2), chance.random() < 0.5
            s3.puts.clear()
            if number in with_stop:
                first.go(store, worker, stop_at=chance.randrange(SHARDS))
                assert first.hear() == "stopped"
                second.go(store, worker, patience=30)
                taken = second.hear()
                first.process.send_signal(signal.SIGCONT)
                heard = [first.hear(), taken]
                assert [each["outcome"] for each in heard] == ["lost", "held"], heard
            else:
                first.go(store, worker)
                time.sleep(chance.uniform(0, 2 * delay_s) * chance.randrange(2))
                second.go(store, worker)
                heard = [first.hear(), second.hear()]
            outcomes.update(each["outcome"] for each in heard)
            check(s3, store)
    finally:
        for driver in drivers:
            driver.end()
    return outcomes


def check(s3: "FaultyS3", store: str) -> None:
    """In the order in which puts took effect: each of a driver's is within the time that it held the lease, the leases do not
    overlap, and what stands in the end are all shards, each with its part."""
    from pipeline import storage
    from pipeline.store import LabelStore, part_uri

    holder: str | None = None
    names: dict[str, str] = {}
    for path, data in list(s3.puts):
        if path.endswith("/.lock"):
            holder = json.loads(data)["token"] or None
            continue
        if "/records/" in path:
            assert holder is not None, f"{path} was put while nobody held {store}"
            name = json.loads(data)["fingerprint"]
            assert names.setdefault(holder, name) == name, (
                f"{path} of {name} was put while {names[holder]} held {store}"
            )
    records = list(LabelStore(store).records())
    assert [record.shard.index for record in records] == list(range(SHARDS)), records
    for record in records:
        part = storage.read_bytes(part_uri(store, "errors", record.shard))
        assert hashlib.sha256(part).hexdigest() == record.errors.sha256, record


if __name__ == "__main__":
    drive(sys.argv[1])
