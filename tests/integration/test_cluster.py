"""On a cluster: a head that does not answer, a pool that grows and shrinks, a store on S3. Submitted jobs are in
test_submission.py."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
from conftest import ROOT
from pyarrow import fs
from tiny import CHATML, save_model

from pipeline.store import LabelStore

Cli = Callable[..., subprocess.CompletedProcess[str]]
RAY = str(Path(sys.executable).parent / "ray")


def corpus(path: Path, rows: int, words: int = 3) -> Path:
    row = {"chosen": "good " * words, "rejected": "bad " * words}
    path.write_text("".join(json.dumps({"prompt": f"question {i}", **row}) + "\n" for i in range(rows)))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kill_session(leader: "subprocess.Popen[str]") -> None:
    """Stop a process and all that it started, and nothing else on this machine."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader.pid:
                process.send_signal(signal.SIGKILL)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    leader.wait(timeout=30)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head of three CPUs with token authentication on; gives the environment that reaches it."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    port, dashboard, agent = free_port(), free_port(), free_port()  # another Ray on this machine has the usual ones
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    log = tmp_path / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}", "--num-cpus=3", "--disable-usage-stats",
                "--node-ip-address=127.0.0.1",
            ],
            env={**os.environ, **environment},
            stdout=out, stderr=out, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield environment
    finally:
        kill_session(process)


@pytest.mark.timeout(300)
def test_a_head_without_a_raylet_is_given_up(
    head: dict[str, str], no_ray: None, tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jobs.cluster

    model, source = save_model(tmp_path / "model", CHATML), corpus(tmp_path / "a.jsonl", 2)
    gcs, raylet = process_of(head, "gcs_server"), process_of(head, "raylet")
    [port] = [word.partition("=")[2] for word in gcs.cmdline() if word.startswith("--gcs_server_port=")]
    arguments = ("label", "--model", model, "--input", source, "--output", tmp_path / "out", "--set")
    for name, value in {**head, "RAY_ADDRESS": f"127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    jobs.cluster.require_answer(f"127.0.0.1:{port}")  # as long as the raylet lives

    raylet.parent().suspend()  # `ray start --block` would stop the others too
    raylet.kill()
    assert jobs.cluster.ANSWERS_WITHIN_S + jobs.cluster.LISTENS_WITHIN_S < 50  # the rest of a minute is for imports
    monkeypatch.setattr(jobs.cluster, "ANSWERS_WITHIN_S", 8.0)
    started = time.monotonic()
    ran = here(*arguments, "reward.alpha=2")
    assert ran.returncode == 1 and time.monotonic() - started < 30
    assert f"127.0.0.1:{port} takes connections and does not answer" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def process_of(head: dict[str, str], name: str, tries: int = 60) -> psutil.Process:
    """One of the head's own, found by the token's path in its environment."""
    for _ in range(tries):
        for process in psutil.process_iter():
            try:
                if process.name() == name and head["RAY_AUTH_TOKEN_PATH"] in process.environ().values():
                    return process
            except psutil.Error:
                continue
        time.sleep(1)
    raise AssertionError(f"the head has no {name}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_that_takes_connections_and_says_nothing_is_given_up(
    scheme: str, no_ray: None, tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jobs.cluster

    monkeypatch.setattr(jobs.cluster, "ANSWERS_WITHIN_S", 3.0)
    source, output = corpus(tmp_path / "a.jsonl", 2), tmp_path / "out"
    model = save_model(tmp_path / "model", CHATML)
    arguments = ("label", "--model", model, "--input", source, "--output", output)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        ran = here(*arguments, "--set", f"run.ray_address={place}")
        assert ran.returncode == 1 and time.monotonic() - started < 20
        assert f"{place} takes connections and does not answer" in ran.stderr
    refused = here(*arguments, "--set", f"run.ray_address={place}")
    assert refused.returncode == 2 and "Connection refused" in refused.stderr
    nonsense = here(*arguments, "--set", "run.ray_address=nonsense")
    assert nonsense.returncode == 2 and "nonsense" in nonsense.stderr and not output.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pool_grows_and_shrinks(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML, hidden=128)
    corpus(tmp_path / "a.jsonl", 800, words=40)
    many = {
        "prompt": "the last shard, long enough for the others to idle",
        "chosen": ["good " * 40] * 1500,
        "rejected": [],
    }
    (tmp_path / "z.jsonl").write_text(json.dumps(many) + "\n")
    settings = ["run.num_cpus=4", "scorer.cpus_per_actor=1", "scorer.min_actors=1", "scorer.max_actors=2"]
    settings += ["input.shard_rows=10"]
    flags = ["--model", model, "--input", tmp_path / "*.jsonl", "--output", tmp_path / "out"]
    flags += [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "jobs", "label", *map(str, flags)]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    sizes = [0]
    while driver.poll() is None:
        size = 0
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                size += "ray::ShardActor" in "".join(child.cmdline()[:1])
            except psutil.NoSuchProcess:
                continue
        if size != sizes[-1]:
            sizes.append(size)
        time.sleep(0.1)
    assert driver.returncode == 0
    assert sizes[:4] == [0, 1, 2, 1], f"sizes of the pool: {sizes}"  # minimum, maximum, and one again for the last
    assert LabelStore(str(tmp_path / "out")).progress().labels == 1600 + 1500


@pytest.mark.timeout(600)
def test_a_corpus_and_a_store_on_s3(s3: str, tmp_path: Path, cli: Cli, here: Cli) -> None:
    model, source = save_model(tmp_path / "model", CHATML), corpus(tmp_path / "a.jsonl", 60)
    filesystem = fs.FileSystem.from_uri(s3)[0]
    with filesystem.open_output_stream(f"{s3.removeprefix('s3://')}/in/a.jsonl") as out:
        out.write(source.read_bytes())
    arguments = ("label", "--model", model, "--input", f"{s3}/in", "--output", f"{s3}/out", "--set", "run.num_cpus=2")
    ran = cli(*arguments, "--set", "input.shard_rows=20", "--set", "scorer.cpus_per_actor=1")
    assert ran.returncode == 0, ran.stderr
    assert "test-secret" not in ran.stdout + ran.stderr
    table = pa.dataset.dataset(f"{s3.removeprefix('s3://')}/out/labels", filesystem=filesystem).to_table()
    assert table.num_rows == 120 and len(set(table["id"].to_pylist())) == 120
    assert here("validate", f"{s3}/out").returncode == 0 and "complete" in here("status", f"{s3}/out").stdout
    again = here(*arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    refused = here(*arguments, "--set", "reward.alpha=2")
    assert refused.returncode == 2 and "reward.alpha" in refused.stderr


def test_a_lease_on_s3_keeps_a_second_driver_out(s3: str, cli: Cli, tmp_path: Path) -> None:
    from pipeline.errors import StoreError
    from pipeline.store import WriterLock

    taken, leave = threading.Event(), threading.Event()

    def first() -> None:
        with WriterLock(f"{s3}/leased"):
            taken.set()
            leave.wait(30)

    holder = threading.Thread(target=first)
    holder.start()
    assert taken.wait(30)
    with pytest.raises(StoreError, match=f"process {os.getpid()}"), WriterLock(f"{s3}/leased"):
        pass
    leave.set()
    holder.join()
    with WriterLock(f"{s3}/leased"):
        pass
