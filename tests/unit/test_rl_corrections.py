"""What corrects for samples of other weights, against plain loops of Python floats, and the sums that it leaves alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.corrections import corrected, mismatch, weights
from pipeline.rl.experience import Experience, penalty
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.training.batch import collate

MODES = ("token-truncate", "token-mask", "sequence-truncate", "sequence-mask")
RNG = np.random.default_rng(3)
SAMPLED = [-RNG.exponential(1.5, h) for h in (1, 4, 2, 5, 3, 6)]
BEFORE = [each + RNG.normal(scale=0.5, size=len(each)) for each in SAMPLED]
CAP = 1.3


def plainly(mode: str, before: list[float], sampled: list[float], cap: float) -> list[float]:
    """One response, in Python's floats."""
    found, whole = [], 1.0
    for b, s in zip(before, sampled, strict=True):
        whole *= math.exp(b) / math.exp(s)
    for b, s in zip(before, sampled, strict=True):
        ratio = math.exp(b) / math.exp(s) if mode.startswith("token") else whole
        found.append(min(ratio, cap) if mode.endswith("truncate") else (ratio if ratio <= cap else 0.0))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_the_equations(mode: str) -> None:
    found = weights(mode, CAP, BEFORE, SAMPLED)
    wanted = [plainly(mode, b.tolist(), s.tolist(), CAP) for b, s in zip(BEFORE, SAMPLED, strict=True)]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    beyond = np.concatenate(weights(mode, np.inf, BEFORE, SAMPLED)) > CAP
    assert 0 < beyond.mean() < 1  # both sides of the cap are tried
    row = corrected(mode, CAP, BEFORE, SAMPLED)
    used = [x for each in wanted for x in (each if mode.startswith("token") else each[:1])]
    for name, value in (("min", min(used)), ("mean", sum(used) / len(used)), ("max", max(used))):
        assert row[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(value, rel=1e-12)
    over = [
        x for each in weights(mode, np.inf, BEFORE, SAMPLED) for x in (each if mode.startswith("token") else each[:1])
    ]
    assert row["sampling/capped"] == pytest.approx(sum(x > CAP for x in over) / len(over))


def test_ratios_beyond_all_numbers_are_beyond_the_cap() -> None:
    for mode, wanted in zip(MODES, (3.0, 0.0) * 2, strict=True):
        np.testing.assert_array_equal(weights(mode, 3.0, [[0.0, 0.0]], [[-900.0, -900.0]]), [[wanted] * 2])


def test_the_mismatch_is_measured() -> None:
    row = mismatch(BEFORE, SAMPLED)
    apart = [
        abs(b - s)
        for before, sampled in zip(BEFORE, SAMPLED, strict=True)
        for b, s in zip(before, sampled, strict=True)
    ]
    difference = "sampling/sampling_logp_difference"
    assert row[f"{difference}/mean"] == pytest.approx(sum(apart) / len(apart))
    assert row[f"{difference}/max"] == max(apart)
    assert row[f"{difference}/tail"] == sum(each > 0.2 for each in apart) / len(apart)
    ratios = [math.exp(sum(before) - sum(sampled)) for before, sampled in zip(BEFORE, SAMPLED, strict=True)]
    assert row["sampling/response_ratio/mean"] == pytest.approx(sum(ratios) / 6)
    wanted = sum(ratios) ** 2 / (6 * sum(each**2 for each in ratios))
    assert row["sampling/effective_sample_size"] == pytest.approx(wanted) and 0 < wanted < 1
    assert mismatch(SAMPLED, SAMPLED)["sampling/effective_sample_size"] == 1.0


def groups() -> list[Group]:
    """Two prompts with three responses each."""
    made = []
    for number in range(2):
        sampled = SAMPLED[3 * number : 3 * number + 3]
        rollouts = [Rollout(list(range(1, len(s) + 1)), "x", True, s.astype(np.float32), 0) for s in sampled]
        rewards = [RNG.normal(size=len(s)) for s in sampled]
        rewarded = [
            Rewarded(float(r.sum()), {"own": float(r.sum())}, r, None, (s - 0.3).astype(np.float32))
            for r, s in zip(rewards, sampled, strict=True)
        ]
        made.append(Group(Prompt(f"p:{number}", [], False, [7]), rollouts, rewarded))
    return made


def told(algorithm: str, **sections: Any) -> RlConfig:
    rl = {"algorithm": algorithm, "group_size": 3, "kl_coefficient": 0.0, **sections.pop("rl", {})}
    return RlConfig.model_validate({"rl": rl, "rewards": {"own": {"kind": "maths"}}, **sections})


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {}),
    ("cispo", {"cispo": {"max_ratio": 1e9}}),
    ("grpo", {"grpo": {"epsilon": 0.999999, "epsilon_high": 1e9, "loss_type": "dr_grpo"}}),
]


@pytest.mark.parametrize(("algorithm", "section"), SETTINGS)
@pytest.mark.parametrize("mode", MODES)
def test_before_the_first_step_the_gradient_is_the_weighted_policy_gradient(
    algorithm: str, section: dict[str, Any], mode: str
) -> None:
    """-w * A * grad log pi at every token, whatever the algorithm clips: the policy has not moved since."""
    batch, config = groups(), told(algorithm, rl={"correction": mode, "correction_cap": CAP}, **section)
    made = algorithm_of(config)
    plain = Experience(told(algorithm, **section), made, batch).responses
    responses = Experience(config, made, batch, before=BEFORE).responses
    logprobs = torch.tensor(np.concatenate(BEFORE), requires_grad=True)
    losses = made.terms(collate(responses, logprobs)).losses
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    of = [plainly(mode, b.tolist(), s.astype(np.float32).tolist(), CAP) for b, s in zip(BEFORE, SAMPLED, strict=True)]
    wanted = [-w * a for each, r in zip(of, plain, strict=True) for w, a in zip(each, r.advantages, strict=True)]  # type: ignore[arg-type]
    unit = 256 if algorithm == "grpo" else 1  # dr_grpo's constant
    np.testing.assert_allclose(gradient * unit, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("algorithm", "section"), SETTINGS[1:])
def test_nothing_is_counted_twice(algorithm: str, section: dict[str, Any]) -> None:
    """Neither capped nor clipped, weight times ratio is pi / pi_sampler: the losses and gradients of a run without."""
    batch, config = groups(), told(algorithm, rl={"correction": "token-truncate", "correction_cap": 1e9}, **section)
    made, sides = algorithm_of(config), []
    moved = np.concatenate(BEFORE) + RNG.normal(scale=0.05, size=sum(map(len, BEFORE)))
    for responses in (
        Experience(told(algorithm, **section), made, batch).responses,
        Experience(config, made, batch, before=BEFORE).responses,
    ):
        logprobs = torch.tensor(moved, requires_grad=True)
        losses = made.terms(collate(responses, logprobs)).losses
        sides.append((losses.detach(), torch.autograd.grad(losses.sum(), logprobs)[0]))
    for there, here in zip(*sides, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)


def test_what_rewards_hold_of_log_pi_is_of_the_policy_that_learns() -> None:
    rollout, [before] = Rollout([1, 2], "x", True, np.float32([-1, -2]), 0), [np.float32([-0.5, -2.5])]
    rewarded = Rewarded(0.0, {"t": 0.0, "own": 1.0}, np.zeros(2), None, np.float32([-2, -2]))
    sources = {"t": {"kind": "teacher", "weight": 2.0}, "own": {"kind": "maths"}}
    config = RlConfig.model_validate({"rl": {"kl_coefficient": 0.1}, "rewards": sources})
    np.testing.assert_allclose(penalty(config, rollout, rewarded), [0.1, 0.0])
    np.testing.assert_allclose(penalty(config, rollout, rewarded, before), [0.15 + 2 * 0.5, -0.05 - 2 * 0.5])
    bare = replace(rewarded, parts={"own": 1.0})
    np.testing.assert_allclose(penalty(config, rollout, bare, before), [0.15, -0.05], atol=1e-7)


@pytest.mark.parametrize("algorithm", ["rloo", "gspo"])
def test_weights_of_tokens_have_no_place_in_a_loss_of_responses(algorithm: str) -> None:
    with pytest.raises(ValueError, match=r"gives each token a weight of its own: set sequence-mask"):
        told(algorithm, rl={"correction": "token-mask"})
    assert told(algorithm, rl={"correction": "sequence-truncate"}).correction == "sequence-truncate"


def test_without_a_correction_a_cap_has_no_effect_and_is_refused() -> None:
    from pipeline.config import load_config_as

    with pytest.raises(ConfigError, match=r"rl\.correction_cap: has no effect under rl\.correction = none"):
        load_config_as(RlConfig, None, [], ["rl.correction_cap=2"])
