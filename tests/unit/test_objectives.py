"""Each objective against its paper's equation, in plain loops of Python floats; gradients against finite differences."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, log, log1p

import numpy as np
import pytest
import torch

from pipeline.training.config import OBJECTIVES as CONFIGURED
from pipeline.training.config import TrainConfig
from pipeline.training.objectives import OBJECTIVES, Batch, Objective, Terms, objective_of
from pipeline.training.objectives.awr import Awr, Rwr
from pipeline.training.objectives.dpo import Dpo
from pipeline.training.objectives.grpo import Grpo
from pipeline.training.objectives.ipo import Ipo
from pipeline.training.objectives.preference import PreferenceObjective
from pipeline.training.objectives.reinforce import Reinforce
from pipeline.training.objectives.sft import Sft
from pipeline.training.objectives.simpo import Simpo

Nested = list[list[float]]
SEEDS = (0, 1, 2)


@dataclass
class Plain:
    """A batch as lists of lists: one list for each response."""

    logprobs: Nested
    reference: Nested
    behaviour: Nested
    advantages: Nested
    rewards: list[float]


def plain(seed: int, pairs: int = 3) -> Plain:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, 2 * pairs)
    logprobs = [-rng.exponential(1.5, h) for h in lengths]
    near = [[x + rng.normal(scale=0.4, size=len(x)) for x in logprobs] for _ in range(2)]
    advantages = [rng.normal(size=h) for h in lengths]
    lists = [[row.tolist() for row in rows] for rows in (logprobs, *near, advantages)]
    return Plain(*lists, rng.normal(scale=2, size=2 * pairs).tolist())


def batch_of(rows: Plain, dtype: torch.dtype = torch.float64) -> Batch:
    flat = {
        name: torch.tensor([x for row in getattr(rows, name) for x in row], dtype=dtype)
        for name in ("logprobs", "reference", "behaviour", "advantages")
    }
    flat["logprobs"].requires_grad_()
    lengths = torch.tensor([len(row) for row in rows.logprobs])
    return Batch(**flat, lengths=lengths, rewards=torch.tensor(rows.rewards, dtype=torch.float64))


# The equations


def log_sigmoid(x: float) -> float:
    return -log1p(exp(-x))


def better(o: PreferenceObjective, rows: Plain, k: int) -> float:
    p = 1.0
    if o.margin_temperature is not None:
        p = 1 / (1 + exp(-(rows.rewards[2 * k] - rows.rewards[2 * k + 1]) / o.margin_temperature))
    return (1 - o.label_smoothing) * p + o.label_smoothing * (1 - p)


def expected(o: PreferenceObjective, rows: Plain, of_z: Callable[[float], float], zs: list[float]) -> list[float]:
    """The mean of a pair's loss over whether the preference was flipped."""
    return [better(o, rows, k) * of_z(z) + (1 - better(o, rows, k)) * of_z(-z) for k, z in enumerate(zs)]


def log_ratio(rows: Plain, i: int) -> float:
    """Of a whole response."""
    return sum(rows.logprobs[i]) - sum(rows.reference[i])


def dpo(o: Dpo, rows: Plain) -> list[float]:
    pairs = range(len(rows.rewards) // 2)
    zs = [o.beta * log_ratio(rows, 2 * k) - o.beta * log_ratio(rows, 2 * k + 1) for k in pairs]
    return expected(o, rows, lambda z: -log_sigmoid(z), zs)


def ipo(o: Ipo, rows: Plain) -> list[float]:
    means = [log_ratio(rows, i) / len(rows.logprobs[i]) for i in range(len(rows.rewards))]
    zs = [means[i] - means[i + 1] for i in range(0, len(means), 2)]
    return expected(o, rows, lambda z: (z - 1 / (2 * o.beta)) ** 2, zs)


def simpo(o: Simpo, rows: Plain) -> list[float]:
    rewards = [o.beta / len(row) * sum(row) for row in rows.logprobs]
    zs = [rewards[i] - rewards[i + 1] - o.target_margin for i in range(0, len(rewards), 2)]
    return expected(o, rows, lambda z: -log_sigmoid(z), zs)


def each(rows: Plain, of_token: Callable[[int, int], float]) -> Nested:
    return [[of_token(i, h) for h in range(len(row))] for i, row in enumerate(rows.logprobs)]


def flat(nested: Nested) -> list[float]:
    return [x for row in nested for x in row]


def awr(o: Awr, rows: Plain) -> list[float]:
    return flat(
        each(rows, lambda i, h: -min(exp(rows.advantages[i][h] / o.temperature), o.max_weight) * rows.logprobs[i][h])
    )


def rwr(o: Rwr, rows: Plain) -> list[float]:
    return flat(each(rows, lambda i, h: -rows.advantages[i][h] * rows.logprobs[i][h]))


def sft(o: Sft, rows: Plain) -> list[float]:
    return flat(each(rows, lambda i, h: -rows.logprobs[i][h]))


def ratio(rows: Plain, i: int, h: int) -> float:
    return exp(rows.logprobs[i][h]) / exp(rows.behaviour[i][h])


def k3(rows: Plain, i: int, h: int) -> float:
    over = exp(rows.reference[i][h]) / exp(rows.logprobs[i][h])
    return over - 1 - log(over)


def grpo(o: Grpo, rows: Plain) -> list[float]:
    def token(i: int, h: int) -> float:
        r, a = ratio(rows, i, h), rows.advantages[i][h]
        clipped = min(max(r, 1 - o.epsilon), 1 + o.epsilon_high)
        return -min(r * a, clipped * a) + o.beta * r * k3(rows, i, h)

    tokens = each(rows, token)
    if o.loss_type == "dapo":
        return flat(tokens)
    return [sum(row) / (len(row) if o.loss_type == "grpo" else o.max_completion_length) for row in tokens]


def reinforce_at(start: Plain) -> Callable[[Reinforce, Plain], list[float]]:
    """Ratios are held at `start`: they have no gradient."""

    def losses(o: Reinforce, rows: Plain) -> list[float]:
        def token(i: int, h: int) -> float:
            held = min(ratio(start, i, h), o.max_ratio)
            kl = o.beta * ratio(rows, i, h) * k3(rows, i, h)
            return -held * rows.advantages[i][h] * rows.logprobs[i][h] + kl

        return flat(each(rows, token))

    return losses


CASES: dict[str, tuple[Objective, Callable]] = {
    "dpo": (Dpo(0.3), dpo),
    "dpo, smoothed": (Dpo(0.3, 0.2), dpo),
    "dpo, soft": (Dpo(0.3, 0.1, 1.5), dpo),
    "ipo": (Ipo(0.4), ipo),
    "ipo, soft": (Ipo(0.4, 0.1, 1.5), ipo),
    "simpo": (Simpo(2.0, target_margin=0.7), simpo),
    "simpo, soft": (Simpo(2.0, 0.1, 1.5, 0.7), simpo),
    "awr": (Awr(0.7, 2.0), awr),
    "rwr": (Rwr(), rwr),
    "sft": (Sft(), sft),
    "grpo, dapo": (Grpo("dapo", 0.2, 0.3), grpo),
    "grpo, grpo": (Grpo("grpo", 0.2, 0.3, 0.5), grpo),
    "grpo, dr_grpo": (Grpo("dr_grpo", 0.2, 0.2, 0.5, 7), grpo),
    "reinforce": (Reinforce(1.2), reinforce_at),
    "reinforce, kl": (Reinforce(1.2, 0.5), reinforce_at),
}
every_case = pytest.mark.parametrize("case", CASES)


def oracle_of(case: str, rows: Plain) -> Callable[[Plain], list[float]]:
    objective, losses = CASES[case]
    if losses is reinforce_at:
        losses = reinforce_at(rows)
    return lambda moved: losses(objective, moved)


@every_case
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients_are_the_equations(case: str, seed: int) -> None:
    rows = plain(seed)
    batch, oracle = batch_of(rows), oracle_of(case, rows)
    terms = CASES[case][0].terms(batch)
    np.testing.assert_allclose(terms.losses.detach(), oracle(rows), rtol=1e-12, atol=1e-14)

    weights = np.random.default_rng(9).normal(size=len(terms.losses))  # a loss that went to another unit would show
    (gradient,) = torch.autograd.grad(terms.losses @ torch.tensor(weights), batch.logprobs)
    slopes = []
    for i, row in enumerate(rows.logprobs):
        for h in range(len(row)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [list(other) for other in rows.logprobs]
                moved[i][h] += step
                ends.append(float(weights @ oracle(replace(rows, logprobs=moved))))
            slopes.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-8)


UNITS = {"pairs": 3, "responses": 6, "tokens": None}


@every_case
def test_a_step_does_not_depend_on_its_cut(case: str) -> None:
    objective, rows = CASES[case][0], plain(3)

    def part(begin: int, end: int) -> Plain:
        return Plain(*(getattr(rows, name)[begin:end] for name in Plain.__dataclass_fields__))

    def summed(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        found = [objective.terms(batch) for batch in batches]
        units = sum(len(terms.losses) for terms in found)
        loss = sum(terms.losses.sum() for terms in found) / units
        gradient = torch.cat(torch.autograd.grad(loss, [batch.logprobs for batch in batches]))
        metrics = {name: torch.cat([terms.metrics[name] for terms in found]) for name in found[0].metrics}
        return loss.detach(), gradient, metrics

    assert len(objective.terms(batch_of(rows)).losses) == (UNITS[objective.unit] or len(flat(rows.logprobs)))
    whole, cut = summed([batch_of(rows)]), summed([batch_of(part(0, 2)), batch_of(part(2, 6))])
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-14)


@every_case
def test_it_pickles_and_asks_for_no_more_than_it_says(case: str) -> None:
    objective = CASES[case][0]
    again = pickle.loads(pickle.dumps(objective))
    assert again == objective
    batch = batch_of(plain(0))
    columns = ("reference", "behaviour", "advantages")
    unasked = {name: None for name in columns if not getattr(objective, f"uses_{name}")}
    bare: Terms = again.terms(replace(batch, **unasked))
    torch.testing.assert_close(bare.losses, objective.terms(batch).losses)
    assert ("kl" in bare.metrics) == objective.uses_reference
    asked = set(columns) - set(unasked)
    for name in asked:
        with pytest.raises(AssertionError):
            again.terms(replace(batch, **{name: None}))


@every_case
def test_in_float32_it_is_the_float64_one_but_for_rounding(case: str) -> None:
    objective, rows = CASES[case][0], plain(4)
    rough, fine = objective.terms(batch_of(rows, torch.float32)), objective.terms(batch_of(rows))
    torch.testing.assert_close(rough.losses.double(), fine.losses, rtol=1e-5, atol=1e-5)


@every_case
def test_metrics_have_no_gradient_and_are_numbers(case: str) -> None:
    for name, values in CASES[case][0].terms(batch_of(plain(5))).metrics.items():
        assert not values.requires_grad, name
        assert values.dim() == 1 and values.isfinite().all(), name


# The configuration


def test_every_objective_that_can_be_configured_is_there() -> None:
    assert set(OBJECTIVES) == set(CONFIGURED)
    for name in CONFIGURED:
        made = objective_of(TrainConfig.model_validate({"train": {"objective": name}}))
        assert type(made) is OBJECTIVES[name]
        assert made.pairs == (made.unit == "pairs")


@pytest.mark.parametrize(
    ("told", "made"),
    [
        ({"dpo": {"beta": 0.7}, "pairs": {"label_smoothing": 0.1, "margin_temperature": 3}}, Dpo(0.7, 0.1, 3)),
        ({"ipo": {"beta": 0.7}, "pairs": {"label_smoothing": 0.1}}, Ipo(0.7, 0.1)),
        ({"simpo": {"beta": 0.7, "target_margin": 0.2}}, Simpo(0.7, 0.0, None, 0.2)),
        ({"awr": {"temperature": 0.3, "max_weight": 5}}, Awr(0.3, 5)),
        ({"grpo": {"epsilon": 0.1, "beta": 0.04}}, Grpo("dapo", 0.1, 0.1, 0.04, 256)),
        ({"grpo": {"epsilon_high": 0.3, "loss_type": "dr_grpo"}}, Grpo("dr_grpo", 0.2, 0.3, 0.0, 256)),
        ({"reinforce": {"max_ratio": 4, "beta": 0.1}}, Reinforce(4, 0.1)),
    ],
)
def test_settings_arrive(told: dict, made: Objective) -> None:
    config = TrainConfig.model_validate({"train": {"objective": made.name}, **told})
    assert objective_of(config) == made


def test_a_reference_is_asked_for_where_the_loss_has_one() -> None:
    asking = {case for case, (objective, _) in CASES.items() if objective.uses_reference}
    assert asking == {
        "dpo", "dpo, smoothed", "dpo, soft", "ipo", "ipo, soft", "grpo, grpo", "grpo, dr_grpo", "reinforce, kl",
    }  # fmt: skip


# Limits


@pytest.mark.parametrize("make", [Dpo, Ipo, Simpo])
def test_equal_rewards_with_soft_targets_are_a_coin(make: type[PreferenceObjective]) -> None:
    batch = replace(batch_of(plain(6)), rewards=torch.full((6,), 2.5, dtype=torch.float64))
    for smoothing in (0.0, 0.3):
        np.testing.assert_array_equal(make(0.5, smoothing, 1.0).targets(batch), [0.5] * 3)
    assert make(0.5).targets(batch).tolist() == [1.0] * 3


def test_a_small_margin_temperature_is_hard_again() -> None:
    batch = batch_of(plain(6))
    ordered = (batch.rewards[::2] > batch.rewards[1::2]).double()
    np.testing.assert_allclose(Dpo(0.5, 0.0, 1e-6).targets(batch), ordered)


def test_dpo_at_the_reference_is_log_2_and_pulls_apart() -> None:
    rows = plain(7)
    batch = batch_of(replace(rows, reference=rows.logprobs))
    terms = Dpo(0.4).terms(batch)
    np.testing.assert_allclose(terms.losses.detach(), [log(2)] * 3)
    (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
    signs = batch.owners % 2 * 2 - 1  # towards the chosen, away from the rejected
    np.testing.assert_allclose(gradient, signs * 0.2)
    assert terms.metrics["rewards/accuracies"].tolist() == [0.0] * 3
    assert not terms.metrics["kl"].any()


@pytest.mark.parametrize("soft", [None, 1.5])
def test_where_the_preference_losses_are_smallest(soft: float | None) -> None:
    """sigmoid(z) = p for dpo, z = (2p - 1) / (2 beta) for ipo: there the gradient is zero."""
    rows = plain(8, pairs=1)
    p = better(Dpo(0.5, 0.1, soft), rows, 0)
    for objective, z in ((Dpo(0.5, 0.1, soft), log(p / (1 - p)) / 0.5), (Ipo(0.5, 0.1, soft), (2 * p - 1) / 1.0)):
        batch = batch_of(Plain([[z - 3.0], [-2.0]], *[[[-3.0], [-2.0]]] * 3, rows.rewards))
        (gradient,) = torch.autograd.grad(objective.terms(batch).losses.sum(), batch.logprobs)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_preference_metrics() -> None:
    rows = plain(1)
    for objective, rewards in (
        (Dpo(0.3), [0.3 * log_ratio(rows, i) for i in range(6)]),
        (Ipo(0.3), [0.3 * log_ratio(rows, i) for i in range(6)]),
        (Simpo(0.3), [0.3 * sum(row) / len(row) for row in rows.logprobs]),
    ):
        found = objective.terms(batch_of(rows)).metrics
        np.testing.assert_allclose(found["rewards/chosen"], rewards[::2])
        np.testing.assert_allclose(found["rewards/rejected"], rewards[1::2])
        np.testing.assert_allclose(found["rewards/margins"], np.subtract(rewards[::2], rewards[1::2]))
        np.testing.assert_array_equal(found["rewards/accuracies"], np.greater(rewards[::2], rewards[1::2]))
        np.testing.assert_allclose(found["logps/chosen"], [sum(row) for row in rows.logprobs[::2]])
        np.testing.assert_allclose(found["logps/rejected"], [sum(row) for row in rows.logprobs[1::2]])


def test_on_policy_all_policy_gradients_are_one() -> None:
    """With the behaviour's own policy nothing is clipped: the gradient is that of -A log pi."""
    rows = plain(2)
    rows = replace(rows, behaviour=rows.logprobs)
    for objective in (Grpo(), Reinforce(), Rwr()):
        batch = batch_of(rows)
        terms = objective.terms(batch)
        (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
        np.testing.assert_allclose(gradient, np.negative(flat(rows.advantages)), rtol=1e-12)
        assert not any(terms.metrics[name].any() for name in terms.metrics if "clip" in name)


def test_clipping_is_counted_where_it_takes_the_gradient() -> None:
    rows = Plain(
        logprobs=[[log(0.5), log(0.5), log(0.9), log(0.9)]],
        reference=[[-1.0] * 4],
        behaviour=[[log(0.7)] * 4],
        advantages=[[1.0, -1.0, 1.0, -1.0]],
        rewards=[3.0],
    )
    batch = batch_of(rows)
    terms = Grpo("dapo", 0.2, 0.25).terms(batch)
    (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
    assert [bool(x) for x in gradient] == [True, False, False, True]
    assert terms.metrics["clip_ratio/low_mean"].tolist() == [0, 1, 0, 0]
    assert terms.metrics["clip_ratio/high_mean"].tolist() == [0, 0, 1, 0]
    assert terms.metrics["clip_ratio/region_mean"].tolist() == [0, 1, 1, 0]
    assert terms.metrics["reward"].tolist() == [3.0]
    assert Reinforce(max_ratio=1.0).terms(batch).metrics["ratio_clipped"].tolist() == [0, 0, 1, 1]
    assert Awr(1.0, 2.0).terms(batch).metrics["weight_clipped"].tolist() == [1, 0, 1, 0]


# The divergence


def test_kl_is_the_enumerated_one() -> None:
    """The mean over a state's actions, as pi or the behaviour draws them, is KL(pi || pi_ref), and so is its gradient."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, reference, behaviour = (row.log_softmax(0) for row in logits)
    wanted = (policy.exp() * (policy - reference)).sum()
    batch = Batch(policy, torch.tensor([5]), torch.zeros(1), reference)
    for who in (policy, behaviour):
        torch.testing.assert_close((who.exp() * replace(batch, behaviour=who).kl).sum(), wanted)

    near = (reference + 1e-4 * logits[0]).log_softmax(0)  # who drew the tokens is unknown: right where little has moved
    moved = Batch(near, torch.tensor([5]), torch.zeros(1), reference)
    torch.testing.assert_close(
        (near.exp() * moved.kl).sum(), (near.exp() * (near - reference)).sum(), rtol=1e-3, atol=0
    )

    free = logits[0].clone().requires_grad_()
    policy = free.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), free, retain_graph=True)
    estimate = (behaviour.exp() * Batch(policy, torch.tensor([5]), torch.zeros(1), reference, behaviour).kl).sum()
    torch.testing.assert_close(torch.autograd.grad(estimate, free), exact)


def test_a_token_that_the_policy_ruled_out_leaves_finite_numbers() -> None:
    rows = Plain([[-200.0], [-1.0]], *[[[-1.0], [-1.0]]] * 3, [0.0, 1.0])
    for objective in (Grpo(beta=0.1), Reinforce(beta=0.1), Dpo(0.1)):
        batch = batch_of(rows, torch.float32)
        terms = objective.terms(batch)
        (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
        assert terms.losses.isfinite().all() and gradient.isfinite().all()
        assert terms.metrics["kl"].isfinite().all()
    alone = replace(batch, behaviour=None)
    assert Dpo(0.1).terms(alone).metrics["kl"].isfinite().all()
