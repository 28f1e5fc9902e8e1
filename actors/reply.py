"""What an actor answers beside its result: how long it took, what came up, and which process it was."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")

BORN = uuid.uuid4().hex
"""This process: another one after a restart."""


@dataclass(frozen=True)
class Reply(Generic[Value]):
    value: Value
    born: str
    seconds: float
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, value: Value, started: float, notes: list[str]) -> "Reply[Value]":
        """At the end of a turn that `started` then, by `time.perf_counter`. Empties `notes`, and frees cached GPU memory for
        the processes that share this GPU."""
        drained = list(notes)
        notes.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return cls(value, BORN, time.perf_counter() - started, drained)
