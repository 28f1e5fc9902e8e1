"""`endoreward train`: label stores and a policy in, a trained policy out.

examples    which pairs or groups the stores hold               pipeline.training.examples
check       rows, policy, DeepSpeed's configuration, OUTPUT     nothing is written before
reference   log-probabilities that the labels do not hold       jobs.reference
learn       Ray Train runs the workers                          jobs.learn
close       manifest, model card, report, table
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actors.scorer import ScorerSpec
from jobs import terminal
from jobs.close import versions
from jobs.cluster import cluster, joins_cluster, warn_of_local_output
from jobs.fill import absolute, require
from jobs.inspect_run import draw_run
from jobs.learn import Training, learn
from jobs.reference import compute_references
from jobs.trainer import absolute_model, learner_versions, pick_workers, run_workers, warn_of_room
from pipeline.models import load_settings, resolve_dtype
from pipeline.objectives import objective_of
from pipeline.objectives.preference import beta_of
from pipeline.store import WriterLock, documents, fingerprint
from pipeline.training.card import model_card, shareable_config
from pipeline.training.config import TrainConfig
from pipeline.training.deepspeed import deepspeed_config, read_deepspeed
from pipeline.training.examples import Examples, find_examples
from pipeline.training.metrics import check_tracking, ends, read_metrics
from pipeline.training.order import Order
from pipeline.training.rows import RowReader, check_rows, stored_reference
from pipeline.training.run import STOPPED, RunFolder, describe
from pipeline.training.schedule import base_rate


@dataclass(frozen=True)
class Plan:
    """A run that is described and checked, and of which nothing is written yet."""

    config: TrainConfig
    device: str
    workers: int
    dtype: str
    deepspeed: str | None
    found: Examples
    examples: Examples  # of these, to learn from
    held_out: Examples  # and to measure on
    steps: int
    rate: float
    stored_reference: bool  # the labels hold the reference's log-probabilities
    policy_labelled: bool  # the policy, as it was before training, made them
    notes: list[str]
    description: dict[str, Any]


def train(config: TrainConfig, *, dry_run: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    require(labels=config.train.labels, policy=config.policy.name, output=config.output.path)
    config = _with_absolute_places(config)
    check_tracking(config.tracking)
    with contextlib.ExitStack() as held:
        if joins_cluster(config.run):  # only the cluster knows its devices
            held.enter_context(cluster(config.run))
            warn_of_local_output(config.output.path)
        plan = _plan(config)
        folder = RunFolder(config.output.path)
        folder.check(plan.description)
        _show(plan)
        if folder.read("manifest.json") is not None:
            terminal.say(f"{folder.uri}: all {plan.steps:,} steps are done already; the policy is {folder.at('hf')}")
            return 0
        if dry_run:
            return 0
        with WriterLock(folder.uri):
            folder.mend()
            run = _begin(folder, plan, command)
            if not joins_cluster(config.run):
                terminal.say("starting Ray ...")
                held.enter_context(cluster(config.run))
            cpus, gpus = plan.workers * config.learner.cpus_per_worker, plan.workers if plan.device == "cuda" else 0
            warn_of_room(f"{plan.workers} workers", cpus, gpus, "learner.workers")
            started = time.perf_counter()
            _learn(folder, plan, run)
            _close(folder, run, time.perf_counter() - started)
    return 0


# Before


def _plan(config: TrainConfig) -> Plan:
    """Raises ConfigError and StoreError for all that can be known before a worker starts."""
    device, workers = pick_workers(config)
    dtype = resolve_dtype(config.learner.dtype, device)
    deepspeed = read_deepspeed(config)
    deepspeed_config(config, dtype, deepspeed)
    settings = load_settings(config.policy)
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, config.policy, config.train.shuffle_parts)
    check_rows(reader, examples)
    config = _settled(config, examples)
    learned, held_out = examples.split(config.train.eval_share)
    order = Order(learned.part, config.train.batch_size, config.train.seed, config.train.shuffle_parts)
    reference = config.reference if config.reference.name else config.policy
    stored, notes = stored_reference(examples.sources, reference, dtype)
    if config.reference.name and not stored:
        check_rows(RowReader(examples.sources, examples.parts, config.reference, 1), examples)
    labelled, _ = stored_reference(examples.sources, config.policy, dtype)
    return Plan(
        config=config,
        device=device,
        workers=workers,
        dtype=dtype,
        deepspeed=deepspeed,
        found=examples,
        examples=learned,
        held_out=held_out,
        steps=config.train.max_steps or order.steps(config.train.epochs),
        rate=base_rate(config.train, settings.get_text_config().hidden_size, bool(config.lora.rank)),
        stored_reference=stored,
        policy_labelled=labelled,
        notes=notes + ([] if labelled else _behaviour_notes(config)),
        description=describe(config, examples.describe(), dtype, device, workers, deepspeed),
    )


def _settled(config: TrainConfig, examples: Examples) -> TrainConfig:
    """With what was left open: where no preference is known pairs are by reward, and beta follows from that."""
    if not examples.counts.pairs.known:
        config = config.model_copy(update={"pairs": config.pairs.model_copy(update={"preference": "reward"})})
    settled = {name: getattr(config, name) for name in ("dpo", "ipo")}
    return config.model_copy(
        update={name: told.model_copy(update={"beta": beta_of(told.beta, config)}) for name, told in settled.items()}
    )


def _behaviour_notes(config: TrainConfig) -> list[str]:
    if not objective_of(config).uses_behaviour:
        return []
    return [
        f"{config.train.objective} takes the model that labelled for the one that wrote the responses, and it is not the "
        "policy: where another wrote them, the importance ratios are wrong; awr needs none"
    ]


def _with_absolute_places(config: TrainConfig) -> TrainConfig:
    """Workers have other working directories, so every local place becomes absolute."""
    train, learner = config.train, config.learner
    return config.model_copy(
        update={
            "train": train.model_copy(update={"labels": [absolute(place) for place in train.labels]}),
            "policy": absolute_model(config.policy),
            "reference": absolute_model(config.reference),
            "output": config.output.model_copy(update={"path": absolute(config.output.path)}),
            "learner": learner.model_copy(update={"deepspeed": learner.deepspeed and absolute(learner.deepspeed)}),
        }
    )


def _show(plan: Plan) -> None:
    config = plan.config
    rows = [
        ("Objective", config.train.objective),
        *plan.examples.counts.rows(),
        ("Examples to learn from", f"{len(plan.examples):,}"),
        *([("Examples to measure on", f"{len(plan.held_out):,}")] if len(plan.held_out) else []),
        ("Steps", f"{plan.steps:,} of {config.train.batch_size:,} examples"),
        ("Learning rate", f"{plan.rate:.2g}, {config.train.schedule}"),
        ("Reference", _reference_of(plan)),
        ("Workers", f"{plan.workers} ({plan.device}, {plan.dtype}, ZeRO-{config.learner.zero_stage})"),
    ]
    terminal.print_table(f"Train {config.policy.name}", rows)
    for note in plan.notes:
        terminal.warn(note)


def _reference_of(plan: Plan) -> str:
    if plan.stored_reference:
        return "log-probabilities of the labels"
    return "computed before the first step" if objective_of(plan.config).uses_reference else "none"


# The run


def _begin(folder: RunFolder, plan: Plan, command: str) -> dict[str, Any]:
    """What the run says of itself, as documents and the page want it; kept from its beginning on."""
    found = folder.read("run.json")
    if found is None or found["description"] != plan.description:  # without a checkpoint, it is as if it had not been
        config = plan.config
        found = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "config": config.model_dump(mode="json"),
            "description": plan.description,
            "fingerprint": fingerprint.digest(plan.description),
            "objective": config.train.objective,
            "policy": {"name": config.policy.name, "revision": config.policy.revision},
            "labels": [
                {
                    "path": source.uri,
                    "fingerprint": source.fingerprint,
                    "reward": _reward_of(source.description),
                    "model": source.description.get("model.name"),
                }
                for source in plan.examples.sources
            ],
            "examples": [list(row) for row in plan.examples.counts.rows()]
            + [["Examples to learn from", f"{len(plan.examples):,}"]],
            "steps": plan.steps,
            "device": f"{plan.workers} x {plan.device}, {plan.dtype}",
            "notes": plan.notes,
        }
        documents.write(folder.at("run.json"), found)
    documents.remove(folder.at(STOPPED))
    return found


def _reward_of(description: dict[str, Any]) -> dict[str, Any]:
    """What the labels' rewards are: the endogenous one's settings, or the name of another kind."""
    told = {name: value for name, value in description.items() if name.startswith("reward.")}
    if "labeller" in description:
        return {"kind": description["labeller"]}
    return {name.removeprefix("reward."): value for name, value in told.items()}


def _learn(folder: RunFolder, plan: Plan, run: dict[str, Any]) -> None:
    """Raises RunError where the run cannot go on."""
    import ray

    config = plan.config
    told = Training(
        config=config,
        device=plan.device,
        deepspeed=plan.deepspeed,
        output=folder.uri,
        steps=plan.steps,
        rate=plan.rate,
        stored_reference=plan.stored_reference,
        policy_labelled=plan.policy_labelled,
        reference=_computed_reference(folder, plan),
        run={"created": run["created"], "objective": run["objective"], "config": shareable_config(run)},
        examples=ray.put((plan.examples, plan.held_out)),
    )
    run_workers(learn, told, config, folder, plan.device, plan.workers, plan.steps)


def _computed_reference(folder: RunFolder, plan: Plan) -> str | None:
    """Where the reference's log-probabilities are, once they are; None where the labels hold them or none are asked for."""
    config = plan.config
    if plan.stored_reference or not objective_of(config).uses_reference:
        return None
    reference = config.reference if config.reference.name else config.policy
    spec = ScorerSpec(
        model=reference.model_copy(update={"dtype": plan.dtype}),
        device=plan.device,
        gpus=int(plan.device == "cuda"),
        threads=config.learner.cpus_per_worker,
        budget_tokens=config.learner.budget_tokens,
        check_responses=0,
        head_chunk_mb=config.learner.head_chunk_mb,
    )
    return compute_references(folder, spec, config.policy, plan.found, plan.workers, config.learner.max_failures)


# After


def _close(folder: RunFolder, run: dict[str, Any], seconds: float) -> None:
    metrics = read_metrics(folder.at("metrics.jsonl"))
    last = metrics[-1]
    manifest = {
        **run,
        "seconds": round(seconds, 3),
        "tokens": last["num_tokens"],
        "last": last,
        "versions": {**versions(), **learner_versions()},
    }
    documents.write_bytes(folder.at("hf", "README.md"), model_card(manifest, metrics).encode())
    draw_run(folder, manifest)
    documents.create(folder.at("manifest.json"), manifest)
    terminal.print_table(
        "Trained", [*_figures(metrics), ("Policy", folder.at("hf")), ("Report", folder.at("report.html"))]
    )


SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "reward", "kl", "eval_loss", "eval_rewards/accuracies")


def _figures(metrics: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for name in SHOWN:
        found = ends(metrics, name)
        if found is not None:
            yield name, f"{found[0]:.4g} -> {found[1]:.4g}"
