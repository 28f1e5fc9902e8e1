"""What a training run says of itself: `endoreward status` and `endoreward report` of its directory. Needs no Ray."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise

from jobs import terminal
from pipeline import storage
from pipeline.errors import StoreError
from pipeline.report.rl import rl_page
from pipeline.report.training import training_page
from pipeline.rl.run import RESULTS, SAMPLES
from pipeline.store import WriterLock, documents, holder_of
from pipeline.store.status import duration
from pipeline.store.typed import parse
from pipeline.training.documents import RlResults, Run, SamplesLine
from pipeline.training.metrics import MetricRow, read_metrics
from pipeline.training.run import RunFolder

RECENT = 20
"""Steps whose rate and time are told."""


def run_status(folder: RunFolder, run: Run) -> int:
    """Print how far a training run is. Returns 0."""
    metrics = read_metrics(folder.at("metrics.jsonl"))
    writer = holder_of(folder.uri)
    finished = folder.manifest() is not None
    state = "complete" if finished else "incomplete: run the same command again to go on from its last checkpoint"
    stopped = folder.stopped()
    done, seconds = metrics[-1]["step"] if metrics else 0, step_seconds(metrics)
    rows = [
        ("State", f"being written by {writer}" if writer else state),
        *([("Stopped", stopped.sentence)] if stopped else []),
        ("Objective", run.objective),
        *([("Workers", run.device)] if run.device else []),
        ("Steps", f"{done:,} of {run.steps:,}"),
        *([("Rate", f"{1 / seconds:,.3g} steps/s")] if seconds else []),
        *([("Time left", f"about {duration((run.steps - done) * seconds)}")] if seconds and writer else []),
        *([("Last", terminal.figures_of(metrics[-1]))] if metrics else []),
        *([("Policy", folder.at("hf"))] if finished else []),
    ]
    terminal.print_table(folder.uri, rows)
    return 0


def step_seconds(metrics: Sequence[MetricRow]) -> float | None:
    """What a step took, the mean of the last `RECENT`, without measurements and checkpoints; None where no row says it."""
    each = []
    for before, row in pairwise([{}, *metrics[-RECENT - 1 :]]):
        tokens, rate = row.get("num_tokens", 0) - before.get("num_tokens", 0), row.get("tokens_per_second")
        each.append(row.get("step_time") or (tokens / rate if rate else None))
    known = [seconds for seconds in each[-RECENT:] if seconds and math.isfinite(seconds) and seconds > 0]
    return sum(known) / len(known) if known else None


def redraw_run(folder: RunFolder, run: Run) -> int:
    """Write a run's report.html anew, or the page so far of one that is running or has stopped. Returns 0."""
    manifest = folder.manifest()
    if manifest is None:  # its writer may be at work, and draws no page before the end
        draw_run(folder, run)
    else:
        with WriterLock(folder.uri):
            draw_run(folder, manifest)
    terminal.say(f"report: {folder.at('report.html')}")
    return 0


def draw_run(folder: RunFolder, run: Run) -> None:
    """Write report.html. `run`: its manifest, or its run.json."""
    metrics = read_metrics(folder.at("metrics.jsonl"))
    page = (
        rl_page(run, metrics, read_results(folder), read_samples(folder)) if run.online else training_page(run, metrics)
    )
    documents.write_bytes(folder.at("report.html"), page.encode())


def read_results(folder: RunFolder) -> RlResults | None:
    """What an online run measured before and after; None where nothing is held out."""
    try:
        return RlResults.read_plain(folder.at(RESULTS))
    except FileNotFoundError:
        return None


def read_samples(folder: RunFolder) -> list[SamplesLine]:
    """The samples that an online run kept of its measurements. Raises StoreError for a line that is not of them."""
    uri = folder.at(SAMPLES)
    lines = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    return [_samples_line(line, f"{uri}: line {number}") for number, line in enumerate(lines, 1)]


def _samples_line(line: bytes, where: str) -> SamplesLine:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{where} is damaged: {error}; {SamplesLine.REMEDY}") from None
    return parse(SamplesLine.model_validate, content, where, SamplesLine.REMEDY)
