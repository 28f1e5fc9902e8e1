"""Every response exactly once, whatever was killed: with a real local Ray of two CPUs, killed for real."""

import glob
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chaos import ROOT, Nodes, Reader, run_with_kills
from tiny import CHATML, save_model

from pipeline.store import LabelStore, problems

Cli = Callable[..., subprocess.CompletedProcess[str]]


def corpus(path: Path, rows: int) -> Path:
    """Pairs of differing lengths; every 50th has an empty answer, every 70th line is no JSON."""
    with path.open("w") as file:
        for i in range(rows):
            row = {
                "prompt": f"question {i}",
                "chosen": f"answer {i} " * (i % 5 + 1),
                "rejected": "" if i % 50 == 7 else f"no {i}",
            }
            file.write((json.dumps(row) if i % 70 != 3 else "{broken") + "\n")
    return path


def everything(store: Path) -> tuple[pa.Table, pa.Table]:
    tables = []
    for kind in ("labels", "errors"):
        parts = sorted(glob.glob(f"{store}/{kind}/*.parquet"))
        tables.append(pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("id"))
    return tables[0], tables[1]


def check(store: Path, undisturbed: Path, rows: int) -> None:
    labels, errors = everything(store)
    expected_labels, expected_errors = everything(undisturbed)
    ids = labels["id"].to_pylist() + errors["id"].to_pylist()
    assert len(ids) == len(set(ids))
    broken = sum(i % 70 == 3 for i in range(rows))
    empty = sum(i % 50 == 7 and i % 70 != 3 for i in range(rows))
    assert len(ids) == 2 * (rows - broken) + broken and errors.num_rows == broken + empty
    assert labels.equals(expected_labels) and errors.equals(expected_errors)  # the rewards bit for bit
    assert list(problems(LabelStore(str(store)))) == []


def run(tmp_path: Path, on_one_ray: Cli, rows: int, kills: int, seed: int) -> Counter[str]:
    model = save_model(tmp_path / "model", CHATML)
    source = corpus(tmp_path / "rows.jsonl", rows)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"

    def arguments(store: Path) -> list[str]:
        settings = ["input.shard_rows=16", "run.num_cpus=2", "scorer.cpus_per_actor=1", "scorer.max_actors=2"]
        flags = ["label", "--model", str(model), "--input", str(source), "--output", str(store)]
        return flags + [part for setting in settings for part in ("--set", setting)]

    ran = on_one_ray(*arguments(undisturbed))
    assert ran.returncode == 0, ran.stderr
    reader = Reader(disturbed)
    reader.start()
    killed = run_with_kills(arguments(disturbed), disturbed, kills, seed, kinds=("driver", "actor"))
    reader.stop.set()
    reader.join()
    assert reader.trouble == [] and reader.reads > 0
    assert killed.total() == kills, f"the run ended after {killed}"
    check(disturbed, undisturbed, rows)
    before = {p: os.stat(p).st_mtime_ns for p in glob.glob(f"{disturbed}/**", recursive=True) if os.path.isfile(p)}
    assert on_one_ray(*arguments(disturbed)).returncode == 0  # a third run does nothing
    lock = str(disturbed / ".lock")
    assert {p: t for p, t in before.items() if p != lock} == {p: os.stat(p).st_mtime_ns for p in before if p != lock}
    return killed


@pytest.mark.timeout(600)
def test_a_few_kills(tmp_path: Path, on_one_ray: Cli) -> None:
    run(tmp_path, on_one_ray, rows=2400, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drivers, actors, workers that read and prepare, and whole nodes, which are replaced. The scorers sleep; the rest is
    that of a real run, and rewards follow from the tokens to the bit."""
    rows, kills, here = 8000, 200, Path(__file__).parent
    model = save_model(tmp_path / "model", CHATML)
    source = corpus(tmp_path / "rows.jsonl", rows)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{here}:{here.parent}")  # of Ray's workers

    def run(store: Path, tokens_per_s: int, kills: int) -> Counter[str]:
        program = [sys.executable, str(here / "simulated.py"), str(tokens_per_s), str(tmp_path / "events.jsonl")]
        arguments = ["label", "--model", str(model), "--input", str(source), "--output", str(store)]
        for setting in ("input.shard_rows=4", "scorer.device=cpu", "scorer.cpus_per_actor=1", "scorer.max_actors=2"):
            arguments += ["--set", setting]
        kinds = ("driver", "actor", "worker", "raylet")
        return run_with_kills(arguments, store, kills, 5, kinds=kinds, program=program, nodes=nodes)

    with Nodes(2, 2) as nodes:
        run(undisturbed, 0, 0)
        reader = Reader(disturbed, 20, 1.0)
        reader.start()
        killed = run(disturbed, 1000, kills)
        reader.stop.set()
        reader.join()
    print(f"killed: {dict(killed)}")
    assert reader.trouble == [] and reader.reads > 0
    assert (
        killed.total() == kills and min(killed[kind] for kind in ("driver", "actor", "worker", "raylet")) >= kills / 10
    )
    check(disturbed, undisturbed, rows)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills(tmp_path: Path, on_one_ray: Cli) -> None:
    killed = run(tmp_path, on_one_ray, rows=16000, kills=30, seed=2)
    assert set(killed) == {"driver", "actor"}
