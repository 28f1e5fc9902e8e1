"""Commands in a process that has a Ray already, as a notebook's: that Ray decides, and the process is left as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import CHATML, save_model

NOTEBOOK = """
import contextlib, json, logging, signal, sys, warnings
import ray, ray.data, torch
from jobs.__main__ import main
from jobs.cluster import cluster, joins_cluster, pick_device, pick_pool
from jobs.learning.trainer import cpus_of, gpus_of
from pipeline.config import ClusterConfig, LabelConfig
from pipeline.training.config import TrainConfig

ray.init(address="local", num_cpus=3, num_gpus=2, include_dashboard=False)
context = ray.data.DataContext.get_current()
context.target_max_block_size, context.enable_progress_bars = 123456, True
logging.getLogger("ray").setLevel(logging.WARNING)
logging.getLogger("ray.data").setLevel(logging.INFO)
torch.set_num_threads(1)

def state():
    now = ray.data.DataContext.get_current()
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    return [
        now is context, now.target_max_block_size, now.enable_progress_bars, torch.get_num_threads(),
        [(each.level, each.propagate, list(map(str, each.handlers))) for each in loggers],
        [each for each in map(str, warnings.filters) if "ray" in each],  # imports add others
        str(signal.getsignal(signal.SIGTERM)),
    ]

before = state()
said = {}
config, training = LabelConfig(), TrainConfig()
said["joins"] = joins_cluster(config.run)
said["device"] = pick_device(config)
pool = pick_pool(config, "cuda")
said["pool"] = [pool.max_actors, pool.gpus]
said["room"] = [cpus_of(training), gpus_of(training)]
pick_pool(LabelConfig.model_validate({"scorer": {"min_actors": 5}}), "cpu")
model, source, broken, output = sys.argv[1:]
cpu = ["--set", "scorer.device=cpu", "--set", "scorer.cpus_per_actor=1"]
said["label"] = main(["label", "--model", model, "--input", source, "--output", output + "/a", *cpu])
said["after"] = [each for each, was in zip(state(), before) if each != was]
said["error"] = main(["label", "--model", model, "--input", broken, "--output", output + "/b", *cpu])
said["after error"] = [each for each, was in zip(state(), before) if each != was]
said["still there"] = ray.is_initialized()
ray.shutdown()
plain = state()
said["without"] = joins_cluster(config.run)
with contextlib.suppress(KeyError), cluster(ClusterConfig(num_cpus=1)):
    said["own"] = joins_cluster(config.run)
    raise KeyError
said["after own"] = state() == plain and not ray.is_initialized()
print(json.dumps(said))
"""


@pytest.mark.timeout(300)
def test_a_ray_that_the_process_has_decides_and_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML)
    source, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text(json.dumps({"prompt": "what", "chosen": "this", "rejected": "that"}) + "\n")
    broken.write_text(source.read_text() + '{"prompt": "what"}\n' * 200)
    ran = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, model, source, broken, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "joins": True,
        "device": "cuda",
        "pool": [2, 1],
        "room": [3, 2],
        "label": 0,
        "after": [],
        "error": 1,
        "after error": [],
        "still there": True,
        "without": False,
        "own": False,
        "after own": True,
    }
    assert "the cluster has room for 1 actors of 3 CPUs" in ran.stderr and "waits until it has" in ran.stderr
    assert "endoreward: stopped: " in ran.stderr  # what ended the second
