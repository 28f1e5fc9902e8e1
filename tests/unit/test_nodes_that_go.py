"""The loop of a run whose nodes are taken away: which steps end with a checkpoint, and what is said of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.learning import loop as loops
from jobs.learning.book import Book
from jobs.learning.loop import NODE_GOES, Recipe, Source
from pipeline.training.config import TrainConfig
from pipeline.training.metrics import read_metrics


class Nothing(Source[int]):
    def step(self, step: int) -> int:
        return step


@dataclass(frozen=True, kw_only=True)
class Counting(Recipe[int]):
    measured: list[int] = field(default_factory=list)

    def learner(self) -> Any:
        return None

    def source(self, learner: Any, step: int) -> Nothing:
        return Nothing()

    def book(self, source: Any, step: int, notes: Any) -> Book:
        return Book(self, step, notes)

    def step(self, learner: Any, step: int, data: int) -> tuple[dict[str, Any], int]:
        return {"loss": 1.0}, 1

    def progress(self, step: int, tokens: int, clock: Any) -> dict[str, Any]:
        return {}

    def measure(self, learner: Any, source: Any, state: dict[str, Any]) -> dict[str, Any]:
        self.measured.append(state["step"])
        return {}


@dataclass
class First:
    config: TrainConfig
    rank: int = 0
    notes: tuple[str, ...] = ()


@pytest.mark.parametrize("nodes_go", [True, False])
def test_a_node_that_goes_is_heard_of_once_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes_go: bool
) -> None:
    """Of two nodes one is announced from step 3 on, the other from step 5: a checkpoint for each, beside what is due."""
    config = TrainConfig.model_validate({"checkpoint": {"every_steps": 4}, "tracking": {"tensorboard": False}})
    kept: list[int] = []
    heard = iter([set(), set(), {"a"}, {"a"}, {"a", "b"}, {"a", "b"}, {"a", "b"}, {"a", "b"}])
    patched = {
        "Learner": lambda spec: First(config),
        "restore": lambda learner, fresh: {"step": 0, "num_tokens": 0},
        "leaving_nodes": lambda: next(heard),
        "keep": lambda learner, output, state, row, save: kept.append(state["step"]),
        "export": lambda learner, output, name: None,
    }
    for name, value in patched.items():
        monkeypatch.setattr(loops, name, value)
    recipe = Counting(
        config=config, device="cpu", deepspeed=None, output=str(tmp_path), steps=8, rate=1.0, nodes_go=nodes_go, run={}
    )
    loops.loop(recipe)
    assert kept == ([3, 4, 5, 8] if nodes_go else [4, 8]) and recipe.measured == [4, 8]
    rows = read_metrics(str(tmp_path / "metrics.jsonl"))
    said = {row["step"]: row["warnings"] for row in rows if "warnings" in row}
    assert len(rows) == 8
    assert said == ({n: [f"a checkpoint after step {n}: {NODE_GOES}"] for n in (3, 5)} if nodes_go else {})
