"""What goes wrong around a run of `label`: its disk fills, its model's folder goes, its head is killed, a network parts.

After each the same command goes on, no id is lost or there twice, and rewards are those of an undisturbed run to the bit. All
but one with the scorers of simulated.py, whose rewards follow from the tokens. Kills of actors, workers and drivers are in
test_exactly_once.py, of the S3 server in test_object_storage.py.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
from autoscaled import end, free_port
from ray.cluster_utils import Cluster
from small_disk import leave, make_room, small_disk
from tiny import CHATML, save_model

from pipeline.store import LabelStore, problems

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RAY = str(Path(sys.executable).parent / "ray")
ROWS = 240
PATH = {"PYTHONPATH": f"{ROOT}:{HERE}:{HERE.parent}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model", CHATML)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus") / "a.jsonl", ROWS)


def corpus(file: Path, count: int) -> Path:
    rows = ({"prompt": f"question {i}", "chosen": f"good {i} " * 3, "rejected": f"no {i}"} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Label:
    """A `label` command that is run several times, with scorers that sleep, or with real ones where `rate` is None."""

    def __init__(self, model: Path, source: Path, output: Path, folder: Path, rate: float | None, *settings: str):
        told = ["scorer.device=cpu", "scorer.cpus_per_actor=1", "input.shard_rows=4", *settings]
        words = ["label", "--model", model, "--input", source, "--output", output]
        words += [word for each in told for word in ("--set", each)]
        begin = ["-m", "jobs"] if rate is None else [HERE / "simulated.py", rate, folder / "events.jsonl"]
        self.words, self.folder, self.output = list(map(str, [sys.executable, *begin, *words])), folder, output

    def start(self, *before: str, **environment: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "driver.log").open("w") as log:
            return subprocess.Popen(
                [*before, *self.words], cwd=ROOT, env={**os.environ, **PATH, **environment}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.folder / "driver.log").read_text()

    @property
    def done(self) -> int:
        """Shards that are committed."""
        return len(list(self.output.glob("records/*-0*.json")))

    def ends(self, driver: "subprocess.Popen[bytes]", seconds: float = 300) -> int:
        try:
            return driver.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not in time: {self.said[-3000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, 9)


def rewards(output: Path) -> pa.Table:
    columns = ["id", "reward", "token_logprobs"]
    return pyarrow.dataset.dataset(str(output / "labels"), format="parquet").to_table(columns).sort_by("id")


def require_whole(output: Path, rows: int = ROWS) -> None:
    """Each id once, in a store that validates."""
    store = LabelStore(str(output))
    assert store.progress().complete and list(problems(store)) == []
    table = rewards(output)
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 2 * rows


@pytest.fixture(scope="module")
def undisturbed(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("undisturbed")
    label = Label(model, source, folder / "out", folder, 0)
    assert label.ends(label.start()) == 0, label.said
    require_whole(label.output)
    return rewards(label.output)


def wait_for(
    condition: Callable[[], bool], label: Label, driver: "subprocess.Popen[bytes]", seconds: float = 240
) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"ended with {driver.poll()}: {label.said[-3000:]}"
        assert time.monotonic() < ends, f"not in time: {label.said[-3000:]}"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_disk_that_fills(model: Path, source: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        label = Label(model, source, disk / "out", tmp_path, 0)
        leave(disk, 256)
        assert label.ends(label.start()) == 1
        assert "is full; nothing is lost: free some space and run the same again" in " ".join(label.said.split())
        assert 0 < label.done < ROWS / 4
        assert "Traceback" not in label.said
        make_room(disk)
        assert label.ends(label.start()) == 0, label.said
        require_whole(label.output)
        assert rewards(label.output).equals(undisturbed)


@pytest.mark.slow
def test_a_model_folder_that_goes(model: Path, tmp_path: Path) -> None:
    """An actor that dies then cannot load it again: the run ends, and says which folder is gone."""
    folder, rows = shutil.copytree(model, tmp_path / "model"), 2000
    source = corpus(tmp_path / "a.jsonl", rows)
    label = Label(folder, source, tmp_path / "out", tmp_path, None, "scorer.max_actors=1", "scorer.max_restarts=2")
    driver = label.start()
    wait_for(lambda: label.done >= 2, label, driver)
    folder.rename(tmp_path / "moved")
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ray::ShardActor" in word for word in process.cmdline()):
                process.kill()
    code = label.ends(driver)
    assert code and str(folder) in "".join(label.said.split()), label.said
    assert "Traceback" not in label.said and label.done < rows / 4
    (tmp_path / "moved").rename(folder)
    assert label.ends(label.start()) == 0, label.said
    require_whole(label.output, rows)
    whole = Label(folder, source, tmp_path / "whole", tmp_path, None)
    assert whole.ends(whole.start()) == 0, whole.said
    assert rewards(label.output).equals(rewards(whole.output))


@contextlib.contextmanager
def head() -> Iterator[Cluster]:
    """A cluster of two CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.cluster
def test_a_head_that_is_killed(model: Path, source: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    """Its driver ends, and does not hang; on another cluster the same command goes on."""
    label, quick = (Label(model, source, tmp_path / "out", tmp_path, rate) for rate in (200, 0))
    with head() as cluster:
        driver = label.start(RAY_ADDRESS=cluster.address, RAY_gcs_rpc_server_reconnect_timeout_s="5")
        wait_for(lambda: label.done >= 3, label, driver)
        cluster.head_node.kill_gcs_server(check_alive=False)
        assert label.ends(driver, 90) != 0
    assert 3 <= label.done < ROWS / 4
    (tmp_path / "driver.log").rename(tmp_path / "killed.log")
    with head() as cluster:
        assert quick.ends(quick.start(RAY_ADDRESS=cluster.address)) == 0, quick.said
    assert "INFO" not in quick.said, "Ray Data keeps quiet"
    require_whole(label.output)
    assert rewards(label.output).equals(undisturbed)


# Two nodes, each in a network of its own


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces, of 10.77.0.1 and 10.77.0.2."""
    mark = f"er{random.randrange(16**4):04x}"
    names = f"{mark}a", f"{mark}b"
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("a network that parts is made of two network namespaces, which need root and `ip`")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a network that parts is made of two network namespaces: {error.stderr.decode().strip()}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def parted(space: str) -> Iterator[None]:
    ip("-n", space, "link", "set", space, "down")
    try:
        yield
    finally:
        ip("-n", space, "link", "set", space, "up")


def start_node(space: str, words: list[str], joins: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """A node of Ray in a namespace."""
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    environment = {name: value for name, value in {**os.environ, **PATH, **joins}.items() if name != "RAY_ADDRESS"}
    with log.open("w") as file:
        command = ["ip", "netns", "exec", space, RAY, "start", *words, *common]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.cluster
def test_a_network_that_parts_and_heals(
    model: Path, source: Path, undisturbed: pa.Table, tmp_path: Path, spaces: tuple[str, str]
) -> None:
    """The node beyond goes on writing to the disk that both share, and nobody hears of it."""
    port, temp = free_port(), f"/tmp/ray-{spaces[0]}"
    joins = {"RAY_ADDRESS": f"10.77.0.1:{port}"}
    joins |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    joins |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    joins |= {"RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "1000"}
    (tmp_path / "token").write_text(secrets.token_hex(32))
    first = ["--head", f"--port={port}", "--node-ip-address=10.77.0.1"]
    first += ["--include-dashboard=false", f"--temp-dir={temp}"]
    second = [f"--address={joins['RAY_ADDRESS']}", "--node-ip-address=10.77.0.2"]
    nodes = []
    label = Label(model, source, tmp_path / "out", tmp_path, 400, "scorer.min_actors=2", "scorer.max_actors=2")
    try:
        for space, words in zip(spaces, (first, second), strict=True):
            log = tmp_path / f"{space}.log"
            nodes.append(start_node(space, words, joins, log))
            ends = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert nodes[-1].poll() is None and time.monotonic() < ends, log.read_text()[-2000:]
                time.sleep(0.5)
        driver = label.start("ip", "netns", "exec", spaces[0], **joins)
        wait_for(lambda: label.done >= 3 and running(tmp_path) == 2, label, driver)
        with parted(spaces[1]):
            begun = label.done
            wait_for(lambda: running(tmp_path) < 2, label, driver)
            wait_for(lambda: label.done > begun + 2, label, driver)
        assert label.ends(driver) == 0, label.said
    finally:
        for node in nodes:
            end(node, temp)
    require_whole(label.output)
    assert rewards(label.output).equals(undisturbed)


def running(folder: Path) -> int:
    """Actors that run, as the pool said last."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    states = [each["pool"]["running"] for each in map(json.loads, lines) if "pool" in each]
    return states[-1] if states else 0
