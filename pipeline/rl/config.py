"""What an online run is, as data. The rules are those of `pipeline.config`: every mistake at once, no torch imported."""

from typing import Literal, Self

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
from pipeline.training.config import LearningConfig, OptimizerSection

Algorithm = Literal["ppo", "grpo", "rloo", "reinforce", "reinforce_plus_plus"]

ALGORITHMS = {
    "ppo": ("PPO", "proximal policy optimization"),
    "grpo": ("GRPO", "group-relative policy optimization"),
    "rloo": ("RLOO", "REINFORCE leave-one-out"),
    "reinforce": ("REINFORCE", "REINFORCE"),
    "reinforce_plus_plus": ("REINFORCE++", "REINFORCE++"),
}
"""What a page calls them, in short and in full."""
WITHOUT_RATIO = ("reinforce",)
"""Those that take a batch for the policy's own: nothing corrects for learning from it again."""


class RlSection(OptimizerSection):
    algorithm: Algorithm = Field(
        default="grpo", description="how the policy improves: docs/rl.md has each one's equation"
    )
    max_steps: int = Field(default=100, ge=1, description="batches of samples, each learnt from and thrown away")
    batch_size: int = Field(default=16, ge=1, description="prompts of a batch")
    group_size: int = Field(default=8, ge=1, description="responses to each prompt")
    max_new_tokens: int = Field(default=256, ge=1, description="longest response, its end token included")
    epochs: int = Field(default=1, ge=1, description="how often each batch is learnt from")
    minibatches: int = Field(default=1, ge=1, description="optimiser steps of an epoch; 1 and 1 is exactly on-policy")
    credit: Literal["response", "tokens"] | None = Field(
        default=None,
        description="response: every token is credited with the whole reward; tokens: with the rewards to go from it; "
        "default: tokens for ppo and reinforce_plus_plus, else response",
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


class PpoConfig(Section):
    """Proximal policy optimization (arXiv 1707.06347), advantages by GAE (arXiv 1506.02438)."""

    value: Literal["reward-model", "critic"] = Field(
        default="reward-model",
        description="what forecasts the rewards to go: the reward model's own V(s_h), which costs nothing, or a critic on "
        "the policy's states",
    )
    gae_lambda: float = Field(default=1.0, ge=0, le=1, description="lambda of GAE; 1: rewards to go, less the value")
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped outside 1 - this and 1 + this")
    value_coefficient: float = Field(
        default=0.5, ge=0, allow_inf_nan=False, description="of the critic's squared error"
    )
    normalize: bool = Field(default=False, description="advantages of a batch to mean 0 and deviation 1")


class OnlineGrpoConfig(Section):
    """Group-relative policy optimization (arXiv 2402.03300, eq. 3)."""

    loss_type: Literal["dapo", "grpo", "dr_grpo"] = Field(
        default="dapo",
        description="mean over the tokens of the batch; over responses of the mean over their tokens; over responses of "
        "the sum divided by rl.max_new_tokens",
    )
    scale: Literal["group", "none"] = Field(
        default="group", description="group: advantages are divided by the standard deviation of the group's rewards"
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped below 1 - this")
    epsilon_high: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="and above 1 + this; default: epsilon"
    )


class RlooConfig(Section):
    """REINFORCE leave-one-out (arXiv 2402.14740)."""

    epsilon: float = Field(
        default=0.2, gt=0, lt=1, description="ratios of whole responses are clipped outside 1 +- this"
    )


class OnlineReinforceConfig(Section):
    """REINFORCE (Williams 1992)."""

    baseline: Literal["group", "none"] = Field(
        default="group", description="what is taken off the reward: the mean of the group, or nothing"
    )


class ReinforcePlusPlusConfig(Section):
    """REINFORCE++ (arXiv 2501.03262)."""

    baseline: Literal["group", "none"] = Field(
        default="group", description="taken off before the batch is normalised: the mean of the group, or nothing"
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped outside 1 - this and 1 + this")


READ_BY = {
    "model": ("endogenous", "relative"),
    "revision": ("endogenous", "relative"),
    "system_prompt": ("endogenous", "relative"),
    "reference": ("relative",),
    "reference_revision": ("relative",),
    "answer_key": ("maths",),
    "function": ("function",),
    "free_tokens": ("length",),
}
"""Which kinds of rewards read a field of theirs; the other fields are everyone's."""


class RewardSource(Section):
    """One of the rewards whose weighted sum a run maximises."""

    kind: Literal["endogenous", "relative", "maths", "function", "length"] = Field(
        default="endogenous",
        description="endogenous: the reward model's logits; relative: its log-probabilities less those of `reference` "
        "(arXiv 2510.02493); maths: 1 where the final answer equals `answer_key`, else 0; function: Python; length: "
        "0 up to `free_tokens`, then down to -1 at rl.max_new_tokens (arXiv 2503.14476, eq. 13)",
    )
    weight: float = Field(default=1.0, allow_inf_nan=False, description="what it is multiplied by")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the prompts that it applies to")
    model: Place = Field(default="", description="endogenous, relative: default: reward_model.name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    system_prompt: str | None = Field(default=None, description="endogenous, relative: a rubric put before the prompt")
    reference: Place = Field(default="", description="relative: the earlier checkpoint, of the same tokenizer")
    reference_revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    answer_key: str = Field(default="answer", description="maths: column of the right answer")
    function: Place = Field(
        default="", description="function: path.py:name, called as name(prompts, completions, **columns)"
    )
    free_tokens: int = Field(default=0, ge=0, description="length: tokens that cost nothing")

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        unread = [
            f"{name} (read by kind = {' or '.join(kinds)})"
            for name, kinds in READ_BY.items()
            if self.kind not in kinds and self._given(name)
        ]
        if unread:
            kind = self.kind if "kind" in self.model_fields_set else f"{self.kind}, the default,"
            raise ValueError(f"kind = {kind} does not read {', '.join(unread)}; set kind, or leave that out")
        return self

    def _given(self, name: str) -> bool:
        """Whether a person gave the field. A configuration that was written out whole has it too, at its default."""
        if name not in self.model_fields_set:
            return False
        return "kind" not in self.model_fields_set or getattr(self, name) != type(self).model_fields[name].default

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "function" and not self.function.rpartition(":")[0].endswith(".py"):
            raise ValueError(f"function = {self.function!r} is not path.py:name")
        if self.kind == "relative" and not self.reference:
            raise ValueError("kind = relative needs reference, the checkpoint that rewards are relative to")
        return self


class RewardingSection(Section):
    """What holds for all rewards of a run."""

    other_tokenizer: Literal["retokenize", "refuse"] = Field(
        default="retokenize",
        description="a reward model with another tokenizer than the policy's: score the text anew, as a whole; or refuse it",
    )
    missing_eos_penalty: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="taken off a response that was cut off"
    )


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
    budget_tokens: int = Field(default=16384, ge=1, description="tokens held at once; halved when memory runs out")
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
    rloo: RlooConfig = RlooConfig()
    reinforce: OnlineReinforceConfig = OnlineReinforceConfig()
    reinforce_plus_plus: ReinforcePlusPlusConfig = ReinforcePlusPlusConfig()
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
        by_token = self.rl.algorithm in ("ppo", "reinforce_plus_plus")
        return self.rl.credit or ("tokens" if by_token else "response")

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
            "grpo": True,
            "rloo": True,
            "reinforce": self.reinforce.baseline == "group",
            "reinforce_plus_plus": self.reinforce_plus_plus.baseline == "group",
        }
        if alone and compares.get(self.rl.algorithm, False):
            raise ValueError(
                f"rl.algorithm = {self.rl.algorithm} compares the responses to a prompt, and rl.group_size = 1; raise it"
            )
        if not self.rewards:
            raise ValueError("rewards: none; give at least one, such as rewards.endogenous.kind = endogenous")
        return self

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
            for section in ("sampler", "rewarder", "held_out"):
                unused.append((section, "under rl.replay, which samples and measures nothing"))
        elif self.rl.epochs == self.rl.minibatches == 1:
            for name in (
                "ppo.epsilon",
                "grpo.epsilon",
                "grpo.epsilon_high",
                "rloo.epsilon",
                "reinforce_plus_plus.epsilon",
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
        if self.credit == "response" and algorithm != "ppo":
            yield "rl.gamma", "under rl.credit = response; leave it out, or set that to tokens"
        if self.ppo.value != "critic":
            yield "ppo.value_coefficient", f"under ppo.value = {self.ppo.value}; leave it out, or set that to critic"

    def _unread_of_rewards(self) -> Unread:
        kinds = {source.kind for source in self.rewards.values()}
        if "endogenous" not in kinds:
            yield "reward", "without an endogenous reward; leave it out"
            yield "rewarding.other_tokenizer", "without an endogenous reward; leave it out"
        if not kinds & {"endogenous", "relative"}:
            yield "reward_model", "without an endogenous or relative reward; leave it out"
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
