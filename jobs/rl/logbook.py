"""What the first worker of an online run writes: metrics, measurements on held-out prompts, samples, kept rollouts.

OUTPUT/metrics.jsonl     a row for each step; where held-out prompts were measured on, `eval_` figures in it
OUTPUT/results.json      accuracy before and after, with intervals
OUTPUT/samples.jsonl     a few samples of each measurement, of the batch where nothing is held out
OUTPUT/rollouts          every batch as a label store, where rl.keep_rollouts
OUTPUT/repeated.json     what was done twice after a kill
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jobs.rl.online import Online
from jobs.rl.source import Gathering, Replay
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.models.loading import resolve_dtype
from pipeline.rl.monitors import Watch, estimates, pick_samples, rollout_metrics
from pipeline.rl.rollout_store import KeptRollouts
from pipeline.rl.rollouts import Group
from pipeline.rl.run import REPEATED, RESULTS, ROLLOUTS, SAMPLES
from pipeline.rl.sources import checker
from pipeline.rl.sources.maths import RightAnswer
from pipeline.store import documents
from pipeline.store.summary import wilson_interval
from pipeline.training.metrics import EVAL, MetricsFile, Row, Trackers, read_metrics

SHOWN = 4  # prompts of a measurement whose samples are kept
ROUNDING = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats by which a sampler's log-probability of a token may differ from the learner's."""


class Clock:
    """Where the seconds of a step go."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.parts[f"time/{what}"] = time.perf_counter() - began

    def spent(self) -> dict[str, float]:
        """The seconds of its parts so far, and of all since this was made."""
        return {**self.parts, "step_time": time.perf_counter() - self.started}


class Logbook:
    """Raises StoreError where metrics of an earlier start are damaged, ConfigError where rollouts of it were not kept."""

    def __init__(self, online: Online, source: Gathering | Replay, step: int, weights: Any, notes: Sequence[str]):
        self.online, self.config, self.source = online, online.config, source
        self.right = checker(self.config)
        self.checked: list[str] = []  # what was said of those that it could not tell
        uri, self.samples = online.place("metrics.jsonl"), online.place(SAMPLES)
        self.said = [*notes, *self._repeated(read_metrics(uri), step)]  # goes into the next row
        self.metrics = MetricsFile(uri)
        self.metrics.truncate(step or -1)
        self.watch = Watch(read_metrics(uri), self._rounding())
        self.trackers = Trackers(self.config.tracking, online.output, online.run, step)
        self.kept = KeptRollouts(online.place(ROLLOUTS)) if online.kept else None
        if self.kept and online.kept:
            self.kept.open(online.kept)
            if self.kept.steps() < step:
                raise ConfigError(
                    f"rl.keep_rollouts: the first {step:,} steps of this run were not kept; set it from the beginning, in "
                    "another --output, or leave it out"
                )
        documents.write_bytes(self.samples, self._samples_before(step + 1))
        source.take(step, weights)
        if not step and self.source.measurable:
            self._append({"step": 0, **self._measured(0, "before")})

    def _rounding(self) -> float:
        """What samples were kept of may have had other weights, and so differ by anything."""
        dtype = resolve_dtype(self.config.learner.dtype, self.online.device)
        return math.inf if isinstance(self.source, Replay) else ROUNDING.get(dtype, ROUNDING["float32"])

    def write(self, row: Row, groups: Sequence[Group], due: bool) -> None:
        """A step that was learnt; `due` where a checkpoint follows."""
        step, told = row["step"], self.config
        row = {**row, **rollout_metrics(groups), **self.source.seconds()}
        self.said += self.watch.warnings(row)
        last = step == told.rl.max_steps
        if last or step % told.held_out.every_steps == 0 or (step == 1 and not self.source.measurable):
            if self.source.measurable:
                row |= self._measured(step, "after" if last else None)
            else:
                self._keep_samples(step, groups)
        if self.kept:
            self.kept.keep(step - 1, groups)
        self._append(row)
        if due:
            self.metrics.flush()

    def close(self) -> None:
        if self.kept:
            self.kept.finish(self.config)
        self.metrics.close()
        self.trackers.close()

    def _append(self, row: Row) -> None:
        said = list(dict.fromkeys(self.said + self.source.notes()))
        self.said = []
        self.metrics.append(row | ({"warnings": said} if said else {}))
        self.trackers.log(row)

    def _measured(self, step: int, when: str | None) -> Row:
        """Figures on held-out prompts: on all of them before and after the run, which are its results; else on some."""
        count = self.source.measurable if when else self.config.held_out.some
        groups = self.source.held_out(count)
        row = rollout_metrics(groups) | estimates(groups)
        rights = [self.right(g.prompt, g.rollouts[0].text) for g in groups] if self.right else []
        if isinstance(self.right, RightAnswer) and self.right.notes != self.checked:
            self.checked = self.right.notes
            self.said += self.checked
        if rights:
            row["accuracy"] = sum(rights) / len(rights)
        if when:
            self._add_results(when, rights)
        self._keep_samples(step, groups, rights)
        self.source.seconds()  # of measuring, which is no part of a step's
        return {f"{EVAL}{name}": value for name, value in row.items()}

    def _add_results(self, when: str, rights: Sequence[bool]) -> None:
        uri = self.online.place(RESULTS)
        found: dict[str, Any] = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
        found |= {"held_out": self.source.measurable, "steps": self.config.rl.max_steps}
        if rights:
            low, high = wilson_interval(sum(rights), len(rights))
            found |= {f"accuracy_{when}": sum(rights) / len(rights), f"accuracy_{when}_interval": [low, high]}
        documents.write_bytes(uri, documents.readable(found))

    def _keep_samples(self, step: int, groups: Sequence[Group], rights: Sequence[bool] = ()) -> None:
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
        uri = self.online.place(REPEATED)
        found = documents.read(uri)["repeated"] if storage.exists(uri) else []
        why = "workers or the driver were killed or stopped"
        documents.write(uri, {"repeated": [*found, {"step": step, "repeated": again, "why": why}]})
        return [f"started again after step {step}; {again} steps that were done after it are done once more"]
