"""How labelling scales with its actors: 1, 4, 16, 64 of them, with a logical GPU each and a scorer that sleeps as long as a
real one would compute. Everything but the forward is that of a real run: planning, reading, tokenising, the pool, commits.

    python benchmarks/scaling.py [--actors 1 4 16 64] [--seconds 3] [--shards 12] [--output results/scaling.json]

All of it runs on this machine's cores, which real actors would bring along: the rate at which the cores are full is named, and
only below it the share of linear is held. The driver's CPU time a shard says how many actors one core of a head can feed.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "integration")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of Ray's workers

import psutil  # noqa: E402
import ray  # noqa: E402
from machine import CONSOLE, describe, table, verdict  # noqa: E402
from simulated import SleepingSpec  # noqa: E402
from tiny import CHATML, save_model  # noqa: E402

from jobs.cluster import Pool, cluster  # noqa: E402
from jobs.label.flow import label_shards  # noqa: E402
from jobs.label.plan import find_inputs, pending, plan_inputs  # noqa: E402
from jobs.label.work import PoolState, Target  # noqa: E402
from pipeline.config import LabelConfig  # noqa: E402
from pipeline.rewards.labellers import Endogenous  # noqa: E402
from pipeline.store import LabelStore, fingerprint  # noqa: E402

DRIVER_MS, LINEAR, FULL = 15.0, 0.95, 0.9  # CPU of the driver a shard; share of linear; cores that count as full
ROWS = 2  # in a shard


@dataclass
class Measured:
    """Of one number of actors, while all of them had work."""

    actors: int
    shards_per_s: float
    linear: float  # of the rate that the sleeping alone allows
    driver_ms: float  # CPU a shard
    busy: float  # of all cores


def busy_share(moment: "tuple[float, float] | None" = None) -> tuple[float, float]:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait, sum(times)


def measure(folder: Path, model: Path, actors: int, seconds: float, shards: int) -> Measured:
    """`shards` for each actor, each of which sleeps `seconds`."""
    source = folder / f"{actors}.jsonl"
    rows = [
        {"prompt": f"question {i}", "chosen": f"answer {i}", "rejected": f"no {i}"}
        for i in range(ROWS * shards * actors)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LabelConfig.model_validate(
        {
            "model": {"name": str(model)},
            "input": {"paths": [str(source)], "shard_rows": ROWS},
            "scorer": {"max_actors": actors},
        }
    )
    labeller = Endogenous(config, config.model)
    store = LabelStore(str(folder / f"store-{actors}"))
    store.open_for_writing(labeller.describe("float32"))
    inputs = plan_inputs(store, find_inputs(config.input, store.uri), config.input)
    for stored in inputs:
        store.add_input(stored)
    backlog = pending(store, inputs, False)
    target = Target(store.uri, fingerprint.digest(labeller.describe("float32")))
    spec = SleepingSpec(config.model, "cuda", 1, 1, 1 << 20, 0, seconds_per_request=seconds / (2 * ROWS))
    states: list[PoolState] = []
    begun = 0
    for done, _ in enumerate(label_shards(backlog, labeller, target, spec, Pool(1, actors, 1, 1), states.append), 1):
        if not begun and states and states[-1].running == actors and done > actors:
            begun, moment, cpu, busy = done, time.perf_counter(), time.process_time(), busy_share()
        if done == (shards - 1) * actors:  # from here on some have nothing to do
            took, spent = time.perf_counter() - moment, time.process_time() - cpu
            after = busy_share()
            counted = done - begun
    share = (after[0] - busy[0]) / (after[1] - busy[1])
    return Measured(actors, counted / took, counted / took * seconds / actors, 1e3 * spent / counted, share)


@contextlib.contextmanager
def many_gpus(actors: int) -> Iterator[None]:
    """A local Ray with that many logical GPUs, and the CPUs that their actors ask for."""
    room: dict[str, Any] = {"num_cpus": actors + 2, "num_gpus": actors}
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **room)
    try:
        with cluster(LabelConfig().run):
            yield
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=6.0, help="that a shard keeps its actor")
    parser.add_argument("--shards", type=int, default=8, help="for each actor")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as place:
        model = save_model(Path(place) / "model", CHATML)
        for actors in options.actors:
            with many_gpus(actors):
                measured.append(measure(Path(place), model, actors, options.seconds, options.shards))
    shown = table(
        f"Labelling by actors that take {options.seconds:g} s a shard",
        "actors",
        "shards/s",
        "of linear",
        "driver, ms a shard",
        "cores busy",
    )
    for each in measured:
        shown.add_row(
            str(each.actors),
            f"{each.shards_per_s:.2f}",
            f"{each.linear:.2f}",
            f"{each.driver_ms:.1f}",
            f"{each.busy:.0%}",
        )
    CONSOLE.print(shown)
    options.output.write_text(
        json.dumps({"machine": describe(), "seconds": options.seconds, "runs": [vars(m) for m in measured]}, indent=1)
        + "\n"
    )
    claims = {
        f"{m.actors} actors: the driver takes at most {DRIVER_MS:g} ms a shard ({m.driver_ms:.1f})": m.driver_ms
        <= DRIVER_MS
        for m in measured
    }
    claims |= {
        f"{m.actors} actors: at least {LINEAR} of linear ({m.linear:.2f})": m.linear >= LINEAR
        for m in measured
        if m.busy < FULL
    }
    verdict(claims)
    for each in measured:
        if each.busy >= FULL:
            CONSOLE.print(f"the cores are full at {each.actors} actors: {each.shards_per_s:.1f} shards a second")


if __name__ == "__main__":
    main()
