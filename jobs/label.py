"""`endoreward label`: a corpus and a model in, a label store out.

describe   files, model, tokens: what the run is, and its fingerprint
plan       shards of every input file, kept in the store
flow       read, prepare, score, commit (jobs.flow)
close      manifest, report, table
"""

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs import terminal
from jobs.cluster import cluster, joins_cluster, pick_device, pick_pool
from jobs.flow import Done, Work, label_shards, open_renderer
from jobs.preview import estimate, show_example
from pipeline import __version__, storage
from pipeline.config import LabelConfig
from pipeline.corpus import InputFile, detect, find_files, plan_file, read_together
from pipeline.errors import ConfigError, InputError, RunError, StoreError
from pipeline.models import identify_model, load_settings, resolve_dtype
from pipeline.report import draw_report
from pipeline.store import LabelStore, Record, StoredInput, WriterLock, documents, fingerprint, shard_name
from pipeline.summary import ShardStats, merge, summary_rows
from pipeline.tokens import Renderer, pieces

OVER_LENGTH = {"prompt_too_long", "too_long"}  # answers to tokens.over_length, not faults of the corpus
JUDGED_AFTER = 500  # responses before the error rate is judged
REPORT_ROWS = 5000


def label(config: LabelConfig, *, dry_run: bool = False, retry_errors: bool = False) -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    config = _with_absolute_places(config)
    files = find_files(config.input.paths)
    store = LabelStore(config.output.path)
    if not dry_run:
        store.check_place()
    for warning in config.reward.warnings():
        terminal.warn(warning)
    if joins_cluster(config) and config.scorer.device == "auto" and not dry_run:
        with cluster(config):  # only the cluster knows which device it has
            return _label(config, files, store, connected=True, retry_errors=retry_errors)
    if dry_run:
        return _dry_run(config, files, store)
    return _label(config, files, store, connected=False, retry_errors=retry_errors)


def _label(
    config: LabelConfig, files: list[InputFile], store: LabelStore, *, connected: bool, retry_errors: bool
) -> int:
    device = pick_device(config)
    renderer, description = _describe(config, device)
    with WriterLock(store.uri):
        run_fingerprint = store.open_for_writing(description)
        inputs = _plan(store, files, config)
        _show_inputs(inputs)
        for stored in inputs:
            if show_example(stored, renderer, config):
                break
        work = _pending(store, inputs, retry_errors)
        if not work:
            terminal.say(
                f"{store.uri}: all {sum(i.plan.rows for i in inputs):,} rows are labelled already; nothing to do"
            )
            return _close(store, config, run_fingerprint, renderer, None)
        terminal.say("starting Ray and loading the model ...")
        if connected:
            timing = _run(config, device, store, work, inputs, run_fingerprint)
        else:
            with cluster(config):
                timing = _run(config, device, store, work, inputs, run_fingerprint)
        return _close(store, config, run_fingerprint, renderer, timing)


# describe


def _with_absolute_places(config: LabelConfig) -> LabelConfig:
    """Workers have other working directories, so every local place becomes absolute. Raises ConfigError."""
    missing = [f"{what}: none given" for what, value in (
        ("--model", config.model.name), ("--input", config.input.paths), ("--output", config.output.path)
    ) if not value]  # fmt: skip
    if missing:
        raise ConfigError("; ".join(missing))

    def absolute(place: str) -> str:
        return os.path.abspath(place.removeprefix("file://")) if storage.is_local(place) else place

    model, tokens = config.model.name, config.tokens
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": absolute(model) if os.path.isdir(model) else model}),
            "output": config.output.model_copy(update={"path": absolute(config.output.path)}),
            "tokens": tokens.model_copy(
                update={
                    "rubrics": absolute(tokens.rubrics) if tokens.rubrics else None,
                    "template": tokens.template if tokens.template in ("auto", "none") else absolute(tokens.template),
                }
            ),
        }
    )


def _describe(config: LabelConfig, device: str) -> tuple[Renderer, dict[str, Any]]:
    renderer = open_renderer(config)
    dtype = resolve_dtype(config.model.dtype, device)
    model = identify_model(config.model, load_settings(config.model), dtype)
    model["max_length"] = renderer.max_length
    return renderer, fingerprint.describe(config, model, renderer.template, renderer.rubrics)


# plan


def _plan(store: LabelStore, files: Iterable[InputFile], config: LabelConfig) -> list[StoredInput]:
    """The shards of every file: from the store where the file is known and untouched, else by reading it once."""
    planned = []
    for file in files:
        stored = store.find_input(file.name)
        if stored is not None and file.stamp and (stored.file.size, stored.file.stamp) == (file.size, file.stamp):
            planned.append(StoredInput(file, stored.shape, stored.plan))
            continue
        plan = plan_file(file, config.input.format, config.input.shard_rows)
        if stored is not None:
            if stored.plan.digest != plan.digest:
                raise StoreError(
                    f"{file.uri}: its content changed since {store.uri} labelled it; restore it, or label the new content "
                    "into another --output"
                )
            plan = stored.plan
        if plan.rows == 0:
            terminal.warn(f"{file.uri} is empty")
            continue
        shape = stored.shape if stored is not None else detect(list(plan.head), config.input, file.name)
        planned.append(StoredInput(file, shape, plan))
        store.add_input(planned[-1])
    if not planned:
        raise InputError("the input holds no rows: every file is empty")
    return planned


def _pending(store: LabelStore, inputs: Iterable[StoredInput], retry_errors: bool) -> list[Work]:
    """Shards that are not done, and with `retry_errors` those with error rows; by the bytes that one task reads."""
    done = store.done()
    again: dict[str, Record] = {}
    if retry_errors:
        again = {shard_name(record.shard): record for record in store.records() if record.errors.rows}
    work = []
    for stored in inputs:
        shards = [s for s in stored.plan.shards if (name := shard_name(s)) not in done or name in again]
        for together in read_together(shards):
            generations = [again[n].generation + 1 if (n := shard_name(s)) in again else 0 for s in together]
            work.append(Work(stored.file, stored.shape, together, generations))
    return work


def _show_inputs(inputs: list[StoredInput]) -> None:
    for stored in inputs[:10]:
        terminal.say(f"input {stored.file.name}: {stored.plan.rows:,} rows of {stored.shape.describe()}")
    if len(inputs) > 10:
        terminal.say(f"... and {len(inputs) - 10} more files, {sum(i.plan.rows for i in inputs):,} rows in all")


# run


@dataclass(frozen=True)
class _Timing:
    seconds: float
    tokens: int
    forwarded_tokens: int
    score_seconds: float
    layout: str


def _run(
    config: LabelConfig,
    device: str,
    store: LabelStore,
    work: list[Work],
    inputs: list[StoredInput],
    run_fingerprint: str,
) -> _Timing:
    from actors.scorer import ScorerSpec

    pool = pick_pool(config, device)
    spec = ScorerSpec(
        model=config.model,
        device=device,
        gpus=pool.gpus,
        threads=pool.cpus,
        alpha=config.reward.alpha,
        budget_tokens=config.scorer.budget_tokens,
        head_chunk_mb=config.scorer.head_chunk_mb,
    )
    total = sum(stored.plan.rows for stored in inputs)
    todo = sum(shard.rows for each in work for shard in each.shards)
    rate, said = _ErrorRate(config.run.max_error_rate), set[str]()
    tokens = forwarded = 0
    score_seconds, layout = 0.0, ""
    with terminal.LabelProgress(total, total - todo) as progress:
        for done in _explained(label_shards(work, config, run_fingerprint, spec, pool)):
            scored_tokens = done.record.stats.tokens
            tokens += scored_tokens
            forwarded += done.forwarded_tokens
            score_seconds += done.score_seconds
            layout = done.layout or layout
            for note in done.notes:
                if note not in said:
                    said.add(note)
                    terminal.warn(note)
            progress.advance(done.record.shard.rows, scored_tokens)
            rate.add(done.record)
        return _Timing(progress.seconds, tokens, forwarded, score_seconds, layout)


class _ErrorRate:
    """Stops a run that mostly makes error rows."""

    def __init__(self, most: float):
        self.most, self.responses, self.reasons = most, 0, Counter[str]()

    def add(self, record: Record) -> None:
        self.responses += record.labels.rows + record.errors.rows
        self.reasons.update({r: n for r, n in record.reasons.items() if r not in OVER_LENGTH})
        share = self.reasons.total() / max(1, self.responses)
        if self.responses >= JUDGED_AFTER and share > self.most:
            raise RunError(
                f"stopped: {share:.0%} of {self.responses:,} responses are in error ({_counted(self.reasons)}), more than "
                f"run.max_error_rate = {self.most:g}; see errors/, what is labelled is kept"
            )


def _explained(results: Iterable[Done]) -> Iterable[Done]:
    """Ray's errors as a sentence for the operator."""
    from ray.exceptions import RayError

    try:
        yield from results
    except RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()
        raise RunError(
            f"the flow stopped: {cause[-1] if cause else type(error).__name__}\nWhat is committed is kept; run the same "
            "again to go on, with --set run.verbose=true to see the workers' logs"
        ) from error


# close


def _close(
    store: LabelStore, config: LabelConfig, run_fingerprint: str, renderer: Renderer, timing: _Timing | None
) -> int:
    """Write manifest and report, show the table. A run that did nothing keeps the store's manifest as it is."""
    manifest_uri, report_uri = store.at("manifest.json"), store.at("report.html")
    if timing is None and storage.exists(manifest_uri) and storage.exists(report_uri):
        return 0
    records = list(store.records())
    manifest = _manifest(store, config, run_fingerprint, records, timing, renderer.notes)
    documents.write_bytes(manifest_uri, documents.readable(manifest))
    sample = store.sample(REPORT_ROWS)
    if sample is not None:
        documents.write_bytes(report_uri, draw_report(manifest, sample, pieces(renderer.tokenizer)).encode())
    errors = Counter(manifest["errors"])
    rows = [
        *summary_rows(manifest["summary"]),
        ("errors", f"{errors.total():,}" + (f" ({_counted(errors)})" if errors else "")),
    ]
    if timing is not None:
        rows.append(("speed", f"{timing.tokens / timing.seconds:,.0f} response tokens/s, {timing.seconds:,.1f} s"))
    terminal.print_table(f"{store.uri}", rows)
    if sample is None:
        raise RunError(f"not one response could be labelled ({_counted(errors)}); see {store.at('errors')}")
    terminal.say(f"report: {report_uri}")
    return 0


def _manifest(
    store: LabelStore,
    config: LabelConfig,
    run_fingerprint: str,
    records: list[Record],
    timing: _Timing | None,
    notes: list[str],
) -> dict[str, Any]:
    stats: ShardStats = merge(record.stats for record in records)
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(record.reasons)
    inputs = store.inputs()
    labels = sum(record.labels.rows for record in records)
    return {
        "fingerprint": run_fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(exclude={"run"}),
        "inputs": [
            {"name": i.file.name, "uri": i.file.uri, "rows": i.plan.rows, "sha256": i.plan.digest, "shape": i.shape.describe()}
            for i in inputs
        ],
        "counts": {
            "rows": sum(i.plan.rows for i in inputs),
            "responses": labels + errors.total(),
            "labels": labels,
            "errors": errors.total(),
            "shards": len(records),
        },
        "errors": dict(errors.most_common()),
        "summary": stats.summary(),
        "notes": notes,
        "timing": None if timing is None else {
            "seconds": round(timing.seconds, 3),
            "score_seconds": round(timing.score_seconds, 3),
            "tokens_per_second": round(timing.tokens / timing.seconds, 1),
            "response_tokens": timing.tokens,
            "forwarded_tokens": timing.forwarded_tokens,
            "layout": timing.layout,
        },
        "versions": {"endoreward": __version__, **{n: version(n) for n in ("ray", "torch", "transformers", "pyarrow")}},
    }  # fmt: skip


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())


# dry run


def _dry_run(config: LabelConfig, files: list[InputFile], store: LabelStore) -> int:
    """Everything but the labels: configuration, shapes, one rendered example, and how much work it is."""
    started = time.perf_counter()
    renderer, _ = _describe(config, "cpu")
    terminal.say(documents.readable(config.model_dump()).decode())
    inputs = []
    for file in files:
        plan = plan_file(file, config.input.format, config.input.shard_rows)
        if plan.rows:
            inputs.append(StoredInput(file, detect(list(plan.head), config.input, file.name), plan))
        else:
            terminal.warn(f"{file.uri} is empty")
    if not inputs:
        raise InputError("the input holds no rows: every file is empty")
    _show_inputs(inputs)
    for stored in inputs:
        if show_example(stored, renderer, config):
            break
    terminal.print_table("estimate, from a sample", estimate(inputs, renderer, config))
    terminal.say(f"nothing was written to {store.uri} ({time.perf_counter() - started:.1f} s)")
    return 0
