"""What the first worker of an online run writes: metrics, measurements on held-out prompts, samples, kept rollouts.

OUTPUT/metrics.jsonl     a row for each step; where held-out prompts were measured on, `eval_` figures in it
OUTPUT/results.json      accuracy before and after, with intervals
OUTPUT/samples.jsonl     a few samples of each measurement, of the batch where nothing is held out
OUTPUT/rollouts          every batch as a label store, where rl.keep_rollouts
OUTPUT/repeated.json     what was done twice after a kill
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.learning.book import Book
from jobs.rl.source import ReplaySource, RolloutSource
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.models.loading import resolve_dtype
from pipeline.rl.monitors import Monitors, estimates, pick_samples, rollout_metrics
from pipeline.rl.rollout_store import RolloutStore
from pipeline.rl.rollouts import Group
from pipeline.rl.run import REPEATED, RESULTS, ROLLOUTS, SAMPLES
from pipeline.rl.sources import checker
from pipeline.rl.sources.maths import RightAnswer
from pipeline.store import documents
from pipeline.store.summary import wilson_interval
from pipeline.training.documents import Repeat, Repeats, RlResults
from pipeline.training.metrics import EVAL, MetricRow, read_metrics

if TYPE_CHECKING:
    from jobs.rl.recipe import RlRecipe

SHOWN = 4  # prompts of a measurement whose samples are kept
ROUNDING = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats by which a sampler's log-probability of a token may differ from the learner's."""


class Logbook(Book):
    """What is written of an online run.

    Raises:
        StoreError: where metrics of an earlier start are damaged.
        ConfigError: where rollouts of an earlier start were not kept.
    """

    def __init__(self, recipe: "RlRecipe", source: RolloutSource | ReplaySource, step: int, notes: Sequence[str]):
        self.place, self.config, self.source = recipe.place, recipe.config, source
        self.right = checker(self.config)
        self.checked: list[str] = []  # the notes on those that it could not tell
        self.samples = recipe.place(SAMPLES)
        uri = recipe.place("metrics.jsonl")
        restarts = self._repeated(read_metrics(uri), step)
        super().__init__(recipe, step, [*notes, *restarts])
        self.monitors = Monitors(read_metrics(uri), _rounding(recipe))
        self.rollouts = _opened(recipe, step)
        documents.write_bytes(self.samples, self._samples_before(step + 1))

    def begin(self) -> None:
        """Measure on all held-out prompts."""
        if self.source.measurable:
            self.append({"step": 0, **self._measured(0, "before")})

    def write(self, row: MetricRow, data: Sequence[Group], due: bool) -> None:
        step, last = row["step"], row["step"] == self.config.rl.max_steps
        row = {**row, **rollout_metrics(data), **self.source.measures()}
        self.notes += self.monitors.warnings(row)
        if last or step % self.config.held_out.every_steps == 0 or (step == 1 and not self.source.measurable):
            if self.source.measurable:
                row |= self._measured(step, "after" if last else None)
            else:
                self._write_samples(step, data)
        if self.rollouts:
            self.rollouts.keep(step - 1, data)
        super().write(row, data, due)

    def append(self, row: MetricRow) -> None:
        self.notes += self.source.notes()
        super().append(row)

    def close(self) -> None:
        if self.rollouts:
            self.rollouts.finish(self.config)
        super().close()

    def _measured(self, step: int, when: str | None) -> MetricRow:
        """Figures on held-out prompts: on all of them before and after the run, which are its results; else on some."""
        count = self.source.measurable if when else self.config.held_out.some
        groups = self.source.held_out(count)
        row = rollout_metrics(groups) | estimates(groups)
        rights = [self.right(g.prompt, g.rollouts[0].text) for g in groups] if self.right else []
        if isinstance(self.right, RightAnswer) and self.right.notes != self.checked:
            self.checked = self.right.notes
            self.notes += self.checked
        if rights:
            row["accuracy"] = sum(rights) / len(rights)
        if when:
            self._add_results(when, rights)
        self._write_samples(step, groups, rights)
        return {f"{EVAL}{name}": value for name, value in row.items()}

    def _add_results(self, when: str, rights: Sequence[bool]) -> None:
        uri = self.place(RESULTS)
        known: dict[str, Any] = {"held_out": self.source.measurable, "steps": self.config.rl.max_steps}
        if rights:
            low, high = wilson_interval(sum(rights), len(rights))
            known |= {f"accuracy_{when}": sum(rights) / len(rights), f"accuracy_{when}_interval": [low, high]}
        standing = RlResults.read_plain(uri) if storage.exists(uri) else RlResults(held_out=0, steps=0)
        standing.model_copy(update=known).write_plain(uri)

    def _write_samples(self, step: int, groups: Sequence[Group], rights: Sequence[bool] = ()) -> None:
        """Those of `step` in place of any of it and of later ones."""
        picked = {"step": step, "samples": pick_samples(groups, SHOWN, rights or None)}
        line = json.dumps(picked, ensure_ascii=False).encode(errors="backslashreplace")
        documents.write_bytes(self.samples, self._samples_before(step) + line + b"\n")

    def _samples_before(self, step: int) -> bytes:
        """The lines of samples.jsonl of earlier steps. Lines end at b"\\n" alone: texts hold other characters that end one."""
        lines = storage.read_bytes(self.samples).split(b"\n") if storage.exists(self.samples) else []
        return b"".join(line + b"\n" for line in lines if line and json.loads(line)["step"] < step)

    def _repeated(self, rows: Sequence[Mapping[str, Any]], step: int) -> list[str]:
        """What an earlier start did after the checkpoint that this one goes on from: kept for the manifest, and said."""
        again = rows[-1]["step"] - step if rows else 0
        if again <= 0:
            return [f"started again after step {step}"] if rows else []
        uri = self.place(REPEATED)
        earlier = Repeats.read(uri).repeated if storage.exists(uri) else []
        why = "workers or the driver were killed or stopped"
        Repeats(repeated=[*earlier, Repeat(step=step, repeated=again, why=why)]).write(uri)
        return [f"started again after step {step}; {again} steps that were done after it are done once more"]


def _rounding(recipe: "RlRecipe") -> float:
    """Nats by which samplers and learner may differ: those of the coarsest dtype where another engine samples. Samples of a
    replay, or under a lag, come from other weights, so no tolerance applies."""
    config = recipe.config
    if config.rl.replay or config.rl.lag:
        return math.inf
    if config.sampler.engine != "transformers":
        return max(ROUNDING.values())
    return ROUNDING.get(resolve_dtype(config.learner.dtype, recipe.device), ROUNDING["float32"])


def _opened(recipe: "RlRecipe", step: int) -> RolloutStore | None:
    """The store of rollouts, where the run keeps them. Raises ConfigError where it lacks some of the first `step` steps."""
    if not recipe.rollouts:
        return None
    store = RolloutStore(recipe.place(ROLLOUTS))
    store.open(recipe.rollouts)
    if store.steps() < step:
        raise ConfigError(
            f"rl.keep_rollouts: the first {step:,} steps of this run were not kept; set it from the beginning, in "
            "another --output, or leave it out"
        )
    return store
