"""`endoreward label`: a corpus and a model in, a label store out.

    describe   files, model, tokens: what the run is, and its fingerprint
    plan       the shards of every input file                       (jobs.plan)
    run        read, prepare, score, commit on Ray                  (jobs.flow)
    close      manifest, report, table                              (jobs.close)

Whatever is wrong with the description or the input is said before anything is written.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from actors.scorer import ScorerSpec
from jobs import terminal
from jobs.close import Timing, close, counted
from jobs.cluster import cluster, joins_cluster, pick_device, pick_pool, warn_of_local_store
from jobs.flow import Done, Work, label_shards, open_renderer
from jobs.plan import pending, plan_inputs
from jobs.preview import estimate, show_example, show_inputs
from pipeline import storage
from pipeline.config import LabelConfig
from pipeline.corpus import find_files
from pipeline.errors import ConfigError, EndorewardError, RunError
from pipeline.models import identify_model, load_settings, resolve_dtype
from pipeline.report import to_toml
from pipeline.store import LabelStore, Record, StoredInput, WriterLock, fingerprint
from pipeline.tokens import Renderer

OVER_LENGTH = {"prompt_too_long", "too_long"}  # answers to tokens.over_length, not faults of the corpus
JUDGED_AFTER = 100  # responses before the error rate is judged


def label(config: LabelConfig, *, dry_run: bool = False, retry_errors: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError. `command` is what the manifest says was run."""
    config = _with_absolute_places(config)
    files = find_files(config.input.paths)
    store = LabelStore(config.output.path)
    if dry_run:
        config, renderer, _ = _describe(config, "cpu")
        terminal.say(to_toml(config.model_dump()))
        inputs = plan_inputs(None, files, config)
        show_inputs(inputs)
        show_example(inputs, renderer, config)
        terminal.print_table("Estimate, from a sample", estimate(inputs, renderer, config))
        return 0
    store.check_place()
    for warning in config.reward.warnings():
        terminal.warn(warning)
    with contextlib.ExitStack() as held:
        if joins_cluster(config):  # only the cluster knows its devices
            held.enter_context(cluster(config))
            warn_of_local_store(config)
        device = pick_device(config)
        config, renderer, description = _describe(config, device)
        store.check_description(description)
        inputs = plan_inputs(store, files, config)
        show_inputs(inputs)
        show_example(inputs, renderer, config)
        held.enter_context(WriterLock(store.uri))
        store.open_for_writing(description)
        for stored in inputs:
            store.add_input(stored)
        timing, notes = None, list(renderer.notes)
        work = pending(store, inputs, retry_errors)
        if work:
            store.reopen()
            terminal.say("starting Ray and loading the model ...")
            if not joins_cluster(config):
                held.enter_context(cluster(config))
            timing = _run(config, device, work, inputs, fingerprint.digest(description), notes)
        else:
            rows = sum(stored.plan.rows for stored in inputs)
            terminal.say(f"{store.uri}: all {rows:,} rows are labelled already; nothing to do")
        return close(store, config, renderer, timing, notes, command)


def _with_absolute_places(config: LabelConfig) -> LabelConfig:
    """Workers have other working directories, so every local place becomes absolute. Raises ConfigError."""
    needed = {"--model": config.model.name, "--input": config.input.paths, "--output": config.output.path}
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: none given")

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


def _describe(config: LabelConfig, device: str) -> tuple[LabelConfig, Renderer, dict[str, Any]]:
    """The configuration with a hub model pinned to the commit it resolves to now, its renderer, its description."""
    settings = load_settings(config.model)
    commit = getattr(settings, "_commit_hash", None)
    if commit and not os.path.isdir(config.model.name):
        config = config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})
    renderer = open_renderer(config)
    model = identify_model(config.model, resolve_dtype(config.model.dtype, device))
    model["max_length"] = renderer.max_length
    return config, renderer, fingerprint.describe(config, model, renderer.template, renderer.rubrics)


def _run(
    config: LabelConfig,
    device: str,
    work: list[Work],
    inputs: list[StoredInput],
    run_fingerprint: str,
    notes: list[str],
) -> Timing:
    """Label what is left, and show how it goes; adds what comes up on the way to `notes`."""
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
    rate, timing = _ErrorRate(config.run.max_error_rate), Timing()
    with terminal.LabelProgress(total, total - todo) as progress:
        for done in _explained(label_shards(work, config, run_fingerprint, spec, pool)):
            timing.add(done.record.stats.tokens, done.forwarded_tokens, done.score_seconds, done.layout)
            for note in done.notes:
                if note not in notes:
                    notes.append(note)
                    terminal.warn(note)
            progress.advance(done.record.shard.rows, done.record.stats.tokens)
            rate.add(done.record)
    return timing.stop()


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
                f"stopped: {share:.0%} of {self.responses:,} responses are in error ({counted(self.reasons)}), more "
                f"than run.max_error_rate = {self.most:g}; see errors/, what is labelled is kept"
            )


def _explained(results: Iterable[Done]) -> Iterable[Done]:
    """What a step raised, as a sentence for the operator. The run had started, so the exit code is 1."""
    from ray.exceptions import RayError

    kept = "What is committed is kept; run the same again to go on"
    try:
        yield from results
    except EndorewardError as error:
        raise RunError(f"{error}\n{kept}") from error
    except (RayError, RuntimeError) as error:
        raise RunError(
            f"the flow stopped: {_first_line(error)}\n{kept}, with --set run.verbose=true to see the workers' logs"
        ) from error


def _first_line(error: BaseException) -> str:
    """Of the innermost cause: Ray wraps what happened into what it did about it."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
