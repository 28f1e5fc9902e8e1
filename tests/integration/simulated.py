"""`label` with a scorer that sleeps as long as a real one would compute: everything but the forward is that of real runs.

    python simulated.py TOKENS_PER_S EVENTS label --model ... --input ... --output ...

EVENTS gets a line of JSON each time the pool of actors is looked at, for each committed shard, and when an actor has
committed its first (noting_actor.py).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.actor import ActorSpec
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn


@dataclass(frozen=True)
class SleepingSpec(ActorSpec):
    tokens_per_s: float = 0.0
    seconds_per_request: float = 0.0  # beside what its tokens take
    events: str = ""  # where the actor notes its first shard

    def limit_threads(self) -> None:
        """No torch."""

    def open(self) -> "Sleeping":
        return Sleeping(self)


class Sleeping:
    """Scores that follow from the tokens alone."""

    layout = "none"

    def __init__(self, spec: SleepingSpec):
        self.spec = spec
        self.notes: list[str] = []
        self.forwarded_tokens = 0

    def answer(self, requests: Sequence[TokenizedTurn]) -> list[Scores]:
        return [self.score(turn) for turn in requests]

    def score(self, turn: TokenizedTurn) -> Scores:
        tokens = len(turn.prompt_ids) + len(turn.response_ids)
        time.sleep(self.spec.seconds_per_request + (tokens / self.spec.tokens_per_s if self.spec.tokens_per_s else 0))
        self.forwarded_tokens += tokens
        logprobs = -1.0 - np.asarray(turn.response_ids, dtype=np.float64) / 1000
        return Scores(logprobs, logprobs + 0.5, logprobs - 0.25)

    def reward(self, answer: Scores) -> float:
        return float(answer.logprobs.sum())


def main() -> int:
    from noting_actor import NotingActor

    import jobs.label.flow
    import jobs.label.label_run
    from jobs.__main__ import main as run
    from jobs.cluster import alive_nodes
    from jobs.label.work import Done, PoolState

    rate, place, *arguments = sys.argv[1:]
    events = Path(place).open("a", buffering=1)  # noqa: SIM115 - open for as long as the process lives

    def note(**event: Any) -> None:
        events.write(json.dumps({"at": time.time(), **event}) + "\n")

    label_shards = jobs.label.flow.label_shards

    def noted(*values: Any, watch: Callable[[PoolState], None], **named: Any) -> Iterator[Done]:
        def both(state: PoolState) -> None:
            note(pool=asdict(state), alive=sorted(alive_nodes()))
            watch(state)

        for done in label_shards(*values, watch=both, **named):
            note(rows=done.record.shard.rows, tokens=done.forwarded_tokens)
            yield done

    def spec(labeller: Any, device: str, pool: Any) -> SleepingSpec:
        common = labeller.model, device, pool.gpus, 1, 1 << 20, 0
        return SleepingSpec(*common, tokens_per_s=float(rate), events=os.path.abspath(place))

    jobs.label.flow.ShardActor = NotingActor  # type: ignore[misc]
    jobs.label.flow.label_shards = noted  # type: ignore[assignment]
    jobs.label.label_run._spec = spec
    return run(arguments)


if __name__ == "__main__":
    sys.modules["simulated"] = sys.modules["__main__"]
    SleepingSpec.__module__ = "simulated"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
