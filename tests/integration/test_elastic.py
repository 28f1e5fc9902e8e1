"""Training on nodes that go: a checkpoint for any number of workers, and one before a node is taken away."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from label_stores import label_store
from ray.cluster_utils import Cluster
from test_zero import PAIRS, RATE, STEPS, join, pairs, part, plain_loop, spawn, totals
from tiny import save_model
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig
from pipeline.training.config import TrainConfig
from pipeline.training.documents import CheckpointState
from pipeline.training.objectives import objective_of
from pipeline.training.run import SNAPSHOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CASES = {"zero1": (1, "none", "float32"), "zero2": (2, "optimizer", "float32"), "bfloat16": (1, "none", "bfloat16")}
LENGTH = 1000  # steps of the run whose node goes: half a minute, and it hears of it within seconds
WORLDS = ((2, 0, 3), (1, 3, 6), (2, 6, STEPS))  # workers, and their steps


def work(rank: int, world: int, port: int, folder: str, first: int, last: int) -> None:
    """Some steps of each case, from the checkpoint of other workers."""
    from actors.learner import Learner, LearnerSpec

    join(rank, world, port)
    for name, (stage, offload, dtype) in CASES.items():
        config = TrainConfig(
            policy=ModelConfig(name=f"{folder}/base"),
            learner={"zero_stage": stage, "offload": offload, "dtype": dtype, "workers": 2, "min_workers": 1},
        )
        learner = Learner(LearnerSpec(config, objective_of(config), "cpu"))
        place = Path(folder, name)
        place.mkdir(exist_ok=True)
        if first:
            assert learner.restore(str(place)) == first
        for step in range(first, last):
            of_step = pairs(step)
            row = learner.step(part(of_step, rank, world), totals(of_step), RATE)
            if rank == 0:
                with (place / "rows.jsonl").open("a") as file:
                    file.write(json.dumps([row["loss"], row["grad_norm"]]) + "\n")
        dist.barrier()
        learner.save(str(place), last)
    dist.destroy_process_group()


def test_more_and_fewer_workers_take_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    for world, first, last in WORLDS:
        spawn(work, world, str(tmp_path), first, last)
    due = plain_loop(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    for name in CASES:
        rows = [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        rough = name == "bfloat16"
        np.testing.assert_allclose(rows, due, rtol=0.1 if rough else 1e-4, atol=0.02 if rough else 0)


def test_a_node_that_goes_leaves_a_checkpoint_and_the_others_go_on(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    rows = [{"prompt": f"Number {i}?", "chosen": "a b c", "rejected": "d e"} for i in range(4 * PAIRS)]
    labels, output = label_store(tmp_path / "labels", model, rows, shard_rows=6), tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        settings = {"learner.workers": 2, "learner.min_workers": 1, "checkpoint.every_steps": 10**6}
        settings |= {"train.max_steps": LENGTH, "tracking.tensorboard": "false", "train.batch_size": 4}
        command = [sys.executable, "-m", "jobs", "train", "--labels", labels.uri, "--policy", model, "--output", output]
        command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        joins = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
        with (tmp_path / "driver.log").open("w") as log:
            driver = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env={**os.environ, **joins}, stdout=log, stderr=log
            )
        wait_for(lambda: steps_of(output) > 20, driver, tmp_path)
        drain(cluster.address, nodes[1].node_id)
        wait_for(lambda: is_listed(output), driver, tmp_path)
        assert steps_of(output) < LENGTH
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert driver.wait(timeout=500) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        cluster.shutdown()
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, LENGTH + 1))
    [told] = [(row["step"], text) for row in metrics for text in row.get("warnings", []) if "taken away" in text]
    first, last = checkpoints(output)
    assert told == (
        first.step,
        f"a checkpoint after step {first.step}: a node of its workers is about to be taken away",
    )
    assert first.workers == 2 and (last.step, last.workers) == (LENGTH, 1)


def steps_of(output: Path) -> int:
    file = output / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def is_listed(output: Path) -> bool:
    """Whether Ray Train knows of a checkpoint: it asks its workers every two seconds, and goes on from what it knows alone."""
    try:
        return bool(json.loads((output / "checkpoints" / SNAPSHOT).read_text())["checkpoint_results"])
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or half written
        return False


def checkpoints(output: Path) -> list[CheckpointState]:
    files = sorted((output / "checkpoints").glob("checkpoint_*/endoreward.json"))
    return sorted((CheckpointState.read(str(file)) for file in files), key=lambda each: each.step)


def drain(address: str, node: str) -> None:
    """As a preemption announces itself."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={address}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test", "--deadline-remaining-seconds=15"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def wait_for(condition: "object", driver: "subprocess.Popen[bytes]", folder: Path, seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert driver.poll() is None, (folder / "driver.log").read_text()[-3000:]
        assert time.monotonic() < ends, f"not in time: {(folder / 'driver.log').read_text()[-3000:]}"
        time.sleep(0.5)
