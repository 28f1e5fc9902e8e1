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

from actors.sampler import pack
from jobs.rl.pool import Crew, shared_out
from pipeline.models.questions import Question
from pipeline.rl.config import RlConfig
from pipeline.rl.rollout_store import KeptRollouts
from pipeline.rl.rollouts import Group, Prompt, Rollout
from pipeline.training.order import Order


@dataclass(frozen=True)
class Practice:
    """What a run practises on, and is measured on.

    `transcript`: conversations are put to the policy as a transcript, for want of a chat template.
    """

    prompts: list[Prompt]
    held_out: list[Prompt]
    transcript: bool


class Gathering:
    """Fresh samples with their rewards, of the weights that it took last. Lives on the first worker; the actors that it
    asks outlive it."""

    def __init__(self, config: RlConfig, practice: Practice, samplers: Crew, rewarders: Crew):
        self.config, self.practice, self.samplers, self.rewarders = config, practice, samplers, rewarders
        told = config.rl
        self.order = Order(np.zeros(len(practice.prompts), np.int32), told.batch_size, told.seed, 1)
        self.version = 0
        self.weights: Any = None  # a Ray reference

    def take(self, version: int, weights: dict[str, Any]) -> None:
        """What is sampled from now on comes from these weights of the learner's."""
        self.version, self.weights = version, ray.put(pack(weights))

    def step(self, step: int) -> list[Group]:
        """The groups of step `step`, counted from 0: the same prompts and random numbers whenever it is asked."""
        prompts = [self.practice.prompts[number] for number in self.order.step(step)]
        return self._groups(prompts, self.config.rl.group_size, f"{self.config.rl.seed}:{step}")

    def held_out(self, count: int) -> list[Group]:
        """One response to each of the first `count` prompts that nothing is learnt from."""
        return self._groups(self.practice.held_out[:count], 1, f"held out:{self.config.held_out.seed}")

    def _groups(self, prompts: Sequence[Prompt], samples: int, seed: str) -> list[Group]:
        questions = [_question(f"{seed}:{number}", prompt, samples) for number, prompt in enumerate(prompts)]
        parts = shared_out(questions, len(self.samplers.actors))
        made = self.samplers.do("sample", [(self.version, self.weights, part) for part in parts])
        pairs = [
            (prompt, self._said(prompt, rollouts))
            for prompt, rollouts in zip(prompts, [each for part in made for each in part], strict=True)
        ]
        rewarded = self.rewarders.do("reward", [(part,) for part in shared_out(pairs, len(self.rewarders.actors))])
        found = [each for part in rewarded for each in part]
        return [Group(prompt, rollouts, worth) for (prompt, rollouts), worth in zip(pairs, found, strict=True)]

    def _said(self, prompt: Prompt, rollouts: list[Rollout]) -> list[Rollout]:
        """Without the space that a transcript puts after `Assistant:`, which is no part of what was said."""
        if not (self.practice.transcript and prompt.conversational):
            return rollouts
        return [replace(each, text=each.text.removeprefix(" ")) for each in rollouts]

    @property
    def measurable(self) -> int:
        """How many held-out prompts there are."""
        return len(self.practice.held_out)

    def notes(self) -> list[str]:
        """What came up since it was last asked, once each."""
        found = list(dict.fromkeys(self.samplers.notes + self.rewarders.notes))
        self.samplers.notes.clear()
        self.rewarders.notes.clear()
        return found

    def seconds(self) -> dict[str, float]:
        """What was spent since it was last asked."""
        found = {"time/sampling": self.samplers.seconds, "time/rewarding": self.rewarders.seconds}
        self.samplers.seconds = self.rewarders.seconds = 0.0
        return found


class Replay:
    """The groups that another run kept: nothing is sampled, nothing rewarded, nothing measured."""

    measurable = 0

    def __init__(self, config: RlConfig):
        assert config.rl.replay is not None
        self.kept = KeptRollouts(config.rl.replay)

    def take(self, version: int, weights: dict[str, Any]) -> None:
        """Nobody asks for them."""

    def step(self, step: int) -> list[Group]:
        return self.kept.read(step)

    def held_out(self, count: int) -> list[Group]:
        return []

    def notes(self) -> list[str]:
        return []

    def seconds(self) -> dict[str, float]:
        return {}


def _question(seed: str, prompt: Prompt, samples: int) -> Question:
    digest = hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()
    return Question(prompt.ids, samples, int.from_bytes(digest[:4], "big"))
