"""The end of a run: the manifest, the report and the table, all from the store's records."""

import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs import terminal
from jobs.inspect_store import error_rows
from pipeline import __version__, storage
from pipeline.config import LabelConfig
from pipeline.errors import RunError
from pipeline.report import draw_report
from pipeline.store import LabelStore, Record, documents
from pipeline.summary import merge, summary_rows
from pipeline.tokens import Renderer, pieces

REPORT_ROWS = 5000


class Timing:
    """What a run cost; `seconds` is everything from starting Ray on, the scores' seconds are those of all actors."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = self.score_seconds = 0.0
        self.response_tokens = self.forwarded_tokens = 0
        self.layout = ""

    def add(self, response_tokens: int, forwarded_tokens: int, score_seconds: float, layout: str) -> None:
        self.response_tokens += response_tokens
        self.forwarded_tokens += forwarded_tokens
        self.score_seconds += score_seconds
        self.layout = layout or self.layout

    def stop(self) -> "Timing":
        self.seconds = time.perf_counter() - self.started
        return self

    @property
    def scoring_rate(self) -> float:
        """Response tokens per second of one actor, its model loaded."""
        return self.response_tokens / max(self.score_seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "score_seconds": round(self.score_seconds, 3),
            "tokens_per_second": round(self.response_tokens / self.seconds, 1),
            "tokens_per_second_scoring": round(self.scoring_rate, 1),
            "response_tokens": self.response_tokens,
            "forwarded_tokens": self.forwarded_tokens,
            "layout": self.layout,
        }


def close(
    store: LabelStore, config: LabelConfig, renderer: Renderer, timing: Timing | None, notes: list[str], command: str
) -> int:
    """Write manifest and report, show the table. A run that found nothing to do leaves a closed store as it is.

    Returns the exit code. Raises RunError where not one response could be labelled.
    """
    manifest_uri, report_uri = store.at("manifest.json"), store.at("report.html")
    if timing is None and storage.exists(manifest_uri) and storage.exists(report_uri):
        return 0
    manifest = make_manifest(store, config, timing, notes, command)
    documents.write_bytes(manifest_uri, documents.readable(manifest))
    sample = store.sample(REPORT_ROWS)
    if sample is not None:
        documents.write_bytes(report_uri, draw_report(manifest, sample, pieces(renderer.tokenizer)).encode())
    errors = Counter(manifest["errors"])
    rows = [*summary_rows(manifest["summary"]), *error_rows(errors)]
    if timing is not None:
        rows.append(("Speed", f"{timing.scoring_rate:,.0f} tokens/s an actor, {timing.seconds:,.1f} s in all"))
    terminal.print_table(store.uri, rows)
    if sample is None:
        raise RunError(f"not one response could be labelled ({counted(errors)}); see {store.at('errors')}")
    terminal.say(f"report: {report_uri}")
    return 0


def make_manifest(
    store: LabelStore, config: LabelConfig, timing: Timing | None, notes: list[str], command: str
) -> dict[str, Any]:
    """What a finished run says of the whole store; see docs/store.md."""
    records: list[Record] = list(store.records())
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(record.reasons)
    inputs = [
        {
            "name": stored.file.name,
            "uri": stored.file.uri,
            "rows": stored.plan.rows,
            "sha256": stored.plan.digest,
            "shape": stored.shape.describe(),
        }
        for stored in store.inputs()
    ]
    labels = sum(record.labels.rows for record in records)
    return {
        "fingerprint": store.fingerprint(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": config.model_dump(exclude={"run"}),
        "inputs": inputs,
        "counts": {
            "rows": sum(stored["rows"] for stored in inputs),
            "responses": labels + errors.total(),
            "labels": labels,
            "errors": errors.total(),
            "shards": len(records),
        },
        "errors": dict(errors.most_common()),
        "summary": merge(record.stats for record in records).summary(),
        "notes": notes,
        "timing": timing.to_json() if timing is not None else None,
        "versions": {"endoreward": __version__, **{n: version(n) for n in ("ray", "torch", "transformers", "pyarrow")}},
    }


def counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
