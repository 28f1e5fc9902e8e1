"""What the first worker of an online run writes, without workers: samples, held-out figures, and what a start after a kill
finds."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ENDLESS

from jobs.rl.logbook import Logbook
from jobs.rl.recipe import RlRecipe
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.rl.sources.maths import RightAnswer

SEPARATORS = "one\u2028two\u2029three\u0085four"  # end a line for str.splitlines, and not in JSON
APART = "sampling/sampling_logp_difference/max"


def group(number: int, text: str, logprobs: list[float]) -> Group:
    found = np.array(logprobs, np.float32)
    return Group(
        Prompt(f"p{number}", [{"role": "user", "content": f"question {number}"}], True, [1, 2]),
        [Rollout([3] * len(found), text, True, found, 0)],
        [Rewarded(1.0, {"a": 1.0}, np.zeros(len(found)), None, found - np.float32(0.5))],
    )


@dataclass
class Canned:
    """Always the same groups, where samplers and rewarders would be asked."""

    groups: list[Group]
    measurable: int

    def held_out(self, count: int) -> list[Group]:
        return self.groups[:count]

    def notes(self) -> list[str]:
        return []

    def measures(self) -> dict[str, float]:
        return {}


def logbook(folder: Path, source: Any, step: int = 0, **settings: Any) -> Logbook:
    config = RlConfig.model_validate(
        {
            "rl": {"max_steps": 6},
            "held_out": {"every_steps": 2, "some": 1},
            "tracking": {"tensorboard": False},
            "learner": {"dtype": settings.pop("dtype", "float32")},
        }
    )
    recipe = RlRecipe(
        config=config,
        device="cpu",
        deepspeed=None,
        output=str(folder),
        steps=6,
        rate=1e-4,
        nodes_go=False,
        run={},
        rollouts=None,
        prompts=None,
        samplers=None,
        rewarders=None,
    )
    book = Logbook(recipe, source, step, [])
    if not step:
        book.begin()
    return book


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().split(b"\n") if line]


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().split(b"\n") if line]


def test_any_text_can_be_a_sample_and_a_start_after_a_kill_goes_on(tmp_path: Path) -> None:
    source = Canned([group(0, SEPARATORS, [-1.0]), group(1, "plain", [-1.0])], measurable=2)
    book = logbook(tmp_path, source)
    for step in range(1, 6):
        book.write({"step": step}, source.groups, due=step == 2)
    assert [each["step"] for each in samples(tmp_path)] == [0, 2, 4]
    assert samples(tmp_path)[0]["samples"][0]["responses"][0]["text"] == SEPARATORS
    book = logbook(tmp_path, source, step=2)  # killed after step 5; the checkpoint is of step 2
    assert [each["step"] for each in samples(tmp_path)] == [0, 2] and [row["step"] for row in rows(tmp_path)] == [
        0,
        1,
        2,
    ]
    for step in range(3, 7):
        book.write({"step": step}, source.groups, due=True)
    book.close()
    assert [each["step"] for each in samples(tmp_path)] == [0, 2, 4, 6]
    assert (
        rows(tmp_path)[3]["warnings"][0]
        == "started again after step 2; 3 steps that were done after it are done once more"
    )
    [repeated] = json.loads((tmp_path / "repeated.json").read_text())["repeated"]
    assert (repeated["step"], repeated["repeated"]) == (2, 3)


def test_a_start_at_the_last_row_repeats_nothing(tmp_path: Path) -> None:
    source = Canned([group(0, "plain", [-1.0])], measurable=0)
    logbook(tmp_path, source).write({"step": 1}, source.groups, due=True)
    logbook(tmp_path, source, step=1).write({"step": 2}, source.groups, due=True)
    assert rows(tmp_path)[1]["warnings"] == ["started again after step 1"]
    assert not (tmp_path / "repeated.json").exists()


def test_without_held_out_prompts_samples_are_of_the_batch(tmp_path: Path) -> None:
    source = Canned([group(0, "plain", [-1.0])], measurable=0)
    book = logbook(tmp_path, source)
    for step in range(1, 7):
        book.write({"step": step}, [group(step, f"answer {step}", [-1.0])], due=False)
    assert [each["step"] for each in samples(tmp_path)] == [1, 2, 4, 6]
    assert samples(tmp_path)[2]["samples"][0]["prompt"] == "question 4"
    assert not any(name.startswith("eval_") for row in rows(tmp_path) for name in row)


def test_a_held_out_check_that_does_not_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rewards.answers.CHECKED_WITHIN_S", 1.0)
    response, gold = ENDLESS
    each = group(0, response, [-1.0])
    source = Canned([replace(each, prompt=replace(each.prompt, columns={"answer": gold}))], measurable=1)
    book = logbook(tmp_path, source)
    book.right = RightAnswer("held_out.check", "answer")
    book.write({"step": 2}, source.groups, due=True)
    row = rows(tmp_path)[-1]
    assert row["eval_accuracy"] == 0.0
    assert row["warnings"][-1].startswith("held_out.check: 1 of 1 answers could not be checked within 1 s")


def test_what_is_measured_on_held_out_prompts(tmp_path: Path) -> None:
    """KL and entropy from the samplers' log-probabilities: by token, so that long answers count as such."""
    source = Canned([group(0, "a", [-1.0, -3.0, -2.0]), group(1, "b", [-6.0])], measurable=2)
    logbook(tmp_path, source)
    [row] = rows(tmp_path)
    assert row["eval_entropy"] == pytest.approx((1 + 3 + 2 + 6) / 4)
    assert row["eval_kl"] == pytest.approx(np.exp(-0.5) - 1 + 0.5, rel=1e-6)
    assert row["eval_reward"] == 1.0 and "eval_accuracy" not in row  # nothing says what is right


@pytest.mark.parametrize(
    ("dtype", "apart", "said"), [("float32", 2e-4, True), ("float32", 5e-5, False), ("bfloat16", 0.1, False)]
)
def test_samplers_that_differ_from_the_learner_are_said(tmp_path: Path, dtype: str, apart: float, said: bool) -> None:
    source = Canned([group(0, "plain", [-1.0])], measurable=0)
    logbook(tmp_path, source, dtype=dtype).write({"step": 1, APART: apart}, source.groups, due=False)
    warnings = rows(tmp_path)[0].get("warnings", [])
    assert any("Samplers and learner differ" in each for each in warnings) == said
