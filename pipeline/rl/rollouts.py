"""What passes between samplers, rewarders and learners, as plain data: no torch.

Prompt -> Rollout (the sampler) -> Rewarded (the rewarder) -> advantages (the algorithm) -> a step (the learner)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.samples import Message

Tokens = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prompt:
    """One problem."""

    id: str  # its file and row
    messages: list[Message]
    conversational: bool  # as in `Sample`
    ids: list[int]  # what the policy is asked with: the generation prompt of its own template, at least one token
    columns: dict[str, Any] = field(default_factory=dict)  # what else its row holds, such as the right answer
    tools: list[dict[str, Any]] | None = None  # as in `Sample`


@dataclass(frozen=True)
class Rollout:
    """One response of the policy to a prompt; H tokens."""

    ids: list[int]  # [H], its end token included
    text: str
    finished: bool  # False where it was cut off
    logprobs: Tokens  # [H], log pi of the weights that sampled it, nats
    version: int  # of these weights: how many steps they had learnt
    certainty: Tokens | None = None  # [H, 2], entropy and KL(uniform || pi) of what each token was drawn from, nats


@dataclass(frozen=True)
class Rewarded:
    """What one response earned; H tokens."""

    reward: float  # the weighted sum over all sources
    parts: dict[str, float]  # by source, before its weight; a source that does not apply is left out
    token_rewards: Array  # [H]; a source that rewards whole responses puts its share on the last token
    values: Array | None  # [H], V(s_h) of the reward models, weighted; None where no source has any
    reference: Tokens | None  # [H], log pi_ref; None where no reference is held


@dataclass(frozen=True)
class Group:
    """A prompt, the policy's responses to it, and what they earned: all of length n."""

    prompt: Prompt
    rollouts: Sequence[Rollout]
    rewarded: Sequence[Rewarded]
