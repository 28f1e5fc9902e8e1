"""What starting costs: CPU seconds of whole commands from cold, all of their processes (Ray's too) added up.

    python benchmarks/start_up.py [--rows 40]

A command's descendants are reaped here (PR_SET_CHILD_SUBREAPER), so that what the kernel counted of each is in the sum,
whoever started it. Linux only.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

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
    before, began = _used(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    code = process.wait()
    took = time.perf_counter() - began
    while True:
        try:
            os.wait()  # what the command left to this process
        except ChildProcessError:
            break
    return f"{_used() - before:.1f}", f"{took:.1f}", str(code)


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
