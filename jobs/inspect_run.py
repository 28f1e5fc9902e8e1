"""What a training run says of itself: `endoreward status` and `endoreward report` of its directory. Needs no Ray."""

from typing import Any

from jobs import terminal
from pipeline.errors import StoreError
from pipeline.report.training import training_page
from pipeline.store import WriterLock, documents, holder_of
from pipeline.training.metrics import read_metrics
from pipeline.training.run import RunFolder


def run_status(folder: RunFolder, run: dict[str, Any]) -> int:
    """Print how far a training run is. Returns 0."""
    metrics = read_metrics(folder.at("metrics.jsonl"))
    writer = holder_of(folder.uri)
    finished = folder.read("manifest.json") is not None
    state = "complete" if finished else "incomplete: run the same train command again to go on from its last checkpoint"
    stopped = folder.read("stopped.json")
    rows = [
        ("State", f"being written by {writer}" if writer else state),
        *([("Stopped", stopped["sentence"])] if stopped else []),
        ("Objective", run["objective"]),
        ("Steps", f"{metrics[-1]['step'] if metrics else 0:,} of {run['steps']:,}"),
        *([("Last", terminal.figures_of(metrics[-1]))] if metrics else []),
        *([("Policy", folder.at("hf"))] if finished else []),
    ]
    terminal.print_table(folder.uri, rows)
    return 0


def redraw_run(folder: RunFolder) -> int:
    """Write a finished run's report.html anew. Returns 0; raises StoreError where it is not finished."""
    manifest = folder.read("manifest.json")
    if manifest is None:
        raise StoreError(
            f"{folder.uri} is not finished; run the same train command again, which goes on from its checkpoint"
        )
    with WriterLock(folder.uri):
        draw_run(folder, manifest)
    terminal.say(f"report: {folder.at('report.html')}")
    return 0


def draw_run(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Write the run's report.html."""
    page = training_page(manifest, read_metrics(folder.at("metrics.jsonl")))
    documents.write_bytes(folder.at("report.html"), page.encode())
