"""Where a step's groups come from: samplers and rewarders, or a store that keeps those of another run.

prompts of the step     Order: any step is found without those before it
samples                 samplers, under the weights of the step's version
rewards                 rewarders, which are frozen

Version v is the weights after v steps. Step k, counted from 1, learns from samples of version max(0, k - 1 - rl.lag): under
lag 1 they are made while step k - 1 is learnt. A checkpoint then holds the one version more that the next step asks for.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from safetensors.torch import load, save_file

from actors.learner import Learner
from actors.sampler import Serialized, deserialized, serialize
from jobs.learning.loop import Source
from jobs.rl.pool import ActorPool, shared_out
from pipeline.models.engines.probe import Logprobs
from pipeline.models.questions import Question
from pipeline.rl.config import RlConfig
from pipeline.rl.refill import candidates, filled
from pipeline.rl.rollout_store import RolloutStore
from pipeline.rl.rollouts import Group, Prompt, Rollout
from pipeline.training.order import Order

Version = tuple[
    int, Any, Any
]  # of weights: its number, a Ray reference to them, what the learner says of the probe's text
Older = tuple[Serialized, Logprobs | None]  # weights, and what the learner said of the probe's text under them
PROBE = "endoreward.probe"  # beside the names of weights in a checkpoint's file of older ones


@dataclass(frozen=True)
class PromptSet:
    """What a run learns from, and what it is measured on.

    `transcript`: conversations are put to the policy as a transcript, for want of a chat template.
    """

    prompts: list[Prompt]
    held_out: list[Prompt]
    transcript: bool


@dataclass(frozen=True)
class Sampling:
    """Groups, and what making them took: seconds, and under rl.refill how many prompts."""

    groups: list[Group]
    measures: dict[str, float]
    notes: list[str]


class RolloutSource:
    """Fresh samples with their rewards. Lives on the first worker; the actors that it asks outlive it.

    One request at a time goes to them, from a thread of its own, in the order in which they were made.

    Args:
        steps: of the run; nothing is sampled for further ones.
    """

    def __init__(self, config: RlConfig, prompts: PromptSet, samplers: ActorPool, rewarders: ActorPool, steps: int):
        self.config, self.prompts, self.samplers, self.rewarders = config, prompts, samplers, rewarders
        self.steps = steps
        self.order = Order(np.zeros(len(prompts.prompts), np.int32), config.rl.batch_size, config.rl.seed, 1)
        self.version = 0  # the newest
        self.weights: dict[int, Any] = {}  # by version, Ray references
        self.probes: dict[int, Any] = {}  # by version, where the engine is held against the learner
        self.asked: dict[int, Future[Sampling]] = {}  # by step
        self.thread = ThreadPoolExecutor(1)
        self.measured: dict[str, float] = {}
        self.heard: list[str] = []

    def take(self, version: int, weights: dict[str, torch.Tensor], probe: Any = None) -> None:
        """The learner's weights after `version` steps, by which the probe's text has these log-probabilities; what can be
        sampled now and is not yet, is, where there is a lag."""
        lag = self.config.rl.lag
        # or the object store would hold older ones beside them
        self.weights = {v: each for v, each in self.weights.items() if version - lag <= v < version}
        self.probes = {v: each for v, each in self.probes.items() if v in self.weights}
        self.version, self.weights[version], self.probes[version] = version, ray.put(serialize(weights)), probe
        if lag:
            for step in range(version, min(version + lag + 1, self.steps)):
                self._ask(step)

    def give(self, version: int, older: Older) -> None:
        """Older weights than `take` brings, which the next step's samples come from."""
        weights, self.probes[version] = older
        self.weights[version] = ray.put(weights)

    def older(self) -> dict[int, Older]:
        """The weights that the next steps ask for, less the newest."""
        needed = range(max(0, self.version - self.config.rl.lag), self.version) if self.version < self.steps else ()
        return {version: (ray.get(self.weights[version]), self.probes.get(version)) for version in needed}

    def step(self, step: int) -> list[Group]:
        """The groups of step `step`, counted from 0: the same prompts and random numbers whenever it is asked."""
        self._ask(step)
        sampling = self.asked.pop(step).result()
        self.measured = sampling.measures
        self.heard += sampling.notes
        return sampling.groups

    def _ask(self, step: int) -> None:
        if step not in self.asked:
            version = max(0, step - self.config.rl.lag)
            self.asked[step] = self.thread.submit(self._of_step, step, self._version(version))

    def _version(self, version: int) -> Version:
        return version, self.weights[version], self.probes.get(version)

    def held_out(self, count: int) -> list[Group]:
        """One response to each of the first `count` prompts that nothing is learnt from, of the newest weights."""
        prompts, seed = self.prompts.held_out[:count], f"held out:{self.config.held_out.seed}"
        sampling = self.thread.submit(self._measuring, prompts, seed, self._version(self.version)).result()
        self.heard += sampling.notes
        return sampling.groups

    def close(self) -> None:
        """Nothing further is asked for."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    # On the thread

    def _of_step(self, step: int, version: Version) -> Sampling:
        section, own = self.config.rl, self.order.step(step).tolist()

        def ask(numbers: Sequence[int], first: int) -> list[Group]:
            prompts = [self.prompts.prompts[number] for number in numbers]
            return self._groups(prompts, section.group_size, f"{section.seed}:{step}", version, first)

        if not section.refill:
            return self._sampling(ask(own, 0))
        most = section.batch_size * (1 + section.refill)
        numbers = candidates(own, step, section.seed, len(self.prompts.prompts), most)
        return self._sampling(*filled(numbers, section.batch_size, ask))

    def _measuring(self, prompts: Sequence[Prompt], seed: str, version: Version) -> Sampling:
        return self._sampling(self._groups(prompts, 1, seed, version))

    def _sampling(
        self, groups: list[Group], measures: Mapping[str, float] = MappingProxyType({}), notes: Sequence[str] = ()
    ) -> Sampling:
        """The groups with what the actors say of making them."""
        pools = {"time/sampling": self.samplers, "time/rewarding": self.rewarders}
        seconds = {name: pool.seconds for name, pool in pools.items()}
        said = [note for pool in pools.values() for note in pool.notes]
        for pool in pools.values():
            pool.seconds = 0.0
            pool.notes.clear()
        return Sampling(groups, {**seconds, **measures}, [*said, *notes])

    def _groups(
        self, prompts: Sequence[Prompt], samples: int, seed: str, version: Version, first: int = 0
    ) -> list[Group]:
        questions = [_question(f"{seed}:{number}", prompt, samples) for number, prompt in enumerate(prompts, first)]
        parts = shared_out(questions, len(self.samplers.actors))
        number, weights, probe = version
        answers = self.samplers.do("sample", [(number, weights, part, probe) for part in parts])
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

    # Back on the worker's

    @property
    def measurable(self) -> int:
        """How many held-out prompts there are."""
        return len(self.prompts.held_out)

    def notes(self) -> list[str]:
        """What came up since it was last asked, once each."""
        notes, self.heard = list(dict.fromkeys(self.heard)), []
        return notes

    def measures(self) -> dict[str, float]:
        """What the groups of the step that was asked for last took."""
        return self.measured


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

    def measures(self) -> dict[str, float]:
        return {}

    def older(self) -> dict[int, Older]:
        return {}

    def close(self) -> None:
        """Nothing is under way."""


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

    def save(self, folder: str) -> None:
        for version, older in (self.own.older() if self.own else {}).items():
            write_version(os.path.join(folder, version_name(version)), older)

    def close(self) -> None:
        if self.own:
            self.own.close()


def version_name(version: int) -> str:
    """Of older weights in a checkpoint."""
    return f"weights-{version:06d}.safetensors"


def write_version(path: str, older: Older) -> None:
    """Weights as they travel, into a file, with their probe where there is one."""
    weights, probe = older
    tensors = dict(deserialized(weights))
    save_file(tensors if probe is None else {**tensors, PROBE: torch.from_numpy(probe)}, path)


def read_version(content: bytes) -> Older:
    """The inverse of `write_version`."""
    tensors = load(content)
    probe = tensors.pop(PROBE, None)
    return serialize(tensors), None if probe is None else probe.numpy()


def _question(seed: str, prompt: Prompt, samples: int) -> Question:
    digest = hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()
    return Question(prompt.ids, samples, int.from_bytes(digest[:4], "big"))
