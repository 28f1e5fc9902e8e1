"""The rl command as a user runs it, on a real local Ray with DeepSpeed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chaos import run_with_kills
from safetensors.torch import load_file
from tiny import save_model
from transformers import AutoModelForCausalLM

from jobs.__main__ import main
from pipeline.rl.rollout_store import RolloutStore

Cli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parent.parent.parent
CLOCKS = ("time/", "step_time")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), hidden=32)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Number {i}?", "answer": str(i)}) + "\n" for i in range(20)))
    return file


def settings(**fields: Any) -> list[str]:
    given = {
        "run.num_cpus": 2,
        "rl.batch_size": 4,
        "rl.group_size": 4,
        "rl.max_new_tokens": 12,
        "rl.learning_rate": 1e-3,
        "tracking.tensorboard": "false",
        **fields,
    }
    return [word for name, value in given.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def metrics(output: Path) -> list[dict[str, Any]]:
    """The rows of a run, without what the clock says and what was said of kills."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(CLOCKS) and k != "warnings"} for line in lines
    ]


def steps_of(output: Path) -> int:
    """Steps that have begun."""
    file = output / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0  # step 0 has a row too


def kept_steps_of(output: Path) -> int:
    """Steps that no kill takes back, nor what their rows say."""
    try:
        known = json.loads((output / "checkpoints" / "checkpoint_manager_snapshot.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not yet, or being written
        return 0
    return known["latest_checkpoint_result"]["metrics"]["step"]


LONG = {
    "learner__workers": 2,
    "rl__max_steps": 36,
    "rl__algorithm": "ppo",
    "ppo__value": "critic",
    "rl__minibatches": 2,
    "rl__epochs": 2,
    "rl__keep_rollouts": "true",
    "checkpoint__every_steps": 4,
    "held_out__every_steps": 5,
    "held_out__check": "maths",
}


@pytest.fixture(scope="module")
def undisturbed(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory, on_one_ray: Cli) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    long = settings(**LONG, held_out__prompts=json.dumps([str(prompts)]))
    ran = on_one_ray("rl", "--prompts", prompts, "--policy", model, "--output", output, *long)
    assert ran.returncode == 0, ran.stderr
    assert "accuracy before" in ran.stdout
    return output


def test_a_run_leaves_a_policy_metrics_samples_and_a_page(model: Path, undisturbed: Path) -> None:
    found = metrics(undisturbed)
    assert [row["step"] for row in found] == list(range(37))
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in found[1:])
    assert {"reward", "kl", "entropy", "completions/mean_length", "value_loss"} <= found[1].keys()
    assert {"eval_accuracy", "eval_reward", "eval_kl", "eval_entropy"} <= found[10].keys()
    assert "eval_reward" not in found[11]
    assert 0 < found[1]["kl"] < found[-1]["kl"]
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(undisturbed / "hf").state_dict()
    assert base.keys() == trained.keys() and any(not torch.equal(trained[key], base[key]) for key in base)
    results = json.loads((undisturbed / "results.json").read_text())
    low, high = results["accuracy_after_interval"]
    assert low <= results["accuracy_after"] <= high and results["held_out"] == 20
    samples = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().splitlines()]
    assert [each["step"] for each in samples] == [0, 5, 10, 15, 20, 25, 30, 35, 36]
    assert "PPO" in (undisturbed / "report.html").read_text().upper()
    assert main(["validate", str(undisturbed / "rollouts")]) == 0


KINDS = ("driver", "learner", "sampler", "rewarder")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_kills_of_every_kind_change_no_bit(
    model: Path, prompts: Path, undisturbed: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # at which Ray Train hears of a checkpoint
    output = tmp_path / "out"
    command = ["rl", "--prompts", str(prompts), "--policy", str(model), "--output", str(output)]
    command += settings(**LONG, held_out__prompts=json.dumps([str(prompts)]))
    killed = run_with_kills(command, output, len(KINDS), seed, done=steps_of, kept=kept_steps_of, kinds=KINDS)
    assert set(killed) == set(KINDS)
    assert metrics(output) == metrics(undisturbed)
    mine, there = (load_file(folder / "hf" / "model.safetensors") for folder in (output, undisturbed))
    assert all(torch.equal(mine[key], there[key]) for key in there)
    said = (output / "metrics.jsonl").read_text()
    assert "a sampler died and was started again" in said and "a rewarder died and was started again" in said
    assert "steps that were done after it are done once more" in said
    repeated = json.loads((output / "repeated.json").read_text())["repeated"]
    assert any(each["step"] > 0 for each in repeated)  # gone on from a checkpoint, not from the beginning
    assert json.loads((output / "manifest.json").read_text())["repeated"] == repeated


def test_a_kept_run_is_replayed_without_sampling(
    model: Path, prompts: Path, undisturbed: Path, tmp_path: Path, on_one_ray: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    other = settings(
        **LONG, rl__replay=str(undisturbed / "rollouts"), rl__group_size=3, rewarding__missing_eos_penalty=1
    )
    assert main(["rl", "--prompts", str(prompts), "--policy", str(model), "--output", str(output), *other]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rewarding.missing_eos_penalty was 0.0 and is 1.0; rl.group_size was 4 and is 3; give the same" in said
    again = settings(**{**LONG, "rl__keep_rollouts": "false"}, rl__replay=str(undisturbed / "rollouts"))
    ran = on_one_ray("rl", "--prompts", prompts, "--policy", model, "--output", output, *again)
    assert ran.returncode == 0, ran.stderr
    mine, there = (load_file(folder / "hf" / "model.safetensors") for folder in (output, undisturbed))
    assert all(torch.equal(mine[key], there[key]) for key in there)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_step_behind_every_sample_is_of_its_version_and_kills_change_no_bit(
    model: Path, prompts: Path, tmp_path: Path, on_one_ray: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step k learns from the weights after max(0, k - 2) steps, also where it is the first after a checkpoint; with LoRA the
    checkpoint holds the adapters alone."""
    told = settings(
        rl__lag=1,
        rl__max_steps=18,
        rl__minibatches=2,
        rl__keep_rollouts="true",
        lora__rank=2,
        checkpoint__every_steps=4,
        held_out__every_steps=9,
        held_out__prompts=json.dumps([str(prompts)]),
    )
    words = ["rl", "--prompts", str(prompts), "--policy", str(model), *told]
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    ran = on_one_ray(*words, "--output", quiet)
    assert ran.returncode == 0, ran.stderr
    for step in range(18):
        versions = {r.version for group in RolloutStore(str(quiet / "rollouts")).read(step) for r in group.rollouts}
        assert versions == {max(0, step - 1)}
    rows = metrics(quiet)[1:]
    difference = "sampling/sampling_logp_difference"
    assert rows[0][f"{difference}/max"] < 1e-5 < rows[10][f"{difference}/mean"]
    assert all(0 < row["sampling/effective_sample_size"] <= 1 and "sampling/capped" in row for row in rows)
    held = list((quiet / "checkpoints").glob("*/weights-*.safetensors"))
    assert {file.name for file in held} >= {"weights-000015.safetensors"}  # of step 16; after the last step none
    assert all("lora" in name for file in held for name in load_file(file))
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    kinds = ("learner", "sampler")
    command = [*words, "--output", str(killed)]
    run_with_kills(command, killed, len(kinds), 0, done=steps_of, kept=kept_steps_of, kinds=kinds)
    assert metrics(killed) == metrics(quiet)
    mine, there = (load_file(folder / "hf" / "model.safetensors") for folder in (killed, quiet))
    assert all(torch.equal(mine[key], there[key]) for key in there)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_groups_that_tell_nothing_apart_give_way_to_others_and_kills_change_no_bit(
    model: Path, prompts: Path, tmp_path: Path, on_one_ray: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third prompt is rewarded by the length of the response, the others alike whatever it is."""
    (tmp_path / "reward.py").write_text(
        "def third(prompts, completions, answer, **columns):\n"
        "    return [len(text) * (int(number) % 3 == 0) for text, number in zip(completions, answer)]\n"
    )
    told = settings(
        rl__max_steps=12, rl__refill=2, rl__keep_rollouts="true", rl__kl_coefficient=0.0, checkpoint__every_steps=3,
        rewards__mine__kind="function", rewards__mine__function=f"{tmp_path / 'reward.py'}:third",
    )  # fmt: skip
    words = ["rl", "--prompts", str(prompts), "--policy", str(model), *told]
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    ran = on_one_ray(*words, "--output", quiet)
    assert ran.returncode == 0, ran.stderr
    rows = metrics(quiet)[-12:]
    assert [row["step"] for row in rows] == list(range(1, 13))
    filled = 0
    for step, row in enumerate(rows):
        groups, differ = RolloutStore(str(quiet / "rollouts")).read(step), _apart(quiet, step)
        assert len(groups) == 4 <= row["refill/candidates"] <= 12
        assert len({group.prompt.id for group in groups}) == 4, "no prompt twice in a batch"
        assert differ == sorted(differ, reverse=True), "those that tell nothing apart fill what is left"
        filled += sum(differ)
        thirds = [int(group.prompt.columns["answer"]) % 3 == 0 for group in groups]
        assert all(third or not apart for third, apart in zip(thirds, differ, strict=True))
    assert filled > 0.75 * 12 * 4, "without refilling it would be a third"
    said = [json.loads(line) for line in (quiet / "metrics.jsonl").read_text().splitlines()]
    exhausted = {
        row["step"] for row in said if any("rl.refill is exhausted" in text for text in row.get("warnings", []))
    }
    short = {step + 1 for step in range(12) if sum(_apart(quiet, step)) < 4}
    assert exhausted == short
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    kinds = ("learner", "sampler")
    command = [*words, "--output", str(killed)]
    run_with_kills(command, killed, len(kinds), 0, done=steps_of, kept=kept_steps_of, kinds=kinds)
    assert metrics(killed) == metrics(quiet)


def _apart(output: Path, step: int) -> list[bool]:
    groups = RolloutStore(str(output / "rollouts")).read(step)
    return [len({each.reward for each in group.rewarded}) > 1 for group in groups]


@pytest.mark.slow
def test_equal_rewards_teach_nothing_and_are_said(model: Path, prompts: Path, tmp_path: Path, on_one_ray: Cli) -> None:
    """The policy stays as it was to the last bit; without a KL, that is. Nothing is held out: samples are of the batch."""
    (tmp_path / "mine.py").write_text(
        "def same(prompts, completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    told = settings(
        rl__max_steps=5,
        rl__kl_coefficient=0,
        sampler__actors=1,
        rewards__same__kind="function",
        rewards__same__function=f"{tmp_path}/mine.py:same",
    )
    ran = on_one_ray("rl", "--prompts", prompts, "--policy", model, "--output", tmp_path / "out", *told)
    assert ran.returncode == 0, ran.stderr
    assert [row["frac_reward_zero_std"] for row in metrics(tmp_path / "out")] == [1.0] * 5
    assert "all responses had the same reward" in " ".join((ran.stdout + ran.stderr).split())
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [each["step"] for each in samples] == [1, 5] and len(samples[0]["samples"]) == 4
    assert "Samples" in (tmp_path / "out" / "report.html").read_text()
    here = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    assert all(torch.equal(here[key], before) for key, before in load_file(model / "model.safetensors").items())


@pytest.mark.timeout(600)
def test_a_reward_that_is_no_number_ends_the_run_and_a_mended_one_goes_on(
    model: Path, prompts: Path, tmp_path: Path, on_one_ray: Cli
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def odd(prompts, completions, **columns):\n    return [float('nan')] * len(completions)\n")
    told = settings(
        rl__max_steps=3,
        lora__rank=2,
        sampler__actors=1,
        rewards__odd__kind="function",
        rewards__odd__function=f"{mine}:odd",
    )
    words = ["rl", "--prompts", prompts, "--policy", model, "--output", tmp_path / "out", *told]
    ran = on_one_ray(*words)
    assert ran.returncode == 1
    assert "mine.py:odd gave nan for a response to prompt prompts.jsonl:" in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr
    mine.write_text(
        "def odd(prompts, completions, **columns):\n    return [float(len(each)) for each in completions]\n"
    )
    ran = on_one_ray(*words)
    assert ran.returncode == 0, ran.stderr
    found = metrics(tmp_path / "out")
    assert len(found) == 3 and found[-1]["kl"] > 0  # an adapter has learnt, and is sampled from
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in found)
    assert (tmp_path / "out" / "hf" / "adapter" / "adapter_config.json").exists()
