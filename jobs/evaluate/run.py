"""`endoreward evaluate`: rewards side by side on a benchmark.

describe   the benchmark, the rewards, and the label stores that these need
label      each store as `label` does: streamed, committed by shard, resumed        (jobs.label.label_run)
read       stores -> items -> figures, intervals, comparisons, bias                 (pipeline.evaluation)
write      results.json, results.md, report.html, figures/*.svg, items.parquet

OUTPUT/rewards/<store>/     a label store each; endogenous is an ordinary one
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.actor import BatchCheck
from jobs import terminal
from jobs.cluster import joins_cluster, pick_device, warn_of_local_output
from jobs.label.label_run import LabelRun, LateCluster
from jobs.label.limits import TooManyErrors
from jobs.label.places import require, with_absolute_places
from jobs.label.plan import find_inputs
from jobs.label.preview import show_inputs, show_runs
from jobs.stores.finalize import versions
from jobs.stores.inspect_store import warn_of_guesses
from pipeline import storage
from pipeline.config import EvaluateConfig, ModelConfig, RewardConfig, Unread, load_config, refuse_unread
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.base import Benchmark
from pipeline.evaluation.benchmarks.best_of_n import BestOfN
from pipeline.evaluation.benchmarks.maths import Maths
from pipeline.evaluation.documents import EvaluationRun, Results, RewardEntry
from pipeline.evaluation.results import Cost, make_results
from pipeline.evaluation.steps import step_variants
from pipeline.evaluation.stores import evaluated
from pipeline.evaluation.variants import (
    OTHER_TOKENS,
    Variant,
    check_rewards,
    labellers_of,
    policy_variant,
    sampler_of,
    variants_of,
)
from pipeline.models.loading import context_length, load_settings, load_tokenizer
from pipeline.report.evaluation import draw_evaluation
from pipeline.report.markdown import results_markdown
from pipeline.report.page import standalone_charts
from pipeline.report.toml import to_toml
from pipeline.rewards.derive import stored_reward
from pipeline.rewards.labellers import Labeller
from pipeline.storage import absolute
from pipeline.store import LabelStore, documents, places
from pipeline.store.manifest import BatchCheckEntry, InputEntry, Manifest
from pipeline.tokens import pieces, tokenizer_digest

Json = dict[str, Any]


def evaluate(config: EvaluateConfig, *, retry_errors: bool = False, command: str = "", dry_run: bool = False) -> int:
    """Run the job. Returns the exit code; raises EndorewardError.

    What can be computed is written before a reward that failed ends the run with exit code 1.

    Args:
        command: what the results say was run.
        dry_run: check everything, show what would be labelled, and write nothing.
    """
    benchmark = find_benchmark(config.evaluate.benchmark, config.best_of_n)
    benchmark.requires(config)
    refuse_unread(config, _unread(benchmark))
    if retry_errors and config.evaluate.labels:
        raise ConfigError("--retry-errors: has no effect with --labels, whose store was made already; label that again")
    if not isinstance(benchmark, Maths):
        check_rewards(config)
    require(output=config.output.path)
    idle = [] if isinstance(benchmark, Maths) else config.idle()
    config = _dated(with_absolute_places(config))
    if dry_run:
        terminal.say(to_toml(config.model_dump()))
    stopped: dict[str, str] = {}
    if config.evaluate.labels:
        config, stores = _given(config)
    else:
        stores, stopped = _filled(config, benchmark, command, retry_errors, dry_run)
    if dry_run:
        for name, store in stores.items() if config.evaluate.labels else ():
            terminal.say(f"{name}: {store.uri}, {store.progress().labels:,} labels")
        return 0
    for warning in [*idle, *config.reward.warnings()]:
        terminal.warn(warning)
    notes = [f"{name}: {note}" for name, store in stores.items() if (note := _unfinished(store))]
    variants = [policy_variant(config)] if isinstance(benchmark, Maths) else _variants(config, stores, benchmark)
    failed = {v.name: why for v in variants for name, why in stopped.items() if name in v.stores}
    variants = [variant for variant in variants if variant.name not in failed]
    evaluations = evaluated(stores, variants, benchmark)
    costs = [_cost([stores[name] for name in variant.stores]) for variant in variants]
    made = _provenance(stores, command)
    results, items = make_results(evaluations, costs, failed, benchmark, config, notes=notes, **made)
    _claim(config, [stored.file.name for stored in next(iter(stores.values())).inputs()])
    _write(config, results, items)
    if results.failed:
        raise RunError("\n".join(f"{name}: {why}" for name, why in results.failed.items()))
    return 0


def _unread(benchmark: Benchmark) -> Unread:
    """What this benchmark has no use for."""
    if isinstance(benchmark, Maths):
        yield "reward", f"on {benchmark.name}, which checks answers; leave it out"
        yield "evaluate.picture_control", f"on {benchmark.name}, which asks a policy; leave it out"
    else:
        yield "answers", f"on {benchmark.name}, which asks no policy; leave it out"
    if not isinstance(benchmark, BestOfN):
        yield "best_of_n", f"on {benchmark.name}; leave it out, or give --benchmark best-of-n"


def _given(config: EvaluateConfig) -> tuple[EvaluateConfig, dict[str, LabelStore]]:
    """The label store of --labels, and the configuration with its model and, but for what was set, its reward.

    Raises StoreError where there is none, or nothing in it.
    """
    if config.input.paths:
        raise ConfigError("--labels and --input: give one, a label store has its input in it")
    store = LabelStore(absolute(config.evaluate.labels or ""))
    if not store.progress().labels:
        raise StoreError(f"{store.uri} holds no labels yet")
    warn_of_guesses(store)
    _run_of(config, [stored.file.name for stored in store.inputs()])
    wanted = stored_reward(store.description()).model_dump() | config.reward.model_dump(
        include=config.reward.model_fields_set
    )
    manifest = Manifest.find(store)
    read = {
        "reward": load_config(None, [(f"reward.{name}", value) for name, value in wanted.items()], []).reward,
        "model": ModelConfig(**(manifest.config.get("model", {}) if manifest else {})),
    }
    return config.model_copy(update=read), {"endogenous": store}


def _unfinished(store: LabelStore) -> str | None:
    """A sentence where only a part of a store can be evaluated."""
    progress = store.progress()
    if progress.complete:
        return None
    note = (
        f"{progress.rows - progress.done_rows:,} of {progress.rows:,} input rows are not labelled yet and are no part of "
        "these figures"
    )
    terminal.warn(f"{store.uri}: {note}")
    return note


def _filled(
    config: EvaluateConfig, benchmark: Benchmark, command: str, retry_errors: bool, dry_run: bool
) -> tuple[dict[str, LabelStore], dict[str, str]]:
    """Fill the label stores that the rewards need; all are checked and planned before the first is begun.

    Returns the stores, and why some were stopped: too many errors of one reward do not cost the others their figures.
    """
    paths = config.input.paths or ([benchmark.source] if benchmark.source else [])
    require(input=paths)
    files = find_inputs(config.input.model_copy(update={"paths": paths}), config.output.path, benchmark)
    names = [file.name for file in files]
    _run_of(config, names)
    labellers = sampler_of(config, benchmark) if isinstance(benchmark, Maths) else labellers_of(config)
    with contextlib.ExitStack() as stack:
        ray = LateCluster(config, stack)
        if joins_cluster(config.run):
            ray.open()
            warn_of_local_output(config.output.path)
        device = pick_device(config)
        runs = {
            name: LabelRun.open(labeller, _store_uri(config, name), device, files, benchmark.shape)
            for name, labeller in labellers.items()
        }
        _check_reference(labellers)
        if config.evaluate.picture_control:
            _require_pictures(next(iter(runs.values())))
        show_inputs(next(iter(runs.values())).inputs)
        if dry_run:
            show_runs(runs, retry_errors)
            return {}, {}
        _claim(config, names)
        stopped = {}
        for name, run in runs.items():
            try:
                run.complete(ray, command, retry_errors=retry_errors, quiet=True)
            except TooManyErrors as error:
                terminal.warn(str(error))
                stopped[name] = str(error)
        return {name: run.store for name, run in runs.items()}, stopped


def _require_pictures(run: LabelRun) -> None:
    """Raises ConfigError where there is nothing for the control of pictures to replace."""
    if not any(stored.shape.pictured for stored in run.inputs):
        raise ConfigError("evaluate.picture_control: no prompt of the input has a picture; leave it out")


def _check_reference(labellers: Mapping[str, Labeller]) -> None:
    """Raises ConfigError, before anything is scored, where the reference of `implicit` cannot read the model's tokens."""
    if "reference" not in labellers:
        return
    own, reference = labellers["endogenous"].renderer, labellers["reference"].model
    tokenizer = load_tokenizer(reference)
    if own.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"implicit.reference: {OTHER_TOKENS}")
    context = context_length(load_settings(reference), tokenizer)
    if context < own.max_length:
        raise ConfigError(
            f"implicit.reference takes {context} tokens, fewer than the model: give --set tokens.max_length={context}"
        )


def _store_uri(config: EvaluateConfig, name: str) -> str:
    return storage.join(config.output.path, "rewards", name)


def _place(config: EvaluateConfig) -> str:
    return storage.join(config.output.path, *places.EVALUATION.document)


def _run_of(config: EvaluateConfig, inputs: list[str]) -> EvaluationRun:
    """What this evaluation is. Raises StoreError where the output directory is another's; writes nothing."""
    output = config.output.path
    run = EvaluationRun(
        benchmark=config.evaluate.benchmark,
        inputs=sorted(inputs),
        labels=absolute(config.evaluate.labels) if config.evaluate.labels else None,
        date=config.tokens.date,
    )
    if places.check(output, places.EVALUATION) and (lines := EvaluationRun.read(_place(config)).differences(run)):
        differing = "\n  ".join(lines)
        raise StoreError(f"{output} holds another evaluation; give another --output. What differs:\n  {differing}")
    return run


def _claim(config: EvaluateConfig, inputs: list[str]) -> None:
    """Make the output directory this evaluation's. Raises StoreError where it is another's."""
    _run_of(config, inputs).write(_place(config))


def _dated(config: EvaluateConfig) -> EvaluateConfig:
    """One date for all rewards: that of the evaluation that is there, else today's."""
    began = places.check(config.output.path, places.EVALUATION)
    date = EvaluationRun.read(_place(config)).date if began else None
    return config.model_copy(update={"tokens": config.tokens.dated(date)})


def _variants(config: EvaluateConfig, stores: Mapping[str, LabelStore], benchmark: Benchmark) -> list[Variant]:
    stored: RewardConfig = config.reward
    if "endogenous" in stores:
        description = stores["endogenous"].description()
        stored = stored_reward(description)
        if "answer-confidence" in config.evaluate.rewards:
            _check_tokenizer(config, description)
    if benchmark.by_step:
        return step_variants(config, stored, pieces(load_tokenizer(config.model)))
    return variants_of(config, stored)


def _check_tokenizer(config: EvaluateConfig, description: Mapping[str, Any]) -> None:
    """Raises ConfigError where the model's tokenizer is not the one whose tokens a store holds."""
    if tokenizer_digest(load_tokenizer(config.model)) != description.get("model.tokenizer"):
        raise ConfigError(
            f"--reward answer-confidence: {config.model.name} has not the tokenizer that made the tokens of the store; put "
            "that back, or label anew"
        )


def _cost(stores: Sequence[LabelStore]) -> Cost:
    """The stores' manifests together. A resumed run timed only its own part, and is scaled to all labels."""
    manifests = [Manifest.find(store) for store in stores]
    timed = [(manifest, manifest.timing) for manifest in manifests if manifest and manifest.timing]
    seconds = forwarded = None
    if len(timed) == len(stores) and all(timing.response_tokens for _, timing in timed):
        shares = [manifest.summary.tokens.response / timing.response_tokens for manifest, timing in timed]
        seconds = sum(timing.score_seconds * share for (_, timing), share in zip(timed, shares, strict=True))
        forwarded = round(sum(t.forwarded_tokens * share for (_, t), share in zip(timed, shares, strict=True)))
    checks = [BatchCheck(c.responses, c.worst, c.moved) for _, timing in timed if (c := timing.batch_check)]
    first = manifests[0]
    return Cost(
        model=first.config.get("model", {}).get("name", "") if first else "",
        notes=list(dict.fromkeys(note for manifest in manifests if manifest for note in manifest.notes)),
        seconds=seconds,
        forwarded_tokens=forwarded,
        batch_check=BatchCheckEntry(**asdict(sum(checks, BatchCheck()))) if checks else None,
    )


def _provenance(stores: Mapping[str, LabelStore], command: str) -> Json:
    return {
        "fingerprints": {name: store.fingerprint() for name, store in stores.items()},
        "inputs": [InputEntry.of(stored) for stored in next(iter(stores.values())).inputs()],
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _write(config: EvaluateConfig, results: Results, items: pa.Table) -> None:
    output = config.output.path
    buffer = pa.BufferOutputStream()
    pq.write_table(items, buffer, compression="zstd")
    # what was computed before what is drawn of it
    documents.write_bytes(storage.join(output, "items.parquet"), buffer.getvalue().to_pybytes())
    results.write_plain(storage.join(output, "results.json"))
    documents.write_bytes(storage.join(output, "results.md"), results_markdown(results).encode())
    _write_page(output, draw_evaluation(results))
    first = results.rewards[0]
    names = list(first.values)
    counts = ["items", "incomplete", "truncated", *(["ties"] if first.comparisons else [])]
    terminal.print_grid(
        f"{results.benchmark}: {output}",
        ["reward", *names, *counts],
        [
            [entry.name, *(_with_interval(entry, name) for name in names), *(_count(entry, name) for name in counts)]
            for entry in results.rewards
        ],
    )
    for note in first.notes:
        terminal.warn(note)
    terminal.say(f"report: {storage.join(output, 'report.html')}")


def _write_page(output: str, page: str) -> None:
    """report.html, and its charts as files; those of the page that was there, which tells their names, go before it does."""
    uri, charts = storage.join(output, "report.html"), standalone_charts(page)
    earlier = standalone_charts(storage.read_bytes(uri).decode(errors="replace")) if storage.exists(uri) else {}
    for name in earlier.keys() - charts.keys():
        documents.remove(storage.join(output, "figures", name))
    for name, chart in charts.items():
        documents.write_bytes(storage.join(output, "figures", name), chart.encode())
    documents.write_bytes(uri, page.encode())


def _count(entry: RewardEntry, name: str) -> str:
    return f"{entry.incomplete.items if name == 'incomplete' else getattr(entry, name):,}"


def _with_interval(entry: RewardEntry, name: str) -> str:
    value = entry.values.get(name)
    if value is None:
        return ""
    ends = entry.intervals.get(name)
    return f"{value:.1%}" + (f" ({ends[0]:.1%} to {ends[1]:.1%})" if ends else "")
