"""Is everything right on this GPU, how fast is it, and where does the time go: one command, under eight minutes.

    python benchmarks/gpu.py [--output out/gpu.json] [--seconds 450, without a GPU 285]

Needs torch, transformers, numpy and pyarrow; no network, no files. Each section runs in a process of its own
(`benchmarks/device/`), so that one that dies takes no other with it: correctness of four families of models side by side,
memory, then speed and profiles of models of 0.6B, 8B and 1.5B parameters, one after another. Results are printed as they
come, and the JSON is written after each. What does not fit into a section's time, or the command's, is skipped by name.

Without a GPU, small correctness cases run on the CPU. `--rehearse` runs all sections there, with toy models: do that before
a GPU is borrowed. Exits 1 where a case of correctness or memory has failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from device.cases import POISONED, Runner, read  # noqa: E402  needs the line above

FAMILIES = ("llama", "qwen3", "gemma2", "moe")  # as in device.models, which imports transformers
QUIET = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1",
    "OMP_WAIT_POLICY": "passive",
}  # fmt: skip
JUDGED = ("correctness", "memory")  # kinds of section that decide the exit code
STARTS = 4  # of a section whose process dies


@dataclass
class Section:
    """`kind` and what of it, such as ("speed", "8B"); `seconds` it may take; `beside`: it may run beside the next one."""

    kind: str
    what: str
    seconds: float
    beside: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.what}".strip()


def sections(gpu: bool, rehearse: bool) -> tuple[list[Section], list[str]]:
    """What runs here, and what does not, by name and why."""
    limit = 110.0 if gpu else 57.0  # a fifth of what there is without one, so that none is left out
    checks = [Section("correctness", family, limit, beside=gpu) for family in FAMILIES]
    checks.append(Section("memory", "", limit, beside=gpu))
    rest = [Section("speed", "0.6B", 90), Section("profile", "0.6B", 45), Section("speed", "8B", 110)]
    rest += [Section("speed", "1.5B", 80), Section("profile", "8B", 60)]
    if gpu and not rehearse:
        return checks + rest, []
    if rehearse:
        return [*checks, Section("speed", "toy", 90), Section("profile", "toy", 60)], []
    return checks, [f"{each.name}: needs a CUDA device" for each in rest]


# In the process of a section


def work(options: argparse.Namespace) -> None:
    """Run the cases of one section. Imports are late: the command itself needs no model."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device == "cpu" and options.threads:
        torch.set_num_threads(options.threads)
    runner = Runner(Path(options.rows), options.deadline)
    kind, what = options.section
    if kind == "correctness":
        from device import correctness

        cases = correctness.cases(what, device, every=device == "cuda")
    elif kind == "memory":
        from device import memory

        cases = memory.cases(device)
    elif kind == "speed":
        from device import speed

        cases = speed.cases(what, device)
    else:
        from device import profiles

        cases = profiles.cases(what, device)
    runner.run(cases)


# The command


class Process:
    """A section's process, started again where it dies, and what it has written so far."""

    def __init__(self, section: Section, folder: Path, deadline: float, threads: int):
        self.section, self.deadline, self.threads = section, deadline, threads
        stem = section.name.replace(" ", "-")
        self.path, self.log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
        self.shown = self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        words = [sys.executable, __file__, "--section", self.section.kind, self.section.what, "--rows", str(self.path)]
        words += ["--deadline", str(self.deadline - 5), "--threads", str(self.threads)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **QUIET}, cwd=ROOT)

    def poll(self) -> list[dict[str, Any]]:
        """Rows that have come since the last call."""
        rows = [row for row in read(self.path) if row["kind"] == "row"]
        fresh, self.shown = rows[self.shown :], len(rows)
        self.section.rows += fresh
        return fresh

    def done(self) -> bool:
        """Whether nothing more will come; ends what is over its time, and starts what has died again."""
        code = self.process.poll()
        if code is None:
            if time.time() > self.deadline:
                self.process.kill()
                self.process.wait()
                self.section.note = "its time was up"
                return True
            return False
        if code == 0:
            return True
        self.section.note = "CUDA was lost" if code == POISONED else f"its process ended with {code}"
        progress = self.shown < len(read(self.path)) or self.starts == 1
        if self.starts < STARTS and progress and time.time() + 20 < self.deadline:
            self._start()
            return False
        return True

    def close(self) -> list[dict[str, Any]]:
        """Rows for the cases that have none."""
        written = read(self.path)
        plan = next((row["cases"] for row in written if row["kind"] == "plan"), None)
        begun = {row["case"] for row in written if row["kind"] == "begin"}
        rows = {row["case"] for row in written if row["kind"] == "row"}
        late = self.section.note == "its time was up"
        left: list[dict[str, Any]] = []
        for case in plan if plan is not None else [f"all of {self.section.name}"]:
            if case in rows:
                continue
            failed = (case in begun or plan is None) and not late
            note = self.section.note or "it ended without a word"
            left.append({"case": case, "ok": False if failed else None, "note": note, "figures": {}, "seconds": 0.0})
        if any(row["ok"] is False for row in left):
            tail = self.log.read_text(errors="replace").splitlines()[-15:]
            print("\n".join(f"    | {line}" for line in tail), flush=True)
        self.section.rows += left
        return left


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def show(row: dict[str, Any]) -> None:
    """A row as a line, and a profile's tops below it."""
    mark = {True: "ok     ", False: "FAILED ", None: "skipped"}[row["ok"]]
    figures = {name: value for name, value in row["figures"].items() if name not in ("top", "host")}
    words = "  ".join(f"{name} {shown(value)}" for name, value in figures.items())
    print(f"{mark} {row['case']}  {words}  {row['note']}".rstrip() + f"  [{row['seconds']:.1f} s]", flush=True)
    for what in ("top", "host"):
        for name, milliseconds, calls in row["figures"].get(what, []):
            print(f"        {what:4} {milliseconds:10.2f} ms {calls:7d} x  {name}", flush=True)


def machine() -> dict[str, Any]:
    """What this ran on. Asked of a process of its own: this one holds no memory of the device."""
    code = (
        "import json, os, sys, torch, transformers\n"
        "there = torch.cuda.is_available()\n"
        "try:\n    import triton; triton = triton.__version__\nexcept ImportError:\n    triton = None\n"
        "own = torch.cuda.get_device_properties(0) if there else None\n"
        "print(json.dumps({'gpu': own.name if there else None, 'gpu_gib': own.total_memory / 2**30 if there else 0,\n"
        "  'cores': len(os.sched_getaffinity(0)), 'python': sys.version.split()[0], 'torch': torch.__version__,\n"
        "  'transformers': transformers.__version__, 'triton': triton, 'cuda': torch.version.cuda}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **QUIET})
    if done.returncode:
        raise SystemExit(f"torch and transformers cannot be imported here:\n{done.stderr[-2000:]}")
    about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return about


def write(path: Path, about: dict[str, Any], ran: list[Section], skipped: list[str]) -> None:
    """Whole or not at all: whoever copies it may come at any time."""
    found = {
        "machine": about,
        "sections": {each.name: {"note": each.note, "cases": each.rows} for each in ran},
        "skipped": skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(path)


def together(waiting: list[Section]) -> list[Section]:
    """The next section, with those that may run beside it."""
    group = [waiting.pop(0)]
    while group[-1].beside and waiting and waiting[0].beside:
        group.append(waiting.pop(0))
    return group


def run(waiting: list[Section], about: dict[str, Any], options: argparse.Namespace) -> tuple[list[Section], list[str]]:
    """Returns the sections that ran, and lines of what did not."""
    end = time.time() + options.seconds
    ran: list[Section] = []
    skipped: list[str] = []

    def keep() -> None:
        write(Path(options.output), about, ran, skipped)

    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            group = together(waiting)
            left = end - time.time()
            if left < 25:
                skipped += [f"{each.name}: no time was left" for each in group]
                continue
            print(f"\n== {', '.join(each.name for each in group)}  ({left:.0f} s are left)", flush=True)
            threads = max(1, about["cores"] // len(group))
            processes = [Process(s, Path(folder), time.time() + min(s.seconds, left), threads) for s in group]
            ran += group
            try:
                follow(processes, keep)
            finally:
                for each in processes:
                    each.process.kill()
    return ran, skipped


def follow(processes: list[Process], keep: Callable[[], None]) -> None:
    """Show rows as they come, and `keep` them, until all sections have ended."""
    running = list(processes)
    while running:
        time.sleep(0.3)
        for each in list(running):
            over = each.done()
            fresh = each.poll()
            if over:
                fresh += each.close()
                running.remove(each)
            for row in fresh:
                show(row)
            if fresh:
                keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(ROOT / "out" / "gpu.json"), help="where the JSON goes")
    parser.add_argument("--seconds", type=float, help="that all sections together may take: 450, without a GPU 285")
    parser.add_argument("--only", help="sections whose name holds this")
    parser.add_argument("--rehearse", action="store_true", help="all sections, with toy models")
    parser.add_argument("--section", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        work(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no section outlives the command
    about = machine()
    print("  ".join(f"{name} {shown(value)}" for name, value in about.items()), flush=True)
    options.seconds = options.seconds or (450.0 if about["gpu"] is not None else 285.0)
    waiting, skipped = sections(about["gpu"] is not None, options.rehearse)
    waiting = [each for each in waiting if not options.only or options.only in each.name]
    ran, late = run(waiting, about, options)
    skipped += late
    write(Path(options.output), about, ran, skipped)
    raise SystemExit(verdict(ran, skipped, options.output))


def verdict(ran: list[Section], skipped: list[str], output: str) -> int:
    """Print what failed and what was skipped; the exit code."""
    rows = [(section, row) for section in ran for row in section.rows]
    failed = [(section, row) for section, row in rows if row["ok"] is False]
    skipped = skipped + [f"{row['case']}: {row['note']}" for _, row in rows if row["ok"] is None]
    right = sum(row["ok"] is True for _, row in rows)
    print(f"\n{right} cases are right, {len(failed)} failed, {len(rows) - right - len(failed)} were skipped; {output}")
    for section, row in failed:
        print(f"FAILED  {section.name}: {row['case']}  {row['note']}")
    for line in skipped:
        print(f"skipped {line}")
    return int(any(section.kind in JUDGED for section, _ in failed))


if __name__ == "__main__":
    main()
