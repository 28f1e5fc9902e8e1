"""What a source of rewards is, and what it gives for one response."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Array, Prompt, Rollout
from pipeline.rl.sources.models import Models
from pipeline.rl.sources.readers import Reader

Sampled = tuple[Prompt, Rollout]


@dataclass(frozen=True)
class Earned:
    """What one source gives a response of H tokens, before its weight."""

    reward: float
    tokens: Array  # [H], the shares of its tokens
    values: Array | None = None  # [H], V(s_h), the forecast of the tokens' rewards from h on

    @classmethod
    def whole(cls, reward: float, length: int) -> "Earned":
        """A reward of the whole response, which its last token gets."""
        tokens = np.zeros(length)
        tokens[-1] = reward
        return cls(reward, tokens)


class Source:
    """One of the rewards of a run. To build it loads no weights.

    Args:
        name: its name in `config.rewards`.

    Attributes:
        who: what messages call it.
        readers: what it asks models through.
        forecasts: whether what it gives has values.

    Raises:
        ConfigError: where something that it names cannot be used.
    """

    forecasts = False

    def __init__(self, name: str, config: RlConfig):
        self.name, self.who = name, f"rewards.{name}"
        self.section, self.config = config.rewards[name], config
        self.readers: tuple[Reader, ...] = ()

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt is in the source's share: the same on every run, whatever else a batch holds."""
        drawn = int.from_bytes(hashlib.sha256(f"{self.config.rl.seed}:{self.name}:{prompt.id}".encode()).digest())
        return drawn < self.section.share * 2.0**256

    @property
    def notes(self) -> list[str]:
        """What a person should know of what it has given so far."""
        return []

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        """What each response earns; None where the source has nothing to say of it. Raises RunError."""
        raise NotImplementedError
