"""What a training run is, as data. The rules are those of `pipeline.config`: every mistake at once, no torch imported."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config import (
    ClusterConfig,
    ModelConfig,
    OutputConfig,
    Place,
    Section,
    Unread,
    set_but_unread,
    unread_of_cluster,
    unread_revision,
)

PAIR_OBJECTIVES = ("dpo", "ipo", "simpo")
ADVANTAGE_OBJECTIVES = ("awr", "rwr", "grpo", "reinforce")
OBJECTIVES = {
    "dpo": ("DPO", "direct preference optimization"),
    "ipo": ("IPO", "identity preference optimization"),
    "simpo": ("SimPO", "simple preference optimization"),
    "awr": ("AWR", "advantage-weighted regression"),
    "rwr": ("RWR", "reward-weighted regression"),
    "grpo": ("GRPO", "the clipped policy gradient of GRPO"),
    "reinforce": ("REINFORCE", "policy gradient with truncated importance weights"),
    "sft": ("SFT", "maximum likelihood of the selected responses"),
}
"""What a page calls them, in short and in full."""
SECTION_OF = {"rwr": "awr"}  # the section that holds an objective's settings, where it is not its own


class OptimizerSection(Section):
    """What any training run says of its steps."""

    learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="default: 0.002 / hidden size of the policy, ten times that with LoRA",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="after the warm-up")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of AdamW")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="gradients are clipped; 0: never")
    seed: int = Field(default=0, ge=0, description="of the order of examples, of samples, and of new weights")


class TrainSection(OptimizerSection):
    labels: list[Place] = Field(default=[], description="label stores to learn from")
    objective: Literal["dpo", "ipo", "simpo", "awr", "rwr", "grpo", "reinforce", "sft"] = Field(
        default="dpo", description="what is optimised: docs/training.md has each one's equation"
    )
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False, description="how often all examples are seen")
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps; default: what epochs come to")
    batch_size: int = Field(
        default=16, ge=1, description="examples of an optimiser step, over all workers: pairs, else prompts"
    )
    shuffle_parts: int = Field(
        default=64, ge=1, description="parts of the stores that are shuffled together and held in memory"
    )
    eval_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the prompts kept from training, to measure on at each checkpoint"
    )


class PairsConfig(Section):
    """Which responses make a pair."""

    preference: Literal["known", "reward"] = Field(
        default="known",
        description="known: chosen and rejected as the input gave them, and pairs of its scores or ranks "
        "(input.pairs_from = all), by reward where it gave none; reward: always by reward",
    )
    select: Literal["best-worst", "all"] = Field(
        default="best-worst", description="which pairs of a prompt whose responses are told apart by reward"
    )
    min_margin: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="pairs by reward need a margin larger than this"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="probability that a preference is wrong (conservative DPO)"
    )
    margin_temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="soft targets: the chosen response is better with probability sigmoid(margin / this); default: hard",
    )


class DpoConfig(Section):
    """Direct preference optimization (arXiv 2305.18290, eq. 7)."""

    beta: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="strength of the KL constraint; default: 0.1 for preferences that the input gave, 1 for pairs by reward",
    )


class IpoConfig(Section):
    """Identity preference optimization (arXiv 2310.12036, eq. 17)."""

    beta: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="the paper's tau; default: as for dpo.beta"
    )


class SimpoConfig(Section):
    """Simple preference optimization, without a reference (arXiv 2405.14734, eq. 6)."""

    beta: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="scale of the mean log-probability")
    target_margin: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="the paper's gamma")


class AdvantageConfig(Section):
    """How rewards become advantages, for awr, rwr, grpo and reinforce."""

    credit: Literal["response", "tokens"] = Field(
        default="response",
        description="response: every token has the response's reward; tokens: its own discounted rewards to go",
    )
    gamma: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="discount of the rewards to go; default: the one the labels were made with",
    )
    baseline: Literal["group", "leave-one-out", "value", "none"] = Field(
        default="group",
        description="what is taken off: the mean of the prompt's responses, of its other responses, the stored V(s_h), "
        "nothing",
    )
    scale: Literal["group", "none"] = Field(
        default="group", description="group: divided by the standard deviation within the prompt's responses"
    )


class AwrConfig(Section):
    """Advantage-weighted regression (arXiv 1910.00177); rwr: weights normalised over the prompt's responses."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="of exp(advantage / temperature)")
    max_weight: float = Field(default=20.0, gt=0, allow_inf_nan=False, description="no response weighs more (awr)")


class GrpoConfig(Section):
    """Clipped policy gradient (arXiv 2402.03300, eq. 3), off-policy against the stored behaviour log-probabilities."""

    loss_type: Literal["dapo", "grpo", "dr_grpo"] = Field(
        default="dapo",
        description="mean over the tokens of the step; over responses of the mean over their tokens; over responses of "
        "the sum divided by max_completion_length",
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped below 1 - this")
    epsilon_high: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="and above 1 + this; default: epsilon"
    )
    beta: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="coefficient of the KL to the reference")
    max_completion_length: int = Field(default=256, ge=1, description="the constant of dr_grpo")


class ReinforceConfig(Section):
    """Policy gradient with truncated importance weights (arXiv 1802.01561, section 4)."""

    max_ratio: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="importance weights are cut off here")
    beta: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="coefficient of the KL to the reference")


class SftConfig(Section):
    """Maximum likelihood of selected responses; with best, best-of-n distillation."""

    select: Literal["best", "all"] = Field(
        default="best", description="the response of highest reward of each prompt, or all responses"
    )


class LoraSection(Section):
    rank: int = Field(default=0, ge=0, description="0: all weights are trained")
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="default: twice the rank")
    targets: str | list[str] = Field(
        default="all-linear", description="modules that get an adapter, as peft names them"
    )


MICRO_TOKENS = 16384


class LearnerConfig(Section):
    """The processes that train. None of these move a loss by more than rounding, but for the dtype."""

    workers: int | None = Field(
        default=None, ge=1, description="processes; default: one per GPU there is, or one on CPUs"
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="as many as there is room for, from this to learner.workers, more or fewer as nodes come and go; no two "
        "such runs are equal to the bit. Default: learner.workers, always",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there are GPUs now")
    cpus_per_worker: int = Field(default=1, ge=1, description="threads of a worker")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the forward pass and of the exported weights; the optimiser keeps float32. auto: bfloat16 on a GPU",
    )
    zero_stage: Literal[1, 2, 3] = Field(
        default=1, description="what is split over workers: 1 optimiser, 2 and gradients, 3 and weights"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        default="none", description="kept in the memory of the CPU: the optimiser, or with stage 3 the weights too"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice rather than keep them")
    budget_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a micro-batch, prompts included; default: 16,384, on GPUs what half of the free memory of the "
        "smallest has room for, 65,536 at most",
    )
    layout: Literal["auto", "packed", "padded"] = Field(
        default="auto", description="auto: packed where the architecture allows it; padding is for comparison"
    )
    head_chunk_mb: int = Field(
        default=64, ge=1, description="largest slice of [tokens, vocabulary] held, in MiB of float32"
    )
    deepspeed: Place | None = Field(
        default=None, description="a DeepSpeed configuration (JSON) that is merged into ours"
    )
    max_failures: int = Field(default=3, ge=0, description="how often dead workers are started again")
    max_preemption_failures: int | None = Field(
        default=None, ge=0, description="how often for nodes that were taken back; default: each time"
    )

    @property
    def micro_tokens(self) -> int:
        """`budget_tokens`, or what it is on CPUs, as runs are described."""
        return self.budget_tokens or MICRO_TOKENS

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_workers and (self.workers is None or self.min_workers > self.workers):
            raise ValueError("min_workers needs workers, the most that there may be, and is not more than that")
        if self.min_workers and self.zero_stage == 3:
            raise ValueError(
                "min_workers needs zero_stage = 1 or 2: a checkpoint for any number of workers passes through one whole"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError("offload = all needs zero_stage = 3; offload = optimizer works with every stage")
        return self


class CheckpointSection(Section):
    every_steps: int = Field(default=50, ge=1, description="steps between checkpoints; the last step always has one")
    keep: int = Field(default=2, ge=1, description="how many of the last checkpoints are kept")


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = Field(
        default=True, description="event files in OUTPUT/tensorboard, where OUTPUT is a local folder"
    )
    wandb: str | None = Field(
        default=None, description="project on Weights & Biases; needs wandb, its key in WANDB_API_KEY"
    )


class LearningConfig(Section):
    """What `train` and `rl` can both be told."""

    policy: ModelConfig = ModelConfig()
    reference: ModelConfig = ModelConfig()
    lora: LoraSection = LoraSection()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingConfig = TrackingConfig()
    output: OutputConfig = OutputConfig()
    run: ClusterConfig = ClusterConfig()

    @property
    def optimizer(self) -> OptimizerSection:
        raise NotImplementedError

    @property
    def section(self) -> str:
        """The section that says it, for messages."""
        raise NotImplementedError

    def unread(self) -> Unread:
        yield from unread_of_cluster(self.run)
        yield from unread_revision("policy", self.policy.name)
        yield from unread_revision("reference", self.reference.name)
        if not self.reference.name:
            yield "reference", "without reference.name; give that, or leave it out"
        if not self.lora.rank:
            for field in ("alpha", "targets"):
                yield f"lora.{field}", "under lora.rank = 0, which trains all weights; set that, or leave it out"

    @model_validator(mode="after")
    def _one_dtype(self) -> Self:
        for name, model in (("policy", self.policy), ("reference", self.reference)):
            if model.dtype != "auto":
                raise ValueError(f"{name}.dtype = {model.dtype} has no effect on training; say it with learner.dtype")
        return self


class TrainConfig(LearningConfig):
    """Everything `train` can be told."""

    train: TrainSection = TrainSection()
    pairs: PairsConfig = PairsConfig()
    dpo: DpoConfig = DpoConfig()
    ipo: IpoConfig = IpoConfig()
    simpo: SimpoConfig = SimpoConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    awr: AwrConfig = AwrConfig()
    grpo: GrpoConfig = GrpoConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    sft: SftConfig = SftConfig()

    @property
    def optimizer(self) -> TrainSection:
        return self.train

    @property
    def section(self) -> str:
        return "train"

    def unread(self) -> Unread:
        yield from super().unread()
        objective = self.train.objective
        for section, names in {
            **{name: (name,) for name in ("dpo", "ipo", "simpo", "grpo", "reinforce", "sft")},
            "awr": ("awr", "rwr"),
            "awr.max_weight": ("awr",),
            "pairs": PAIR_OBJECTIVES,
            "advantage": ADVANTAGE_OBJECTIVES,
            "advantage.baseline": ("awr", "grpo", "reinforce"),
        }.items():
            if objective not in names:
                yield section, f"under train.objective = {objective}; leave it out, or set that to {' or '.join(names)}"
        if self.advantage.credit == "response":
            yield "advantage.gamma", "under advantage.credit = response; leave it out, or set that to tokens"
        if self.grpo.loss_type != "dr_grpo":
            yield "grpo.max_completion_length", f"under grpo.loss_type = {self.grpo.loss_type}; it is of dr_grpo"

    def idle(self) -> list[str]:
        """What has no effect in this run and may stay."""
        unread = [] if self.train.max_steps is None else [("train.epochs", "beside train.max_steps")]
        return set_but_unread(self, unread)
