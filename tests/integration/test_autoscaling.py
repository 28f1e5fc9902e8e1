"""`label` on a cluster that grows and shrinks: Ray's own autoscaler, nodes with a logical GPU, scorers that sleep as long as
real ones would compute. A node is drained and another killed on the way."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from autoscaled import autoscaled
from tiny import CHATML, save_model

from pipeline.store import LabelStore, problems

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
WORKERS, ROWS, TOKENS_PER_S = 4, 1200, 400.0


@pytest.fixture(scope="module")
def joins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{HERE}:{HERE.parent}")
        with autoscaled(tmp_path_factory.mktemp("cluster"), WORKERS) as environment:
            yield {**environment, "PYTHONPATH": os.environ["PYTHONPATH"]}


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def nodes(address: str) -> str:
    """A program that prints the nodes with a GPU that are alive."""
    return (
        f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='ERROR'); "
        "print(*[n['NodeID'] for n in ray.nodes() if n['Alive'] and n['Resources'].get('GPU')])"
    )


def gpu_nodes(joins: dict[str, str]) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", nodes(joins["RAY_ADDRESS"])],
        env={**os.environ, **joins},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ran.stdout.split()


def test_a_cluster_grows_is_used_and_shrinks(joins: dict[str, str], tmp_path: Path) -> None:
    model, source, log = save_model(tmp_path / "model", CHATML), tmp_path / "a.jsonl", tmp_path / "events.jsonl"
    with source.open("w") as file:
        for i in range(ROWS):
            row = {"prompt": f"question {i} " * 4, "chosen": f"answer {i} " * 6, "rejected": f"no {i} " * 6}
            file.write(json.dumps(row) + "\n")
    settings = ["scorer.device=cuda", f"scorer.max_actors={WORKERS}", "scorer.cpus_per_actor=1", "input.shard_rows=10"]
    command = [sys.executable, HERE / "simulated.py", TOKENS_PER_S, log, "label", "--model", model, "--input", source]
    command += ["--output", tmp_path / "out", *(part for each in settings for part in ("--set", each))]
    started = time.monotonic()
    driver = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **joins}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: running(log) == WORKERS, 300, driver)
    time.sleep(20)  # in which the rate of four is measured
    drain(joins, gpu_nodes(joins)[0])
    kill_a_node(joins)
    _, err = driver.communicate(timeout=600)
    wall = time.monotonic() - started
    assert driver.returncode == 0, err.decode()[-3000:]
    assert "4 actors wanted" in err.decode()
    heard = events(log)
    assert {each["pool"]["nodes_pending"] for each in heard if "pool" in each} & {1, 2, 3, 4}, "no node was pending"
    # every id once
    progress = LabelStore(str(tmp_path / "out")).progress()
    assert progress.labels == 2 * ROWS and list(problems(LabelStore(str(tmp_path / "out")))) == []
    # within a minute of its node's joining an actor has committed what it scored
    waits = scored_after(heard)
    assert len(waits) >= WORKERS and max(waits[:WORKERS]) < 60, waits
    # what a run says that it took: its seconds are some of the command's, and actors slept as long as their tokens ask for
    timing = json.loads((tmp_path / "out" / "manifest.json").read_text())["timing"]
    assert 0.5 * wall < timing["seconds"] <= wall
    asleep = timing["forwarded_tokens"] / TOKENS_PER_S
    assert asleep <= timing["score_seconds"] < min(1.2 * asleep, WORKERS * timing["seconds"])
    assert timing["score_seconds"] > timing["seconds"], "the sum over actors is of more than one"
    # as fast as four
    assert rate(heard) >= 3.5 * TOKENS_PER_S
    # and back to none
    wait_for(lambda: not gpu_nodes(joins), 120)


def scored_after(heard: list[dict[str, Any]]) -> list[float]:
    """Seconds from a node's joining, as the driver sees it, to the first shard that an actor there has committed: of each node
    that has one, in the order of their joining."""
    joined: dict[str, float] = {}
    for each in heard:
        for node in each.get("alive", ()):
            joined.setdefault(node, each["at"])
    scored: dict[str, float] = {}
    for each in heard:
        if "first_by" in each:
            scored.setdefault(each["first_by"], each["at"])
    return [scored[node] - at for node, at in joined.items() if node in scored]


def running(log: Path) -> int:
    states = [each["pool"] for each in events(log) if "pool" in each]
    return states[-1]["running"] if states else 0


def rate(heard: list[dict[str, Any]]) -> float:
    """Tokens a second from when all actors were there to when the first was taken away."""
    states = [each for each in heard if "pool" in each]
    full = [each["pool"]["running"] == WORKERS for each in states]
    first = full.index(True)
    last = full.index(False, first) - 1
    done = [each for each in heard if "rows" in each and states[first]["at"] <= each["at"] <= states[last]["at"]]
    return sum(each["tokens"] for each in done[1:]) / (done[-1]["at"] - done[0]["at"])


def drain(joins: dict[str, str], node: str) -> None:
    """As a preemption announces itself: the node goes in half a minute."""
    ran = subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={joins['RAY_ADDRESS']}", f"--node-id={node}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test", "--deadline-remaining-seconds=30",
        ],
        env={**os.environ, **joins}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def kill_a_node(joins: dict[str, str]) -> None:
    """The raylet of the youngest node, and with it all that runs there."""
    mark = f":{joins['RAY_ADDRESS'].rpartition(':')[2]}"
    raylets = [
        each for each in psutil.process_iter(["name", "cmdline", "create_time"]) if each.info["name"] == "raylet"
    ]
    ours = [each for each in raylets if any(mark in word for word in each.info["cmdline"] or [])]
    assert len(ours) > 1
    max(ours, key=lambda each: each.info["create_time"]).kill()


def wait_for(condition: Any, seconds: float, driver: "subprocess.Popen[bytes] | None" = None) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if driver is not None and driver.poll() is not None:
            raise AssertionError(driver.communicate()[1].decode()[-3000:])
        assert time.monotonic() < ends, "not in time"
        time.sleep(1)
