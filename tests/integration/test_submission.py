"""Jobs that are submitted to a Ray head with token authentication, as an operator does: label, train and rl; what their status
is after a success, a wrong configuration, a failure and a stop; what Prometheus scrapes of them; who is kept out.

`make test-cluster` runs it: each job starts Python, torch and Ray anew.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from conftest import ROOT
from test_cluster import RAY, corpus, free_port, kill_session
from tiny import CHATML, save_model

from jobs.stores.metrics import COUNTERS, GAUGES
from pipeline.store import LabelStore, holder_of, problems
from pipeline.training.metrics import read_metrics
from pipeline.training.run import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MARKET = "ray.io/market-type"
SECRETS = {"AWS_SECRET_ACCESS_KEY": secrets.token_hex(20), "HF_TOKEN": f"hf_{secrets.token_hex(17)}"}
"""Which the cluster's jobs have in their environment, beside Ray's token."""
WAITED_S = 400.0
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass
class Head:
    """A head that runs, reached as an operator reaches it: by its dashboard's address and the token."""

    address: str  # of the dashboard
    gcs: str
    metrics: str
    environment: dict[str, str]
    token: str
    scraped: dict[str, list[float]] = field(default_factory=dict)  # values by metric, label and run

    def ask(self, path: str, token: str | None = None) -> Any:
        """JSON from the dashboard. Raises HTTPError."""
        request = urllib.request.Request(self.address + path)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def ray(self, *words: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, with the token."""
        environment = {**os.environ, **self.environment, **more}
        return subprocess.run([RAY, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)

    def submit(self, name: str, *words: Any) -> subprocess.CompletedProcess[str]:
        """Submit `python -m jobs WORDS` under this id, and do not wait for it."""
        entry = ["--", sys.executable, "-m", "jobs", *map(str, words)]
        return self.ray("job", "submit", "--no-wait", "--submission-id", name, "--working-dir", ".", *entry)

    def job(self, name: str) -> dict[str, Any]:
        job: dict[str, Any] = self.ask(f"/api/jobs/{name}", self.token)
        return job

    def log(self, name: str) -> str:
        return str(self.ask(f"/api/jobs/{name}/logs", self.token)["logs"])

    def scrape(self) -> str:
        """What Prometheus would be given now; values of ours are kept."""
        with urllib.request.urlopen(self.metrics, timeout=20) as response:
            text: str = response.read().decode()
        for name, tags, value in re.findall(r"^(ray_endoreward_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            key = " ".join([name, labels["run"], labels.get("metric", labels.get("reason", ""))]).strip()
            self.scraped.setdefault(key, []).append(float(value))
        return text

    def run(self, name: str, *words: Any) -> dict[str, Any]:
        """Submit, and wait for the end."""
        submitted = self.submit(name, *words)
        assert submitted.returncode == 0, submitted.stdout[-2000:] + submitted.stderr[-2000:]
        return self.wait(name)

    def wait(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + WAITED_S
        while time.monotonic() < deadline:
            job = self.job(name)
            self.scrape()
            if job["status"] in ENDED:
                return job
            time.sleep(0.5)
        raise AssertionError(f"{name} does not end:\n{self.log(name)[-3000:]}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Four CPUs, and a label as a cloud's spot node has it."""
    folder = tmp_path_factory.mktemp("head")
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    gcs, dashboard, agent, metrics = (free_port() for _ in range(4))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_metrics_report_interval_ms": "1000",  # of ten seconds, which these runs would outlive by little
    }
    with (folder / "log").open("w") as out:
        process = subprocess.Popen(
            [
                RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=4",
                f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--disable-usage-stats",
                "--node-ip-address=127.0.0.1", f"--labels={MARKET}=spot",
            ],
            env={**os.environ, **SECRETS, **environment}, stdout=out, stderr=out, text=True, start_new_session=True,
        )  # fmt: skip
    address = environment["RAY_API_SERVER_ADDRESS"]
    head = Head(address, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{metrics}/metrics", environment, token)
    try:
        for _ in range(120):
            try:
                head.ask("/api/jobs/", token)
                head.scrape()
                break
            except OSError:
                time.sleep(1)
        else:
            raise AssertionError((folder / "log").read_text()[-3000:])
        yield head
    finally:
        kill_session(process)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model and a corpus, and what jobs make of them."""
    folder = tmp_path_factory.mktemp("jobs")
    save_model(folder / "model", CHATML)
    corpus(folder / "a.jsonl", 40)
    return folder


def label_words(folder: Path, output: str, *settings: str, source: str = "a.jsonl") -> list[Any]:
    words = ["label", "--model", folder / "model", "--input", folder / source, "--output", folder / output]
    return with_settings(words, "input.shard_rows=8", "scorer.cpus_per_actor=1", *settings)


def train_words(folder: Path, output: str, *settings: str) -> list[Any]:
    """On the labels of the first test."""
    words = ["train", "--labels", folder / "labels", "--policy", folder / "model", "--output", folder / output]
    given = ("train.batch_size=4", "learner.workers=1", "tracking.tensorboard=false")
    return with_settings(words, *given, *settings)


def rl_words(folder: Path, output: str, *settings: str) -> list[Any]:
    words = ["rl", "--prompts", folder / "a.jsonl", "--policy", folder / "model", "--output", folder / output]
    given = ("rl.batch_size=4", "rl.group_size=2", "rl.max_new_tokens=8", "tracking.tensorboard=false")
    return with_settings(words, *given, *settings)


def with_settings(words: list[Any], *settings: str) -> list[Any]:
    return [*words, *(word for setting in settings for word in ("--set", setting))]


WORDS = {"label": label_words, "train": train_words, "rl": rl_words}


SPOT = f'run.label_selector={{"{MARKET}" = "spot"}}'


def test_label_succeeds_and_is_seen(head: Head, folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    job = head.run("label-1", *label_words(folder, "labels", SPOT), "--input", folder / "bad.jsonl")
    log = head.log("label-1")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), log[-3000:]
    assert "endogenous: 41 of 41 rows" in log and head.token not in log
    store = LabelStore(str(folder / "labels"))
    assert list(problems(store)) == [] and store.progress().labels == 81
    run = store.uri
    rows = head.scraped[f"ray_endoreward_rows_total {run}"]
    assert rows == sorted(rows) and 0 < rows[-1] <= 41
    left = head.scraped[f"ray_endoreward_rows_left {run}"]
    assert left == sorted(left, reverse=True) and left[0] <= 41
    assert {"ray_endoreward_response_tokens_total", "ray_endoreward_forwarded_tokens_total"} <= {
        key.split()[0] for key in head.scraped
    }
    assert head.scraped[f"ray_endoreward_errors_total {run} empty_response"][-1] == 1

    twice = head.submit("label-1", *label_words(folder, "labels"))
    assert twice.returncode != 0 and "label-1" in twice.stdout + twice.stderr  # the id is the idempotency key


def test_train_succeeds_on_labelled_nodes(head: Head, folder: Path) -> None:
    job = head.run("train-1", *train_words(folder, "dpo", "train.max_steps=3", "checkpoint.every_steps=2", SPOT))
    log = head.log("train-1")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), log[-3000:]
    assert (
        "Trained" in log and "waits until it has" not in log and (folder / "dpo" / "hf" / "model.safetensors").exists()
    )
    assert head.scraped[f"ray_endoreward_steps {folder / 'dpo'}"][-1] == 3
    assert f"ray_endoreward_step_metric {folder / 'dpo'} loss" in head.scraped


def test_rl_succeeds_on_labelled_nodes(head: Head, folder: Path) -> None:
    job = head.run("rl-1", *rl_words(folder, "rl", "rl.max_steps=2", SPOT))
    log = head.log("rl-1")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), log[-3000:]
    assert "Improved" in log and "waits until it has" not in log
    assert (folder / "rl" / "hf" / "model.safetensors").exists()
    assert head.scraped[f"ray_endoreward_step {folder / 'rl'}"][-1] <= 2


@pytest.mark.parametrize(
    ("command", "wrong"), [("label", "reward.alpa"), ("train", "train.objektive"), ("rl", "rl.algorythm")]
)
def test_a_wrong_configuration_fails_with_2_and_writes_nothing(
    head: Head, folder: Path, command: str, wrong: str
) -> None:
    job = head.run(f"wrong-{command}", *WORDS[command](folder, f"wrong-{command}", f"{wrong}=2"))
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)
    log = head.log(f"wrong-{command}")
    assert f"{wrong}: no such field" in log and not (folder / f"wrong-{command}").exists(), log[-3000:]


def test_a_failure_fails_with_1_and_keeps_what_is_committed(head: Head, folder: Path) -> None:
    """Rows without anything to score: each becomes an error row, and the run says so."""
    (folder / "empty.jsonl").write_text('{"prompt": "a", "chosen": "", "rejected": ""}\n' * 60)
    job = head.run("failed-label", *label_words(folder, "failed", source="empty.jsonl"))
    log = head.log("failed-label")
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 1), log[-3000:]
    assert "empty_response" in log and "could be labelled" in log and "Traceback" not in log
    assert LabelStore(str(folder / "failed")).progress().errors["empty_response"] > 0


REWARD = """
def reward(prompts, completions, **columns):
    raise ValueError("no verdict")
"""


@pytest.mark.parametrize(
    ("command", "settings", "why"),
    [
        ("train", ("train.learning_rate=1e30", "train.warmup=0", "train.max_steps=9"), "lower train.learning_rate"),
        ("rl", ("rewards.mine.kind=function", "rl.max_steps=2"), "no verdict"),
    ],
)
def test_training_that_fails_fails_with_1_and_says_why(
    head: Head, folder: Path, command: str, settings: tuple[str, ...], why: str
) -> None:
    (folder / "reward.py").write_text(REWARD)
    more = (f"rewards.mine.function={folder / 'reward.py'}:reward",) if command == "rl" else ()
    name = f"failed-{command}"
    job = head.run(name, *WORDS[command](folder, name, *settings, *more))
    log = head.log(name)
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 1), log[-3000:]
    assert why in log and "Traceback" not in log, log[-3000:]
    run = RunFolder(str(folder / name))
    assert run.run() is not None and run.manifest() is None and holder_of(run.uri) is None


def test_a_stop_is_a_stop_and_leaves_a_store_that_nobody_holds(head: Head, folder: Path) -> None:
    corpus(folder / "long.jsonl", 4000, words=30)
    store = LabelStore(str(folder / "stopped"))
    labels = folder / "stopped" / "labels"
    stop(
        head,
        "stop-label",
        label_words(folder, "stopped", source="long.jsonl"),
        lambda: labels.exists() and store.progress().labels > 0,
    )
    done = store.progress()
    assert 0 < done.labels < 8000 and done.writer is None
    ids = ds.dataset(labels).to_table(columns=["id"])["id"].to_pylist()
    assert len(ids) == len(set(ids)) >= done.labels


@pytest.mark.parametrize(
    ("command", "settings"), [("train", ("train.max_steps=100000",)), ("rl", ("rl.max_steps=100000",))]
)
def test_training_that_is_stopped_leaves_a_run_that_nobody_holds(
    head: Head, folder: Path, command: str, settings: tuple[str, ...]
) -> None:
    name = f"stop-{command}"
    run = RunFolder(str(folder / name))
    every = "checkpoint.every_steps=2"
    stop(
        head,
        name,
        WORDS[command](folder, name, every, *settings),
        lambda: run.begun and any(row["step"] >= 3 for row in read_metrics(run.at("metrics.jsonl"))),
    )
    assert run.manifest() is None and holder_of(run.uri) is None
    assert [row["step"] for row in read_metrics(run.at("metrics.jsonl"))][-1] >= 3
    assert run.begun, "there is a checkpoint to go on from"


def stop(head: Head, name: str, words: list[Any], begun: Callable[[], bool]) -> None:
    """Submit a job, and stop it when it has begun."""
    submitted = head.submit(name, *words)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + WAITED_S
    while not begun():
        assert time.monotonic() < deadline, head.log(name)[-3000:]
        assert head.job(name)["status"] not in ENDED, head.log(name)[-3000:]
        time.sleep(0.3)
    stopped = head.ray("job", "stop", name)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert head.wait(name)["status"] == "STOPPED"


def test_labels_that_no_node_has_are_waited_for_with_a_warning(head: Head, folder: Path) -> None:
    words = rl_words(folder, "none", "rl.max_steps=1", f'run.label_selector={{"{MARKET}" = "!spot"}}')
    head.submit("none-1", *words)
    deadline = time.monotonic() + WAITED_S
    while "waits until it has" not in (log := head.log("none-1")):
        assert time.monotonic() < deadline and head.job("none-1")["status"] not in ENDED, log[-3000:]
        time.sleep(0.5)
    assert "has 0 and 0 free on nodes with {'ray.io/market-type': '!spot'}" in " ".join(log.split())
    assert not (folder / "none" / "metrics.jsonl").exists()
    head.ray("job", "stop", "none-1")
    assert head.wait("none-1")["status"] == "STOPPED"


def test_nobody_comes_in_without_the_token(head: Head, folder: Path, tmp_path: Path) -> None:
    for token in (None, "", "0" * 64):
        with pytest.raises(urllib.error.HTTPError) as refused:
            head.ask("/api/jobs/", token)
        assert refused.value.code in (401, 403)
    (tmp_path / "other").write_text("0" * 64)
    other = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    submitted = head.ray("job", "submit", "--no-wait", "--", "touch", str(tmp_path / "came-in"), **other)
    assert submitted.returncode != 0 and not (tmp_path / "came-in").exists()
    words = [*label_words(folder, "intruder"), "--set", f"run.ray_address={head.gcs}"]
    joined = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, words)],
        cwd=ROOT, env={**os.environ, **head.environment, **other}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert joined.returncode in (1, 2) and head.gcs in joined.stderr and not (folder / "intruder").exists()
    assert head.token not in joined.stdout + joined.stderr


def test_what_is_scraped_is_named_in_the_code_and_holds_no_token(head: Head) -> None:
    names = {key.split()[0] for key in head.scraped}
    assert names <= {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    assert not [secret for secret in (head.token, *SECRETS.values()) if secret in head.scrape()]
