"""`endoreward serve`: what it refuses before it listens, and that it ends in peace."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT
from serving import described
from tiny import save_model

from jobs.__main__ import main
from jobs.serve.run import listening, serve
from pipeline.config import ServeConfig, load_config_as, named_models
from pipeline.errors import ConfigError

MODEL = "examples/addition/model"


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["serve.port=70000"], "serve.port: Input should be less than or equal to 65535"),
        (["serve.sharpness=0"], "serve.sharpness: Input should be greater than 0"),
        (["serve.replicas=0"], "serve.replicas: Input should be greater than or equal to 1"),
        (["serve.replica=2"], "serve.replica: no such field; there are host, port"),
        (["serve.max_replicas=2", "serve.min_replicas=3"], "serve: max_replicas = 2 is less than min_replicas = 3"),
        (["serve.max_replicas=2", "serve.replicas=2"], "serve.replicas: has no effect under serve.max_replicas"),
        (["serve.min_replicas=2"], "serve.min_replicas: has no effect without serve.max_replicas"),
        (
            ["scorer.max_actors=2"],
            "scorer.max_actors: has no effect on serve, whose replicas are those of serve.replicas",
        ),
        (["serve.models={a = 'b'}"], "model.name: has no effect where serve.models names models"),
        (["serve.models={'a/b' = 'c'}"], "a model's name is of letters, digits, _ . and -; wrong: a/b"),
        (["serve.models={a = 'c'}", "serve.name=b"], "name is of one model, and models have names of their own"),
        (["input.paths=a"], "input: no such field; there are model, tokens, reward, scorer, serve, run"),
    ],
)
def test_wrong_descriptions(assignments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config_as(ServeConfig, None, [("model.name", MODEL)], assignments)


def test_names_and_loopback() -> None:
    assert [list(described(name).models) for name in ("a/b/model/", "org/name", "name")] == [
        ["model"],
        ["name"],
        ["name"],
    ]
    assert list(described("m", serve={"name": "mine"}).models) == ["mine"]
    several = load_config_as(ServeConfig, None, named_models(["a=some/folder", "b=org/name"]), ["model.dtype=float32"])
    assert {name: (model.name, model.dtype) for name, model in several.models.items()} == {
        "a": ("some/folder", "float32"),
        "b": ("org/name", "float32"),
    }
    assert named_models([]) == [] and named_models(["some/a=b"]) == [("model.name", "some/a=b")]
    for wrong in (["a", "b"], ["a=b", "c"], ["a=b", "a=c"]):
        with pytest.raises(ConfigError, match="several --model want a name each, and each another: --model NAME=PATH"):
            named_models(wrong)
    hosts = {
        "127.0.0.1": True,
        "127.3.2.1": True,
        "::1": True,
        "localhost": True,
        "0.0.0.0": False,
        "::": False,
        "a.b": False,
    }
    for host, own in hosts.items():
        assert described("m", serve={"host": host}).serve.on_loopback is own


def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ENDOREWARD_TOKEN", raising=False)
    assert main(["serve", "--local", "--model", MODEL, "--host", "0.0.0.0"]) == 2
    assert "there is no token: set ENDOREWARD_TOKEN in the environment" in capsys.readouterr().err
    monkeypatch.setenv("ENDOREWARD_TOKEN", "a" * 32)
    with listening("0.0.0.0", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--local", "--model", MODEL, "--host", "0.0.0.0", "--port", str(port)]) == 2
    assert f"cannot listen on 0.0.0.0, port {port}" in capsys.readouterr().err  # so it was let


@pytest.mark.parametrize(
    "assignment",
    [
        "serve.replicas=2",
        "serve.max_replicas=2",
        "scorer.cpus_per_actor=2",
        "scorer.gpus_per_actor=2",
        "run.num_cpus=2",
    ],
)
def test_one_process_has_no_use_for_replicas(assignment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--local", "--model", MODEL, "--set", assignment]) == 2
    sentence = f"{assignment[:-2]}: has no effect on serve --local, which is one process without Ray; leave it out"
    assert sentence in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_model_that_is_not_there(tmp_path: Path) -> None:
    with listening("127.0.0.1", 0) as taken:
        config = described(save_model(tmp_path / "m"), serve={"port": taken.getsockname()[1]})
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port \d+: .*; give another --port"):
            serve(config, local=True)
    with pytest.raises(ConfigError, match="there is no model folder /nowhere"):
        serve(described("/nowhere"), local=True)


def test_weights_that_cannot_be_loaded_end_the_command(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match="tensors would be made up"):
        serve(described(folder, serve={"port": 0}), local=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_peace(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jobs", "serve", "--local", "--model", MODEL, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert _health(port) == {"status": "ready"}
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, b"")
    assert f"model at http://127.0.0.1:{port}" in out.decode()


IN_TORCH = """
import os, signal, sys, threading
import torch
import jobs.serve.run
from jobs.__main__ import main

def load(name, model):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    weights = torch.ones(8, 8, requires_grad=True)
    while True:
        (weights @ weights).sum().backward()

jobs.serve.run.in_process = lambda config: load
sys.argv = ["endoreward", "serve", "--local", "--model", "examples/addition/model", "--port", "0"]
sys.exit(main())
"""


@pytest.mark.slow
def test_nor_does_one_abort_a_model_that_is_being_loaded() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", IN_TORCH], cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"") and b"model at http://127.0.0.1:" in done.stdout


def _health(port: int) -> object:
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < until
            time.sleep(0.2)
