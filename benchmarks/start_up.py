"""What starting costs: CPU seconds of whole commands from cold, all of their processes (Ray's too) added up.

    python benchmarks/start_up.py [--rows 40]

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
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

import psutil  # noqa: E402
from machine import CONSOLE, ROOT, table  # noqa: E402
from tiny import CHATML, save_model  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40, help="of the corpus that is labelled")
    rows = parser.parse_args().rows
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shown = table("From cold", "command", "CPU s", "wall s", "exit code")
    with tempfile.TemporaryDirectory() as folder:
        model, corpus = save_model(Path(folder, "model"), template=CHATML), Path(folder, "corpus.jsonl")
        lines = [{"prompt": f"Question {i}?", "chosen": "a b c", "rejected": "d e"} for i in range(rows)]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        label = [
            "label",
            "--model",
            model,
            "--input",
            corpus,
            "--output",
            Path(folder, "out"),
            "--set",
            "run.num_cpus=2",
        ]
        for name, command in {
            "--help": ["--help"],
            "label --dry-run of a wrong column": [*label, "--set", "input.prompt_key=nope", "--dry-run"],
            "label --dry-run": [*label, "--dry-run"],
            f"label of {rows} rows": label,
            "label of no rows that are left": label,
        }.items():
            shown.add_row(name, *measure(command))
    CONSOLE.print(shown)


def measure(arguments: list[object]) -> tuple[str, str, str]:
    began, used = time.perf_counter(), {}
    command = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    took = None
    while descendants := psutil.Process().children(recursive=True):
        for process in descendants:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
                if process.status() == psutil.STATUS_ZOMBIE and process.pid != command.pid:
                    os.waitpid(process.pid, os.WNOHANG)
        if took is None and command.poll() is not None:
            took = time.perf_counter() - began
        time.sleep(0.05)
    return f"{sum(used.values()):.1f}", f"{took:.1f}", str(command.wait())


if __name__ == "__main__":
    main()
