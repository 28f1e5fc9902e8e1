"""What every worker of an online run is told by its driver."""

from dataclasses import dataclass
from typing import Any

from jobs.rl.pool import Crew
from pipeline import storage
from pipeline.rl.config import RlConfig


@dataclass(frozen=True)
class Online:
    """A run, in terms that cross processes."""

    config: RlConfig
    device: str
    deepspeed: str | None  # the content of `learner.deepspeed`
    output: str
    rate: float  # after the warm-up
    run: dict[str, Any]  # what trackers are told
    kept: dict[str, Any] | None  # what the store of rollouts is described by, where they are kept
    practice: Any  # a Ray reference to Practice
    samplers: Crew | None  # None where another run is replayed
    rewarders: Crew | None

    def place(self, name: str) -> str:
        return storage.join(self.output, name)
