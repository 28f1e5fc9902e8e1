"""`endoreward serve` on Ray Serve, as a user starts it: replicas that are killed, that come with load, that end."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from chaos import ROOT, _reap
from tiny import CHATML, save_model

import endoreward

CLIENTS, KILL_EVERY_S = 64, 30.0
TALKS = [[{"role": "user", "content": text}] for text in ("ab?", "what is cd", "d d d d a", "c")]
ANSWERS = ["cd", "abcd abcd", "d a b", "cd a", "b" * 30, "a"]


class Server(NamedTuple):
    url: str
    process: "subprocess.Popen[str]"

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if any("ServeReplica" in word for word in each.cmdline()[:1])]

    def figure(self, name: str) -> float:
        """The sum of a metric's values."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"endoreward_serve_{name}"))

    def health(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/health") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def until_ready(self) -> list[int]:
        """The statuses until then."""
        statuses = [self.health()]
        until = time.monotonic() + 200
        while statuses[-1] != 200:
            assert self.process.poll() is None and time.monotonic() < until, statuses
            time.sleep(0.2)
            statuses.append(self.health())
        return statuses


@contextlib.contextmanager
def started(folder: Path, *assignments: str, models: tuple[str, ...]) -> Iterator[Server]:
    """A server of two CPUs, each replica with one thread."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jobs", "serve", "--port", str(port)]
    for model in models:
        command += ["--model", model]
    for assignment in ("run.num_cpus=2", "scorer.cpus_per_actor=1", *assignments):
        command += ["--set", assignment]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, start_new_session=True)
        try:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert process.poll() is None and time.monotonic() < until, (folder / "serve.log").read_text()
                time.sleep(0.2)
            yield Server(f"http://127.0.0.1:{port}", process)
        finally:
            _reap(process)


class Answered(NamedTuple):
    wrong: list[str]
    seconds: list[float]


def expectations(model: str) -> list[tuple[Any, list[str], list[float]]]:
    """Prompts, responses and their rewards, by `label`'s own code in this process."""
    scorer = endoreward.Scorer.from_pretrained(model, device="cpu")
    chance = random.Random(0)
    asked = [(talk, chance.sample(ANSWERS, chance.randint(1, 3))) for talk in TALKS for _ in range(6)]
    return [(talk, texts, [each.reward for each in scorer.score(talk, texts)]) for talk, texts in asked]


def ask_for(server: Server, model: str, seconds: float, clients: int = CLIENTS) -> Answered:
    """Clients that ask without a pause, each as `endoreward.remote` does it; whoever gets an error ends with it."""
    expected = expectations(model)
    answered = Answered([], [])
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        reward = endoreward.remote(server.url)
        chance = random.Random(number)
        while time.monotonic() < until:
            talk, texts, rewards = chance.choice(expected)
            begun = time.monotonic()
            try:
                given = reward([talk] * len(texts), [[{"role": "assistant", "content": text}] for text in texts])
                np.testing.assert_allclose(np.array(given, float), rewards, rtol=1e-5, atol=1e-5)
            except Exception as error:
                answered.wrong.append(repr(error))
                return
            answered.seconds.append(time.monotonic() - begun)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered


def survive(folder: Path, seconds: float) -> dict[str, float]:
    """Ask for so long, while a replica is killed every KILL_EVERY_S; gives what is to be reported."""
    model = str(save_model(folder / "model", CHATML))
    with started(folder, "serve.replicas=2", models=(model,)) as server:
        assert set(server.until_ready()) == {503, 200}
        over, killed = threading.Event(), 0

        def kill() -> None:
            nonlocal killed
            while not over.wait(KILL_EVERY_S if killed else KILL_EVERY_S / 2):
                random.choice(server.replicas()).kill()
                killed += 1

        killer = threading.Thread(target=kill)
        killer.start()
        answered = ask_for(server, model, seconds)
        over.set()
        killer.join()
        assert answered.wrong == []
        p50, p99 = np.percentile(answered.seconds, (50, 99))
        lost = server.figure("lost_total")
        assert killed >= seconds // KILL_EVERY_S and len(answered.seconds) > 2 * CLIENTS
        assert server.figure("failures_total") == 0
        until = time.monotonic() + 60
        while len(server.replicas()) < 2:  # the last one that was killed has a successor
            assert time.monotonic() < until
            time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, (folder / "serve.log").read_text()
    return {"killed": killed, "lost batches": lost, "answers": len(answered.seconds), "p50 s": p50, "p99 s": p99}


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_no_answer_is_wrong_or_lost_while_replicas_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = survive(tmp_path, 60)
    with capsys.disabled():
        print(f"\n64 clients, a minute: {json.dumps({name: round(value, 3) for name, value in report.items()})}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nor_in_five_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = survive(tmp_path, 300)
    with capsys.disabled():
        print(f"\n64 clients, five minutes: {json.dumps({name: round(value, 3) for name, value in report.items()})}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_come_with_the_load_and_several_models_have_their_own(tmp_path: Path) -> None:
    models = [str(save_model(tmp_path / name, CHATML, seed=seed, hidden=256)) for seed, name in enumerate("ab")]
    named = tuple(f"{name}={model}" for name, model in zip("ab", models, strict=True))
    with started(tmp_path, "serve.max_replicas=2", "run.num_cpus=4", models=named) as server:
        server.until_ready()
        assert len(server.replicas()) == 2  # one of each
        asked = {name: endoreward.remote(server.url, model=name)(["ab?"], ["cd"])[0] for name in "ab"}
        assert asked["a"] != asked["b"]
        over = threading.Event()

        def load() -> None:
            reward = endoreward.remote(server.url, model="a")
            while not over.is_set():
                reward(["ab?"] * 16, ["cd" * 40] * 16)

        threads = [threading.Thread(target=load) for _ in range(16)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 120
        while len(server.replicas()) < 3 and time.monotonic() < until:
            time.sleep(0.5)
        grown = len(server.replicas())
        over.set()
        for thread in threads:
            thread.join()
        assert grown == 3


@pytest.mark.slow
def test_a_model_that_no_replica_can_load_ends_the_command(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with started(tmp_path, models=(str(model),)) as server:
        assert server.process.wait(120) == 1
    log = (tmp_path / "serve.log").read_text()
    assert "endoreward: the replicas of model do not start" in log and "tensors would be made up" in log


@pytest.mark.slow
def test_more_replicas_than_there_is_room_for(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    command = [sys.executable, "-m", "jobs", "serve", "--model", str(model), "--port", "0", "--set", "serve.replicas=3"]
    command += ["--set", "run.num_cpus=2"]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=120)
    sentence = (
        "this machine has room for 2 replicas of 1 CPUs and 0 GPUs, and serve.replicas or serve.min_replicas asks for 3"
    )
    assert run.returncode == 2 and sentence in run.stderr
