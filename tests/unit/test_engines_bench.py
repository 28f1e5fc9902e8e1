"""benchmarks/engines.py: what a claim asks of the pieces that are there, and whose figures they are."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import engines

    yield engines
    sys.modules.pop("engines")


def piece(after: float) -> dict[str, float]:
    rest = dict.fromkeys(("before", "kl", "seconds", "step", "waiting", "sample_size"), 0.5)
    return {**rest, "after": after, "held_out": 500}


@pytest.mark.parametrize(("accuracy", "holds"), [(0.842, True), (0.832, False), (0.95, True)])
def test_a_claim_is_of_the_accuracy_and_the_interval_of_lag_0(
    accuracy: float, holds: bool, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,500 at 85.7% Wilson's interval is 83.9 to 87.4%; that of 83.2% overlaps it (to 85.0%) and is not within."""
    runs = {"lag 0": 0.8573, "lag 1": accuracy, "vllm": accuracy}
    there = {f"rl, 60 steps: {n}, seed {seed}": piece(after) for n, after in runs.items() for seed in range(3)}
    monkeypatch.setattr(engines, "known", lambda: there)
    claims = engines.show(argparse.Namespace(steps=60, seeds=3))
    assert list(claims.values()) == [holds, holds] and all("or above it" in claim for claim in claims)


def test_both_threads_are_the_samplers_and_the_learners(engines: Any) -> None:
    """Under a name of its own: figures of runs whose learner had one thread are another piece's."""
    assert engines.LAGS["lag 0, two threads for each"] == {"sampler.actors": 2, "learner.cpus_per_worker": 2}
    assert "lag 0, both threads" not in engines.LAGS
    options = argparse.Namespace(parts=["lag", "sample"], seeds=1, steps=60, held_out=500, model="", vllm="")
    keys = [each.key for each in engines.pieces(options)]
    assert "rl, 60 steps: lag 0, two threads for each, seed 0" in keys and "sample: floor" in keys
