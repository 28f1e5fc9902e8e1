"""What every benchmark needs around its own work: the machine's name, the real models and corpora, a verdict.

Leaves out everything that measures.
"""

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CONSOLE = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

logging.disable_progress_bar()
logging.set_verbosity_error()


def describe() -> str:
    """Cores, processor, torch and its threads, on one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        cores = len(os.sched_getaffinity(0))
    except (OSError, StopIteration, AttributeError):  # not Linux
        cores = os.cpu_count() or 1
    return f"{cores} cores, {model}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def table(title: str, *columns: str) -> Table:
    """An empty table under the title and the machine; the first column is text, the others are figures."""
    made = Table(title=f"{title}\n{describe()}", title_justify="left")
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if number else "left")
    return made


def shared(*parts: str) -> Path:
    """A path in ../shared; ends the command, successfully, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        CONSOLE.print(f"skipped: ../shared/{'/'.join(parts)}, the real models and corpora, is not here")
        sys.exit(0)
    return path


def run(*words: object) -> None:
    """`python WORDS` at the repository's root; ends the benchmark with what it said where it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")


def verdict(claims: dict[str, bool]) -> None:
    """Print each claim with its outcome and end the command: 0 where all hold, else 1."""
    for claim, holds in claims.items():
        CONSOLE.print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    sys.exit(0 if all(claims.values()) else 1)


@contextlib.contextmanager
def checked_out(commit: str, place: Path) -> Iterator[Path]:
    """The repository at a commit, in the folder `place`, as long as the block runs."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=ROOT, check=True)
    try:
        yield place
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)
