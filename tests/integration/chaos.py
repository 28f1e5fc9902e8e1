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
from typing import Self

import psutil
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

STEPS = {
    "actor": ("ray::ShardActor",),
    "worker": ("ray::FlatMap(read_work)", "ray::MapBatches(prepare_block)"),  # on a cluster
    "learner": ("RayTrainWorker",),
    "sampler": ("ray::PolicySampler",),
    "rewarder": ("ray::RewardActor",),
}  # as Ray titles its processes
ROOT = Path(__file__).parent.parent.parent


class Reader(threading.Thread):
    """Reads every part that a plain glob shows, or `most` of them, over and over; `trouble` is what it could not read."""

    def __init__(self, store: Path, most: int | None = None, pause_s: float = 0.05):
        super().__init__(daemon=True)
        self.store, self.stop, self.reads = store, threading.Event(), 0
        self.most, self.pause_s = most, pause_s
        self.trouble: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(self.pause_s):
            paths = glob.glob(f"{self.store}/labels/*.parquet") + glob.glob(f"{self.store}/errors/*.parquet")
            for path in random.sample(paths, min(self.most or len(paths), len(paths))):
                try:
                    pq.read_table(path)
                    self.reads += 1
                except Exception as error:
                    self.trouble.append(f"{path}: {error}")


class Nodes:
    """A Ray cluster on this machine: a head without CPUs, which drivers join, and nodes whose raylets may be killed."""

    def __init__(self, count: int, cpus: int):
        self.count, self.cpus = count, cpus

    def __enter__(self) -> Self:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.replace()
        return self

    def __exit__(self, *raised: object) -> None:
        self.cluster.shutdown()

    @property
    def joins(self) -> dict[str, str]:
        """Of a driver's environment."""
        return {"RAY_ADDRESS": str(self.cluster.address)}

    def raylets(self) -> list[psutil.Process]:
        return [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.cluster.worker_nodes]

    def replace(self) -> None:
        """Bring a node for each that has lost its raylet."""
        for node in list(self.cluster.worker_nodes):
            if node.all_processes["raylet"][0].process.poll() is not None:
                self.cluster.remove_node(node, allow_graceful=False)
        while len(self.cluster.worker_nodes) < self.count:
            self.cluster.add_node(num_cpus=self.cpus)


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
    program: Sequence[str] = (sys.executable, "-m", "jobs"),
    nodes: Nodes | None = None,
) -> Counter[str]:
    """Run a command until it ends by itself; SIGKILL its driver or one of its Ray workers `kills` times on the way,
    each kind about as often.

    Args:
        output: the label store, or the evaluation with several of them, or the training run, that it writes.
        done: how far an output is: it is killed after something was done.
        kept: how much of that a kill does not take back, where it is not all. `done` then counts what has begun.
        kinds: what is killed.
        program: what the arguments are given to.
        nodes: a cluster that it joins, whose workers and raylets are killed too.

    Returns what was killed, by kind.
    """
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    while True:
        log = open(output.parent / f"run-{killed.total()}.log", "w")  # noqa: SIM115 - closed with the process
        driver = subprocess.Popen(
            [*program, *arguments],
            cwd=ROOT,
            env={**os.environ, **(nodes.joins if nodes else {})},
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
                victims = {kind: found for kind, found in _victims(driver.pid, nodes).items() if kind in kinds}
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
                    if kind == "raylet" and nodes is not None:
                        victim.wait(30)
                        nodes.replace()
            code = driver.wait(timeout=900)
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


def _victims(pid: int, nodes: Nodes | None) -> dict[str, list[psutil.Process]]:
    """The driver, the actors that score, the workers that run tasks, the workers that train, the raylets of a cluster."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        found["driver"] = [psutil.Process(pid)]
        if nodes is not None:
            found["raylet"] = nodes.raylets()
        for parent in [each for kind in list(found) for each in found[kind]]:
            for child in parent.children(recursive=True):
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
