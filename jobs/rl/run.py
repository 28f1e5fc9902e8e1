"""`endoreward rl`: prompts, a policy and a frozen reward in; a policy out that its own rewarded samples have improved.

prompts     to practise on, and to measure on                   pipeline.rl.prompts
check       rewards, policy, DeepSpeed's configuration          nothing is written before
actors      samplers, rewarders; learners under Ray Train       jobs.rl.placement
learn       the loop                                            jobs.rl.recipe
finish      manifest, model card, report, table
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from actors.rewarder import RewardActor, RewarderSpec
from actors.sampler import PolicySampler, SamplerSpec
from jobs.cluster import joins_cluster, placed
from jobs.label.places import require
from jobs.label.plan import refuse_output_within
from jobs.learning import run as learning
from jobs.learning.trainer import absolute_model, gpus_of, pick_workers, position_notes, run_workers
from jobs.rl.placement import Placement, place_actors
from jobs.rl.pool import ActorPool
from jobs.rl.recipe import RlRecipe
from jobs.rl.source import PromptSet
from pipeline import storage
from pipeline.config import ModelConfig
from pipeline.config.section import changed
from pipeline.errors import ConfigError
from pipeline.models.engines.checks import check_vllm
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.algorithm_sections import OF_RESPONSES, WITHOUT_RATIO
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import Prompts, read_prompts
from pipeline.rl.reward_sections import RewardSource
from pipeline.rl.rollout_store import RolloutStore, describe_rollouts
from pipeline.rl.run import ROLLOUTS, RUN, describe_rl, replay_differences
from pipeline.rl.sources import check_prompts, check_rewards
from pipeline.rl.sources.certainty import OF_THE_POLICY
from pipeline.store import LabelStore, places
from pipeline.training.deepspeed import deepspeed_config, read_deepspeed
from pipeline.training.documents import Run
from pipeline.training.run import RunFolder
from pipeline.training.schedule import base_rate


def rl(config: RlConfig, *, dry_run: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    require(prompts=config.input.paths, policy=config.policy.name, output=config.output.path)
    config = _resolved(config)
    models = [config.policy.name, config.reference.name, config.reward_model.name]
    reads = [*config.input.paths, *config.held_out.prompts, config.rl.replay or "", *models]
    return learning.carry_out(config, lambda: _describe(config), reads, dry_run=dry_run, command=command)


@dataclass(frozen=True, kw_only=True)
class RlRun(learning.TrainingRun):
    """A run of `rl`."""

    TITLE = "Improve"
    DONE = "Improved"
    SHOWN = ("reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")

    config: RlConfig
    placement: Placement
    prompts: Prompts
    held_out: Prompts | None

    @property
    def who(self) -> str:
        return "learners, samplers and rewarders"

    @property
    def remedy(self) -> str:
        if max(self.workers, self.placement.samplers, self.placement.rewarders) > 1:
            return "lower learner.workers or sampler.actors"
        return "one of each is the least: start Ray with a larger --num-cpus"

    @property
    def cpus(self) -> int:
        return super().cpus + (0 if self.config.rl.replay else self.placement.actor_cpus(self.config))

    @property
    def gpus(self) -> float:
        learners = super().gpus * self.placement.learner_gpus
        return learners + (0.0 if self.config.rl.replay else self.placement.actor_gpus)

    def rows(self) -> list[tuple[str, str]]:
        config, section = self.config, self.config.rl
        kl = f"{section.kl_coefficient:g} x {section.kl} in the {section.kl_in}" if section.kl_coefficient else "none"
        return [
            ("Algorithm", f"{section.algorithm}, credit by {config.credit.removesuffix('s')}"),
            ("Prompts", f"{len(self.prompts.prompts):,}"),
            *([("Held-out prompts", f"{len(self.held_out.prompts):,}")] if self.held_out else []),
            ("Rewards", ", ".join(_reward(name, source) for name, source in config.rewards.items())),
            ("Reward model", config.reward_model.name),
            ("KL to the reference", kl),
            ("Steps", f"{section.max_steps:,} of {section.batch_size:,} prompts x {section.group_size} responses"),
            ("Learning rate", f"{self.rate:.2g}, {section.schedule}"),
            ("Learners", f"{self.workers} ({self.device}, {self.dtype}, ZeRO-{config.learner.zero_stage})"),
            ("Samplers", f"{self.placement.samplers}"),
            ("Rewarders", f"{self.placement.rewarders}"),
        ]

    def record(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "rl",
            "objective": config.rl.algorithm,
            "reward_model": {"name": config.reward_model.name, "revision": config.reward_model.revision},
            "prompts": len(self.prompts.prompts),
            "held_out": len(self.held_out.prompts) if self.held_out else 0,
        }

    def learn(self, folder: RunFolder, record: Run) -> None:
        import ray

        config = self.config
        with contextlib.ExitStack() as stack:
            samplers, rewarders = (None, None) if config.rl.replay else _pools(self)
            for pool in filter(None, (samplers, rewarders)):
                stack.callback(pool.stop)  # a Ray that was there before stays, and they would with it
            recipe = RlRecipe(
                **self.shared(folder, record),
                rollouts=describe_rollouts(config, self.description, self.dtype) if config.rl.keep_rollouts else None,
                prompts=ray.put(_prompt_set(self)),
                samplers=samplers,
                rewarders=rewarders,
            )
            gpus = self.placement.learner_gpus if self.device == "cuda" else 0.0
            run_workers(recipe, folder, self.workers, gpus)


def _reward(name: str, source: RewardSource) -> str:
    of = f" for {source.share:.0%} of the prompts" if source.share < 1 else ""
    return f"{source.weight:g} x {name}{of}"


def _resolved(config: RlConfig) -> RlConfig:
    """With what was left open, and every local place absolute."""
    functions = [f"rewards.{name}.function" for name in config.rewards]
    fields = ("rl.replay", "input.paths", "held_out.prompts", "held_out.check", "tokens.template")
    config = learning.resolved(config, *fields, *functions)
    own = config.reward_model
    own = own if own.name else own.named(config.policy.name, config.policy.revision)
    values: dict[str, Any] = {"reward_model": absolute_model(own), "tokens": config.tokens.dated(_known_date(config))}
    for name, source in config.rewards.items():
        model = absolute_model(ModelConfig(name=source.model, revision=source.revision))
        reference = absolute_model(ModelConfig(name=source.reference, revision=source.reference_revision))
        values[f"rewards.{name}"] = source.model_copy(
            update={
                "model": model.name,
                "revision": model.revision,
                "reference": reference.name,
                "reference_revision": reference.revision,
            }
        )
    return changed(config, values)


def _known_date(config: RlConfig) -> str | None:
    """The date that the run there, or the one that is replayed, gave its template."""
    if places.check(config.output.path, places.RUN):
        run = RunFolder(config.output.path).run()
        return run.description.get("tokens.date") if run else None
    try:
        return LabelStore(config.rl.replay).description().get(f"{RUN}tokens.date") if config.rl.replay else None
    except FileNotFoundError:
        return None  # which is said where the replay is opened


def _describe(config: RlConfig) -> RlRun:
    """Raises ConfigError and InputError for all that can be known before a worker starts."""
    refuse_output_within([*config.input.paths, *config.held_out.prompts], config.output.path)
    if config.rl.keep_rollouts:
        LabelStore(storage.join(config.output.path, ROLLOUTS)).check_place()
    placement = place_actors(config)
    spare = math.ceil(round(placement.actor_gpus, 6))
    device, workers = pick_workers(config, spare if placement.learner_gpus == 1 else 0)
    dtype = resolve_dtype(config.learner.dtype, device)
    deepspeed = read_deepspeed(config)
    deepspeed_config(config, dtype, deepspeed)
    settings = load_settings(config.policy)
    if config.sampler.engine == "vllm" and not config.rl.replay:
        check_vllm(config.policy, device, "sampler.engine", takes_weights=True, lora_rank=config.lora.rank)
    prompts = read_prompts(config, config.input.paths, "input.paths")
    held_out = read_prompts(config, config.held_out.prompts, "held_out.prompts") if config.held_out.prompts else None
    _require_enough(config, prompts)
    algorithm_of(config)
    notes = [*config.idle(), *check_rewards(config)]
    notes += check_prompts(config, prompts.prompts, held_out.prompts if held_out else [])
    for name, each in (("input.paths", prompts), ("held_out.prompts", held_out)):
        notes += _notes(config, name, each) if each else []
    longest = max(len(prompt.ids) for prompt in prompts.prompts) + config.rl.max_new_tokens
    most = open_renderer(config.policy, config.tokens).max_length
    notes += position_notes(config, settings, min(longest, most))
    notes += _ratio_notes(config, dtype)
    if config.rl.replay:
        _require_steps(config, config.rl.replay)
    description = describe_rl(config, prompts, held_out, dtype, device, workers, deepspeed)
    if config.rl.replay:
        _check_replay(config, config.rl.replay, description)
    run = RlRun(
        config=config,
        device=device,
        workers=workers,
        placement=placement,
        dtype=dtype,
        deepspeed=deepspeed,
        prompts=prompts,
        held_out=held_out,
        steps=config.rl.max_steps,
        rate=base_rate(config.rl, settings.get_text_config().hidden_size, bool(config.lora.rank)),
        notes=notes,
        description=description,
    )
    if not joins_cluster(config.run) and run.gpus > gpus_of(config):
        raise ConfigError(
            f"learners, samplers and rewarders reserve {run.gpus:g} GPUs and there are {gpus_of(config)}; lower "
            "learner.workers, or sampler.gpus_per_actor and rewarder.gpus_per_actor"
        )
    return run


def _ratio_notes(config: RlConfig, dtype: str) -> list[str]:
    """What a person should know of how the algorithm compares the policy with who sampled."""
    name, notes = f"rl.algorithm = {config.rl.algorithm}", []
    if config.rl.algorithm in WITHOUT_RATIO and config.rl.minibatches > 1:
        notes.append(
            f"{name} has no ratio, and of rl.minibatches = {config.rl.minibatches} all but the first learn from samples of a "
            "policy that has changed since: set 1, or take ppo, grpo or reinforce_plus_plus"
        )
    if config.rl.algorithm in WITHOUT_RATIO and config.rl.lag and config.correction == "none":
        notes.append(
            f"{name} has no ratio, and under rl.correction = none nothing corrects for samples of the weights before the last "
            "step (rl.lag = 1): leave rl.correction out"
        )
    if config.rl.algorithm in OF_RESPONSES and dtype != "float32" and config.correction == "none":
        notes.append(
            f"{name} compares whole responses with what the sampler made of them, and in {dtype} rounding moves that ratio, "
            "of long responses beyond the clip: set learner.dtype = float32 or rl.correction = sequence-mask, or take grpo or "
            "reinforce"
        )
    return notes


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
    rollouts = RolloutStore(replay)
    rollouts.store.require()
    steps = rollouts.steps()
    if steps < config.rl.max_steps:
        raise ConfigError(
            f"rl.replay = {replay} keeps {steps:,} steps and rl.max_steps is {config.rl.max_steps:,}; lower it"
        )


def _check_replay(config: RlConfig, replay: str, description: dict[str, Any]) -> None:
    """Raises ConfigError where what was kept is not what this run says that it learns from, or lacks some of it."""
    rollouts = RolloutStore(replay)
    other = replay_differences(rollouts.store.description(), description)
    if other:
        raise ConfigError(
            f"rl.replay = {replay} keeps what another run sampled and rewarded: {'; '.join(other)}; give the same, or sample "
            "anew without rl.replay"
        )
    first = rollouts.read(0)[0].rewarded[0]
    if config.rl.kl_coefficient and first.reference is None:
        raise ConfigError(
            f"rl.replay = {replay} was kept without a reference (rl.kl_coefficient = 0): set rl.kl_coefficient = 0 here too"
        )
    if config.rl.algorithm == "ppo" and config.ppo.value == "reward-model" and first.values is None:
        raise ConfigError(f"rl.replay = {replay} holds no values of a reward model: set ppo.value = critic")


def _notes(config: RlConfig, name: str, prompts: Prompts) -> list[str]:
    notes = [f"{name}: {note}" for note in prompts.skipped]
    if prompts.left_out:
        notes.append(f"{name}: {len(prompts.left_out):,} prompts are left out, the first: {prompts.left_out[0]}")
    if prompts.short:
        notes.append(
            f"{name}: {prompts.short:,} prompts leave less than rl.max_new_tokens = {config.rl.max_new_tokens} tokens for a "
            "response, which is cut off there"
        )
    return notes


def _prompt_set(run: RlRun) -> PromptSet:
    transcript = open_renderer(run.config.policy, run.config.tokens).template is None
    return PromptSet(run.prompts.prompts, run.held_out.prompts if run.held_out else [], transcript)


def _pools(run: RlRun) -> tuple[ActorPool, ActorPool]:
    """Samplers and rewarders. They are the driver's: learners that are started again find them as they were."""
    config, placement = run.config, run.placement
    renderer = open_renderer(config.policy, config.tokens)
    sampler = SamplerSpec(
        model=config.policy.model_copy(update={"dtype": run.dtype}),
        device=run.device,
        threads=config.sampler.cpus_per_actor,
        budget_tokens=config.sampler.budget_tokens,
        max_new_tokens=config.rl.max_new_tokens,
        max_length=renderer.max_length,
        end_tokens=renderer.end_tokens(),
        lora=config.lora,
        gpus=int(placement.sampler_gpus),
        engine=config.sampler.engine,
        gpu_share=_share(run, placement.sampler_gpus),
        certainty=any(source.kind in OF_THE_POLICY for source in config.rewards.values()),
    )
    gpu_share = _share(run, placement.rewarder_gpus)
    rewarder = RewarderSpec(config, run.device, run.dtype, int(placement.rewarder_gpus), gpu_share)
    gpus, nodes = (placement.sampler_gpus, placement.rewarder_gpus), placed(config.run)
    return (
        ActorPool(PolicySampler, "sampler", placement.samplers, config.sampler, gpus[0], sampler, nodes),
        ActorPool(RewardActor, "rewarder", placement.rewarders, config.rewarder, gpus[1], rewarder, nodes),
    )


def _share(run: RlRun, gpus: float) -> float:
    """What an actor that reserves so many GPUs has of the memory of one."""
    return min(1.0, gpus) if run.device == "cuda" else 1.0
