"""What `endoreward status` says of a training run's pace: of its last steps, by what metrics.jsonl has of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.stores.inspect_run import step_seconds
from jobs.stores.inspect_store import status
from pipeline.store import WriterLock, documents

DATA = Path(__file__).parents[1] / "data"


def trained(steps: int) -> list[dict[str, Any]]:
    """Steps of 100 tokens: ten of ten seconds, then of two."""
    rates = [10.0] * 10 + [50.0] * (steps - 10)
    return [
        {"step": at, "num_tokens": 100 * at, "tokens_per_second": rate, "loss": 0.5}
        for at, rate in enumerate(rates[:steps], 1)
    ]


def online(steps: int) -> list[dict[str, Any]]:
    return [{"step": 0, "eval_reward": 0.1}, *({"step": at, "step_time": 4.0} for at in range(1, steps + 1))]


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([], None),
        (trained(5), 10.0),
        (trained(20), 6.0),  # all of them: ten and ten
        (trained(30), 2.0),  # the last twenty
        (online(3), 4.0),
        (online(0), None),
        ([{"step": 1, "num_tokens": 10, "tokens_per_second": float("nan")}], None),
        ([{"step": 1, "loss": 1.0}], None),
    ],
)
def test_a_step_takes_what_the_last_ones_took(rows: list[dict[str, Any]], seconds: float | None) -> None:
    assert step_seconds(rows) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("stored", "rows", "rate", "left"),
    [
        ("run-ce2f0be", trained(30), "0.5 steps/s", "2 min 20 s"),
        ("rl-run-ce2f0be", online(10), "0.25 steps/s", "6 min"),
    ],
)
def test_rate_and_time_left_are_told(
    stored: str,
    rows: list[dict[str, Any]],
    rate: str,
    left: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The time left of one that is being written alone: another has none."""
    run = shutil.copytree(DATA / stored, tmp_path / "run")
    (run / "manifest.json").unlink()
    changes = {"steps": 100, "device": "2 x cpu, float32"}
    documents.write(str(run / "run.json"), {**documents.read(str(run / "run.json")), **changes})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with WriterLock(str(run)):
        status(str(run))
    written = " ".join(capsys.readouterr().out.split())
    assert f"Workers 2 x cpu, float32 Steps {rows[-1]['step']} of 100 Rate {rate} Time left about {left}" in written
    status(str(run))
    left_alone = " ".join(capsys.readouterr().out.split())
    assert f"Rate {rate}" in left_alone and "Time left" not in left_alone
