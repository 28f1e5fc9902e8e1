"""What starting costs: CPU seconds of whole commands from cold, all of their processes (Ray's too) added up.

    python benchmarks/start_up.py [--rows 40] [--beside COMMIT]

A command's descendants are looked at every twentieth of a second, for what the kernel has counted of each so far; those
whose parents have ended become this process's (PR_SET_CHILD_SUBREAPER). CPU seconds, since they hardly depend on what else
the machine does. Linux only.
"""

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

import psutil  # noqa: E402
from machine import CONSOLE, ROOT, checked_out, table  # noqa: E402
from tiny import CHATML, save_model  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40, help="of the corpus that is labelled")
    parser.add_argument("--beside", metavar="COMMIT", help="measured too, in turn with this checkout")
    options = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {"this checkout": ROOT}
        if options.beside:
            trees = {options.beside: stack.enter_context(checked_out(options.beside, folder / "beside")), **trees}
        shown = table("From cold: CPU seconds (seconds, exit code)", "command", *trees)
        model, corpus = save_model(folder / "model", template=CHATML), folder / "corpus.jsonl"
        lines = [{"prompt": f"Question {i}?", "chosen": "a b c", "rejected": "d e"} for i in range(options.rows)]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        label = ["label", "--model", model, "--input", corpus, "--set", "run.num_cpus=2", "--output"]
        for name, command in {
            "--help": ["--help"],
            "label --dry-run of a wrong column": [*label, folder / "no", "--set", "input.prompt_key=nope", "--dry-run"],
            "label --dry-run": [*label, folder / "no", "--dry-run"],
            f"label of {options.rows} rows": label,
        }.items():
            measured = []
            for number, tree in enumerate(trees.values()):
                words = [*command, folder / f"out-{number}"] if command is label else command
                measured.append(measure(tree, ["-m", "jobs", *words]))
            shown.add_row(name, *map(str, measured))
        floor = measure(ROOT, [ROOT / "benchmarks/bare_flow.py", model, corpus, folder / "bare"])
        shown.add_row("a bare flow of the same steps (bare_flow.py)", *[""] * (len(trees) - 1), str(floor))
        CONSOLE.print(shown)
        parts = table(f"{name}, {[*trees][-1]}: its processes, from 0.3 CPU s on", "process", "how many", "CPU s")
        for what, spent in sorted(measured[-1].processes.items(), key=lambda each: -sum(each[1])):
            if sum(spent) >= 0.3:
                parts.add_row(what, str(len(spent)), f"{sum(spent):.1f}")
        CONSOLE.print(parts)


@dataclass
class Cost:
    """Of one command."""

    seconds: float  # by the clock
    code: int
    processes: dict[str, list[float]]  # CPU seconds of each process, by what it is

    def __str__(self) -> str:
        return f"{sum(map(sum, self.processes.values())):.1f} ({self.seconds:.1f}, {self.code})"


def measure(tree: Path, arguments: list[object]) -> Cost:
    began, used, titles = time.perf_counter(), dict[int, float](), dict[int, str]()
    command = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = 0.0
    while descendants := psutil.Process().children(recursive=True):
        for process in descendants:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
                if process.status() != psutil.STATUS_ZOMBIE:
                    titles[process.pid] = title(process.cmdline()) or titles.get(process.pid, "")
                elif process.pid != command.pid:
                    os.waitpid(process.pid, os.WNOHANG)
        if command.poll() is None:
            seconds = time.perf_counter() - began
        time.sleep(0.05)
    processes: dict[str, list[float]] = {}
    for pid, cpu in used.items():
        processes.setdefault(titles.get(pid) or "other", []).append(cpu)
    return Cost(seconds, command.wait(), processes)


def title(words: list[str]) -> str:
    """What a process is, of its command line; empty of one that has ended."""
    whole = " ".join(words)
    if whole.startswith("ray::"):
        return whole.split(".")[0].split("(")[0]
    marks = {"-m jobs": "the command", "pipeline.apart": "beside a worker: tokens, model"}
    found = next((name for mark, name in marks.items() if mark in whole), "")
    return found or next((f"Ray: {Path(word).stem}" for word in words if "/ray/" in word), "")


if __name__ == "__main__":
    main()
