"""What the first worker writes of a run's steps: metrics.jsonl and trackers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.training.metrics import MetricRow, MetricsFile, Trackers

if TYPE_CHECKING:
    from jobs.learning.loop import Recipe


class Book:
    """A row for each step.

    Args:
        step: how many are done; what was written of later ones is taken away.
        notes: what a person should know, for the first row.

    Raises:
        StoreError: where metrics of an earlier start are damaged.
    """

    def __init__(self, recipe: "Recipe[Any]", step: int, notes: Sequence[str]):
        self.notes = list(notes)  # go into the next row
        self.metrics = MetricsFile(recipe.place("metrics.jsonl"))
        self.metrics.truncate(step or -1)  # what was measured before the first step is measured anew
        self.trackers = Trackers(recipe.config.tracking, recipe.output, recipe.run, step)

    def begin(self) -> None:
        """Before the first step of all."""

    def write(self, row: MetricRow, data: Any, due: bool) -> None:
        """A step that was taken, on this data; `due` where a checkpoint follows."""
        self.append(row)
        if due:
            self.metrics.flush()

    def append(self, row: MetricRow) -> None:
        notes, self.notes = list(dict.fromkeys(self.notes)), []
        row = row | ({"warnings": notes} if notes else {})
        self.metrics.append(row)
        self.trackers.log(row)

    def close(self) -> None:
        self.metrics.close()
        self.trackers.close()
