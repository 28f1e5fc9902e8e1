"""`endoreward rl`: prompts, a policy and a frozen reward in; a policy out that its own rewarded samples have improved.

prompts     to practise on, and to measure on                   pipeline.rl.prompts
check       rewards, policy, DeepSpeed's configuration          nothing is written before
actors      samplers, rewarders; learners under Ray Train
improve     the loop                                            jobs.rl.loop
close       manifest, model card, report, table
"""

import math
from dataclasses import dataclass
from typing import Any

from actors.rewarder import Rewarder, RewarderSpec
from actors.sampler import Sampler, SamplerSpec
from jobs.cluster import joins_cluster
from jobs.label.places import require
from jobs.label.plan import refuse_output_within
from jobs.learning import drive
from jobs.learning.trainer import absolute_model, cpus_of, gpus_of, pick_workers, position_notes, run_workers
from jobs.rl.loop import improve
from jobs.rl.online import Online
from jobs.rl.pool import Crew
from jobs.rl.source import Practice
from pipeline import storage
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.report.card import shareable_config
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import PoolSection, RewardSource, RlConfig
from pipeline.rl.prompts import Prompts, read_prompts
from pipeline.rl.rollout_store import KeptRollouts, describe_kept
from pipeline.rl.run import ROLLOUTS, RUN, describe_rl, replay_differences
from pipeline.rl.sources import check_prompts, check_rewards
from pipeline.storage import absolute
from pipeline.store import LabelStore, places
from pipeline.training.deepspeed import deepspeed_config, read_deepspeed
from pipeline.training.run import RunFolder
from pipeline.training.schedule import base_rate

MOST_SAMPLERS = 4  # on CPUs, where nothing else is said


def rl(config: RlConfig, *, dry_run: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    require(prompts=config.input.paths, policy=config.policy.name, output=config.output.path)
    config = _settled(config)
    models = [config.policy.name, config.reference.name, config.reward_model.name]
    reads = [*config.input.paths, *config.held_out.prompts, config.rl.replay or "", *models]
    return drive.drive(config, lambda: _plan(config), reads, dry_run=dry_run, command=command)


@dataclass(frozen=True)
class Share:
    """What each kind of actor gets of the machine."""

    samplers: int
    rewarders: int
    sampler_gpus: float
    rewarder_gpus: float
    learner_gpus: float


@dataclass(frozen=True, kw_only=True)
class Plan(drive.Plan):
    """What `rl` will do."""

    TITLE = "Improve"
    DONE = "Improved"
    SHOWN = ("reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")

    config: RlConfig
    share: Share
    prompts: Prompts
    held_out: Prompts | None

    @property
    def who(self) -> str:
        return "learners, samplers and rewarders"

    @property
    def remedy(self) -> str:
        if max(self.workers, self.share.samplers, self.share.rewarders) > 1:
            return "lower learner.workers or sampler.actors"
        return "one of each is the least: start Ray with a larger --num-cpus"

    @property
    def cpus(self) -> int:
        config, share = self.config, self.share
        if config.rl.replay:
            return super().cpus
        actors = share.samplers * config.sampler.cpus_per_actor + share.rewarders * config.rewarder.cpus_per_actor
        return super().cpus + actors

    @property
    def gpus(self) -> float:
        share = self.share
        learners = super().gpus * share.learner_gpus
        if self.config.rl.replay:
            return learners
        return learners + share.samplers * share.sampler_gpus + share.rewarders * share.rewarder_gpus

    def rows(self) -> list[tuple[str, str]]:
        config, told = self.config, self.config.rl
        kl = f"{told.kl_coefficient:g} x {told.kl} in the {told.kl_in}" if told.kl_coefficient else "none"
        return [
            ("Algorithm", f"{told.algorithm}, credit by {config.credit.removesuffix('s')}"),
            ("Prompts", f"{len(self.prompts.prompts):,}"),
            *([("Held-out prompts", f"{len(self.held_out.prompts):,}")] if self.held_out else []),
            ("Rewards", ", ".join(_reward(name, source) for name, source in config.rewards.items())),
            ("Reward model", config.reward_model.name),
            ("KL to the reference", kl),
            ("Steps", f"{told.max_steps:,} of {told.batch_size:,} prompts x {told.group_size} responses"),
            ("Learning rate", f"{self.rate:.2g}, {told.schedule}"),
            ("Learners", f"{self.workers} ({self.device}, {self.dtype}, ZeRO-{config.learner.zero_stage})"),
            ("Samplers", f"{self.share.samplers}"),
            ("Rewarders", f"{self.share.rewarders}"),
        ]

    def says(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "rl",
            "objective": config.rl.algorithm,
            "reward_model": {"name": config.reward_model.name, "revision": config.reward_model.revision},
            "prompts": len(self.prompts.prompts),
            "held_out": len(self.held_out.prompts) if self.held_out else 0,
        }

    def learn(self, folder: RunFolder, run: dict[str, Any]) -> None:
        import ray

        config = self.config
        samplers, rewarders = (None, None) if config.rl.replay else _crews(self)
        told = Online(
            config=config,
            device=self.device,
            deepspeed=self.deepspeed,
            output=folder.uri,
            rate=self.rate,
            run={"created": run["created"], "objective": run["objective"], "config": shareable_config(run)},
            kept=describe_kept(config, self.description, self.dtype) if config.rl.keep_rollouts else None,
            practice=ray.put(_practice(self)),
            samplers=samplers,
            rewarders=rewarders,
        )
        gpus = self.share.learner_gpus if self.device == "cuda" else 0.0
        run_workers(improve, told, config, folder, self.device, self.workers, self.steps, gpus)


def _reward(name: str, source: RewardSource) -> str:
    of = f" for {source.share:.0%} of the prompts" if source.share < 1 else ""
    return f"{source.weight:g} x {name}{of}"


def _settled(config: RlConfig) -> RlConfig:
    """With what was left open, and every local place absolute."""
    config = drive.with_absolute_places(config)
    tokens, replay = config.tokens, config.rl.replay
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
            "tokens": tokens.model_copy(update={"template": named}).dated(_known_date(config)),
            "reward_model": absolute_model(own),
            "rewards": {name: source(told) for name, told in config.rewards.items()},
        }
    )


def _known_date(config: RlConfig) -> str | None:
    """The date that the run there, or the one that is replayed, gave its template."""
    if places.check(config.output.path, places.RUN):
        run = RunFolder(config.output.path).run()
        return run.description.get("tokens.date") if run else None
    try:
        return (
            LabelStore(absolute(config.rl.replay)).description().get(f"{RUN}tokens.date") if config.rl.replay else None
        )
    except FileNotFoundError:
        return None  # which is said where the replay is opened


def _plan(config: RlConfig) -> Plan:
    """Raises ConfigError and InputError for all that can be known before a worker starts."""
    refuse_output_within([*config.input.paths, *config.held_out.prompts], config.output.path)
    if config.rl.keep_rollouts:
        LabelStore(storage.join(config.output.path, ROLLOUTS)).check_place()
    share = _share(config)
    spare = math.ceil(round(share.samplers * share.sampler_gpus + share.rewarders * share.rewarder_gpus, 6))
    device, workers = pick_workers(config, spare if share.learner_gpus == 1 else 0)
    dtype = resolve_dtype(config.learner.dtype, device)
    deepspeed = read_deepspeed(config)
    deepspeed_config(config, dtype, deepspeed)
    settings = load_settings(config.policy)
    prompts = read_prompts(config, config.input.paths, "input.paths")
    held_out = read_prompts(config, config.held_out.prompts, "held_out.prompts") if config.held_out.prompts else None
    _require_enough(config, prompts)
    algorithm_of(config)
    notes = [*config.idle(), *check_rewards(config)]
    notes += check_prompts(config, prompts.prompts, held_out.prompts if held_out else [])
    for name, found in (("input.paths", prompts), ("held_out.prompts", held_out)):
        notes += _notes(config, name, found) if found else []
    longest = max(len(prompt.ids) for prompt in prompts.prompts) + config.rl.max_new_tokens
    most = open_renderer(config.policy, config.tokens).max_length
    notes += position_notes(config, settings, min(longest, most))
    if config.rl.algorithm == "reinforce" and config.rl.minibatches > 1:
        notes.append(
            f"rl.algorithm = reinforce has no ratio, and of rl.minibatches = {config.rl.minibatches} all but the first learn "
            "from samples of a policy that has changed since: set 1, or take ppo, grpo or reinforce_plus_plus"
        )
    if config.rl.algorithm == "rloo" and dtype != "float32":
        notes.append(
            f"rl.algorithm = rloo compares whole responses with what the sampler made of them, and in {dtype} rounding moves "
            "that ratio, of long responses beyond the clip: set learner.dtype = float32, or take grpo or reinforce"
        )
    if config.rl.replay:
        _require_steps(config, config.rl.replay)
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
        steps=config.rl.max_steps,
        rate=base_rate(config.rl, settings.get_text_config().hidden_size, bool(config.lora.rank)),
        notes=notes,
        description=description,
    )
    if not joins_cluster(config.run) and plan.gpus > gpus_of(config):
        raise ConfigError(
            f"learners, samplers and rewarders reserve {plan.gpus:g} GPUs and there are {gpus_of(config)}; lower "
            "learner.workers, or sampler.gpus_per_actor and rewarder.gpus_per_actor"
        )
    return plan


def _require_enough(config: RlConfig, prompts: Prompts) -> None:
    if len(prompts.prompts) < config.rl.batch_size:
        out = prompts.left_out
        left_out = f" ({len(out):,} are left out, the first: {out[0]})" if out else ""
        raise ConfigError(
            f"rl.batch_size = {config.rl.batch_size} is more than the {len(prompts.prompts):,} prompts there are{left_out}; "
            "lower it, or give more"
        )
    if config.rl.minibatches > config.rl.batch_size:
        raise ConfigError(
            f"rl.minibatches = {config.rl.minibatches} is more than the {config.rl.batch_size} prompts of a batch; lower it"
        )


def _require_steps(config: RlConfig, replay: str) -> None:
    kept = KeptRollouts(replay)
    kept.store.require()
    steps = kept.steps()
    if steps < config.rl.max_steps:
        raise ConfigError(
            f"rl.replay = {replay} keeps {steps:,} steps and rl.max_steps is {config.rl.max_steps:,}; lower it"
        )


def _check_replay(config: RlConfig, replay: str, description: dict[str, Any]) -> None:
    """Raises ConfigError where what was kept is not what this run says that it learns from, or lacks some of it."""
    kept = KeptRollouts(replay)
    other = replay_differences(kept.store.description(), description)
    if other:
        raise ConfigError(
            f"rl.replay = {replay} keeps what another run sampled and rewarded: {'; '.join(other)}; give the same, or sample "
            "anew without rl.replay"
        )
    first = kept.read(0)[0].rewarded[0]
    if config.rl.kl_coefficient and first.reference is None:
        raise ConfigError(
            f"rl.replay = {replay} was kept without a reference (rl.kl_coefficient = 0): set rl.kl_coefficient = 0 here too"
        )
    if config.rl.algorithm == "ppo" and config.ppo.value == "reward-model" and first.values is None:
        raise ConfigError(f"rl.replay = {replay} holds no values of a reward model: set ppo.value = critic")


def _notes(config: RlConfig, name: str, found: Prompts) -> list[str]:
    notes = [f"{name}: {note}" for note in found.skipped]
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
    on_gpus = gpus > 0 or config.learner.device == "cuda"  # a cluster that has shrunk to its head grows again
    cpus = cpus_of(config)
    rewarders = config.rewarder.actors or 1
    if joins_cluster(config.run):  # there, what another one has reserved is gone
        cpus -= (config.learner.workers or 1) * config.learner.cpus_per_worker
        cpus -= rewarders * config.rewarder.cpus_per_actor
    samplers = config.sampler.actors or (
        1 if on_gpus else max(1, min(MOST_SAMPLERS, cpus // config.sampler.cpus_per_actor))
    )
    part = {1: 0.3, 2: 0.5}.get(gpus, 1.0)

    def of(pool: PoolSection) -> float:
        return (pool.gpus_per_actor or part) if on_gpus else 0.0

    return Share(samplers, rewarders, of(config.sampler), of(config.rewarder), 0.4 if gpus == 1 else 1.0)


def _practice(plan: Plan) -> Practice:
    transcript = open_renderer(plan.config.policy, plan.config.tokens).template is None
    return Practice(plan.prompts.prompts, plan.held_out.prompts if plan.held_out else [], transcript)


def _crews(plan: Plan) -> tuple[Crew, Crew]:
    config, share = plan.config, plan.share
    renderer = open_renderer(config.policy, config.tokens)
    sampler = SamplerSpec(
        model=config.policy.model_copy(update={"dtype": plan.dtype}),
        device=plan.device,
        threads=config.sampler.cpus_per_actor,
        budget_tokens=config.sampler.budget_tokens,
        max_new_tokens=config.rl.max_new_tokens,
        max_length=renderer.max_length,
        end_tokens=renderer.end_tokens(),
        lora=config.lora,
        gpus=int(share.sampler_gpus),
    )
    rewarder = RewarderSpec(config, plan.device, plan.dtype, int(share.rewarder_gpus))
    return (
        Crew(Sampler, "sampler", share.samplers, config.sampler, share.sampler_gpus, sampler),
        Crew(Rewarder, "rewarder", share.rewarders, config.rewarder, share.rewarder_gpus, rewarder),
    )
