"""What Prometheus scrapes of a run while it works, through `ray.util.metrics`: the node of the driver exports it, with `ray_`
in front of each name and `_total` behind a counter's. deploy/grafana/ draws it, docs/runbook.md explains it.

Ray forgets a gauge once it has been exported, some twenty seconds after it was set; so all of them are set again every few
seconds. When the driver is gone, so are they. A driver that joins its cluster by a ray:// address exports nothing.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any, Self

from pipeline.store.commit import Record

COUNTERS = {
    "endoreward_rows": "rows that were labelled and committed, those in error too",
    "endoreward_responses": "responses of these rows",
    "endoreward_response_tokens": "tokens of responses that were labelled",
    "endoreward_forwarded_tokens": "tokens that the model computed for them, prompts included",
    "endoreward_score_seconds": "seconds that actors computed, summed over actors",
    "endoreward_errors": "error rows, by reason",
    "endoreward_warnings": "warnings in the rows of metrics.jsonl",
}
GAUGES = {
    "endoreward_rows_left": "rows that are not committed yet",
    "endoreward_actors": "actors that hold the model",
    "endoreward_waiting": "actors that are wanted and have no place on a node yet",
    "endoreward_step": "steps of the optimizer that are done",
    "endoreward_steps": "steps of the whole run",
    "endoreward_step_metric": "what the last row of metrics.jsonl that has it says, by metric",
}
FURTHER_TAGS = {
    "endoreward_errors": ("reason",),
    "endoreward_step_metric": ("metric",),
}
"""Beside `run`, the place of the store or of the training run, which every metric has."""

REPEATED_EVERY_S = 5.0


class Metrics:
    """Counters and gauges of a run, for as long as the block runs. Call it connected.

    Args:
        run: its place, which tells runs apart.
    """

    def __init__(self, run: str):
        from ray.util.metrics import Counter, Gauge

        def tags(name: str) -> tuple[str, ...]:
            return ("run", *FURTHER_TAGS.get(name, ()))

        self.run = run
        self.counters = {name: Counter(name, text, tags(name)) for name, text in COUNTERS.items()}
        self.gauges = {name: Gauge(name, text, tags(name)) for name, text in GAUGES.items()}
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # of gauges, by name and further tags
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.ended.set()
        self.thread.join()

    def count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray takes no other, and nothing is what there is before the first
            self.counters[name].inc(value, {"run": self.run, **tags})

    def show(self, name: str, value: float, **tags: str) -> None:
        self.values[name, tuple(tags.items())] = value
        self.gauges[name].set(value, {"run": self.run, **tags})

    def _repeat(self) -> None:
        while not self.ended.wait(REPEATED_EVERY_S):
            for (name, tags), value in list(self.values.items()):
                self.gauges[name].set(value, {"run": self.run, **dict(tags)})


class RunMetrics(Metrics):
    """Of a run that fills a label store.

    Args:
        rows: that are not committed yet.
    """

    def __init__(self, run: str, rows: int):
        super().__init__(run)
        self.rows = rows
        self.show("endoreward_rows_left", rows)

    def expect(self, rows: int) -> None:
        """So many rows more are known of the input."""
        self.rows += rows
        self.show("endoreward_rows_left", self.rows)

    def add(self, record: Record, forwarded_tokens: int, score_seconds: float) -> None:
        """A shard that is committed."""
        self.rows -= record.shard.rows
        self.show("endoreward_rows_left", self.rows)
        self.count("endoreward_rows", record.shard.rows)
        self.count("endoreward_responses", record.labels.rows + record.errors.rows)
        self.count("endoreward_response_tokens", record.stats.tokens)
        self.count("endoreward_forwarded_tokens", forwarded_tokens)
        self.count("endoreward_score_seconds", score_seconds)
        for reason, count in record.reasons.items():
            self.count("endoreward_errors", count, reason=reason)

    def actors(self, count: int) -> None:
        """So many hold the model now."""
        self.show("endoreward_actors", count)

    def waiting(self, count: int) -> None:
        """So many more are wanted, and wait for a node."""
        self.show("endoreward_waiting", count)


class StepMetrics(Metrics):
    """Of a run that trains.

    Args:
        steps: of the whole run.
        done_steps: before this start.
    """

    def __init__(self, run: str, steps: int, done_steps: int = 0):
        super().__init__(run)
        self.show("endoreward_steps", steps)
        self.show("endoreward_step", done_steps)

    def update(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl. What is not finite stays what it was before."""
        self.show("endoreward_step", row["step"])
        self.count("endoreward_warnings", len(row.get("warnings", [])))
        for name, value in row.items():
            if type(value) in (int, float) and math.isfinite(value) and name != "step":
                self.show("endoreward_step_metric", value, metric=name)
