"""Where a step's groups come from: samplers and rewarders, or a store that keeps those of another run.

prompts of the step     Order: any step is found without those before it
samples                 samplers, under the weights of the step
rewards                 rewarders, which are frozen
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch.distributed as dist

from actors.learner import Learner
from actors.sampler import serialize
from jobs.learning.loop import Source
from jobs.rl.pool import ActorPool, shared_out
from pipeline.models.questions import Question
from pipeline.rl.config import RlConfig
from pipeline.rl.rollout_store import RolloutStore
from pipeline.rl.rollouts import Group, Prompt, Rollout
from pipeline.training.order import Order


@dataclass(frozen=True)
class PromptSet:
    """What a run learns from, and what it is measured on.

    `transcript`: conversations are put to the policy as a transcript, for want of a chat template.
    """

    prompts: list[Prompt]
    held_out: list[Prompt]
    transcript: bool


class RolloutSource:
    """Fresh samples with their rewards, of the weights that it took last. Lives on the first worker; the actors that it
    asks outlive it."""

    def __init__(self, config: RlConfig, prompts: PromptSet, samplers: ActorPool, rewarders: ActorPool):
        self.config, self.prompts, self.samplers, self.rewarders = config, prompts, samplers, rewarders
        self.order = Order(np.zeros(len(prompts.prompts), np.int32), config.rl.batch_size, config.rl.seed, 1)
        self.version = 0
        self.weights: Any = None  # a Ray reference
        self.probe: Any = None

    def take(self, version: int, weights: dict[str, Any], probe: Any = None) -> None:
        """What is sampled from now on comes from these weights of the learner's, by which the probe's text has these
        log-probabilities."""
        self.version, self.weights = version, None  # or the object store would hold those before beside them
        self.weights, self.probe = ray.put(serialize(weights)), probe

    def step(self, step: int) -> list[Group]:
        """The groups of step `step`, counted from 0: the same prompts and random numbers whenever it is asked."""
        prompts = [self.prompts.prompts[number] for number in self.order.step(step)]
        return self._groups(prompts, self.config.rl.group_size, f"{self.config.rl.seed}:{step}")

    def held_out(self, count: int) -> list[Group]:
        """One response to each of the first `count` prompts that nothing is learnt from."""
        return self._groups(self.prompts.held_out[:count], 1, f"held out:{self.config.held_out.seed}")

    def _groups(self, prompts: Sequence[Prompt], samples: int, seed: str) -> list[Group]:
        questions = [_question(f"{seed}:{number}", prompt, samples) for number, prompt in enumerate(prompts)]
        parts = shared_out(questions, len(self.samplers.actors))
        answers = self.samplers.do("sample", [(self.version, self.weights, part, self.probe) for part in parts])
        pairs = [
            (prompt, self._without_space(prompt, rollouts))
            for prompt, rollouts in zip(prompts, [each for part in answers for each in part], strict=True)
        ]
        rewarded = self.rewarders.do("reward", [(part,) for part in shared_out(pairs, len(self.rewarders.actors))])
        rewards = [each for part in rewarded for each in part]
        return [Group(prompt, rollouts, earned) for (prompt, rollouts), earned in zip(pairs, rewards, strict=True)]

    def _without_space(self, prompt: Prompt, rollouts: list[Rollout]) -> list[Rollout]:
        """The space that a transcript puts after `Assistant:` is no part of a response."""
        if not (self.prompts.transcript and prompt.conversational):
            return rollouts
        return [replace(each, text=each.text.removeprefix(" ")) for each in rollouts]

    @property
    def measurable(self) -> int:
        """How many held-out prompts there are."""
        return len(self.prompts.held_out)

    def notes(self) -> list[str]:
        """What came up since it was last asked, once each."""
        notes = list(dict.fromkeys(self.samplers.notes + self.rewarders.notes))
        self.samplers.notes.clear()
        self.rewarders.notes.clear()
        return notes

    def seconds(self) -> dict[str, float]:
        """What was spent since it was last asked."""
        seconds = {"time/sampling": self.samplers.seconds, "time/rewarding": self.rewarders.seconds}
        self.samplers.seconds = self.rewarders.seconds = 0.0
        return seconds


class ReplaySource:
    """The groups that another run kept: nothing is sampled, nothing rewarded, nothing measured."""

    measurable = 0

    def __init__(self, config: RlConfig):
        assert config.rl.replay is not None
        self.store = RolloutStore(config.rl.replay)

    def take(self, version: int, weights: dict[str, Any], probe: Any = None) -> None:
        """Nobody asks for them."""

    def step(self, step: int) -> list[Group]:
        return self.store.read(step)

    def held_out(self, count: int) -> list[Group]:
        return []

    def notes(self) -> list[str]:
        return []

    def seconds(self) -> dict[str, float]:
        return {}


class SharedSource(Source[list[Group]]):
    """The first worker's source, whose groups all workers hear of.

    Args:
        own: None on the other workers.
        probed: whether each version goes with the learner's log-probabilities of the probe's text.
    """

    def __init__(self, own: RolloutSource | ReplaySource | None, probed: bool = False):
        self.own, self.probed = own, probed

    def step(self, step: int) -> list[Group]:
        groups: list[Any] = [self.own.step(step) if self.own else None]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(groups)
        heard: list[Group] = groups[0]
        return heard

    def update(self, step: int, learner: Learner) -> None:
        weights = learner.weights()  # gathered from all workers
        probe = learner.probe() if self.probed else None
        if self.own and weights:
            self.own.take(step, weights, probe)


def _question(seed: str, prompt: Prompt, samples: int) -> Question:
    digest = hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()
    return Question(prompt.ids, samples, int.from_bytes(digest[:4], "big"))
