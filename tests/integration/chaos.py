"""Kill a run at random moments and start it again, with a reader that polls the store all the while."""

import glob
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq

STEPS = {
    "actor": ("ray::ShardActor",),
    "worker": ("ray::FlatMap(read_work)", "ray::MapBatches(prepare_block)"),  # on a cluster
    "learner": ("RayTrainWorker",),
    "sampler": ("ray::PolicySampler",),
    "rewarder": ("ray::RewardActor",),
}  # as Ray titles its processes
ROOT = Path(__file__).parent.parent.parent


class Reader(threading.Thread):
    """Reads every part that a plain glob shows, over and over; `trouble` is what it could not read."""

    def __init__(self, store: Path):
        super().__init__(daemon=True)
        self.store, self.stop, self.reads = store, threading.Event(), 0
        self.trouble: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.05):
            for path in glob.glob(f"{self.store}/labels/*.parquet") + glob.glob(f"{self.store}/errors/*.parquet"):
                try:
                    pq.read_table(path)
                    self.reads += 1
                except Exception as error:
                    self.trouble.append(f"{path}: {error}")


def records_of(output: Path) -> int:
    """Shards that are committed."""
    return sum(len(glob.glob(f"{output}/{place}records/*-0*.json")) for place in ("", "rewards/*/"))


def run_with_kills(
    arguments: Sequence[str],
    output: Path,
    kills: int,
    seed: int,
    done: Callable[[Path], int] = records_of,
    kept: Callable[[Path], int] | None = None,
    kinds: Collection[str] = ("driver", "actor", "worker"),
) -> Counter[str]:
    """Run a command until it ends by itself; SIGKILL its driver or one of its Ray workers `kills` times on the way,
    each kind about as often.

    Args:
        output: the label store, or the evaluation with several of them, or the training run, that it writes.
        done: how far an output is: it is killed after something was done.
        kept: how much of that a kill does not take back, where it is not all. `done` then counts what has begun.
        kinds: what is killed.

    Returns what was killed, by kind.
    """
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    while True:
        log = open(output.parent / f"run-{killed.total()}.log", "w")  # noqa: SIM115 - closed with the process
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while driver.poll() is None and killed.total() < kills:
                before = done(output)
                while driver.poll() is None and not _due(output, before, done, kept):
                    time.sleep(0.05)
                time.sleep(chance.uniform(0, 0.3))
                victims = {kind: found for kind, found in _victims(driver.pid).items() if kind in kinds}
                if driver.poll() is None and victims:
                    fewest = min(killed[kind] for kind in victims)
                    kind = chance.choice(sorted(kind for kind in victims if killed[kind] == fewest))
                    victim = chance.choice(victims[kind])
                    try:
                        victim.kill()
                        killed[kind] += 1
                    except psutil.NoSuchProcess:
                        continue
                    if kind == "driver":
                        break
            code = driver.wait(timeout=300)
        finally:
            log.close()
            _reap(driver)
        if code == 0:
            return killed
        if code != -9:
            raise AssertionError(f"{arguments[0]} ended with {code}:\n{Path(log.name).read_text()[-3000:]}")


def _due(output: Path, before: int, done: Callable[[Path], int], kept: Callable[[Path], int] | None) -> bool:
    """Somewhere in the work, not before it; where not all is kept, after the last kill was noticed, said and kept, and
    with something in hand that will have to be repeated."""
    if kept is None:
        return done(output) > before
    safe = kept(output)
    return safe > before and done(output) > safe + 1


def _victims(pid: int) -> dict[str, list[psutil.Process]]:
    """The driver, the actors that score, the workers that run tasks, the workers that train."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        driver = psutil.Process(pid)
        found["driver"] = [driver]
        for child in driver.children(recursive=True):
            title = " ".join(child.cmdline()[:1])
            for kind, steps in STEPS.items():
                if any(step in title for step in steps):
                    found.setdefault(kind, []).append(child)
    except psutil.NoSuchProcess:
        return {}
    return found


def _reap(driver: "subprocess.Popen[bytes]") -> None:
    """Whatever a killed driver leaves behind in its session."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == driver.pid:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
