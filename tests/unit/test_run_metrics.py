"""What Prometheus is given of a run: sums, and gauges that are set again before Ray forgets them. Ray's metrics themselves are
scraped in tests/integration/test_submission.py."""

import time
from collections.abc import Mapping
from typing import Any

import pytest

from jobs.stores import metrics
from jobs.stores.metrics import RunMetrics, StepMetrics
from pipeline.corpus import Shard
from pipeline.store import Record
from pipeline.store.commit import Part
from pipeline.store.summary import ShardStats

Point = tuple[str, float, dict[str, str]]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What is recorded with Ray, in order."""
    recorded: list[Point] = []

    def record(metric: Any, value: float, tags: Mapping[str, str]) -> None:
        assert set(tags) == set(metric.info["tag_keys"]), "a tag that the metric was not made with"
        recorded.append((metric.info["name"], value, dict(tags)))

    monkeypatch.setattr("ray.util.metrics.Gauge.set", record)
    monkeypatch.setattr("ray.util.metrics.Counter.inc", record)
    return recorded


def committed(rows: int, tokens: int, reasons: dict[str, int]) -> Record:
    shard = Shard("a.jsonl", 0, 0, rows, rows, "0" * 64, 0, 10)
    errors = sum(reasons.values())
    parts = Part(2 * rows - errors, None, ""), Part(errors, None, "")
    return Record(shard, "f" * 64, 0, *parts, reasons, ShardStats(tokens=tokens))


def test_a_shard_is_counted(points: list[Point]) -> None:
    run = RunMetrics("s3://b/out", 10)
    run.add(committed(4, 100, {"too_long": 3, "not_json": 1}), 250, 1.5)
    run.add(committed(6, 0, {}), 0, 0.0)
    sums: dict[tuple[str, str], float] = {}
    for name, value, tags in points:
        assert tags["run"] == "s3://b/out"
        key = (name.removeprefix("endoreward_"), tags.get("reason", ""))
        sums[key] = value if key[0] == "rows_left" else sums.get(key, 0) + value
    assert sums == {
        ("rows_left", ""): 0,
        ("rows", ""): 10,
        ("responses", ""): 20,
        ("response_tokens", ""): 100,
        ("forwarded_tokens", ""): 250,
        ("score_seconds", ""): 1.5,
        ("errors", "too_long"): 3,
        ("errors", "not_json"): 1,
    }


def test_gauges_are_set_again_while_the_run_lasts(points: list[Point], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPEATED_EVERY_S", 0.01)
    with RunMetrics("out", 5) as run:
        run.actors(3)
        run.waiting(2)
        wanted = {("endoreward_rows_left", 5), ("endoreward_actors", 3), ("endoreward_waiting", 2)}
        points.clear()
        deadline = time.monotonic() + 10
        while {(name, value) for name, value, _ in points} != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {(name, value) for name, value, _ in points} == wanted
    points.clear()
    time.sleep(0.05)
    assert not points


def test_a_step_shows_its_finite_numbers(points: list[Point]) -> None:
    run = StepMetrics("out", 9, 2)
    run.update({"step": 3, "loss": 0.5, "kl": float("nan"), "warnings": ["a", "b"], "note": "x", "flag": True})
    assert points == [
        ("endoreward_steps", 9, {"run": "out"}),
        ("endoreward_step", 2, {"run": "out"}),
        ("endoreward_step", 3, {"run": "out"}),
        ("endoreward_warnings", 2, {"run": "out"}),
        ("endoreward_step_metric", 0.5, {"run": "out", "metric": "loss"}),
    ]
