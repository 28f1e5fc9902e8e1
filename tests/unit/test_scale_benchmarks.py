"""The benchmarks of scale themselves, in short forms: what they measure, keep and extrapolate."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scaling
from scaling import Measured, full_rate, read_runs, timed, write_run


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
