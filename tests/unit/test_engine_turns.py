"""No forward from weights that nobody asked for: an engine's turns as a state machine, against a model of vLLM's memory."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.strategies import booleans, integers, sampled_from

from pipeline.errors import RunError
from pipeline.models.engines.turns import DISCARDING, KEEPING, Turns


class Memory:
    """vLLM's: weights and cache are there or not, prompts in the cache are of the weights that read them."""

    def __init__(self) -> None:
        self.weights: int | None = -1  # the model's own
        self.there = {"weights", "kv_cache"}
        self.read_by: set[int | None] = set()

    def sleep(self, level: int) -> None:
        self.there.clear()
        self.read_by.clear()
        self.kept = self.weights if level == KEEPING else None

    def wake_up(self, tags: list[str] | None = None) -> None:
        for tag in tags or ["weights", "kv_cache"]:
            assert tag not in self.there
            self.there.add(tag)
            if tag == "weights":
                self.weights = self.kept

    def reset_prefix_cache(self) -> bool:
        assert "kv_cache" in self.there, "nothing to reset in"
        self.read_by.clear()
        return True

    def put(self, weights: Any) -> None:
        assert "weights" in self.there, "written into memory that is the learner's"
        self.weights = weights["version"]

    def forward(self) -> set[int | None]:
        assert self.there == {"weights", "kv_cache"}
        self.read_by.add(self.weights)
        return self.read_by


class Sampling(RuleBasedStateMachine):
    @initialize(shares=booleans(), level=sampled_from([KEEPING, DISCARDING]))
    def opened(self, shares: bool, level: int) -> None:
        self.memory, self.shares, self.wanted = Memory(), shares, -1
        self.turns = Turns(self.memory, self.memory.put, shares, level)

    @rule(version=integers(0, 3))
    def load(self, version: int) -> None:
        self.turns.load(version, {"version": version})
        self.wanted = version
        assert self.turns.version == version

    @rule(version=integers(0, 3))
    def load_that_breaks_off(self, version: int) -> None:
        def broken(weights: Any) -> None:
            self.memory.weights = -2  # half of these, half of those
            raise RuntimeError

        self.turns.put = broken
        with pytest.raises(RuntimeError):
            self.turns.load(version, {})
        self.turns.put = self.memory.put
        if self.turns.asleep:  # its weights' memory is there by now, and the sampler's actor ends
            self.memory.there.discard("weights")

    @rule()
    def rest(self) -> None:
        self.turns.rest()
        assert not self.memory.there if self.shares else self.memory.there, "memory that is shared is given back"

    @rule()
    def sample(self) -> None:
        try:
            self.turns.require()
        except RunError:
            return
        assert self.memory.forward() == {self.wanted}

    @invariant()
    def a_version_is_what_is_there(self) -> None:
        if getattr(self, "turns", None) and self.turns.version is not None:
            assert self.memory.weights == self.turns.version


TestSampling = Sampling.TestCase
TestSampling.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_prompts_that_are_held_on_to_end_the_run() -> None:
    memory = Memory()
    memory.reset_prefix_cache = lambda: False  # type: ignore[method-assign]
    turns = Turns(memory, memory.put, False, DISCARDING)
    with pytest.raises(RunError, match="holds on to prompts that weights before version 4 have read"):
        turns.load(4, {"version": 4})
    with pytest.raises(RunError, match="asked before its weights were there"):
        turns.require()
