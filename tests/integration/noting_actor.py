"""The actor of real runs, which notes when it has committed its first shard, and on which node."""

import json
import time
from pathlib import Path
from typing import Any

import ray

from jobs.label.flow import ShardActor
from jobs.label.work import Done
from pipeline.rewards.labelling import Prepared


class NotingActor(ShardActor):
    def __init__(self, spec: Any, labeller: Any, target: Any):
        super().__init__(spec, labeller, target)
        self.events: str | None = spec.events

    def _labelled(self, prepared: Prepared, again: bool) -> Done:
        done = super()._labelled(prepared, again)
        if self.events:
            event = {"at": time.time(), "first_by": ray.get_runtime_context().get_node_id()}
            with Path(self.events).open("a") as file:
                file.write(json.dumps(event) + "\n")
            self.events = None
        return done
