"""How labelling scales with its actors: 1, 4, 16, 64 of them, with a logical GPU each and a scorer that sleeps as long as a
real one would compute. Everything but the forward is that of a real run: planning, reading, tokenising, the pool, commits.

    python benchmarks/scaling.py [--actors 1 4 16 64] [--seconds 6] [--shards 8] [--output results/scaling.json]

All of it runs on this machine's cores, which real actors would bring along: the rate at which the cores are full has a row of
its own, and only below it the share of linear is held. The driver's CPU time a shard says how many actors one core of a head
can feed. Each run is written as it ends, beside those of other actors, seconds and shards that the file has; all are shown.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "integration")]

import psutil  # noqa: E402
import ray  # noqa: E402
from machine import CONSOLE, describe, table, verdict  # noqa: E402
from simulated import SleepingSpec  # noqa: E402
from tiny import CHATML, save_model  # noqa: E402

from jobs.cluster import ON_DEMAND, Pool, cluster  # noqa: E402
from jobs.label.flow import label_shards  # noqa: E402
from jobs.label.plan import find_inputs, pending, plan_inputs  # noqa: E402
from jobs.label.work import PoolState, Target  # noqa: E402
from pipeline.config import LabelConfig  # noqa: E402
from pipeline.rewards.labellers import Endogenous  # noqa: E402
from pipeline.store import LabelStore, fingerprint  # noqa: E402

DRIVER_MS, LINEAR, FULL = 15.0, 0.95, 0.9  # CPU of the driver a shard; share of linear; cores that count as full
ROWS = 2  # in a shard


@dataclass(frozen=True)
class Measured:
    """Of one number of actors, while all of them had work."""

    actors: int
    seconds: float  # that a shard keeps its actor
    shards: int  # for each actor
    shards_per_s: float
    linear: float  # of the rate that the sleeping alone allows
    driver_ms: float  # CPU a shard
    busy: float  # of all cores

    @property
    def key(self) -> tuple[int, float, int]:
        return self.actors, self.seconds, self.shards


def look() -> tuple[float, float, float, float]:
    """Wall clock, CPU of this process, CPU and time of all cores, in seconds."""
    times = psutil.cpu_times()
    return time.perf_counter(), time.process_time(), sum(times) - times.idle - times.iowait, sum(times)


def timed(done: Iterable[object], all_run: Callable[[], bool], first: int, last: int) -> tuple[int, list[float]]:
    """How many came, and what `look` moved by, from when all actors run, but not before `first` came, to `last`, from where on
    some have nothing to do. Raises ValueError where they did not run together before."""
    begun, begin = 0, look()
    for count, _ in enumerate(done, 1):
        if not begun and first < count < last and all_run():
            begun, begin = count, look()
        if count == last and begun:
            return count - begun, [now - then for now, then in zip(look(), begin, strict=True)]
    raise ValueError("all actors never ran together while each had work: give more --shards, or longer --seconds")


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
    done = label_shards(backlog, labeller, target, spec, Pool(1, actors, 1, 1), states.append)
    with contextlib.closing(done):
        counted, (took, driver, busy, all_cores) = timed(
            done, lambda: bool(states) and states[-1].running == actors, actors, (shards - 1) * actors
        )
    rate = counted / took
    return Measured(actors, seconds, shards, rate, rate * seconds / actors, 1e3 * driver / counted, busy / all_cores)


@contextlib.contextmanager
def many_gpus(actors: int) -> Iterator[None]:
    """A local Ray with that many logical GPUs, and the CPUs that their actors ask for."""
    room: dict[str, Any] = {"num_cpus": actors + 2, "num_gpus": actors}
    os.environ |= ON_DEMAND  # or Ray starts a worker for each CPU beforehand
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of Ray's workers
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **room)
    try:
        with cluster(LabelConfig().run):
            yield
    finally:
        ray.shutdown()


def read_runs(place: Path) -> dict[tuple[int, float, int], Measured]:
    """The runs that a file has, by actors, seconds and shards."""
    runs = json.loads(place.read_text())["runs"] if place.exists() else []
    measured = (Measured(**{name: each[name] for name in Measured.__dataclass_fields__}) for each in runs)
    return {each.key: each for each in measured}


def write_run(place: Path, measured: Measured) -> None:
    """Write a run beside the others, in the place of one of the same actors, seconds and shards."""
    runs = {**read_runs(place), measured.key: measured}
    content = {"machine": describe(), "runs": [asdict(runs[key]) for key in sorted(runs)]}
    place.write_text(json.dumps(content, indent=1) + "\n")


def full_rate(runs: Sequence[Measured]) -> tuple[float, str]:
    """Shards a second at which all cores are full, and how that is known."""
    full = [each for each in runs if each.busy >= FULL]
    if full:
        best = max(full, key=lambda each: each.shards_per_s)
        return best.shards_per_s, f"measured with {best.actors} actors"
    busiest = max(runs, key=lambda each: each.busy)
    return busiest.shards_per_s / busiest.busy, f"extrapolated from {busiest.actors} actors at {busiest.busy:.0%}"


def show(runs: Sequence[Measured]) -> None:
    columns = ("s a shard", "shards an actor", "shards/s", "of linear", "driver, ms a shard", "cores busy")
    shown = table("Labelling by actors that sleep", "actors", *columns)
    for each in runs:
        shown.add_row(
            str(each.actors), f"{each.seconds:g}", str(each.shards), f"{each.shards_per_s:.2f}", f"{each.linear:.2f}",
            f"{each.driver_ms:.1f}", f"{each.busy:.0%}",
        )  # fmt: skip
    rate, how = full_rate(runs)
    shown.add_row("full cores", "", "", f"{rate:.1f}", "", "", f"100%, {how}", style="bold")
    CONSOLE.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=6.0, help="that a shard keeps its actor")
    parser.add_argument("--shards", type=int, default=8, help="for each actor")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    options = parser.parse_args()
    claims = {}
    with tempfile.TemporaryDirectory() as place:
        model = save_model(Path(place) / "model", CHATML)
        for actors in options.actors:
            try:
                with many_gpus(actors):
                    write_run(options.output, measure(Path(place), model, actors, options.seconds, options.shards))
            except ValueError as error:
                claims[f"{actors} actors: {error}"] = False
    runs = list(read_runs(options.output).values())
    if runs:
        show(runs)
    for m in runs:
        of = f"{m.actors} actors, {m.seconds:g} s a shard"
        claims[f"{of}: the driver takes at most {DRIVER_MS:g} ms a shard ({m.driver_ms:.1f})"] = (
            m.driver_ms <= DRIVER_MS
        )
        if m.busy < FULL:
            claims[f"{of}: at least {LINEAR} of linear ({m.linear:.2f})"] = m.linear >= LINEAR
    verdict(claims)


if __name__ == "__main__":
    main()
