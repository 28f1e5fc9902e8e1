"""One case after another in a process of its own: each is caught, timed and written to a file of JSON lines at once.

The file is also what a second process of the same section goes on from: a case that has begun there is not begun again, so
that an illegal memory access, after which no CUDA call works, costs one case.
"""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

POISONED = 3  # exit code of a process whose CUDA context is lost
Figures = dict[str, Any]


class Skip(Exception):
    """A case that cannot run here; says why."""


@dataclass
class Case:
    """`work` returns its figures; where they hold "ok" = False, the case has failed."""

    name: str
    work: Callable[[], Figures]
    seconds: float = 1.0  # that it may take; it is not begun where fewer are left


@dataclass
class Runner:
    """Runs cases of a section until `deadline`, of time.time()."""

    path: Path
    deadline: float
    begun: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.begun = {row["case"] for row in read(self.path) if row["kind"] == "begin"}

    def write(self, kind: str, **fields: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, **fields}) + "\n")

    def run(self, cases: list[Case]) -> None:
        """Raises SystemExit(POISONED) where CUDA answers no more."""
        self.write("plan", cases=[case.name for case in cases])
        for case in cases:
            if case.name in self.begun:
                continue
            if time.time() + case.seconds > self.deadline:
                self.write("row", case=case.name, ok=None, note="no time was left", figures={}, seconds=0.0)
                continue
            self.write("begin", case=case.name)
            self._one(case)

    def _one(self, case: Case) -> None:
        started, ok, note, figures = time.perf_counter(), True, "", {}
        poisoned = False
        try:
            figures = case.work()
            ok = figures.pop("ok", True)
            synchronize()
        except Skip as reason:
            ok, note = None, str(reason)
        except Exception as error:
            ok, note = False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"-- {case.name}\n{traceback.format_exc()}", flush=True)
            poisoned = lost(error)
        took = time.perf_counter() - started
        self.write("row", case=case.name, ok=ok, note=note, figures=figures, seconds=round(took, 2))
        if poisoned:
            raise SystemExit(POISONED)
        free()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of a process that may still write, or have died in the middle of one."""
    text = path.read_text() if path.exists() else ""
    rows = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        rows.append(json.loads(line))
    return rows


def lost(error: BaseException) -> bool:
    """Whether it leaves this process without CUDA: whatever is asked of the device fails from then on."""
    if not torch.cuda.is_available():
        return False
    words = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "CUDA" not in words.upper():
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def on_device(events: Iterable[Any]) -> list[Any]:
    """Of a profile's events those of the device: its kernels and copies, not the calls that launch them."""
    return [event for event in events if "CUDA" in str(event.device_type).upper()]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
