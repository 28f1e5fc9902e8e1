"""`endoreward rl`: prompts, a policy and a frozen reward in; a policy out that its own rewarded samples have improved.

prompts     to practise on, and to measure on                   pipeline.rl.prompts
check       rewards, policy, DeepSpeed's configuration          nothing is written before
actors      samplers, rewarders; learners under Ray Train
improve     the loop                                            jobs.improve
close       manifest, model card, report, table
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actors.rewarder import Rewarder, RewarderSpec
from actors.sampler import Sampler, SamplerSpec
from jobs import terminal
from jobs.close import versions
from jobs.cluster import cluster, joins_cluster, warn_of_local_output
from jobs.crew import Crew
from jobs.fill import absolute, require
from jobs.gather import Practice
from jobs.improve import Online, improve
from jobs.inspect_run import draw_run, read_results
from jobs.trainer import absolute_model, cpus_of, gpus_of, learner_versions, pick_workers, run_workers, warn_of_room
from pipeline.config import ClusterConfig, ModelConfig
from pipeline.errors import ConfigError
from pipeline.labellers.base import open_renderer
from pipeline.models import load_settings, resolve_dtype
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import PoolSection, RewardSource, RlConfig
from pipeline.rl.kept import KeptRollouts, describe_kept
from pipeline.rl.prompts import Prompts, read_prompts
from pipeline.rl.rewards import check_prompts, check_rewards
from pipeline.rl.run import REPEATED, RESULTS, ROLLOUTS, SAMPLES, describe_rl
from pipeline.store import WriterLock, documents, fingerprint
from pipeline.training.card import model_card, shareable_config
from pipeline.training.deepspeed import deepspeed_config, read_deepspeed
from pipeline.training.metrics import check_tracking, ends, read_metrics
from pipeline.training.run import STOPPED, RunFolder
from pipeline.training.schedule import base_rate

MOST_SAMPLERS = 4  # on CPUs, where nothing else is said


@dataclass(frozen=True)
class Share:
    """What each kind of actor gets of the machine."""

    samplers: int
    rewarders: int
    sampler_gpus: float
    rewarder_gpus: float
    learner_gpus: float


@dataclass(frozen=True)
class Plan:
    """A run that is described and checked, and of which nothing is written yet."""

    config: RlConfig
    device: str
    workers: int
    share: Share
    dtype: str
    deepspeed: str | None
    prompts: Prompts
    held_out: Prompts | None
    rate: float
    notes: list[str]
    description: dict[str, Any]


def rl(config: RlConfig, *, dry_run: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    require(prompts=config.input.paths, policy=config.policy.name, output=config.output.path)
    config = _settled(config)
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
            terminal.say(
                f"{folder.uri}: all {config.rl.max_steps:,} steps are done already; the policy is {folder.at('hf')}"
            )
            return 0
        if dry_run:
            return 0
        with WriterLock(folder.uri):
            folder.mend()
            run = _begin(folder, plan, command)
            if not joins_cluster(config.run):
                terminal.say("starting Ray ...")
                held.enter_context(cluster(_roomy(plan)))
            warn_of_room(
                "learners, samplers and rewarders", _places(plan), _gpus(plan), "learner.workers, sampler.actors"
            )
            started = time.perf_counter()
            _improve(folder, plan, run)
            _close(folder, run, time.perf_counter() - started)
    return 0


# Before


def _settled(config: RlConfig) -> RlConfig:
    """With what was left open, and every local place absolute: workers have other working directories."""
    learner, tokens, replay = config.learner, config.tokens, config.rl.replay
    own = config.reward_model
    own = own if own.name else own.named(config.policy.name, config.policy.revision)

    def source(told: RewardSource) -> RewardSource:
        model = absolute_model(ModelConfig(name=told.model, revision=told.revision))
        reference = absolute_model(ModelConfig(name=told.reference, revision=told.reference_revision))
        places = {
            "model": model.name,
            "revision": model.revision,
            "function": told.function and absolute(told.function),
        }
        return told.model_copy(update={**places, "reference": reference.name, "reference_revision": reference.revision})

    check = config.held_out.check
    held_out = {
        "prompts": [absolute(place) for place in config.held_out.prompts],
        "check": check if check in (None, "maths") else absolute(check),
    }
    named = tokens.template if tokens.template in ("auto", "none") else absolute(tokens.template)
    return config.model_copy(
        update={
            "rl": config.rl.model_copy(update={"replay": replay and absolute(replay)}),
            "input": config.input.model_copy(update={"paths": [absolute(place) for place in config.input.paths]}),
            "held_out": config.held_out.model_copy(update=held_out),
            "tokens": tokens.model_copy(update={"template": named}),
            "policy": absolute_model(config.policy),
            "reference": absolute_model(config.reference),
            "reward_model": absolute_model(own),
            "rewards": {name: source(told) for name, told in config.rewards.items()},
            "output": config.output.model_copy(update={"path": absolute(config.output.path)}),
            "learner": learner.model_copy(update={"deepspeed": learner.deepspeed and absolute(learner.deepspeed)}),
        }
    )


def _plan(config: RlConfig) -> Plan:
    """Raises ConfigError and InputError for all that can be known before a worker starts."""
    share = _share(config)
    spare = round(share.samplers * share.sampler_gpus + share.rewarders * share.rewarder_gpus)
    device, workers = pick_workers(config, spare if share.learner_gpus == 1 else 0)
    dtype = resolve_dtype(config.learner.dtype, device)
    deepspeed = read_deepspeed(config)
    deepspeed_config(config, dtype, deepspeed)
    settings = load_settings(config.policy)
    prompts = read_prompts(config, config.input.paths, "input.paths")
    held_out = read_prompts(config, config.held_out.prompts, "held_out.prompts") if config.held_out.prompts else None
    _require_enough(config, prompts)
    algorithm_of(config)
    notes = check_rewards(config)
    check_prompts(config, prompts.prompts, held_out.prompts if held_out else [])
    for name, found in (("input.paths", prompts), ("held_out.prompts", held_out)):
        notes += _notes(config, name, found) if found else []
    description = describe_rl(config, prompts, held_out, dtype, device, workers, deepspeed)
    if config.rl.replay:
        _check_replay(config, config.rl.replay, description)
    plan = Plan(
        config=config,
        device=device,
        workers=workers,
        share=share,
        dtype=dtype,
        deepspeed=deepspeed,
        prompts=prompts,
        held_out=held_out,
        rate=base_rate(config.rl, settings.get_text_config().hidden_size, bool(config.lora.rank)),
        notes=notes,
        description=description,
    )
    if not joins_cluster(config.run) and _gpus(plan) > gpus_of(config):
        raise ConfigError(
            f"learners, samplers and rewarders reserve {_gpus(plan):g} GPUs and there are {gpus_of(config)}; lower "
            "learner.workers, or sampler.gpus_per_actor and rewarder.gpus_per_actor"
        )
    return plan


def _require_enough(config: RlConfig, prompts: Prompts) -> None:
    if len(prompts.prompts) < config.rl.batch_size:
        raise ConfigError(
            f"rl.batch_size = {config.rl.batch_size} is more than the {len(prompts.prompts):,} prompts there are; lower it, "
            "or give more"
        )
    if config.rl.minibatches > config.rl.batch_size:
        raise ConfigError(
            f"rl.minibatches = {config.rl.minibatches} is more than the {config.rl.batch_size} prompts of a batch; lower it"
        )


def _check_replay(config: RlConfig, replay: str, description: dict[str, Any]) -> None:
    """Raises ConfigError where what was kept lacks what this run learns from."""
    kept = KeptRollouts(replay)
    if kept.steps() < config.rl.max_steps:
        raise ConfigError(
            f"rl.replay = {replay} keeps {kept.steps():,} steps and rl.max_steps is {config.rl.max_steps:,}; lower it"
        )
    there = kept.store.description()
    if any(
        there.get(f"run.policy.{name}") != description.get(f"policy.{name}") for name in ("content", "name", "revision")
    ):
        raise ConfigError(
            f"rl.replay = {replay} was sampled from another policy than {config.policy.name}: give that one"
        )
    first = kept.read(0)[0].rewarded[0]
    if config.rl.kl_coefficient and first.reference is None:
        raise ConfigError(
            f"rl.replay = {replay} was kept without a reference (rl.kl_coefficient = 0): set rl.kl_coefficient = 0 here too"
        )
    if config.rl.algorithm == "ppo" and config.ppo.value == "reward-model" and first.values is None:
        raise ConfigError(f"rl.replay = {replay} holds no values of a reward model: set ppo.value = critic")


def _notes(config: RlConfig, name: str, found: Prompts) -> list[str]:
    notes = []
    if found.left_out:
        notes.append(f"{name}: {len(found.left_out):,} prompts are left out, the first: {found.left_out[0]}")
    if found.short:
        notes.append(
            f"{name}: {found.short:,} prompts leave less than rl.max_new_tokens = {config.rl.max_new_tokens} tokens for a "
            "response, which is cut off there"
        )
    return notes


def _share(config: RlConfig) -> Share:
    """Samplers, rewarders and learners take turns. On CPUs they share them; of few GPUs each gets a part of one."""
    gpus = gpus_of(config) if config.learner.device != "cpu" else 0
    cpus = cpus_of(config)
    rewarders = config.rewarder.actors or 1
    if joins_cluster(config.run):  # there, what another one has reserved is gone
        cpus -= (config.learner.workers or 1) * config.learner.cpus_per_worker
        cpus -= rewarders * config.rewarder.cpus_per_actor
    samplers = config.sampler.actors or (
        1 if gpus else max(1, min(MOST_SAMPLERS, cpus // config.sampler.cpus_per_actor))
    )
    part = {0: 0.0, 1: 0.3, 2: 0.5}.get(gpus, 1.0)

    def of(pool: PoolSection) -> float:
        return (pool.gpus_per_actor or part) if gpus else 0.0

    return Share(samplers, rewarders, of(config.sampler), of(config.rewarder), 0.4 if gpus == 1 else 1.0)


def _roomy(plan: Plan) -> ClusterConfig:
    """A local Ray that has a place for everyone: they take turns, so more places than CPUs do no harm."""
    return plan.config.run.model_copy(update={"num_cpus": max(_places(plan), cpus_of(plan.config))})


def _places(plan: Plan) -> int:
    """CPUs that the run reserves."""
    config, share = plan.config, plan.share
    learners = plan.workers * config.learner.cpus_per_worker
    if config.rl.replay:
        return learners
    return learners + share.samplers * config.sampler.cpus_per_actor + share.rewarders * config.rewarder.cpus_per_actor


def _gpus(plan: Plan) -> float:
    """GPUs that the run reserves."""
    share = plan.share
    learners = plan.workers * share.learner_gpus if plan.device == "cuda" else 0.0
    if plan.config.rl.replay:
        return learners
    return learners + share.samplers * share.sampler_gpus + share.rewarders * share.rewarder_gpus


def _show(plan: Plan) -> None:
    config, told = plan.config, plan.config.rl
    kl = f"{told.kl_coefficient:g} x {told.kl} in the {told.kl_in}" if told.kl_coefficient else "none"
    rows = [
        ("Algorithm", f"{told.algorithm}, credit by {config.credit.removesuffix('s')}"),
        ("Prompts", f"{len(plan.prompts.prompts):,}"),
        *([("Held-out prompts", f"{len(plan.held_out.prompts):,}")] if plan.held_out else []),
        ("Rewards", ", ".join(f"{source.weight:g} x {name}" for name, source in config.rewards.items())),
        ("Reward model", config.reward_model.name),
        ("KL to the reference", kl),
        ("Steps", f"{told.max_steps:,} of {told.batch_size:,} prompts x {told.group_size} responses"),
        ("Learning rate", f"{plan.rate:.2g}, {told.schedule}"),
        ("Learners", f"{plan.workers} ({plan.device}, {plan.dtype}, ZeRO-{config.learner.zero_stage})"),
        ("Samplers", f"{plan.share.samplers}"),
        ("Rewarders", f"{plan.share.rewarders}"),
    ]
    terminal.print_table(f"Improve {config.policy.name}", rows)
    for note in plan.notes:
        terminal.warn(note)


# The run


def _begin(folder: RunFolder, plan: Plan, command: str) -> dict[str, Any]:
    """What the run says of itself, as documents and the page want it; kept from its beginning on."""
    found = folder.read("run.json")
    if found is None or found["description"] != plan.description:  # without a checkpoint, it is as if it had not been
        config = plan.config
        found = {
            "kind": "rl",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "config": config.model_dump(mode="json"),
            "description": plan.description,
            "fingerprint": fingerprint.digest(plan.description),
            "objective": config.rl.algorithm,
            "policy": {"name": config.policy.name, "revision": config.policy.revision},
            "reward_model": {"name": config.reward_model.name, "revision": config.reward_model.revision},
            "prompts": len(plan.prompts.prompts),
            "held_out": len(plan.held_out.prompts) if plan.held_out else 0,
            "steps": config.rl.max_steps,
            "device": f"{plan.workers} x {plan.device}, {plan.dtype}",
            "notes": plan.notes,
        }
        folder.forget(RESULTS, SAMPLES, REPEATED, ROLLOUTS)
        documents.write(folder.at("run.json"), found)
    documents.remove(folder.at(STOPPED))
    return found


def _improve(folder: RunFolder, plan: Plan, run: dict[str, Any]) -> None:
    """Raises RunError where the run cannot go on."""
    import ray

    config = plan.config
    samplers, rewarders = (None, None) if config.rl.replay else _crews(plan)
    told = Online(
        config=config,
        device=plan.device,
        deepspeed=plan.deepspeed,
        output=folder.uri,
        rate=plan.rate,
        run={"created": run["created"], "objective": run["objective"], "config": shareable_config(run)},
        kept=describe_kept(config, plan.description, plan.dtype) if config.rl.keep_rollouts else None,
        practice=ray.put(_practice(plan)),
        samplers=samplers,
        rewarders=rewarders,
    )
    gpus = plan.share.learner_gpus if plan.device == "cuda" else 0.0
    run_workers(improve, told, config, folder, plan.device, plan.workers, config.rl.max_steps, gpus)


def _practice(plan: Plan) -> Practice:
    transcript = open_renderer(plan.config.policy, plan.config.tokens).template is None
    return Practice(plan.prompts.prompts, plan.held_out.prompts if plan.held_out else [], transcript)


def _crews(plan: Plan) -> tuple[Crew, Crew]:
    config, share = plan.config, plan.share
    sampler = SamplerSpec(
        model=config.policy.model_copy(update={"dtype": plan.dtype}),
        device=plan.device,
        threads=config.sampler.cpus_per_actor,
        budget_tokens=config.sampler.budget_tokens,
        max_new_tokens=config.rl.max_new_tokens,
        end_tokens=open_renderer(config.policy, config.tokens).end_tokens(),
        gpus=int(share.sampler_gpus),
    )
    rewarder = RewarderSpec(config, plan.device, plan.dtype, int(share.rewarder_gpus))
    return (
        Crew(Sampler, "sampler", share.samplers, config.sampler, share.sampler_gpus, sampler),
        Crew(Rewarder, "rewarder", share.rewarders, config.rewarder, share.rewarder_gpus, rewarder),
    )


# After


def _close(folder: RunFolder, run: dict[str, Any], seconds: float) -> None:
    metrics = read_metrics(folder.at("metrics.jsonl"))
    repeated = folder.read(REPEATED)
    manifest = {
        **run,
        "seconds": round(seconds, 3),
        "tokens": metrics[-1]["num_tokens"],
        "last": metrics[-1],
        "repeated": repeated["repeated"] if repeated else [],
        "versions": {**versions(), **learner_versions()},
    }
    documents.write_bytes(folder.at("hf", "README.md"), model_card(manifest, metrics, read_results(folder)).encode())
    draw_run(folder, manifest)
    documents.create(folder.at("manifest.json"), manifest)
    terminal.print_table(
        "Improved", [*_figures(folder, metrics), ("Policy", folder.at("hf")), ("Report", folder.at("report.html"))]
    )


SHOWN = ("reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")


def _figures(folder: RunFolder, metrics: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    results = read_results(folder)
    for when in ("before", "after"):
        if f"accuracy_{when}" in results:
            low, high = results[f"accuracy_{when}_interval"]
            yield f"accuracy {when}", f"{results[f'accuracy_{when}']:.1%} ({low:.1%} to {high:.1%})"
    for name in SHOWN:
        found = ends(metrics, name)
        if found is not None:
            yield name, f"{found[0]:.4g} -> {found[1]:.4g}"
