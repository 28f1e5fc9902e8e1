"""`endoreward rl` on what it cannot do: one sentence each, before anything starts, and nothing is written."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model, tokenizer

from jobs.__main__ import main
from jobs.learning import trainer
from jobs.learning.trainer import position_notes
from jobs.rl import placement
from jobs.rl import run as rl
from pipeline.config import ModelConfig
from pipeline.models.loading import load_settings
from pipeline.rl.config import RlConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), context=64)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has tokens of its own."""
    folder = save_model(tmp_path_factory.mktemp("another"), context=64)
    made = tokenizer()
    made.add_tokens(["Number"])
    made.save_pretrained(folder)
    return folder


def prompts(folder: Path, count: int = 20, words: str = "") -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Number {i}? {words}", "answer": i}) + "\n" for i in range(count)))
    return file


def told(model: Path, file: Path, output: Path, *settings: str) -> list[str]:
    words = ["rl", "--prompts", str(file), "--policy", str(model), "--output", str(output)]
    return words + [word for each in ("rl.max_new_tokens=12", *settings) for word in ("--set", each)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rl.algorithm=trpo"], "rl.algorithm: Input should be 'ppo', 'grpo', 'gspo', 'cispo', 'rloo'"),
        (["rl.kl_in=loss", "rl.kl_estimator=k1"], "over the policy's own tokens its gradient is zero on average"),
        (["rl.algorithm=rloo", "rl.credit=tokens"], "set rl.algorithm = reinforce"),
        (["rl.group_size=1"], "compares the responses to a prompt"),
        (["rl.batch_size=21"], "more than the 20 prompts there are"),
        (["rewards.rule.kind=function", "rewards.rule.function=nowhere.py:right"], "nowhere.py"),
        (["rewards.rule.kind=maths", "rewards.rule.answer_key=solution"], "'solution'"),
        (["rl.replay=nowhere", "rl.lag=1"], "rl.lag = 1 under rl.replay: a replay samples nothing"),
        (["rl.replay=nowhere"], "nowhere is not a label store"),
        (["sampler.engine=vllm"], "sampler.engine = vllm: it is not installed; pip install 'endoreward[vllm]'"),
        (["tokens.over_length=cut_prompt"], "over_length = cut_prompt is for labelling"),
        (
            ["rl.algorithm=ppo", "reward.gamma=0.9"],
            "V(s_h) is discounted by reward.gamma = 0.9, and rewards to go",
        ),
    ],
)
def test_settings_that_cannot_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], said: str
) -> None:
    output = tmp_path / "out"
    assert main(told(model, prompts(tmp_path), output, *settings, "run.num_cpus=2")) == 2
    found = " ".join(capsys.readouterr().err.split())
    assert said in found, found
    assert not output.exists()


def test_adapters_of_a_rank_that_vllm_has_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM installed, as far as the command can see."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *of: json.__spec__ if name == "vllm" else there(name, *of)
    )
    settings = ["sampler.engine=vllm", "lora.rank=513", "run.num_cpus=2"]
    assert main(told(model, prompts(tmp_path), tmp_path / "out", *settings)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "lora.rank = 513: vLLM has adapters of a rank up to 512; lower it, or take sampler.engine = transf" in said
    assert not (tmp_path / "out").exists()


def test_prompts_that_fill_the_context(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(tmp_path, words="abcdefg " * 20)
    assert main(told(model, file, tmp_path / "out")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no prompt can be asked; the first of 20: prompts.jsonl:0: the prompt leaves no room for a response" in said


def test_some_prompts_that_fill_the_context_are_left_out_and_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts(tmp_path)
    with file.open("a") as more:
        more.write(json.dumps({"prompt": "abcdefg " * 20}) + "\n")
    assert main([*told(model, file, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "1 prompts are left out, the first: prompts.jsonl:20" in " ".join(said.err.split())
    assert "Prompts" in said.out and " 20" in said.out
    assert main([*told(model, file, tmp_path / "out", "rl.batch_size=21"), "--dry-run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "more than the 20 prompts there are (1 are left out, the first: prompts.jsonl:20: the prompt leaves" in said


def test_rloo_in_bfloat16_is_warned_of(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios of whole responses are those of two ways of rounding; corrected they are the learner's alone."""
    corrected = "rl.correction=sequence-mask"
    for dtype, more, warned in (("bfloat16", [], True), ("float32", [], False), ("bfloat16", [corrected], False)):
        settings = ["rl.algorithm=rloo", f"learner.dtype={dtype}", *more]
        assert main([*told(model, prompts(tmp_path), tmp_path / "out", *settings), "--dry-run"]) == 0
        assert ("set learner.dtype = float32" in " ".join(capsys.readouterr().err.split())) == warned


@pytest.mark.parametrize("refused", [True, False])
def test_a_reward_model_with_another_tokenizer(
    model: Path, another: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: bool
) -> None:
    words: list[Any] = [*told(model, prompts(tmp_path), tmp_path / "out"), "--reward-model", str(another), "--dry-run"]
    if refused:
        words += ["--set", "rewarding.other_tokenizer=refuse"]
    assert main(words) == (2 if refused else 0)
    said = " ".join(capsys.readouterr().err.split())
    assert ("other_tokenizer = refuse" if refused else "another tokenizer") in said, said


def test_a_reward_that_most_prompts_do_without_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*told(model, prompts(tmp_path), tmp_path / "out", "rewards.rule.kind=maths", "rewards.rule.share=0.1")]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "1 x rule for 10% of the prompts" in said.out
    assert "if the endogenous one was meant too, name it" in " ".join(said.err.split())
    assert main([*words, "--set", "rewards.endogenous.kind=endogenous", "--dry-run"]) == 0
    assert "no reward has share" not in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_positions_that_depend_on_company_are_said(kind: str, model: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(model, tmp_path / "policy")
    settings = json.loads((policy / "config.json").read_text())
    settings["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    settings["max_position_embeddings"] = 16
    (policy / "config.json").write_text(json.dumps(settings))
    config = RlConfig(policy=ModelConfig(name=str(policy)))
    found = load_settings(config.policy)
    assert position_notes(config, found, 16) == []
    notes = position_notes(config, found, 17)
    assert [("16 tokens" in note, "tokens.max_length = 16" in note) for note in notes] == [(True, True)] * (
        kind == "dynamic"
    )


@pytest.mark.parametrize(("of_each", "learners"), [(0.25, 3), (0.5, 3), (1.0, 2)])
def test_learners_take_the_gpus_that_are_left_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_each: float, learners: int
) -> None:
    """Of four; a GPU of which a part is taken is no whole one."""
    for module in (rl, placement, trainer):
        monkeypatch.setattr(module, "gpus_of", lambda config: 4)
    config = RlConfig.model_validate(
        {
            "policy": {"name": str(model)},
            "reward_model": {"name": str(model)},
            "input": {"paths": [str(prompts(tmp_path))]},
            "rl": {"max_new_tokens": 12},
            **{kind: {"gpus_per_actor": of_each} for kind in ("sampler", "rewarder")},
            "run": {"num_cpus": 8},
        }
    )
    run = rl._describe(config)
    assert (run.workers, run.gpus) == (learners, learners + 2 * of_each)


HALF = {"sampler": {"budget_tokens": 16384}}  # holds 64 of a step's 128 responses


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_what_each_gets_of_the_gpus(gpus: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "gpus_of", lambda config: gpus)
    monkeypatch.setattr(placement, "cpus_of", lambda config: 16)
    share = placement.place_actors(RlConfig.model_validate({"learner": {"device": device}} | HALF))
    if device == "cpu" or (device == "auto" and not gpus):
        assert (share.samplers, share.sampler_gpus, share.rewarder_gpus) == (4, 0, 0)
        return
    everyone = share.sampler_gpus + share.rewarder_gpus + share.learner_gpus
    assert share.samplers == (2 if gpus == 8 else 1) and 0 < everyone <= (
        gpus or 3
    )  # a cluster that has shrunk to its head grows


@pytest.mark.parametrize(
    ("gpus", "settings", "due"),
    [
        (1, {}, (1, 1, 1)),  # of 0.3, 0.3 and 0.4
        (2, {}, (1, 1, 1)),  # a learner, and two halves
        (3, {}, (1, 1, 1)),
        (4, HALF, (2, 1, 1)),  # 200 + 128 + 384 forwards, where one sampler makes two batches: 400 + 128 + 192
        (8, HALF, (2, 2, 4)),  # 200 + 64 + 96; one rewarder: 200 + 128 + 77
        (8, {}, (1, 3, 4)),  # one batch: 200 + 43 + 96, before 200 + 64 + 78
        (8, HALF | {"rl": {"epochs": 8}}, (2, 1, 5)),  # 200 + 128 + 624; one sampler: 400 + 128 + 528
        (8, {"sampler": {"actors": 5}}, (5, 1, 2)),
        (8, HALF | {"learner": {"workers": 2}}, (2, 4, 2)),
        (8, HALF | {"rewards": {"right": {"kind": "length"}}}, (2, 1, 5)),
        (8, {"sampler": {"gpus_per_actor": 4}}, (1, 2, 2)),
        (3, {"learner": {"workers": 3}}, (1, 1, 3)),  # which is refused later, by what does not fit
    ],
)
def test_gpus_go_where_a_step_is_shortest(
    gpus: int, settings: dict[str, Any], due: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "gpus_of", lambda config: gpus)
    monkeypatch.setattr(placement, "cpus_of", lambda config: 64)
    config = RlConfig.model_validate(settings)
    share = placement.place_actors(config)
    left = gpus - math.ceil(round(share.actor_gpus, 6)) if gpus > 1 else 1
    assert (share.samplers, share.rewarders, config.learner.workers or left) == due
    assert gpus > 1 or share.actor_gpus + share.learner_gpus <= 1


def test_prompts_are_of_one_split(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("train", "test"):
        prompts(tmp_path).rename(folder / f"{name}.jsonl")
    words = told(model, folder, tmp_path / "out")
    assert main([*words, "--dry-run"]) == 2
    assert "several splits" in capsys.readouterr().err
    words += ["--set", "input.split=train"]
    assert main([*words, "--set", f'held_out.prompts=["{folder}"]', "--dry-run"]) == 2
    assert f"Choose one by its path, such as {folder}/train.jsonl" in capsys.readouterr().err
    assert main([*words, "--set", f'held_out.prompts=["{folder}/test.jsonl"]', "--dry-run"]) == 0
    assert "input.paths: not read (split test): test.jsonl" in capsys.readouterr().err
