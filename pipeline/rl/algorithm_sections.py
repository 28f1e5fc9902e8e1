"""The algorithms of online RL as configuration: their names, what each can be told, and what kind of loss it has."""

from typing import Literal

from pydantic import Field

from pipeline.config import Section

Algorithm = Literal["ppo", "grpo", "gspo", "cispo", "rloo", "reinforce", "reinforce_plus_plus", "opd"]

ALGORITHMS = {
    "ppo": ("PPO", "proximal policy optimization"),
    "grpo": ("GRPO", "group-relative policy optimization"),
    "gspo": ("GSPO", "group sequence policy optimization"),
    "cispo": ("CISPO", "clipped importance sampling of the policy gradient"),
    "rloo": ("RLOO", "REINFORCE leave-one-out"),
    "reinforce": ("REINFORCE", "REINFORCE"),
    "reinforce_plus_plus": ("REINFORCE++", "REINFORCE++"),
    "opd": ("OPD", "on-policy distillation"),
}
"""What a page calls them, in short and in full."""
WITHOUT_RATIO = ("reinforce",)
"""Those that take a batch for the policy's own: nothing corrects for learning from it again."""
OF_RESPONSES = ("rloo", "gspo")
"""Those whose ratio is one of a whole response."""


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


class GspoConfig(Section):
    """Group sequence policy optimization (arXiv 2507.18071)."""

    scale: Literal["group", "none"] = Field(
        default="group", description="group: advantages are divided by the standard deviation of the group's rewards"
    )
    epsilon: float = Field(
        default=3e-4, gt=0, lt=1, description="ratios, geometric means over a response, are clipped below 1 - this"
    )
    epsilon_high: float = Field(default=4e-4, gt=0, allow_inf_nan=False, description="and above 1 + this")


class CispoConfig(Section):
    """CISPO (arXiv 2506.13585)."""

    scale: Literal["group", "none"] = Field(
        default="group", description="group: advantages are divided by the standard deviation of the group's rewards"
    )
    max_ratio: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="ratios are truncated above this (arXiv 2510.13786 has 4 to 8)",
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


class OpdConfig(Section):
    """On-policy distillation (arXiv 2306.13649, 2306.08543)."""

    gamma: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="discount of what follows a token: 0: it answers for its own divergence from the teacher; 1: for that of "
        "the whole rest of the response too",
    )
    baseline: Literal["group", "none"] = Field(
        default="none", description="what is taken off the rewards to go: the mean of the group, or nothing"
    )
    max_ratio: float = Field(default=5.0, gt=0, allow_inf_nan=False, description="ratios are truncated above this")
