"""The train command as a user runs it, on a real local Ray with DeepSpeed."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chaos import run_with_kills
from label_stores import label_store
from pyarrow import fs
from safetensors.torch import load_file
from tiny import save_model
from transformers import AutoModelForCausalLM

from jobs.__main__ import main
from pipeline.store import LabelStore

Cli = Callable[..., subprocess.CompletedProcess[str]]
WORDS = list("abcdefghijklmnopqrst")


def rows(count: int) -> list[dict[str, str]]:
    """Pairs of uneven lengths."""
    return [
        {"prompt": f"Number {i}?", "chosen": " ".join(WORDS[: 1 + i % 9]), "rejected": " ".join(WORDS[-1 - i % 5 :])}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def labels(model: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return label_store(tmp_path_factory.mktemp("labels") / "store", model, rows(40), shard_rows=5)


def settings(**fields: Any) -> list[str]:
    given = {"run.num_cpus": 2, "train.learning_rate": 3e-3, "tracking.tensorboard": "false", **fields}
    return [word for name, value in given.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def metrics(output: Path) -> list[dict[str, Any]]:
    """The rows of a run, without what the clock says."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def steps_of(output: Path) -> int:
    file = output / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


SEVERAL = {
    "learner__workers": 2,
    "train__max_steps": 12,
    "train__batch_size": 7,  # a step may lie in two epochs
    "train__eval_share": 0.2,
    "checkpoint__every_steps": 4,
    "learner__zero_stage": 2,
}
MANY = {**SEVERAL, "train__max_steps": 60}  # that many kills find work in


@pytest.fixture(scope="module")
def undisturbed(model: Path, labels: LabelStore, tmp_path_factory: pytest.TempPathFactory, on_one_ray: Cli) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    ran = on_one_ray("train", "--labels", labels.uri, "--policy", model, "--output", output, *settings(**SEVERAL))
    assert ran.returncode == 0, ran.stderr
    assert "Pairs of known preference" in ran.stdout and "log-probabilities of the labels" in ran.stdout
    return output


def test_a_run_leaves_a_policy_metrics_and_a_page(model: Path, labels: LabelStore, undisturbed: Path) -> None:
    found = metrics(undisturbed)
    assert [row["step"] for row in found] == list(range(1, 13))
    assert found[-1]["loss"] < found[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"eval_loss", "eval_rewards/accuracies"} <= found[3].keys() and "eval_loss" not in found[4]
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name in ("hf", "best"):
        trained = AutoModelForCausalLM.from_pretrained(undisturbed / name).state_dict()
        assert any(not torch.equal(trained[key], base[key]) for key in base)
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["labels"][0]["fingerprint"] == labels.fingerprint()
    assert manifest["last"]["step"] == 12 and manifest["config"]["learner"]["zero_stage"] == 2
    assert "DPO" in (undisturbed / "report.html").read_text()
    assert "endoreward" in (undisturbed / "hf" / "README.md").read_text()
    assert len(list((undisturbed / "checkpoints").glob("checkpoint_*/"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_workers_and_driver_change_no_bit(
    model: Path, labels: LabelStore, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ["train", "--labels", labels.uri, "--policy", str(model), "--output", str(output), *settings(**SEVERAL)]
    killed = run_with_kills(command, output, 2, 3, done=steps_of, kinds=("driver", "learner"))
    assert killed.total() == 2
    assert metrics(output) == metrics(undisturbed)
    for name in ("hf", "best"):
        here, there = (load_file(folder / name / "model.safetensors") for folder in (output, undisturbed))
        assert all(torch.equal(here[key], there[key]) for key in there)


@pytest.fixture(scope="module")
def undisturbed_and_long(model: Path, labels: LabelStore, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    ran = cli("train", "--labels", labels.uri, "--policy", model, "--output", output, *settings(**MANY))
    assert ran.returncode == 0, ran.stderr
    return output


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_change_no_bit(
    model: Path, labels: LabelStore, undisturbed_and_long: Path, tmp_path: Path, seed: int
) -> None:
    output = tmp_path / "out"
    lasting = settings(**MANY, learner__max_failures=20)
    command = ["train", "--labels", labels.uri, "--policy", str(model), "--output", str(output), *lasting]
    assert run_with_kills(command, output, 6, seed, done=steps_of, kinds=("driver", "learner")).total() >= 4
    assert metrics(output) == metrics(undisturbed_and_long)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["train", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_finished_run_is_not_run_again_and_no_other_goes_on_in_its_place(
    model: Path, labels: LabelStore, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["--labels", labels.uri, "--policy", model, "--output", undisturbed, *settings(**SEVERAL)]
    assert main(["train", *map(str, same)]) == 0
    assert "all 12 steps are done already" in capsys.readouterr().out
    said = refused(capsys, *same, "--set", "learner.workers=1")
    assert (
        "a checkpoint fits only as many workers as wrote it" in said and "learner.workers: the run there has 2" in said
    )
    assert "dpo.beta" in refused(capsys, *same, "--set", "dpo.beta=0.2")
    changed = label_store(tmp_path / "store", model, [*rows(39), {**rows(1)[0], "chosen": "no"}], shard_rows=5)
    said = refused(capsys, "--labels", changed.uri, *same[2:])
    assert "the labels changed since the run began" in said


def test_an_unknown_reference_is_computed_and_a_loss_that_is_no_number_ends_the_run(
    labels: LabelStore, no_ray: None, tmp_path: Path, here: Cli
) -> None:
    other = save_model(tmp_path / "other", seed=1)
    output = tmp_path / "out"
    interrupts = signal.getsignal(signal.SIGINT)
    ran = here(
        "train", "--labels", labels.uri, "--policy", other, "--output", output,
        *settings(train__learning_rate=1e20, train__max_steps=5, train__warmup=0.0),
    )  # fmt: skip
    assert ran.returncode == 1 and signal.getsignal(signal.SIGINT) is interrupts  # Ray Train's own is gone with it
    assert re.search(r"the (loss|gradient's norm) is (nan|inf); lower train.learning_rate", ran.stderr)
    assert "computing the reference's log-probabilities" in ran.stdout
    [part, *_] = sorted((output / "reference").glob("*/part-*.parquet"))
    assert part.exists()
    first = metrics(output)[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4), "before the first step the policy is its own reference"


def test_mistakes_are_refused_before_anything_starts(
    model: Path, labels: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["--labels", labels.uri, "--policy", model, "--output", tmp_path / "out"]
    unfinished = label_store(tmp_path / "half", model, rows(4), shards=1)
    assert "is not finished: 1 of 2 shards" in refused(capsys, "--labels", unfinished.uri, *begin[2:])
    assert "train.objective" in refused(capsys, *begin, "--set", "train.objective=ppo")
    assert "is not a label store" in refused(capsys, "--labels", tmp_path / "nothing", *begin[2:])
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "fp16": {"enabled": True}}))
    said = refused(capsys, *begin, "--set", f"learner.deepspeed={tmp_path / 'zero.json'}")
    assert "zero_optimization.stage: 3 there, is 1 here; say it with learner.zero_stage" in said and "fp16" in said
    alone = label_store(tmp_path / "alone", model, [{"prompt": r["prompt"], "response": r["chosen"]} for r in rows(4)])
    said = refused(capsys, "--labels", alone.uri, *begin[2:], "--set", "train.objective=awr")
    assert "label several responses to a prompt" in said
    short = save_model(tmp_path / "short", context=8)
    assert "takes 8" in refused(capsys, "--labels", labels.uri, "--policy", short, *begin[4:])
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(600)
def test_groups_adapters_and_a_run_on_s3(model: Path, tmp_path: Path, s3: str, here: Cli) -> None:
    groups = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"], "or so"]} for r in rows(20)]
    labels = label_store(tmp_path / "store", model, groups, shard_rows=4)
    ran = here(
        "train", "--labels", labels.uri, "--policy", model, "--output", f"{s3}/run",
        *settings(
            train__objective="grpo", advantage__credit="tokens", advantage__baseline="value", grpo__beta=0.1,
            lora__rank=2, train__max_steps=6, checkpoint__every_steps=2, checkpoint__keep=1,
        ),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    storage = fs.FileSystem.from_uri(s3)[0]
    bucket = s3.removeprefix("s3://")
    found = {
        info.path.removeprefix(f"{bucket}/run/")
        for info in storage.get_file_info(fs.FileSelector(bucket, recursive=True))
    }
    assert {
        "manifest.json",
        "report.html",
        "hf/model.safetensors",
        "hf/README.md",
        "hf/adapter/adapter_config.json",
    } <= found
    assert len({name.split("/")[1] for name in found if name.startswith("checkpoints/checkpoint_2")}) == 1
    fs.copy_files(f"{bucket}/run/hf", str(tmp_path / "hf"), source_filesystem=storage)
    trained, base = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (tmp_path / "hf", model))
    changed = {key for key in base if not torch.equal(trained[key], base[key])}
    assert changed and all("proj" in key for key in changed)
    for file in ("README.md", "adapter/adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "hf" / file).read_text(), "no place of this machine"
    assert "6 of 6" in here("status", f"{s3}/run").stdout
