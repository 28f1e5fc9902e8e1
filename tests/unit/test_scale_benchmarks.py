"""The benchmarks of scale themselves, in short forms: what they measure, keep and extrapolate."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scaling
import store_at_scale
from scaling import Measured, full_rate, read_runs, timed, write_run

from pipeline.store import LabelStore, Survey


def run(actors: int, rate: float, busy: float, shards: int = 8) -> Measured:
    return Measured(actors, 1.0, shards, rate, rate / actors, 5.0, busy)


def test_a_rate_is_that_of_all_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(scaling, "look", lambda: (float(next(clock)), 0.0, 1.0, 2.0))
    came: list[int] = []
    counted, moved = timed((came.append(i) for i in range(20)), lambda: len(came) >= 6, 4, 15)
    assert (counted, moved) == (9, [10.0, 0.0, 0.0, 0.0]) and len(came) == 15


def test_actors_that_never_run_together_are_no_figure() -> None:
    with pytest.raises(ValueError, match="never ran together"):
        timed(range(20), lambda: False, 4, 15)
    came: list[int] = []
    with pytest.raises(ValueError, match="never ran together"):  # too late: some have nothing to do by then
        timed((came.append(i) for i in range(20)), lambda: len(came) >= 15, 4, 15)


def test_runs_stay_beside_each_other(tmp_path: Path) -> None:
    place = tmp_path / "scaling.json"
    for each in (run(4, 4.0, 0.5), run(1, 1.0, 0.1), run(4, 3.0, 0.5, shards=20), run(4, 3.9, 0.6)):
        write_run(place, each)
    assert list(read_runs(place).values()) == [run(1, 1.0, 0.1), run(4, 3.9, 0.6), run(4, 3.0, 0.5, shards=20)]


def test_the_rate_of_full_cores_is_named() -> None:
    assert full_rate([run(1, 1.0, 0.1), run(4, 4.0, 0.5)]) == (8.0, "extrapolated from 4 actors at 50%")
    assert full_rate([run(4, 4.0, 0.5), run(16, 12.0, 0.97), run(64, 11.0, 0.99)]) == (12.0, "measured with 16 actors")


def test_what_is_published_can_be_read() -> None:
    runs: dict[Any, Measured] = read_runs(Path(scaling.__file__).parent / "results" / "scaling.json")
    assert {1, 4} <= {actors for actors, _, _ in runs}


def test_a_store_of_a_few_thousand_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A driver that stops at half, one that goes on, and the readers."""
    options = argparse.Namespace(rows=2_500, committers=2, workers=2, records_only=False, keep=str(tmp_path / "store"))
    store = LabelStore(options.keep)
    store.open_for_writing(store_at_scale.DESCRIPTION)
    store.add_input(store_at_scale.stored_input(0, options.rows))
    half = store_at_scale.run(store, argparse.Namespace(**{**vars(options), "committers": 1}), Survey(), batch=5)
    assert [next(half), next(half)] == [5, 10]
    half.close()
    for phase in ("resume", "validate", "sweep"):
        store_at_scale.run_phase(argparse.Namespace(**vars(options), phase=phase))
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["shards"] == 20 and figures["cpu"] > 0 and figures["planned"] < 60
    assert store.progress().complete and store.progress().labels == 2_500


def test_an_extrapolation_is_a_straight_line() -> None:
    def sized(shards: float) -> dict[str, dict[str, float]]:
        memory, cpu = 10 + shards / 2**20 * 200, 1 + shards * 0.002
        figures = {"shards": shards, "memory": memory, "cpu": cpu, "planned": shards / 1000, "files": 2 * shards}
        return dict.fromkeys(store_at_scale.PHASES, figures)

    measured = {int(rows): sized(rows / store_at_scale.SHARD_ROWS) for rows in (1e6, 3e6, 1e7)}
    lines = dict(store_at_scale.extrapolated(measured, sized(100)))
    far = np.array(store_at_scale.FAR) / store_at_scale.SHARD_ROWS
    assert lines["resume: memory, MB, 200 bytes a shard"] == pytest.approx(10 + far / 2**20 * 200)
    assert lines["status: CPU s, 2.00 ms a shard"] == pytest.approx(1 + far * 0.002)
    assert lines["what is left is known after, s"] == pytest.approx(far / 1000)
    assert lines["sweep: CPU hours, 12.00 ms a shard"] == pytest.approx(far * 0.012 / 3600)
    assert lines["files before compact"] == pytest.approx(far * 2)
