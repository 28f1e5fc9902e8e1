"""The soft penalty of long responses (arXiv 2503.14476, eq. 13)."""

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.rl.config import RlConfig
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models


class Length(Source):
    """0 up to `free_tokens`, then down to -1 at rl.max_new_tokens: the paper's L_cache is what lies between."""

    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        if self.section.free_tokens >= config.rl.max_new_tokens:
            raise ConfigError(
                f"{self.who}.free_tokens = {self.section.free_tokens}: no response is longer than rl.max_new_tokens = "
                f"{config.rl.max_new_tokens}; lower it"
            )

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        free = self.section.free_tokens
        room = self.config.rl.max_new_tokens - free
        lengths = [len(rollout.ids) for _, rollout in sampled]
        return [Earned.whole(-min(max(n - free, 0) / room, 1.0), n) for n in lengths]
