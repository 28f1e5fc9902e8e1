"""The actor that rewards: the frozen models of a mixture of rewards, and of the reference, in one process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.reply import Reply
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt, Rewarded, Rollout
from pipeline.rl.sources import RewardMixture


@dataclass(frozen=True)
class RewarderSpec:
    """What every rewarder needs to load its models; it pickles."""

    config: RlConfig
    device: str  # "cpu" or "cuda"
    dtype: str
    gpus: int = 0  # each model is spread over these where they are several
    gpu_share: float = 1.0  # of the GPU's memory


class RewardActor:
    def __init__(self, spec: RewarderSpec):
        config = spec.config
        torch.set_num_threads(config.rewarder.cpus_per_actor)
        self.rewards = RewardMixture(
            config,
            spec.device,
            spec.dtype,
            spec.gpus,
            hold_reference=config.rl.kl_coefficient > 0,
            gpu_share=spec.gpu_share,
        )

    def reward(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> Reply[list[list[Rewarded]]]:
        """What each response earned. Raises RunError."""
        started = time.perf_counter()
        return Reply.of(self.rewards.reward(groups), started, self.rewards.notes)
