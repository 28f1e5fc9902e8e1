"""Did a number move? The same commands under another commit and under this checkout, held against each other bit for bit.

    python benchmarks/same_numbers.py COMMIT [--tolerance 1e-4]

Labels of the addition pairs (and of soda-chat, where ../shared has it), the metrics and the weights of one run of `train` on
the former, and of one of `rl`. What clocks say is left out. The commit is checked out beside, and removed at the end. Both
run in this environment, so its dependencies have to suit both. Exits with 1 if a number moved by more than the tolerance
(0 where none is given: not by a bit), relative to the largest of the values that it stands among (a response's tokens, a
tensor). Columns that only one side has are named and count for nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from machine import CONSOLE, ROOT, SHARED, checked_out, table
from safetensors.numpy import load_file

from pipeline.corpus.messages import without_nulls

LEAST = 1e-3  # what a number is held against where all are smaller: of 1e-9 and 0 neither is right
CLOCKS = ("time/", "step_time", "tokens_per_second", "seconds")
MODEL, FAST = "examples/addition/model", ("--set", "run.num_cpus=2")
TRAIN = ("train.batch_size=8", "train.max_steps=6", "checkpoint.every_steps=3", "tracking.tensorboard=false")
ONLINE = (
    "rl.batch_size=4", "rl.group_size=4", "rl.max_steps=4", "rl.max_new_tokens=24", "rl.learning_rate=1e-4",
    "checkpoint.every_steps=2", "tracking.tensorboard=false",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="what this checkout is held against")
    parser.add_argument("--tolerance", type=float, default=0.0, help="by how much a number may move")
    arguments = parser.parse_args()
    commit = arguments.commit
    with tempfile.TemporaryDirectory() as folder, checked_out(commit, Path(folder, "repository")) as there:
        before, now = (run(tree, Path(folder, name)) for tree, name in ((there, "before"), (ROOT, "now")))
    shown = table(f"Against {commit}", "", "numbers", "moved", "by at most", "the furthest", "on one side only")
    worst = 0.0
    for name in before:
        both = before[name].keys() & now[name].keys()
        moves = {key: moved(before[name][key], now[name][key]) for key in both if before[name][key] != now[name][key]}
        alone = sorted({key.split()[-1] for key in before[name].keys() ^ now[name].keys()})
        furthest = max(moves, key=moves.__getitem__, default="")
        worst = max(worst, moves.get(furthest, 0.0))
        shown.add_row(
            name,
            f"{len(both):,}",
            f"{len(moves):,}",
            f"{moves.get(furthest, 0.0):.1e}",
            furthest or "none",
            ", ".join(alone[:5]) or "none",
        )
    CONSOLE.print(shown)
    return int(worst > arguments.tolerance)


def moved(before: Any, now: Any) -> float:
    """The largest difference relative to the largest value; infinite where they cannot be compared as numbers."""
    try:
        one, other = (np.asarray(each, dtype=np.float64) for each in (before, now))
    except (TypeError, ValueError):
        return float("inf")
    if one.shape != other.shape or not one.size:
        return float("inf")
    return float(np.abs(one - other).max() / max(np.abs(one).max(), np.abs(other).max(), LEAST))


def run(tree: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What each of the commands wrote: values by their place."""

    def command(*arguments: object) -> None:
        CONSOLE.print(f"{folder.name}: {arguments[0]} ...")
        subprocess.run(
            [sys.executable, "-m", "jobs", *map(str, arguments), *FAST],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    results = {}
    command("label", "--model", MODEL, "--input", "examples/addition/pairs.jsonl", "--output", folder / "labels")
    results["label, addition pairs"] = rows(folder / "labels")
    if SHARED.is_dir():
        model, corpus = SHARED / "models/soda-chat-3M", SHARED / "data/soda-chat/preferences.jsonl"
        command("label", "--model", model, "--input", corpus, "--output", folder / "soda")
        results["label, soda-chat"] = rows(folder / "soda")
    command("train", "--labels", folder / "labels", "--policy", MODEL, "--output", folder / "train", *assigned(TRAIN))
    results["train"] = trained(folder / "train")
    prompts = "examples/addition/practice.jsonl"
    command("rl", "--prompts", prompts, "--policy", MODEL, "--output", folder / "rl", *assigned(ONLINE))
    results["rl"] = trained(folder / "rl")
    return results


def assigned(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def rows(store: Path) -> dict[str, Any]:
    """Every value of the labels, by row and column."""
    labels = pq.read_table(store / "labels").sort_by("id").to_pylist()
    return {f"{row['id']} {column}": without_nulls(value) for row in labels for column, value in row.items()}


def trained(output: Path) -> dict[str, Any]:
    """Metrics by step and name, and the bytes of every tensor of the policy."""
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        f"step {row['step']} {name}": value
        for row in steps
        for name, value in row.items()
        if not name.startswith(CLOCKS) and name != "warnings"
    }
    weights = load_file(output / "hf" / "model.safetensors")
    return numbers | {name: tensor.ravel().tolist() for name, tensor in weights.items()}


if __name__ == "__main__":
    sys.exit(main())
