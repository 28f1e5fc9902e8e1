"""Does online RL work: accuracy of the embedded policy before and after, rewarded by nothing but a frozen copy of itself.

    python benchmarks/rl_on_addition.py                                     # the example as it is: ten minutes
    python benchmarks/rl_on_addition.py --algorithms ppo "ppo, critic" grpo rloo reinforce reinforce_plus_plus

As a user does it, by the command `rl` with examples/addition/rl.toml, on as many samplers and threads as the command takes by
itself. A seed is of the prompts' order, the samples and any new weights; the held-out problems and the random numbers that
answer them are the same for all. Nobody says at any point which answers are right: `held_out.check` is for the figures only.

Accuracy is of one answer at temperature 1 to each held-out problem, as the run's own results.json has it. The KL to the policy
as it was (k3, nats a token) and the length of a response are means over the last steps, of the samples learnt from. Seconds of
a run are those of the whole command: start, both measurements and export too. Those of a step are a median, measurements left
out.

--set moves any field of all runs, such as rl.schedule=constant.

Claim: grpo, the example's own algorithm, ends at 85% or more for each seed, within five minutes each.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from machine import CONSOLE, ROOT, run, table, verdict

from pipeline.store.summary import wilson_interval
from pipeline.training.metrics import read_metrics

ADDITION = ROOT / "examples" / "addition"
EXAMPLE = "grpo"  # the algorithm of rl.toml, which the claim is of
ENOUGH, LONGEST_S = 0.85, 300.0
LAST = 10  # steps that make the end of a run
SETTINGS: dict[str, dict[str, object]] = {  # by row: what differs from rl.toml
    "ppo": {"rl.algorithm": "ppo", "ppo.value": "reward-model"},
    "ppo, critic": {"rl.algorithm": "ppo", "ppo.value": "critic"},
    "grpo": {"rl.algorithm": "grpo"},
    "rloo": {"rl.algorithm": "rloo"},
    "reinforce": {"rl.algorithm": "reinforce"},
    "reinforce_plus_plus": {"rl.algorithm": "reinforce_plus_plus"},
}


@dataclass(frozen=True)
class Run:
    """A finished run of `rl`."""

    folder: Path
    seconds: float  # of the whole command
    results: dict[str, Any]
    rows: list[dict[str, Any]]  # of the steps, without what was measured before the first

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, object], further: Sequence[str] = ()) -> Self:
        """Run it: rl.toml, `settings` by field, then `further` as --set takes them."""
        told = [*(f"{name}={value}" for name, value in settings.items()), *further]
        options = [word for setting in told for word in ("--set", setting)]
        started = time.perf_counter()
        run("-m", "jobs", "rl", ADDITION / "rl.toml", "--output", folder, *options)
        seconds = time.perf_counter() - started
        results = folder / "results.json"  # absent where nothing was measured on
        rows = [row for row in read_metrics(str(folder / "metrics.jsonl")) if row["step"]]
        return cls(folder, seconds, json.loads(results.read_text()) if results.exists() else {}, rows)

    @property
    def policy(self) -> Path:
        return self.folder / "hf"

    def last(self, name: str) -> float:
        """Mean of a metric over the last steps that have it."""
        return statistics.fmean([row[name] for row in self.rows if name in row][-LAST:])

    @property
    def step_seconds(self) -> float:
        return statistics.median(row["step_time"] for row in self.rows)

    def right(self, when: str) -> int:
        """How many held-out problems, `when` before or after."""
        return round(self.results[f"accuracy_{when}"] * self.results["held_out"])


def first_problems(count: int, folder: Path) -> Path:
    """The first of the example's held-out problems, as a file."""
    with open(ADDITION / "held-out.jsonl") as source:
        lines = list(islice(source, count))
    if len(lines) < count:
        raise SystemExit(f"--held-out {count}: held-out.jsonl has {len(lines):,} problems")
    target = folder / "held-out.jsonl"
    target.write_text("".join(lines))
    return target


def report(name: str, seed: int, done: Run) -> None:
    """A line, so that a long command can be watched."""
    accuracy = " -> ".join(f"{done.results[f'accuracy_{when}']:.1%}" for when in ("before", "after"))
    CONSOLE.print(
        f"seed {seed}: {name} {accuracy}, KL {done.last('kl'):.3f}, {done.last('completions/mean_length'):.1f} tokens, "
        f"{done.seconds:.0f} s, {done.step_seconds:.2f} s a step"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=list(SETTINGS), default=[EXAMPLE])
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="default: those of rl.toml")
    parser.add_argument("--held-out", type=int, default=2000, help="problems that accuracy is of; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="of every run; repeatable")
    args = parser.parse_args()

    further = [*([f"rl.max_steps={args.steps}"] if args.steps else []), *args.set]
    found: dict[str, list[Run]] = {name: [] for name in args.algorithms}
    with tempfile.TemporaryDirectory() as scratch:
        problems = first_problems(args.held_out, Path(scratch))
        for seed in range(args.seeds):
            for name in args.algorithms:
                settings = {**SETTINGS[name], "rl.seed": seed, "held_out.prompts": f'["{problems}"]'}
                found[name].append(Run.of(Path(scratch) / f"{name} {seed}", settings, further))
                report(name, seed, found[name][-1])

    made = table(
        f"Accuracy at temperature 1 on {args.held_out:,} held-out additions, improved by `rl` under its endogenous reward"
        + "".join(f", {setting}" for setting in further),
        "algorithm", *(f"seed {seed}" for seed in range(args.seeds)), "mean", "95% interval of all", "KL", "tokens",
        "seconds", "a step",
    )  # fmt: skip
    before = found[args.algorithms[0]][0].right("before")
    low, high = wilson_interval(before, args.held_out)
    share = f"{before / args.held_out:.1%}"
    made.add_row("before", *([""] * args.seeds), share, f"{low:.1%} to {high:.1%}", "", "", "", "")
    for name, runs in found.items():
        rights = [done.right("after") for done in runs]
        low, high = wilson_interval(sum(rights), args.held_out * len(rights))
        made.add_row(
            name,
            *(f"{right / args.held_out:.1%}" for right in rights),
            f"{sum(rights) / args.held_out / len(rights):.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{statistics.fmean(done.last('kl') for done in runs):.3f}",
            f"{statistics.fmean(done.last('completions/mean_length') for done in runs):.1f}",
            f"{statistics.median(done.seconds for done in runs):.0f}",
            f"{statistics.median(done.step_seconds for done in runs):.2f}",
        )
    CONSOLE.print(made)
    claimed = found.get(EXAMPLE, [])
    claims = {
        f"{EXAMPLE}: at least {ENOUGH:.0%} for each seed": all(
            done.results["accuracy_after"] >= ENOUGH for done in claimed
        ),
        f"{EXAMPLE}: {LONGEST_S:.0f} s or less for each": all(done.seconds <= LONGEST_S for done in claimed),
    }
    verdict(claims if claimed else {})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
