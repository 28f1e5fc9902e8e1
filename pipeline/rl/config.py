"""What an online run is, as data. The rules are those of `pipeline.config`: every mistake at once, no torch imported."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config import (
    InputConfig,
    LocalEngine,
    ModelConfig,
    Place,
    RewardConfig,
    Section,
    TokensConfig,
    Unread,
    refuse_sampled,
    set_but_unread,
    unread_of_prompts,
    unread_of_tokens,
    unread_revision,
)
from pipeline.rl.algorithm_sections import (
    ALGORITHMS,
    OF_RESPONSES,
    WITHOUT_RATIO,
    Algorithm,
    CispoConfig,
    GspoConfig,
    OnlineGrpoConfig,
    OnlineReinforceConfig,
    OpdConfig,
    PpoConfig,
    ReinforcePlusPlusConfig,
    RlooConfig,
)
from pipeline.rl.reward_sections import RewardingSection, RewardSource
from pipeline.training.config import LearningConfig, OptimizerSection

Correction = Literal["none", "token-truncate", "token-mask", "sequence-truncate", "sequence-mask"]


class RlSection(OptimizerSection):
    algorithm: Algorithm = Field(
        default="grpo", description="how the policy improves: docs/rl.md has each one's equation"
    )
    max_steps: int = Field(default=100, ge=1, description="batches of samples, each learnt from and thrown away")
    batch_size: int = Field(default=16, ge=1, description="prompts of a batch")
    group_size: int = Field(default=8, ge=1, description="responses to each prompt")
    refill: int = Field(
        default=0,
        ge=0,
        description="groups whose rewards are all the same give place to others (arXiv 2503.14476), of at most this times "
        "batch_size further prompts a step",
    )
    max_new_tokens: int = Field(default=256, ge=1, description="longest response, its end token included")
    epochs: int = Field(default=1, ge=1, description="how often each batch is learnt from")
    minibatches: int = Field(default=1, ge=1, description="optimiser steps of an epoch; 1 and 1 is exactly on-policy")
    credit: Literal["response", "tokens"] | None = Field(
        default=None,
        description="response: every token is credited with the whole reward; tokens: with the rewards to go from it; "
        "default: tokens for ppo, reinforce_plus_plus and opd, else response",
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount of the rewards to go of credit = tokens")
    kl_coefficient: float = Field(
        default=0.01, ge=0, allow_inf_nan=False, description="of the KL to the reference; 0: no reference is held"
    )
    kl_in: Literal["reward", "loss"] = Field(default="reward", description="where the KL is taken off")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        default=None, description="k1 in the reward, k2 or k3 in the loss; default: k1 or k3"
    )
    entropy_coefficient: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="of the entropy of the next token, a bonus in the loss"
    )
    lag: int = Field(
        default=0,
        ge=0,
        le=1,
        description="0: sampling waits for learning; 1: step k learns from samples of the weights after k - 2 steps, made "
        "while step k - 1 is learnt",
    )
    mask_truncated: bool = Field(
        default=False,
        description="nothing is learnt from responses that were cut off, though they are compared with (arXiv 2503.14476)",
    )
    correction: Correction | None = Field(
        default=None,
        description="for samples of other weights or another engine: advantages times pi before the batch's first step / pi "
        "of the sampler, by token or by sequence, truncated or masked above correction_cap; default: sequence-mask under "
        "lag = 1 and with another engine than transformers, else none",
    )
    correction_cap: float = Field(default=3.0, ge=1, allow_inf_nan=False, description="largest weight of a correction")
    keep_rollouts: bool = Field(default=False, description="keep every batch, as a label store in OUTPUT/rollouts")
    replay: Place | None = Field(
        default=None,
        description="OUTPUT/rollouts of another run: learn from its batches, sampling and rewarding nothing",
    )

    @model_validator(mode="after")
    def _estimator_fits(self) -> Self:
        estimator = self.kl_estimator
        if self.kl_in == "loss" and estimator == "k1":
            raise ValueError(
                "kl_estimator = k1 has no place in the loss: over the policy's own tokens its gradient is zero on average, "
                "and the run drifts; set kl_in = reward, or k2 or k3"
            )
        if self.kl_in == "reward" and estimator in ("k2", "k3"):
            raise ValueError(f"kl_estimator = {estimator} is for kl_in = loss; in the reward it is k1")
        return self

    @property
    def kl(self) -> Literal["k1", "k2", "k3"]:
        """The estimator, as told or by its place."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")


class HeldOutSection(Section):
    """What is measured on prompts that nothing is learnt from."""

    prompts: list[Place] = Field(default=[], description="files, folders, globs, s3://, gs:// or hf://datasets/...")
    check: Place | None = Field(
        default=None,
        description="what makes a response right: maths (its final answer equals answer_key), or path.py:name as for "
        "rewards; right is above one half",
    )
    answer_key: str = Field(default="answer", description="column of the right answer")
    every_steps: int = Field(default=20, ge=1, description="steps between measurements on the first `some` prompts")
    some: int = Field(default=256, ge=1, description="prompts measured on during the run; before and after it, on all")
    seed: int = Field(default=0, ge=0, description="of the samples, one to each prompt, at temperature 1")


class PoolSection(Section):
    """Actors that sample or reward. None of these move a number by more than rounding."""

    actors: int | None = Field(
        default=None,
        ge=1,
        description="default: on several GPUs what makes a step shortest; else one, samplers on CPUs as many as there is room "
        "for, four at most",
    )
    cpus_per_actor: int = Field(default=1, ge=1, description="threads of an actor")
    gpus_per_actor: float | None = Field(
        default=None,
        gt=0,
        description="where the learner has GPUs; default: 1, or less where samplers, rewarders and learner have to share",
    )
    budget_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens held at once; halved when memory runs out; default: 16,384; on a GPU: what its share has room for",
    )
    max_restarts: int = Field(default=10, ge=0, description="how often a dead actor is started again")

    @field_validator("gpus_per_actor")
    @classmethod
    def _whole_or_part(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_actor = {gpus:g} is neither a part of a GPU nor a whole number of them")
        return gpus


class SamplerSection(PoolSection):
    """Actors that sample, and what they sample with."""

    engine: LocalEngine = Field(
        default="transformers",
        description="transformers: exact, the reference; vllm: vLLM in the same process, pip install 'endoreward[vllm]'",
    )


class RlConfig(LearningConfig):
    """Everything `rl` can be told."""

    rl: RlSection = RlSection()
    input: InputConfig = InputConfig()
    tokens: TokensConfig = TokensConfig()
    reward_model: ModelConfig = ModelConfig()
    reward: RewardConfig = RewardConfig()
    rewarding: RewardingSection = RewardingSection()
    rewards: dict[str, RewardSource] = Field(default={"endogenous": RewardSource()})
    ppo: PpoConfig = PpoConfig()
    grpo: OnlineGrpoConfig = OnlineGrpoConfig()
    gspo: GspoConfig = GspoConfig()
    cispo: CispoConfig = CispoConfig()
    rloo: RlooConfig = RlooConfig()
    reinforce: OnlineReinforceConfig = OnlineReinforceConfig()
    reinforce_plus_plus: ReinforcePlusPlusConfig = ReinforcePlusPlusConfig()
    opd: OpdConfig = OpdConfig()
    held_out: HeldOutSection = HeldOutSection()
    sampler: SamplerSection = SamplerSection()
    rewarder: PoolSection = PoolSection()

    @property
    def optimizer(self) -> RlSection:
        return self.rl

    @property
    def section(self) -> str:
        return "rl"

    @property
    def credit(self) -> Literal["response", "tokens"]:
        """As told, or by the algorithm."""
        by_token = self.rl.algorithm in ("ppo", "reinforce_plus_plus", "opd")
        return self.rl.credit or ("tokens" if by_token else "response")

    @property
    def correction(self) -> Correction:
        """As told, or none where samples are the learner's own but for rounding."""
        apart = self.rl.lag or self.sampler.engine != "transformers"
        return self.rl.correction or ("sequence-mask" if apart else "none")

    @model_validator(mode="before")
    @classmethod
    def _taught(cls, given: Any) -> Any:
        """Under opd the default reward is a teacher's."""
        section = given.get("rl") if isinstance(given, dict) else None
        algorithm = section.get("algorithm") if isinstance(section, dict) else getattr(section, "algorithm", None)
        return {"rewards": {"teacher": {"kind": "teacher"}}, **given} if algorithm == "opd" else given

    @field_validator("tokens")
    @classmethod
    def _whole_prompts(cls, tokens: TokensConfig) -> TokensConfig:
        if tokens.rubrics is not None:
            raise ValueError(
                "a policy answers under one system prompt: give tokens.system_prompt; rubrics of the reward are "
                "rewards.NAME.system_prompt"
            )
        if tokens.over_length == "cut_prompt":
            raise ValueError(
                "over_length = cut_prompt is for labelling: a prompt that leaves no room for a response is left out, with a "
                "warning; shorten it, or take a policy with a longer context"
            )
        return refuse_sampled(tokens)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        alone = self.rl.group_size == 1
        compares = {
            **dict.fromkeys(("grpo", "gspo", "cispo", "rloo"), True),
            "reinforce": self.reinforce.baseline == "group",
            "reinforce_plus_plus": self.reinforce_plus_plus.baseline == "group",
            "opd": self.opd.baseline == "group",
        }
        if self.rl.refill and (alone or not compares.get(self.rl.algorithm, False)):
            raise ValueError(
                f"rl.refill = {self.rl.refill} looks for groups whose rewards differ, and under rl.algorithm = "
                f"{self.rl.algorithm}, as it is set, responses to a prompt are not compared: leave rl.refill out"
            )
        if alone and compares.get(self.rl.algorithm, False):
            raise ValueError(
                f"rl.algorithm = {self.rl.algorithm} compares the responses to a prompt, and rl.group_size = 1; raise it"
            )
        if not self.rewards:
            raise ValueError("rewards: none; give at least one, such as rewards.endogenous.kind = endogenous")
        if self.rl.lag and self.rl.replay:
            raise ValueError(
                "rl.lag = 1 under rl.replay: a replay samples nothing, so nothing can run ahead of it; leave rl.lag out, and "
                "to learn as the run that was kept did, set rl.correction as it had it (sequence-mask where it said nothing)"
            )
        if self.rl.algorithm in OF_RESPONSES and self.correction.startswith("token"):
            raise ValueError(
                f"rl.algorithm = {self.rl.algorithm} weighs whole responses, and rl.correction = {self.correction} gives each "
                f"token a weight of its own: set {self.correction.replace('token', 'sequence')}"
            )
        if self.rl.algorithm == "opd":
            self._refuse_other_teaching()
        return self

    def _refuse_other_teaching(self) -> None:
        """What on-policy distillation cannot learn from. Raises ValueError."""
        kinds = {name: source.kind for name, source in self.rewards.items()}
        if not any(source.kind == "teacher" and source.share == 1 for source in self.rewards.values()):
            raise ValueError(
                "rl.algorithm = opd learns from a teacher, and no reward is one for all prompts: name it, as "
                "rewards.teacher.kind = teacher, or leave rewards out"
            )
        endogenous = [name for name, kind in kinds.items() if kind == "endogenous"]
        if endogenous:
            raise ValueError(
                f"rl.algorithm = opd: rewards.{endogenous[0]} is endogenous, whose V(s_h) is noise in the rewards of single "
                "tokens; set its kind = teacher, which has none, or another rl.algorithm"
            )
        others = [name for name, kind in kinds.items() if kind not in ("teacher", "relative")]
        if others and self.opd.gamma == 0:
            raise ValueError(
                f"rl.algorithm = opd: rewards.{others[0]} is of whole responses, and under opd.gamma = 0 only their last "
                "token would answer for it; set opd.gamma = 1"
            )

    def unread(self) -> Unread:
        yield from super().unread()
        yield from unread_of_prompts()
        yield from unread_of_tokens(self.tokens)
        yield from self._unread_of_algorithm()
        yield from self._unread_of_rewards()
        yield from self._unread_of_actors()

    def idle(self) -> list[str]:
        """What has no effect in this run and may stay: of a file whose one number or list was set to nothing, of the run that
        a replay replays, or ready for more steps a batch."""
        unused: list[tuple[str, str]] = []
        if not self.rl.kl_coefficient:
            for field in ("rl.kl_in", "rl.kl_estimator", "reference"):
                unused.append((field, "under rl.kl_coefficient = 0, which holds no reference"))
        if not self.held_out.prompts:
            for field in ("check", "answer_key", "some", "seed"):
                unused.append((f"held_out.{field}", "without held_out.prompts"))
        if self.rl.replay:
            for section in ("sampler", "rewarder", "held_out", "rl.refill"):
                unused.append((section, "under rl.replay, which samples and measures nothing"))
        elif self.rl.epochs == self.rl.minibatches == 1 and (self.correction != "none" or not self.rl.lag):
            for name in (
                "ppo.epsilon",
                "grpo.epsilon",
                "grpo.epsilon_high",
                "gspo.epsilon",
                "gspo.epsilon_high",
                "cispo.max_ratio",
                "rloo.epsilon",
                "reinforce_plus_plus.epsilon",
                "opd.max_ratio",
            ):
                unused.append((name, "while rl.epochs and rl.minibatches are 1: each batch is the policy's own"))
        return set_but_unread(self, unused)

    def _unread_of_algorithm(self) -> Unread:
        algorithm = self.rl.algorithm
        for name in ALGORITHMS:
            if name != algorithm:
                yield name, f"under rl.algorithm = {algorithm}; leave it out, or set that to {name}"
        if algorithm in WITHOUT_RATIO:
            yield (
                "rl.epochs",
                f"for the better under rl.algorithm = {algorithm}: nothing corrects for learning from a batch again; leave it "
                "out, or set that to ppo, grpo or reinforce_plus_plus",
            )
        if self.correction == "none":
            yield "rl.correction_cap", "under rl.correction = none; leave it out, or set that"
        if algorithm == "opd":
            yield "rl.credit", "under rl.algorithm = opd, whose opd.gamma says it; leave it out"
            yield "rl.gamma", "under rl.algorithm = opd; set opd.gamma"
        elif self.credit == "response" and algorithm != "ppo":
            yield "rl.gamma", "under rl.credit = response; leave it out, or set that to tokens"
        if self.ppo.value != "critic":
            yield "ppo.value_coefficient", f"under ppo.value = {self.ppo.value}; leave it out, or set that to critic"

    def _unread_of_rewards(self) -> Unread:
        kinds = {source.kind for source in self.rewards.values()}
        if "endogenous" not in kinds:
            yield "reward", "without an endogenous reward; leave it out"
            yield "rewarding.other_tokenizer", "without an endogenous reward; leave it out"
        if not kinds & {"endogenous", "relative", "teacher"}:
            yield "reward_model", "without an endogenous or relative reward, or a teacher; leave it out"
        yield from unread_revision("reward_model", self.reward_model.name)
        if not self.reward_model.name:
            yield "reward_model.revision", "without reward_model.name; give that, or leave it out"
        for name, source in self.rewards.items():
            if not source.model:
                yield f"rewards.{name}.revision", f"without rewards.{name}.model; give that, or leave it out"
            yield from unread_revision(f"rewards.{name}", source.model)

    def _unread_of_actors(self) -> Unread:
        if self.rl.replay:
            yield "sampler.engine", "under rl.replay, which samples nothing; leave it out"
        if self.learner.device == "cpu":
            for pool in ("sampler", "rewarder"):
                yield f"{pool}.gpus_per_actor", "under learner.device = cpu; leave it out"
        if self.held_out.check != "maths":
            yield "held_out.answer_key", "without held_out.check = maths; set that, or leave it out"
