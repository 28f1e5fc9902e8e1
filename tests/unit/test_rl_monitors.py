"""What is measured of a batch, against naive computations and TRL's own; when warnings come, and when they do not."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.rl.monitors import SEVERAL, WINDOW, Monitors, pick_samples, repetition, rollout_metrics
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.training.metrics import MetricsFile, finite, numbers, read_metrics

Rows = list[dict[str, Any]]


def group(rewards: list[float], lengths: list[int], parts: list[dict[str, float]], seed: int = 0) -> Group:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 3, n).tolist() for n in lengths]
    return Group(
        prompt=Prompt(f"p{seed}", [{"role": "user", "content": f"question {seed}"}], True, [1, 2]),
        rollouts=[Rollout(i, f"text {sum(i) % 2}", len(i) % 2 == 0, np.zeros(len(i), np.float32), 0) for i in ids],
        rewarded=[
            Rewarded(reward, part, np.zeros(len(i)), None, None)
            for reward, part, i in zip(rewards, parts, ids, strict=True)
        ],
    )


def batch() -> list[Group]:
    return [
        group([1.0, 2.5, -1.0], [9, 4, 12], [{"a": 1.0, "b": 0.0}, {"a": 2.5, "b": 1.0}, {"a": -1.0}], 1),
        group([0.1, 0.1, 0.1], [3, 30, 8], [{"a": 0.1}, {"a": 0.1}, {"a": 0.1}], 2),
        group([1234.1] * 3, [5, 5, 6], [{"a": 1.0}] * 3, 3),
    ]


def test_metrics_are_those_of_trl() -> None:
    groups = batch()
    found = rollout_metrics(groups)
    rewards = torch.tensor([each.reward for g in groups for each in g.rewarded], dtype=torch.float64)
    a = torch.tensor([each.parts["a"] for g in groups for each in g.rewarded], dtype=torch.float64)
    b = torch.tensor([each.parts.get("b", math.nan) for g in groups for each in g.rewarded], dtype=torch.float64)
    lengths = torch.tensor([len(r.ids) for g in groups for r in g.rollouts], dtype=torch.float64)
    cut = torch.tensor([not r.finished for g in groups for r in g.rollouts])
    within = rewards.view(3, 3).std(dim=1)
    expected = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(),
        "frac_reward_zero_std": torch.isclose(within, torch.zeros_like(within)).double().mean(),
        "rewards/a/mean": a.mean(),
        "rewards/a/std": a[~a.isnan()].std(),
        "rewards/b/mean": torch.nanmean(b),
        "rewards/b/std": b[~b.isnan()].std(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": cut.double().mean(),
        "completions/mean_terminated_length": lengths[~cut].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx({n: float(v) for n, v in expected.items()})
    assert found["frac_reward_zero_std"] == pytest.approx(2 / 3) and found.keys() - expected == {
        "repetition", "distinct",
    }  # fmt: skip


def test_repetition_and_distinct_by_hand() -> None:
    groups = batch()

    def repeated(ids: list[int]) -> float:
        grams = [ids[i : i + 4] for i in range(len(ids) - 3)]
        return sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams) if grams else 0.0

    each = [repeated(r.ids) for g in groups for r in g.rollouts]
    found = rollout_metrics(groups)
    assert found["repetition"] == pytest.approx(np.mean(each)) and max(each) > 0
    texts = [[r.text for r in g.rollouts] for g in groups]
    assert found["distinct"] == pytest.approx(np.mean([len(np.unique(t)) / len(t) for t in texts]))
    assert [repetition(ids) for ids in ([], [1, 1, 1], [7] * 10, list(range(10)))] == [0, 0, 6 / 7, 0]


def test_what_has_no_value_is_left_out() -> None:
    alone = rollout_metrics([group([2.0], [3], [{}])])
    assert alone["completions/mean_terminated_length"] == 0 and alone["completions/clipped_ratio"] == 1
    assert alone["reward"] == 2 and not {"reward_std", "frac_reward_zero_std", "distinct"} & alone.keys()
    assert not any(name.startswith("rewards/") for name in alone)
    assert all(type(value) is float and math.isfinite(value) for value in alone.values())


def healthy(count: int, seed: int) -> Rows:
    """A reward that rises, answers that grow by a quarter, entropy that falls to a third; noise on all."""
    rng = np.random.default_rng(seed)
    return [
        {
            "step": step + 1,
            "reward": step / count + 0.2 * rng.normal(),
            "completions/mean_length": 100 * (1 + 0.25 * step / count) * (1 + 0.15 * rng.normal()),
            "completions/clipped_ratio": float(np.clip(0.15 + 0.1 * rng.normal(), 0, 1)),
            "repetition": float(np.clip(0.1 + 0.05 * rng.normal(), 0, 1)),
            "frac_reward_zero_std": float(np.clip(0.5 + 0.2 * rng.normal(), 0, 1)),
            "entropy": 1.2 * 3 ** (-step / count) + 0.05 * rng.normal(),
        }
        for step in range(count)
    ]


def spoilt(name: str, path: Callable[[float], float], count: int = 60, **others: Callable[[float], float]) -> Rows:
    rows = healthy(count, 5)
    for step, row in enumerate(rows):
        row |= {key: of(step / count) for key, of in ({name: path} | others).items()}
    return rows


def said(rows: Rows, watch: Monitors | None = None) -> list[tuple[int, str]]:
    watch = watch or Monitors()
    return [(row["step"], sentence) for row in rows for sentence in watch.warnings(row)]


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_run_is_left_alone(seed: int) -> None:
    assert said(healthy(150, seed)) == []


def test_samplers_that_differ_from_the_learner_are_said_whenever_it_comes() -> None:
    difference = "sampling/sampling_logp_difference/max"
    rows = [row | {difference: 7.5 if row["step"] in (30, 31) else 1e-6} for row in healthy(60, 0)]
    [(step, sentence)] = said(rows, Monitors(rounding=1e-4))
    assert step == 30 and sentence.startswith("Samplers and learner differ by up to 7.5 nats")
    assert said(rows) == []  # of samples that were kept


LENGTH, CLIPPED = "completions/mean_length", "completions/clipped_ratio"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (spoilt(LENGTH, lambda t: 100 + 200 * t), ("mean length of a response went from", "kind = length")),
        (spoilt(CLIPPED, lambda t: 0.1 + 0.5 * t), ("cut off from", "rl.kl_coefficient")),
        (spoilt("repetition", lambda t: 0.1 + 0.5 * t), ("4-grams", "rl.kl_coefficient")),
        (spoilt(CLIPPED, lambda t: 0.95), ("95% of the responses of the last 5 steps were cut off", "rl.max_new_tokens")),
        (spoilt("frac_reward_zero_std", lambda t: 1.0), ("100% of the groups", "rl.group_size")),
        (spoilt("entropy", lambda t: 1.0 if t < 0.5 else 0.05), ("from 1 to 0.05 nats", "rl.entropy_coefficient")),
    ],
)  # fmt: skip
def test_each_kind_of_trouble_is_said_once(rows: Rows, words: tuple[str, ...]) -> None:
    found = said(rows)
    assert len(found) == 1 and all(word in found[0][1] for word in words)
    assert found[0][1].endswith(".") and "\n" not in found[0][1]


def test_trouble_without_a_rising_reward_is_no_hacking() -> None:
    flat = {"reward": lambda t: 0.5}
    assert said(spoilt(LENGTH, lambda t: 100 + 200 * t, **flat)) == []
    assert said(spoilt("repetition", lambda t: 0.1 + 0.5 * t, **flat)) == []


def test_what_has_to_last_is_not_said_before() -> None:
    rows = spoilt(CLIPPED, lambda t: 0.95)
    assert said(rows)[0][0] == SEVERAL
    rows[2][CLIPPED] = 0.8
    assert said(rows)[0][0] == 3 + SEVERAL


def test_a_warning_is_armed_again_when_its_cause_was_away() -> None:
    def rows(away: int) -> Rows:
        found = spoilt(CLIPPED, lambda t: 0.95, 80)
        for row in found[20 : 20 + away]:
            row[CLIPPED] = 0.1
        return found

    assert [step for step, _ in said(rows(0))] == [SEVERAL]
    assert [step for step, _ in said(rows(2))] == [SEVERAL]  # away for 2 + SEVERAL - 1 steps
    assert [step for step, _ in said(rows(WINDOW))] == [SEVERAL, 20 + WINDOW + SEVERAL]


@pytest.mark.parametrize("cut", [0, 3, 12, 25, 45])
def test_a_run_that_goes_on_is_watched_as_if_it_had_not_stopped(cut: int, tmp_path: Any) -> None:
    rows = spoilt(LENGTH, lambda t: 100 + 200 * t, entropy=lambda t: 1.0 if t < 0.6 else 0.01)
    whole = said(rows)
    assert len(whole) == 2
    with MetricsFile(str(tmp_path / "metrics.jsonl")) as file:
        for row in rows[:cut]:
            file.append(row)
    watch = Monitors(read_metrics(str(tmp_path / "metrics.jsonl")))
    assert said(rows[cut:], watch) == [each for each in whole if each[0] > cut]


def test_what_is_missing_or_not_finite_is_not_judged() -> None:
    assert said([{"step": 0, "eval_accuracy": 0.5}, *({"step": i, "entropy": math.nan} for i in range(1, 40))]) == []
    assert said([{"step": i, "reward": float(i)} for i in range(40)]) == []


def test_readers_of_metrics_pass_over_warnings() -> None:
    rows = [{"step": 1, "reward": 1.0, "warnings": ["Look."]}]
    assert numbers(rows) == ["reward"] and finite(rows, "warnings") == []


def test_samples_are_the_best_and_the_worst_of_the_first_prompts() -> None:
    groups = batch()
    found = json.loads(json.dumps(pick_samples(groups, 2)))
    assert [sample["prompt"] for sample in found] == ["question 1", "question 2"]
    best, worst = found[0]["responses"]
    assert (best["reward"], best["tokens"], best["finished"], best["parts"]) == (2.5, 4, True, {"a": 2.5, "b": 1.0})
    assert (worst["reward"], worst["tokens"], worst["right"]) == (-1.0, 12, None)
    assert best["text"] == groups[0].rollouts[1].text
    assert len(found[1]["responses"]) == 1  # all the same


def test_samples_know_what_was_right() -> None:
    right = [False, True, False, True, False, False]
    found = pick_samples(batch()[:2], 5, right)
    assert [[each["right"] for each in sample["responses"]] for sample in found] == [[True, False], [True]]
    conversation = batch()[0]
    conversation.prompt.messages[:] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert pick_samples([conversation], 1)[0]["prompt"] == "system: Be brief.\n\nuser: Hi"
