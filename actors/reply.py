"""What an actor answers beside its result: how long it took, what came up, and which process it was."""

import uuid
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")

BORN = uuid.uuid4().hex
"""This process: another one after a restart."""


@dataclass(frozen=True)
class Reply(Generic[Value]):
    value: Value
    born: str
    seconds: float
    notes: list[str] = field(default_factory=list)
