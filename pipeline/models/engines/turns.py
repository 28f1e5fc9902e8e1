"""An engine's weights over its turns: which version is there, and nothing is forwarded while it is not.

    load     awake: put the weights in, empty the cache of prompts
             asleep: wake the weights, put them in, wake the cache, empty it
    rest     where a learner shares the GPU: give back its memory; what was there is no version any more
    forward  only between a load that came to its end and the next rest

An engine that is woken whole and then loaded could sample between the two from memory that holds no weights, or those before.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pipeline.errors import RunError

KEEPING, DISCARDING = 1, 2
"""vLLM's levels of sleep: weights go to the CPU's memory, or nowhere."""


class Sleeper(Protocol):
    """What of vLLM's `LLM` this needs."""

    def sleep(self, level: int) -> Any: ...
    def wake_up(self, tags: list[str] | None = None) -> Any: ...
    def reset_prefix_cache(self) -> bool: ...


class Turns:
    """
    Args:
        put: put weights into the engine, whose memory for them is there.
        shares: whether it gives back its memory between turns.
        level: of its sleep; only what keeps the weights leaves those that no load brings.

    Attributes:
        version: of the weights that are there; None for the model's own.
    """

    def __init__(self, llm: Sleeper, put: Callable[[Mapping[str, Any]], None], shares: bool, level: int):
        self.llm, self.put, self.shares, self.level = llm, put, shares, level
        self.version: int | None = None
        self.asleep = False
        self.usable = True

    def load(self, version: int, weights: Mapping[str, Any]) -> None:
        """Raises RunError where something of the version before would live on."""
        self.version, self.usable = None, False
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.put(weights)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise RunError(
                f"vLLM holds on to prompts that weights before version {version} have read, so it would go on from them; "
                "take sampler.engine = transformers"
            )
        self.version, self.usable = version, True

    def rest(self) -> None:
        """The end of a turn; nothing where the memory is the engine's own."""
        if self.shares and not self.asleep:
            self.version, self.usable = None, False
            self.llm.sleep(level=self.level)
            self.asleep = True

    def require(self) -> None:
        """Before a forward. Raises RunError where there are no weights to forward with."""
        if not self.usable:
            raise RunError("the sampler was asked before its weights were there, which it should not be; report this")
