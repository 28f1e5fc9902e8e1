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
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

import psutil  # noqa: E402
from machine import CONSOLE, ROOT, table  # noqa: E402
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
                measured.append(measure(tree, words))
            shown.add_row(name, *measured)
    CONSOLE.print(shown)


@contextlib.contextmanager
def checked_out(commit: str, place: Path) -> Iterator[Path]:
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=ROOT, check=True)
    try:
        yield place
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def measure(tree: Path, arguments: list[object]) -> str:
    began, used = time.perf_counter(), {}
    command = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
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
    return f"{sum(used.values()):.1f} ({took:.1f}, {command.wait()})"


if __name__ == "__main__":
    main()
