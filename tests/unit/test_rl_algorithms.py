"""The algorithms of online RL against their equations in plain loops of Python floats, and against theory."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.rl.algorithm_sections import ALGORITHMS as CONFIGURED
from pipeline.rl.algorithms import ALGORITHMS, Algorithm, algorithm_of
from pipeline.rl.algorithms.cispo import Cispo
from pipeline.rl.algorithms.grpo import Grpo
from pipeline.rl.algorithms.gspo import Gspo
from pipeline.rl.algorithms.opd import Opd
from pipeline.rl.algorithms.ppo import Ppo
from pipeline.rl.algorithms.reinforce import Reinforce
from pipeline.rl.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from pipeline.rl.algorithms.rloo import Rloo
from pipeline.rl.config import RlConfig
from pipeline.training.advantages import Siblings
from pipeline.training.objectives import Batch

Nested = list[list[float]]
SEEDS = (0, 1, 2)


# Losses


@dataclass
class Plain:
    """A batch as lists of lists: one list for each response."""

    logprobs: Nested
    reference: Nested
    behaviour: Nested
    advantages: Nested
    entropies: Nested
    values: Nested
    returns: Nested
    held: Nested  # logprobs as they were: what has no gradient does not move with them


def plain(seed: int, n: int = 6) -> Plain:
    """Advantages are the same at all tokens of a response, as rloo's are."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, n)
    logprobs = [-rng.exponential(1.5, h) for h in lengths]
    near = [[x + rng.normal(scale=0.2, size=len(x)) for x in logprobs] for _ in range(2)]
    advantages = [np.full(h, rng.normal()) for h in lengths]
    free = [[rng.normal(size=h) for h in lengths] for _ in range(3)]
    return Plain(*([row.tolist() for row in rows] for rows in (logprobs, *near, advantages, *free, logprobs)))


COLUMNS = [name for name in Plain.__dataclass_fields__ if name != "held"]
LEARNT = ("logprobs", "entropies", "values")


def batch_of(rows: Plain, dtype: torch.dtype = torch.float64) -> Batch:
    flat = {
        name: torch.tensor([x for row in getattr(rows, name) for x in row], dtype=dtype, requires_grad=name in LEARNT)
        for name in COLUMNS
    }
    lengths = torch.tensor([len(row) for row in rows.logprobs])
    return Batch(**flat, lengths=lengths, rewards=torch.arange(len(lengths), dtype=torch.float64))


def clip(ratio: float, a: float, low: float, high: float) -> float:
    return -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)


def of_token(o: Algorithm, rows: Plain, i: int, h: int) -> float:
    """What is added to a token's loss."""
    over = exp(rows.reference[i][h]) / exp(rows.logprobs[i][h])
    d = rows.reference[i][h] - rows.logprobs[i][h]
    kl = d * d / 2 if o.kl_estimator == "k2" else over - 1 - d
    return o.kl_coefficient * kl - o.entropy_coefficient * rows.entropies[i][h]


def clipped_token(o: Any, rows: Plain, i: int, h: int) -> float:
    ratio = exp(rows.logprobs[i][h]) / exp(rows.behaviour[i][h])
    high = getattr(o, "epsilon_high", None) or o.epsilon
    return clip(ratio, rows.advantages[i][h], o.epsilon, high)


def token_losses(o: Any, rows: Plain) -> Nested:
    return [
        [clipped_token(o, rows, i, h) + of_token(o, rows, i, h) for h in range(len(row))]
        for i, row in enumerate(rows.logprobs)
    ]


def flat(nested: Nested) -> list[float]:
    return [x for row in nested for x in row]


def ppo(o: Ppo, rows: Plain) -> list[float]:
    losses = flat(token_losses(o, rows))
    if o.value == "reward-model":
        return losses
    errors = [(v - r) ** 2 for v, r in zip(flat(rows.values), flat(rows.returns), strict=True)]
    return [loss + o.value_coefficient * 0.5 * error for loss, error in zip(losses, errors, strict=True)]


def grpo(o: Grpo, rows: Plain) -> list[float]:
    tokens = token_losses(o, rows)
    if o.loss_type == "dapo":
        return flat(tokens)
    return [sum(row) / (len(row) if o.loss_type == "grpo" else o.max_new_tokens) for row in tokens]


def reinforce_plus_plus(o: ReinforcePlusPlus, rows: Plain) -> list[float]:
    return flat(token_losses(o, rows))


def rloo(o: Rloo, rows: Plain) -> list[float]:
    losses = []
    for i, row in enumerate(rows.logprobs):
        ratio = 1.0
        for h in range(len(row)):
            ratio *= exp(row[h]) / exp(rows.behaviour[i][h])
        own = clip(ratio, rows.advantages[i][0], o.epsilon, o.epsilon)
        losses.append(own + sum(of_token(o, rows, i, h) for h in range(len(row))))
    return losses


def gspo(o: Gspo, rows: Plain) -> list[float]:
    losses = []
    for i, row in enumerate(rows.logprobs):
        product, length = 1.0, len(row)
        for h in range(length):
            product *= exp(row[h]) / exp(rows.behaviour[i][h])
        own = clip(product ** (1 / length), rows.advantages[i][0], o.epsilon, o.epsilon_high)
        losses.append(own + sum(of_token(o, rows, i, h) for h in range(length)) / length)
    return losses


def weighed(o: Cispo | Opd, rows: Plain) -> list[float]:
    losses = []
    for i, row in enumerate(rows.logprobs):
        for h in range(len(row)):
            weight = min(exp(rows.held[i][h]) / exp(rows.behaviour[i][h]), o.max_ratio)
            losses.append(-weight * rows.advantages[i][h] * row[h] + of_token(o, rows, i, h))
    return losses


def reinforce(o: Reinforce, rows: Plain) -> list[float]:
    return [
        sum(-rows.advantages[i][h] * row[h] + of_token(o, rows, i, h) for h in range(len(row)))
        for i, row in enumerate(rows.logprobs)
    ]


K2: dict[str, Any] = {"kl_coefficient": 0.3, "kl_estimator": "k2"}
K3: dict[str, Any] = {"kl_coefficient": 0.3, "kl_estimator": "k3", "entropy_coefficient": 0.07}
ORACLES: dict[type[Algorithm], Callable] = {
    Ppo: ppo, Grpo: grpo, Gspo: gspo, Cispo: weighed, Rloo: rloo, Reinforce: reinforce,
    ReinforcePlusPlus: reinforce_plus_plus, Opd: weighed,
}  # fmt: skip
CASES: dict[str, Algorithm] = {
    "ppo": Ppo(),
    "ppo, k3": Ppo(epsilon=0.1, **K3),
    "ppo, critic": Ppo(value="critic", value_coefficient=0.4, **K2),
    "grpo, dapo": Grpo(epsilon_high=0.3),
    "grpo, dapo, k3": Grpo(**K3),
    "grpo, grpo, k2": Grpo(loss_type="grpo", epsilon_high=0.3, **K2),
    "grpo, dr_grpo, k3": Grpo(loss_type="dr_grpo", max_new_tokens=7, **K3),
    "gspo": Gspo(),
    "gspo, wide, k3": Gspo(epsilon=0.1, epsilon_high=0.2, **K3),
    "cispo": Cispo(max_ratio=1.1),
    "cispo, k2": Cispo(**K2),
    "rloo": Rloo(epsilon=0.1),
    "rloo, k3": Rloo(**K3),
    "reinforce": Reinforce(),
    "reinforce, k2": Reinforce(**K2),
    "reinforce_plus_plus": ReinforcePlusPlus(),
    "reinforce_plus_plus, k3": ReinforcePlusPlus(epsilon=0.1, **K3),
    "opd": Opd(max_ratio=1.1),
    "opd, k3": Opd(**K3),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients_are_the_equations(case: str, seed: int) -> None:
    algorithm, rows = CASES[case], plain(seed)
    oracle, batch = ORACLES[type(algorithm)], batch_of(rows)
    terms = algorithm.terms(batch)
    np.testing.assert_allclose(terms.losses.detach(), oracle(algorithm, rows), rtol=1e-12, atol=1e-13)

    weights = np.random.default_rng(9).normal(size=len(terms.losses))  # a loss that went to another unit would show
    gradients = torch.autograd.grad(
        terms.losses @ torch.tensor(weights), [getattr(batch, name) for name in LEARNT], materialize_grads=True
    )
    for name, gradient in zip(LEARNT, gradients, strict=True):
        slopes = []
        for i, row in enumerate(rows.logprobs):
            for h in range(len(row)):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [list(other) for other in getattr(rows, name)]
                    moved[i][h] += step
                    ends.append(float(weights @ oracle(algorithm, replace(rows, **{name: moved}))))
                slopes.append((ends[0] - ends[1]) / 2e-5)
        np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-8)


@every_case
def test_a_step_does_not_depend_on_its_cut(case: str) -> None:
    algorithm, rows = CASES[case], plain(3)
    whole = algorithm.terms(batch_of(rows))
    parts = [
        algorithm.terms(batch_of(Plain(*(getattr(rows, name)[cut] for name in Plain.__dataclass_fields__))))
        for cut in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat([part.losses for part in parts]), whole.losses)
    assert len(whole.losses) == {"responses": 6, "tokens": len(flat(rows.logprobs))}[algorithm.unit]


@every_case
def test_metrics_have_no_gradient_and_are_numbers(case: str) -> None:
    algorithm, rows = CASES[case], plain(5)
    batch = batch_of(rows)
    found = algorithm.terms(batch).metrics
    for name, values in found.items():
        assert not values.requires_grad, name
        assert values.dim() == 1 and values.isfinite().all(), name
    apart = np.abs(np.subtract(flat(rows.logprobs), flat(rows.behaviour)))
    for what in ("mean", "max"):
        np.testing.assert_allclose(found[f"sampling/sampling_logp_difference/{what}"], apart)
    np.testing.assert_array_equal(found["reward"], range(6))
    np.testing.assert_array_equal(found["entropy"], flat(rows.entropies))
    d = np.subtract(flat(rows.reference), flat(rows.logprobs))
    np.testing.assert_allclose(found["kl"], np.exp(d) - 1 - d, atol=1e-14)
    if algorithm.uses_critic:
        np.testing.assert_allclose(
            found["value_loss"], np.subtract(flat(rows.values), flat(rows.returns)) ** 2 / 2, rtol=1e-12
        )
    assert ("value_loss" in found) == algorithm.uses_critic
    assert ("clip_ratio/region_mean" in found) == (type(algorithm) not in (Reinforce, Cispo, Opd))
    if isinstance(algorithm, Cispo | Opd):
        ratios = np.exp(np.subtract(flat(rows.logprobs), flat(rows.behaviour)))
        np.testing.assert_allclose(found["ratio"], np.minimum(ratios, algorithm.max_ratio))
        np.testing.assert_array_equal(found["ratio_clipped"], ratios > algorithm.max_ratio)


@every_case
def test_it_pickles_and_asks_for_no_more_than_it_needs(case: str) -> None:
    algorithm = pickle.loads(pickle.dumps(CASES[case]))
    assert algorithm == CASES[case]
    batch = batch_of(plain(0))
    needs = {
        "advantages": True,
        "behaviour": type(algorithm) is not Reinforce,
        "reference": algorithm.kl_coefficient > 0,
        "entropies": algorithm.entropy_coefficient > 0,
        "values": algorithm.uses_critic,
        "returns": algorithm.uses_critic,
    }
    bare = replace(batch, **{name: None for name, needed in needs.items() if not needed})
    torch.testing.assert_close(algorithm.terms(bare).losses, algorithm.terms(batch).losses)
    for name, needed in needs.items():
        if needed:
            with pytest.raises(AssertionError):
                algorithm.terms(replace(batch, **{name: None}))


@every_case
def test_in_float32_it_is_the_float64_one_but_for_rounding(case: str) -> None:
    rough, fine = (CASES[case].terms(batch_of(plain(4), dtype)).losses for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(rough.double(), fine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made", [Ppo(), Grpo(), Gspo(), Cispo(), Rloo(), Reinforce(), ReinforcePlusPlus(), Opd()])
def test_on_policy_every_gradient_is_the_policy_gradient(made: Algorithm) -> None:
    rows = plain(2)
    batch = batch_of(replace(rows, behaviour=rows.logprobs))
    terms = made.terms(batch)
    (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
    lengths = [
        len(row) if isinstance(made, Gspo) else 1 for row in rows.logprobs for _ in row
    ]  # a mean over its tokens
    np.testing.assert_allclose(gradient, np.negative(flat(rows.advantages)) / lengths, rtol=1e-12)
    assert not any(terms.metrics[name].any() for name in terms.metrics if "clip" in name)


def test_rloo_clips_a_response_whose_tokens_are_all_within() -> None:
    """1.15 is inside 1 +- 0.2 and 1.15^2 outside."""
    batch = batch_of(replace(plain(0, 1), **{name: [[0.0, 0.0]] for name in Plain.__dataclass_fields__}))
    batch = replace(batch, behaviour=batch.logprobs.detach() - np.log(1.15), advantages=torch.ones(2).double())
    for made, clips in ((Rloo(), [1]), (Ppo(), [0, 0])):
        terms = made.terms(batch)
        (gradient,) = torch.autograd.grad(terms.losses.sum(), batch.logprobs)
        assert terms.metrics["clip_ratio/high_mean"].tolist() == clips
        np.testing.assert_allclose(gradient, 0 if any(clips) else -1.15)


# The KL, over all tokens of a state


def kl_in_one_state(added: Callable[[Batch], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean over pi's own tokens of an estimate and of its gradient to the logits, beside both directions of the KL."""
    logits, other = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = other.log_softmax(0)
    found: dict[str, torch.Tensor] = {}
    for name in ("estimate", "reverse", "forward"):
        free = logits.clone().requires_grad_()
        policy = free.log_softmax(0)
        drawn = policy.detach().exp()  # who draws does not follow the gradient
        loss = {
            "estimate": lambda p=policy, w=drawn: (w * added(Batch(p, torch.ones(6).long(), torch.zeros(6), reference))).sum(),
            "reverse": lambda p=policy: (p.exp() * (p - reference)).sum(),
            "forward": lambda p=policy: (reference.exp() * (reference - p)).sum(),
        }[name]()  # fmt: skip
        found[name], found[f"{name}'"] = loss.detach(), torch.autograd.grad(loss, free)[0]
    return found


@pytest.mark.parametrize(("kl", "unbiased", "gradient"), [("k2", False, "reverse"), ("k3", True, "forward")])
def test_what_the_estimators_estimate(kl: str, unbiased: bool, gradient: str) -> None:
    def added(batch: Batch) -> torch.Tensor:
        nothing = replace(batch, advantages=torch.zeros(6), behaviour=batch.logprobs.detach())
        return Ppo(kl_coefficient=1.0, kl_estimator=kl).terms(nothing).losses

    found = kl_in_one_state(added)
    assert torch.allclose(found["estimate"], found["reverse"]) == unbiased
    torch.testing.assert_close(found["estimate'"], found[f"{gradient}'"])
    assert not torch.allclose(found["reverse'"], found["forward'"], atol=1e-2)


def test_k1_in_the_loss_has_no_gradient_on_average() -> None:
    """Its mean is the KL and its gradient is none of it, whatever the reference: hence it is refused."""

    def k1(batch: Batch) -> torch.Tensor:
        return batch.logprobs - batch.reference

    found = kl_in_one_state(k1)
    torch.testing.assert_close(found["estimate"], found["reverse"])
    torch.testing.assert_close(found["estimate'"], torch.zeros(6, dtype=torch.float64))
    assert found["reverse'"].abs().max() > 0.1
    with pytest.raises(ValueError, match="gradient is zero on average"):
        RlConfig.model_validate({"rl": {"kl_in": "loss", "kl_estimator": "k1"}})


# Advantages


def siblings(seed: int, n: int = 4) -> Siblings:
    """Rewards of responses are the sums of those of their tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, n).tolist()
    rewards, values = ([rng.normal(size=h) for h in lengths] for _ in range(2))
    return Siblings([float(r.sum()) for r in rewards], lengths, rewards, values)


def compare(found: list[list[np.ndarray]], wanted: list[Nested]) -> None:
    assert [len(group) for group in found] == [len(group) for group in wanted]
    for mine, theirs in zip(flat(found), flat(wanted), strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-10)


def to_go(rewards: Any, gamma: float) -> list[float]:
    return [sum(gamma ** (k - h) * rewards[k] for k in range(h, len(rewards))) for h in range(len(rewards))]


def naive_gae(group: Siblings, credit: str, gamma: float, lam: float) -> Nested:
    """Eq. 16 of arXiv 1506.02438 as a sum."""
    made = []
    for i, length in enumerate(group.lengths):
        last = [0.0] * (length - 1) + [group.rewards[i]]
        r, v = group.token_rewards[i] if credit == "tokens" else last, [*group.token_values[i], 0.0]
        deltas = [r[h] + gamma * v[h + 1] - v[h] for h in range(length)]
        made.append(to_go(deltas, gamma * lam))
    return made


def naively_normalized(groups: list[Nested]) -> list[Nested]:
    tokens = [x for group in groups for row in group for x in row]
    mean = sum(tokens) / len(tokens)
    spread = (sum((x - mean) ** 2 for x in tokens) / len(tokens)) ** 0.5 + 1e-8
    return [[[(x - mean) / spread for x in row] for row in group] for group in groups]


@pytest.mark.parametrize("credit", ["tokens", "response"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (0.9, 0.0), (1.0, 0.5)])
def test_gae(gamma: float, lam: float, credit: str) -> None:
    groups = [siblings(0), siblings(1, 3)]
    wanted = [naive_gae(group, credit, gamma, lam) for group in groups]
    for value in ("reward-model", "critic"):
        made = Ppo(credit=credit, gamma=gamma, gae_lambda=lam, value=value)
        compare(made.advantages(groups), wanted)
        normal = replace(made, normalize=True)
        compare(normal.advantages(groups), naively_normalized(wanted))
        targets = [
            [(np.array(row) + v).tolist() for row, v in zip(rows, group.token_values, strict=True)]
            for rows, group in zip(wanted, groups, strict=True)
        ]
        compare(made.returns(groups), targets)
        compare(normal.returns(groups), targets)  # advantages are normalised, what the critic learns is not
        assert made.uses_critic == (value == "critic")


def test_at_lambda_1_the_critic_learns_rewards_to_go() -> None:
    group = siblings(2)
    compare(Ppo(credit="tokens", gamma=0.9).returns([group]), [[to_go(r, 0.9) for r in group.token_rewards]])


@pytest.mark.parametrize("values", [(), [np.ones(2)], [np.ones(2), np.ones(2)]])
def test_values_that_nobody_has_are_refused(values: Any) -> None:
    group = Siblings([1.0, 2.0], [2, 3], [np.ones(2), np.ones(3)], values)
    with pytest.raises(ConfigError, match=r"set ppo\.value = critic"):
        Ppo(credit="tokens").advantages([group])


def expected_advantages(group: Siblings, credit: str, baseline: str, gamma: float = 0.9) -> Nested:
    """Rewards (to go), less the mean over the group, or over the others; where a response has ended it has 0 to go."""
    n = len(group.lengths)

    def worth(i: int, h: int) -> float:
        if credit == "response":
            return group.rewards[i]
        rewards = group.token_rewards[i]
        return to_go(rewards, gamma)[h] if h < len(rewards) else 0.0

    def off(i: int, h: int) -> float:
        compared = [j for j in range(n) if baseline == "group" or (baseline == "others" and j != i)]
        return sum(worth(j, h) for j in compared) / max(1, len(compared))

    return [[worth(i, h) - off(i, h) for h in range(length)] for i, length in enumerate(group.lengths)]


@pytest.mark.parametrize("credit", ["response", "tokens"])
def test_advantages_within_groups(credit: str) -> None:
    groups = [siblings(0), siblings(1, 3)]
    common: dict[str, Any] = {"credit": credit, "gamma": 0.9}
    plainly = {kind: [expected_advantages(g, credit, kind) for g in groups] for kind in ("group", "others", "none")}
    compare(Grpo(scale="none", **common).advantages(groups), plainly["group"])
    compare(Cispo(scale="none", **common).advantages(groups), plainly["group"])
    compare(Reinforce(**common).advantages(groups), plainly["group"])
    compare(Reinforce(baseline="none", **common).advantages(groups), plainly["none"])
    compare(ReinforcePlusPlus(**common).advantages(groups), naively_normalized(plainly["group"]))
    compare(ReinforcePlusPlus(baseline="none", **common).advantages(groups), naively_normalized(plainly["none"]))
    spread = []
    for group, rows in zip(groups, plainly["group"], strict=True):
        first = group.rewards if credit == "response" else [to_go(r, 0.9)[0] for r in group.token_rewards]
        mean = sum(first) / len(first)
        sigma = (sum((x - mean) ** 2 for x in first) / (len(first) - 1)) ** 0.5
        spread.append([[x / (sigma + 1e-4) for x in row] for row in rows])
    for made in (Grpo(**common), Cispo(**common)):
        compare(made.advantages(groups), spread)
    if credit == "tokens":
        compare(Opd(gamma=0.9, baseline="group").advantages(groups), plainly["group"])
        compare(Opd(gamma=0.9).advantages(groups), plainly["none"])
    if credit == "response":
        compare(Gspo().advantages(groups), spread)
        compare(Gspo(scale="none").advantages(groups), plainly["group"])
        compare(Rloo().advantages(groups), plainly["others"])


@pytest.mark.parametrize(
    "made", [Grpo(), Grpo(scale="none"), Gspo(), Cispo(), Rloo(), Reinforce(), ReinforcePlusPlus()]
)
def test_a_constant_on_all_rewards_of_a_group_changes_nothing(made: Algorithm) -> None:
    groups = [siblings(3), siblings(4)]
    lifted = [groups[0], replace(groups[1], rewards=np.asarray(groups[1].rewards) + 100)]
    compare(made.advantages(lifted), made.advantages(groups))


@pytest.mark.parametrize("made", [Grpo(), Gspo(), Cispo(), Rloo(), Reinforce(), ReinforcePlusPlus()])
def test_groups_that_are_all_alike_say_nothing(made: Algorithm) -> None:
    groups = [Siblings([level] * 3, [1, 2, 3]) for level in (0.1, 0.7, 1e4 + 0.3)]
    for group in made.advantages(groups):
        for response in group:
            assert np.abs(response).max() < 1e-3


@pytest.mark.parametrize(
    "made",
    [
        Grpo(),
        ReinforcePlusPlus(),
        ReinforcePlusPlus(baseline="none"),
        Ppo(normalize=True),
        Ppo(credit="tokens", normalize=True, value="critic"),
    ],
)
@pytest.mark.parametrize("level", [0.0, 1.0, 1e4 + 0.3])
def test_a_kl_and_errors_of_values_are_not_blown_up_where_all_rewards_are_the_same(
    made: Algorithm, level: float
) -> None:
    rng = np.random.default_rng(7)
    kls, values = ([[rng.normal(scale=1e-3, size=h) for h in (1, 2, 3)] for _ in range(2)] for _ in range(2))
    groups = [
        Siblings(
            rewards=[level - float(kl.sum()) for kl in group],
            lengths=[1, 2, 3],
            token_rewards=[np.append(np.zeros(len(kl) - 1), level) - kl for kl in group],
            token_values=value,
            before=[level] * 3,
        )
        for group, value in zip(kls, values, strict=True)
    ]
    compare(made.advantages(groups), [[[0.0] * h for h in (1, 2, 3)]] * 2)


def test_under_opd_a_token_answers_for_itself() -> None:
    group = siblings(5)
    compare(Opd().advantages([group]), [[row.tolist() for row in group.token_rewards]])
    compare(Opd(gamma=1.0).advantages([group]), [[to_go(row, 1.0) for row in group.token_rewards]])


def test_ppo_does_not_see_the_level_of_logits() -> None:
    """Adding c(s) to the logits of every state moves r and V, and no advantage."""
    group, rng = siblings(5), np.random.default_rng(6)
    moved_rewards, moved_values = [], []
    for rewards, values in zip(group.token_rewards, group.token_values, strict=True):
        c = rng.normal(scale=30, size=len(values))
        moved_rewards.append(rewards + c - 0.9 * np.append(c[1:], 0))
        moved_values.append(values + c)
    moved = replace(group, token_rewards=moved_rewards, token_values=moved_values)
    made = Ppo(credit="tokens", gamma=0.9, gae_lambda=0.7)
    compare(made.advantages([moved]), made.advantages([group]))


# The configuration


def told(algorithm: str, **sections: Any) -> RlConfig:
    rl = {"algorithm": algorithm, **sections.pop("rl", {})}
    return RlConfig.model_validate({"rl": rl, **sections})


def test_every_algorithm_that_can_be_configured_is_there() -> None:
    assert set(ALGORITHMS) == set(CONFIGURED)
    for name in CONFIGURED:
        assert type(algorithm_of(told(name))) is ALGORITHMS[name]


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (told("ppo"), Ppo(credit="tokens")),
        (
            told("ppo", rl={"gamma": 0.9, "credit": "response"}, ppo={"value": "critic", "normalize": True}),
            Ppo(gamma=0.9, value="critic", normalize=True),
        ),
        (told("ppo", ppo={"gae_lambda": 0.5, "epsilon": 0.1}), Ppo(credit="tokens", gae_lambda=0.5, epsilon=0.1)),
        (told("grpo", rl={"max_new_tokens": 9, "kl_in": "loss"}), Grpo(max_new_tokens=9, kl_coefficient=0.01)),
        (told("grpo", grpo={"scale": "none", "loss_type": "grpo", "epsilon_high": 0.3}),
         Grpo(scale="none", loss_type="grpo", epsilon_high=0.3)),
        (told("gspo", gspo={"epsilon": 0.1, "scale": "none"}), Gspo(epsilon=0.1, scale="none")),
        (told("cispo", rl={"credit": "tokens", "gamma": 0.9}, cispo={"max_ratio": 2.0}),
         Cispo(credit="tokens", gamma=0.9, max_ratio=2.0)),
        (told("opd", opd={"baseline": "group"}), Opd(baseline="group")),
        (told("opd", rl={"kl_in": "loss"}, opd={"gamma": 1}), Opd(gamma=1.0, kl_coefficient=0.01)),
        (told("rloo", rl={"entropy_coefficient": 0.1}, rloo={"epsilon": 0.1}), Rloo(epsilon=0.1, entropy_coefficient=0.1)),
        (told("reinforce", rl={"credit": "tokens"}, reinforce={"baseline": "none"}),
         Reinforce(credit="tokens", baseline="none")),
        (told("reinforce_plus_plus", rl={"kl_in": "loss", "kl_estimator": "k2", "kl_coefficient": 0.2}),
         ReinforcePlusPlus(credit="tokens", kl_coefficient=0.2, kl_estimator="k2")),
    ],
)  # fmt: skip
def test_settings_arrive(config: RlConfig, made: Algorithm) -> None:
    assert algorithm_of(config) == made


@pytest.mark.parametrize("algorithm", ["rloo", "gspo"])
def test_rewards_to_go_have_no_place_in_a_loss_of_responses(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=rf"{algorithm} weighs whole .* leave rl\.credit out"):
        algorithm_of(told(algorithm, rl={"credit": "tokens"}))
