"""Prompts with pictures through the whole of it, on a real Ray: labelled once whatever is killed, held against their files,
evaluated with the control, learnt from."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chaos import run_with_kills

from pipeline.store import LabelStore, problems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Cli = Callable[..., subprocess.CompletedProcess[str]]
SHAPES = Path(__file__).parents[2] / "examples/shapes"
MODEL = str(SHAPES / "model")


def copied(folder: Path, rows: int) -> Path:
    """The first rows of the held-out pairs, with pictures of their own."""
    lines = (SHAPES / "held-out.jsonl").read_text().splitlines()[:rows]
    (folder / "held-out").mkdir(parents=True)
    for line in lines:
        name = json.loads(line)["image"]
        shutil.copy(SHAPES / name, folder / name)
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def labels_of(store: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted((store / "labels").glob("*.parquet")))).sort_by("id")


def label(source: Path, output: Path, *settings: str) -> list[str]:
    given = ["run.num_cpus=2", "scorer.cpus_per_actor=1", "scorer.max_actors=2", *settings]
    flags = ["label", "--model", MODEL, "--input", str(source), "--output", str(output)]
    return flags + [part for setting in given for part in ("--set", setting)]


def test_each_once_whatever_is_killed_and_a_picture_that_changes_is_seen(tmp_path: Path, on_one_ray: Cli) -> None:
    source, undisturbed, disturbed = copied(tmp_path / "corpus", 200), tmp_path / "whole", tmp_path / "disturbed"
    settings = ["input.shard_rows=1"]
    ran = on_one_ray(*label(source, undisturbed, *settings))
    assert ran.returncode == 0, ran.stderr
    killed = run_with_kills(label(source, disturbed, *settings), disturbed, 2, 3, kinds=("driver", "actor"))
    assert killed.total() == 2
    labels, due = labels_of(disturbed), labels_of(undisturbed)
    assert labels.equals(due) and labels.num_rows == len(set(labels["id"].to_pylist())) == 400  # 200 rows, no error row
    assert list(problems(LabelStore(str(disturbed)))) == []
    picture = source.parent / json.loads(source.read_text().splitlines()[7])["image"]
    content = bytearray(picture.read_bytes())
    content[len(content) // 2] ^= 1
    picture.write_bytes(content)
    [wrong] = problems(LabelStore(str(disturbed)))
    assert str(picture) in wrong and "changed" in wrong
    again = on_one_ray(*label(source, disturbed, *settings))
    assert again.returncode == 2 and "changed since it was labelled" in again.stderr


def test_a_control_and_a_policy_that_learns_from_pictures(tmp_path: Path, on_one_ray: Cli) -> None:
    source = copied(tmp_path / "corpus", 60)
    figures = on_one_ray(
        "evaluate", "--benchmark", "pairs", "--model", MODEL, "--input", str(source), "--output", str(tmp_path / "figures"),
        "--set", "evaluate.picture_control=true", "--set", "run.num_cpus=2",
    )  # fmt: skip
    assert figures.returncode == 0, figures.stderr
    control = json.loads((tmp_path / "figures/results.json").read_text())["pictures"]
    assert control["accuracy"]["given"] >= 0.95 and control["accuracy"]["grey"] == 0.5
    assert on_one_ray(*label(source, tmp_path / "labels")).returncode == 0
    trained = on_one_ray(
        "train", "--labels", str(tmp_path / "labels"), "--policy", MODEL, "--output", str(tmp_path / "policy"),
        "--set", "lora.rank=4", "--set", "train.batch_size=8", "--set", "train.max_steps=4", "--set", "run.num_cpus=2",
        "--set", "tracking.tensorboard=false",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    steps = [json.loads(line) for line in (tmp_path / "policy/metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 4 and all(step["loss"] == step["loss"] for step in steps if "loss" in step)
    assert (tmp_path / "policy/hf/processor_config.json").exists()
