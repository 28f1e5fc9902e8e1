"""Does training on stored labels work: accuracy of the embedded policy before and after, for every objective.

    python benchmarks/train_on_addition.py                                  # dpo, awr, sft: about ten minutes
    python benchmarks/train_on_addition.py --objectives dpo ipo simpo awr rwr grpo reinforce sft

For each seed, as a user does it, by the commands `sample`, `label` and `train`: the base model answers additions that are
not held out, several times each; the same base model labels its own answers with its endogenous reward; a policy is
trained on the labels with every default. Nobody says at any
point which answers are right. Accuracy is that of one answer at temperature 1 to held-out additions.

Claims: dpo, awr and best-of-n sft raise the accuracy, for each seed beyond both 95% intervals.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import CONSOLE, ROOT, run, table, verdict

from pipeline.store.summary import wilson_interval

sys.path[:0] = [str(ROOT / "examples" / "addition")]
from accuracy import right_answers  # noqa: E402

BASE = ROOT / "examples" / "addition" / "model"
CLAIMED = ("dpo", "awr", "sft")
ALL = ("dpo", "ipo", "simpo", "awr", "rwr", "grpo", "reinforce", "sft")


def label(folder: Path, problems: int, responses: int, seed: int) -> Path:
    """A store of the base model's own answers, labelled by itself."""
    source, samples, labels = folder / "problems.jsonl", folder / "samples", folder / "labels"
    written = ("--problems", problems, "--seed", 100 + seed, "--split", "train", "--output", source)
    run("examples/addition/problems.py", *written)
    answers = ("--set", f"sample.num_responses={responses}", "--set", f"sample.seed={seed}")
    run("-m", "jobs", "sample", "--policy", BASE, "--prompts", source, "--output", samples, *answers)
    run("-m", "jobs", "label", "--model", BASE, "--input", samples, "--output", labels)
    return labels


def train(labels: Path, output: Path, objective: str, seed: int, settings: list[str]) -> float:
    """Seconds that it took, all told."""
    started = time.perf_counter()
    told = [f"train.objective={objective}", f"train.seed={seed}", *settings]
    options = [word for setting in told for word in ("--set", setting)]
    run("-m", "jobs", "train", "--labels", labels, "--policy", BASE, "--output", output, *options)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy before and after training on the base model's own labels.")
    parser.add_argument("--objectives", nargs="+", choices=ALL, default=list(CLAIMED))
    parser.add_argument("--seeds", type=int, default=3, help="of problems, samples and training; default: %(default)s")
    parser.add_argument("--problems", type=int, default=400, help="that are sampled and labelled; default: %(default)s")
    parser.add_argument("--responses", type=int, default=8, help="to each; default: %(default)s")
    parser.add_argument("--held-out", type=int, default=2000, help="problems that accuracy is of; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="of the training; repeatable")
    args = parser.parse_args()

    before = right_answers(str(BASE), args.held_out)
    low, high = wilson_interval(before, args.held_out)
    found: dict[str, list[int]] = {name: [] for name in args.objectives}
    seconds: dict[str, list[float]] = {name: [] for name in args.objectives}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.seeds):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            CONSOLE.print(f"seed {seed}: sampling and labelling {args.problems} problems x {args.responses} ...")
            labels = label(folder, args.problems, args.responses, seed)
            for name in args.objectives:
                seconds[name].append(train(labels, folder / name, name, seed, args.set))
                found[name].append(right_answers(str(folder / name / "hf"), args.held_out))
                CONSOLE.print(f"seed {seed}: {name} {found[name][-1] / args.held_out:.1%}")

    made = table(
        f"Accuracy at temperature 1 on {args.held_out:,} held-out additions, trained on {args.problems} x {args.responses} "
        "of the base model's own answers",
        "objective", *(f"seed {seed}" for seed in range(args.seeds)), "mean", "95% interval of all", "seconds",
    )  # fmt: skip
    made.add_row("before", *([""] * args.seeds), f"{before / args.held_out:.1%}", f"{low:.1%} to {high:.1%}", "")
    for name, rights in found.items():
        shares = [f"{right / args.held_out:.1%}" for right in rights]
        ends = wilson_interval(sum(rights), args.held_out * len(rights))
        mean = sum(rights) / args.held_out / len(rights)
        took = f"{statistics.median(seconds[name]):.0f}"
        made.add_row(name, *shares, f"{mean:.1%}", f"{ends[0]:.1%} to {ends[1]:.1%}", took)
    CONSOLE.print(made)
    raised = {
        f"{name} raises the accuracy for each seed": all(
            wilson_interval(right, args.held_out)[0] > high for right in rights
        )
        for name, rights in found.items()
        if name in CLAIMED
    }
    verdict(raised)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
