"""The theory of the endogenous reward (Li et al. 2025, arXiv 2506.23235), checked on token MDPs that can be enumerated.

    python examples/token_mdp/theory.py
    python examples/token_mdp/theory.py --figure docs/images/theory.svg

One function per claim: (a) Proposition 1, (b) Theorem 1, (c) Theorem 2, (d) section 3.3, (e) the optimum under a KL penalty.
Everything is exact up to float64 except the two optimisers in (a); only the instances are random, and their seeds are
fixed. README.md says what the figures mean and what they do not. Left out: sampled estimates, function approximation,
responses that end early.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from figure import Curve, Panel, power_of_ten, svg
from mdp import (
    Array,
    Table,
    best_sequence,
    elicit,
    expected_return,
    log_policy,
    masses,
    over_sequences,
    plan,
    plan_with_kl,
    plus,
    random_table,
)

from pipeline.rewards.endogenous import soft_value

# (a) Proposition 1


def expert_demonstrations(rng: np.random.Generator, vocabulary: int, horizon: int, draws: int) -> Array:
    """Frequencies of all sequences in a data set: `draws` samples of a random expert, and every sequence once: [A^H].

    Without the latter a token that never follows some prefix has no finite maximum-likelihood logit.
    """
    expert = np.exp(over_sequences(log_policy(random_table(rng, 1, vocabulary, horizon), 1.0)))[0]
    counts = rng.multinomial(draws, expert / expert.sum()) + 1
    return counts / counts.sum()


def next_token_logits(start: Table, demonstrations: Table, alpha: float, tolerance: float = 1e-12) -> Table:
    """Logits that maximise sum_s,a d(s,a) log pi(a|s), by gradient ascent with the step of each state scaled by 1/d(s).

    The gradient of a state's logits sums to 0: training never moves their level, which stays that of `start`.
    """
    logits = []
    for level, mass in zip(start, demonstrations, strict=True):
        target = mass / mass.sum(-1, keepdims=True)
        gradient = np.full_like(level, np.inf)
        level = level.copy()
        while np.abs(gradient).max() > tolerance:
            gradient = target - np.exp(log_policy([level], alpha)[0])
            level += alpha * np.where(np.isfinite(gradient), gradient, 0)
        logits.append(level)
    return logits


def inverse_rl_objective(rewards: Table, demonstrations: Table, alpha: float) -> Array:
    """min_pi E_expert[sum r] - (E_pi[sum r] + alpha * entropy(pi)) = E_expert[sum r] - V_r(s_1): [...].

    The inner problem is maximum-entropy RL, solved by `plan`; Proposition 1 is about the reward that maximises the rest.
    """
    expert_return = sum((mass * level).sum((-2, -1)) for mass, level in zip(demonstrations, rewards, strict=True))
    return np.asarray(expert_return - soft_value(plan(rewards, alpha)[0], alpha)[..., 0])


def policy_masses(rewards: Table, alpha: float) -> Table:
    """P(s_h,a_h) of the soft-optimal policy of `rewards`. Demonstrations minus this is the gradient of the objective."""
    log_pi = over_sequences(log_policy(plan(rewards, alpha), alpha))
    return masses(np.exp(log_pi), rewards[0].shape[-1], len(rewards))


def solve_inverse_rl(start: Table, demonstrations: Table, alpha: float, steps: int) -> Table:
    """Maximise the inverse-RL objective over rewards: r += (alpha/H) * log(d_expert/d_r), which knows no likelihood.

    Generalised iterative scaling (Darroch and Ratcliff 1972): each sequence has H features, the pairs (s_h,a_h).
    """
    rewards = start
    for _ in range(steps):
        ours = policy_masses(rewards, alpha)
        ratio = [np.log(mass) - np.log(own) for mass, own in zip(demonstrations, ours, strict=True)]
        rewards = plus(rewards, ratio, alpha / len(rewards))
    return rewards


@dataclass
class Proposition1:
    """Objectives at the elicited reward, relative to `optimum`: alpha times the greatest mean log-likelihood."""

    optimum: float
    elicited_gap: float
    solver_gap: float
    gradient: float
    policy_difference: float
    best_random_gap: float


def proposition_1(alpha: float = 0.7, vocabulary: int = 3, horizon: int = 4, others: int = 2000) -> Proposition1:
    """Elicit a reward from logits trained on next tokens alone, and put it into the inverse-RL objective."""
    rng = np.random.default_rng(1)
    frequencies = expert_demonstrations(rng, vocabulary, horizon, draws=5000)
    demonstrations = masses(frequencies[None], vocabulary, horizon)
    logits = next_token_logits(random_table(rng, 1, vocabulary, horizon, 3.0), demonstrations, alpha)
    elicited = elicit(logits, alpha)
    solved = solve_inverse_rl(random_table(rng, 1, vocabulary, horizon), demonstrations, alpha, steps=4000)
    optimum = alpha * float((frequencies * np.log(frequencies)).sum())
    objective = float(inverse_rl_objective(elicited, demonstrations, alpha)[0])
    scales = 10.0 ** rng.uniform(-3, 1, size=(others, 1, 1))
    random = [level + scales * noise for level, noise in zip(elicited, random_table(rng, others, 3, 4), strict=True)]
    ours = policy_masses(elicited, alpha)
    return Proposition1(
        optimum=optimum,
        elicited_gap=optimum - objective,
        solver_gap=optimum - float(inverse_rl_objective(solved, demonstrations, alpha)[0]),
        gradient=max(float(np.abs(mass - own).max()) for mass, own in zip(demonstrations, ours, strict=True)),
        policy_difference=max(
            float(np.abs(own - other).max()) for own, other in zip(ours, policy_masses(solved, alpha), strict=True)
        ),
        best_random_gap=float((optimum - inverse_rl_objective(random, demonstrations, alpha)).min()),
    )


# (b) Theorem 1


def largest_log_ratio(log_pi_expert: Table, log_pi: Table) -> Array:
    """eps = max over all states and actions of |log pi_E - log pi|: [...]."""
    gaps = [np.abs(a - b).max((-2, -1)) for a, b in zip(log_pi_expert, log_pi, strict=True)]
    return np.max(gaps, axis=0)


def preference_distance(true_returns: Array, elicited_returns: Array) -> Array:
    """max over pairs of sequences of |P(tau beats tau') - P_hat(tau beats tau')|, P Bradley-Terry: [..., A^H] -> [...].

    P is a distribution over two outcomes, so this is the total variation.
    """

    def wins(returns: Array) -> Array:
        return 1 / (1 + np.exp(-(returns[..., :, None] - returns[..., None, :])))

    return np.abs(wins(true_returns) - wins(elicited_returns)).max((-2, -1))


def theorem_1_ratios(
    horizon: int, alpha: float, instances: int, rng: np.random.Generator, vocabulary: int = 3
) -> Array:
    """Measured distance over the bound alpha*H*eps/2 for random true rewards and random errors: [instances].

    The expert is soft-optimal for a normal reward; the model's logits are the expert's plus normal errors whose size runs
    from 0.01 to 1 in units of alpha.
    """
    true_rewards = random_table(rng, instances, vocabulary, horizon)
    expert = plan(true_rewards, alpha)
    size = alpha * 10.0 ** rng.uniform(-2, 0, size=(instances, 1, 1))
    errors = [size * level for level in random_table(rng, instances, vocabulary, horizon)]
    logits = plus(expert, errors)
    eps = largest_log_ratio(log_policy(expert, alpha), log_policy(logits, alpha))
    distance = preference_distance(over_sequences(true_rewards), over_sequences(elicit(logits, alpha)))
    return distance / (alpha * horizon * eps / 2)


def swapped_instance(eps: float, horizon: int) -> tuple[Table, Table]:
    """(log pi_E, log pi), two tokens: everywhere pi has the odds that pi_E has, exchanged; |log ratio| = eps throughout."""
    pair = -np.log1p(np.exp([-eps, eps]))
    tables = [np.broadcast_to(pair, (2**h, 2)) for h in range(horizon)]
    return tables, [level[:, ::-1] for level in tables]


def swapped_ratio(eps: float, horizon: int, alpha: float) -> float:
    """Measured distance over the bound on `swapped_instance`; with x = alpha*H*eps it is tanh(x/2) / (x/2)."""
    expert, model = swapped_instance(eps, horizon)
    distance = preference_distance(alpha * over_sequences(expert), alpha * over_sequences(model))
    return float(distance / (alpha * horizon * largest_log_ratio(expert, model) / 2))


# (c) Theorem 2. alpha = 1 throughout: the true return of a sequence is alpha * log pi_E of it plus a constant, so that
# every sub-optimality is proportional to alpha.


def scale_errors(log_pi_expert: Table, errors: Table, eps: float) -> Table:
    """log pi with the errors shrunk, instance by instance, until max |log pi_E - log pi| is eps (bisection)."""
    instances = len(errors[0])
    low, high = np.zeros((instances, 1, 1)), np.ones((instances, 1, 1))
    for _ in range(40):
        middle = (low + high) / 2
        log_pi = log_policy(plus(log_pi_expert, [middle * level for level in errors]), 1.0)
        above = largest_log_ratio(log_pi_expert, log_pi)[:, None, None] > eps
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return log_policy(plus(log_pi_expert, [low * level for level in errors]), 1.0)


def worst_imitation_return(log_pi_expert: Table, rewards: Table, eps: float) -> Array:
    """The least V^pi(s_1) over all pi with |log pi_E - log pi| <= eps, by dynamic programming: [...].

    In each state a linear programme over a box in the simplex: start every token at its lower end pi_E * exp(-eps), then
    give the mass that is left to the tokens of least value first, up to pi_E * exp(eps).
    """
    value = np.zeros_like(rewards[-1])
    for log_p, level in zip(reversed(log_pi_expert), reversed(rewards), strict=True):
        action_value = level + value.reshape(level.shape)
        order = action_value.argsort(-1)
        p = np.take_along_axis(np.exp(log_p), order, -1)
        room = p * (np.exp(eps) - np.exp(-eps))
        before = room.cumsum(-1) - room
        pi = p * np.exp(-eps) + np.clip(1 - np.exp(-eps) - before, 0, room)
        value = (pi * np.take_along_axis(action_value, order, -1)).sum(-1)
    return value[..., 0]


def worst_rl_regret(true_returns: Array, eps: float, vocabulary: int) -> Array:
    """No more than this can be lost by taking the sequence that looks best, whatever the error within eps: [...].

    Tokens that two sequences share carry one error, which cancels, so after k shared tokens the elicited margin is off by
    at most 2*(H - k)*eps. An upper bound: the error that attains it need not exist.
    """
    sequences = true_returns.shape[-1]
    horizon = round(np.log(sequences) / np.log(vocabulary))
    best = true_returns.argmax(-1)[..., None]
    number = np.arange(sequences)
    shared = sum((number // vocabulary**k == best // vocabulary**k).astype(int) for k in range(horizon))
    regret = true_returns.max(-1, keepdims=True) - true_returns
    return np.where(regret <= 2 * (horizon - shared) * eps, regret, 0).max(-1)


@dataclass
class Suboptimality:
    """Losses of return under the true reward on random instances, each [instances]. See `random_suboptimality`."""

    imitation_worst: Array
    imitation_random: Array
    rl_worst: Array
    rl_random: Array
    expert: Array
    range_of_returns: Array


def unroll_bigrams(bigrams: Table, horizon: int) -> Table:
    """A table that knows only the last token, given as the table of two steps, over `horizon` steps."""
    first, after = bigrams
    vocabulary = first.shape[-1]
    return [first, *(after[:, np.arange(vocabulary**h) % vocabulary] for h in range(1, horizon))][:horizon]


def random_suboptimality(horizon: int, eps: float, instances: int, bigrams: bool, vocabulary: int = 3) -> Suboptimality:
    """Random experts, and models whose error is random or the worst there is; max |log pi_E - log pi| is eps.

    The expert's logits are normal and the random error is uniform noise on them, scaled to eps: drawn for each prefix, or, if
    `bigrams`, for each last token, so that an error repeats all along the response.

    Imitation loses V^{pi_E} - V^pi, negative where an error happens to help. RL takes the best sequence of the elicited
    reward and loses max V - V^RL, never negative. The expert's own loss is max V - V^{pi_E}.
    """
    rng = np.random.default_rng([2, horizon])
    steps = 2 if bigrams else horizon
    expert = log_policy(random_table(rng, instances, vocabulary, steps), 1.0)
    model = scale_errors(expert, [rng.uniform(-1, 1, size=level.shape) for level in expert], eps)
    if bigrams:
        expert, model = unroll_bigrams(expert, horizon), unroll_bigrams(model, horizon)
    true_rewards = elicit(expert, 1.0)
    returns = over_sequences(true_rewards)
    chosen = best_sequence(plan(elicit(model, 1.0)))[:, None]
    expert_value = expected_return(expert, true_rewards)
    return Suboptimality(
        imitation_worst=expert_value - worst_imitation_return(expert, true_rewards, eps),
        imitation_random=expert_value - expected_return(model, true_rewards),
        rl_worst=worst_rl_regret(returns, eps, vocabulary),
        rl_random=returns.max(-1) - np.take_along_axis(returns, chosen, -1)[:, 0],
        expert=returns.max(-1) - expert_value,
        range_of_returns=returns.max(-1) - returns.min(-1),
    )


def root_mean_square(losses: Array, axis: int = -1) -> Array:
    """What a random error costs or, as often, saves: the size of a signed loss: over `axis`."""
    return np.sqrt((losses**2).mean(axis))


def cliff(horizons: Array, eps: float, slip: float, vocabulary: int = 4) -> Array:
    """Imitation's sub-optimality where the first slip loses the text: [n] -> [n].

    On the path the expert takes token 0, and slips, to any other token, with probability `slip`; from then on every token is
    as likely as another. The model slips with probability slip * exp(eps). Both have token 0 all along as their best
    sequence, so that RL on the elicited reward loses nothing here. In closed form, from the geometric sums
    sum_h q^(h-1) and sum_h q^(h-1) * (H - h) over h = 1..H, with q = 1 - P(slip).
    """

    def value(p: float) -> Array:
        on_path = -np.expm1(horizons * np.log1p(-p)) / p
        slip_return = np.log(slip / (vocabulary - 1)) * on_path - np.log(vocabulary) * (horizons - on_path) / p
        return p * slip_return + (1 - p) * np.log1p(-slip) * on_path

    return value(slip) - value(slip * np.exp(eps))


def coins(horizon: int, eps: float) -> float:
    """Imitation's sub-optimality where the first H/2 tokens are fair coins that decide how much the rest is worth.

    Two tokens. With k ones among the first n = H/2 tokens, x = (k - n/2)/sqrt(n), the other tokens are ones with probability
    b = clip(1/2 + x, 0.02, 1)/2: the more ones, the less certain the rest, and the less it returns. The model's coins show
    a zero with probability exp(-eps)/2; after them it is the expert.
    """
    n = horizon // 2
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    one = np.array([0.5, 1 - np.exp(-eps) / 2])[:, None]
    expert, model = np.exp(log_choose + k * np.log(one) + (n - k) * np.log(1 - one))
    b = np.clip(0.5 + (k - n / 2) / np.sqrt(n), 0.02, 1) / 2
    entropy = -b * np.log(b) - (1 - b) * np.log(1 - b)
    return float((horizon - n) * ((model - expert) @ entropy))


def odds_exchanged(horizons: Array, eps: float) -> Array:
    """RL's sub-optimality on `swapped_instance`: it takes the wrong token every time, at eps each: [n] -> [n]."""
    return eps * horizons


@dataclass
class Exponent:
    """The slope of log(loss) on log(H), with a 95% interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} ({self.low:.2f} to {self.high:.2f})"


def slopes(horizons: Array, losses: Array) -> Array:
    """Least-squares slope of log(losses) on log(horizons): [n], [n, ...] -> [...]."""
    x = np.log(horizons) - np.log(horizons).mean()
    return np.tensordot(x, np.log(losses), axes=1) / (x**2).sum()


def bootstrap_exponent(
    horizons: Array, losses: list[Array], statistic: Callable[..., Array], resamples: int = 1000
) -> Exponent:
    """Resample the instances at each H. `losses` holds one [instances] per H; the interval is of percentiles."""
    rng = np.random.default_rng(3)
    values = [statistic(loss[rng.integers(len(loss), size=(resamples, len(loss)))], -1) for loss in losses]
    low, high = np.percentile(slopes(horizons, np.array(values)), [2.5, 97.5])
    point = slopes(horizons, np.array([statistic(loss, -1) for loss in losses]))
    return Exponent(float(point), float(low), float(high))


def range_of_slopes(horizons: Array, losses: Array) -> Exponent:
    """For a curve without chance: the fitted slope, and the least and greatest slope between neighbouring points."""
    local = [float(slopes(horizons[[i, j]], losses[[i, j]])) for i, j in pairwise(range(len(horizons)))]
    return Exponent(float(slopes(horizons, losses)), min(local), max(local))


# (d) Section 3.3 and (e) the optimum under a KL penalty


def kl_rounds(log_pi: Table, alpha: float, beta: float, rounds: int, reward: str, reference: str) -> list[Table]:
    """log pi after 1..rounds rounds of RL, `reward` and `reference` each taken from the "last" policy or the "first"."""
    policies = [log_pi]
    for _ in range(rounds):
        source = {"first": policies[0], "last": policies[-1]}
        rewards = elicit([alpha * level for level in source[reward]], alpha)
        policies.append(plan_with_kl(rewards, source[reference], beta))
    return policies[1:]


def sharpened(sequence_log_probabilities: Array, exponent: float) -> Array:
    """log of pi(tau)^exponent / sum: [..., A^H] -> the same."""
    return log_policy([exponent * sequence_log_probabilities], 1.0)[0]


def measured_exponent(before: Array, after: Array) -> Array:
    """The slope of log pi_k(tau) on log pi(tau) over all sequences: [..., A^H] twice -> [...]."""
    x, y = (log_p - log_p.mean(-1, keepdims=True) for log_p in (before, after))
    return (x * y).sum(-1) / (x**2).sum(-1)


def deterministic(q: Table) -> Table:
    """Logits that take the best action of Q and leave exp(-1000) to any other."""
    return [np.where(level == level.max(-1, keepdims=True), 0.0, -1000.0) for level in q]


@dataclass
class AnotherRound:
    """Largest change in a sequence's log-probability by a round of maximum-entropy RL; best sequences kept by plain RL."""

    soft_change: float
    kept: int
    kept_twice: int
    instances: int


def another_round(alpha: float = 0.7, instances: int = 1000, vocabulary: int = 3, horizon: int = 5) -> AnotherRound:
    """RL on the elicited reward without a KL penalty; the second plain round is on the reward of the first's policy."""
    logits = random_table(np.random.default_rng(4), instances, vocabulary, horizon)
    before = over_sequences(log_policy(logits, alpha))
    rewards = elicit(logits, alpha)
    after = log_policy([over_sequences(rewards)], alpha)[0]
    by_planning = over_sequences(log_policy(plan(rewards, alpha), alpha))
    first = plan(rewards)
    second = plan(elicit(deterministic(first), alpha))
    best = before.argmax(-1)
    return AnotherRound(
        soft_change=float(max(np.abs(after - before).max(), np.abs(by_planning - before).max())),
        kept=int((best_sequence(first) == best).sum()),
        kept_twice=int((best_sequence(second) == best).sum()),
        instances=instances,
    )


def print_proposition_1() -> None:
    result = proposition_1()
    print("(a) Proposition 1: vocabulary 3, H = 4, alpha = 0.7, 5081 demonstrations")
    print(f"    greatest value of the inverse-RL objective                     {result.optimum:.6f}")
    print(f"    below it: reward elicited from next-token logits               {abs(result.elicited_gap):.1e}")
    print(f"    below it: reward found by an inverse-RL solver                 {abs(result.solver_gap):.1e}")
    print(f"    below it: the best of 2000 other rewards                       {result.best_random_gap:.1e}")
    print(f"    gradient at the elicited reward, largest entry                 {result.gradient:.1e}")
    print(f"    occupancy of the two rewards' policies, largest difference     {result.policy_difference:.1e}")


def print_theorem_1(horizons: range = range(1, 6), instances: int = 250) -> None:
    rng = np.random.default_rng(5)
    alphas = (0.1, 0.3, 1.0, 3.0)
    print("\n(b) Theorem 1: distance of the preference distributions over its bound alpha*H*eps/2")
    print(f"    {'H':>3} {'instances':>9} {'violations':>10} {'median':>7} {'95%':>7} {'largest':>8}")
    for horizon in horizons:
        ratios = np.concatenate([theorem_1_ratios(horizon, alpha, instances, rng) for alpha in alphas])
        middle, high = np.percentile(ratios, [50, 95])
        violations = int((ratios > 1).sum())
        print(f"    {horizon:3d} {len(ratios):9d} {violations:10d} {middle:7.3f} {high:7.3f} {ratios.max():8.3f}")
    for eps in (1.0, 0.1, 0.01):
        print(
            f"    odds of two tokens exchanged, H = 5, alpha = 1, eps = {eps:<4}         {swapped_ratio(eps, 5, 1.0):.6f}"
        )


def random_curves(bigrams: bool, eps: float = 0.1, instances: int = 300) -> list[Suboptimality]:
    """H = 1..8."""
    return [random_suboptimality(horizon, eps, instances, bigrams) for horizon in range(1, 9)]


def constructed_curves(eps: float = 0.01, slip: float = 1e-5) -> tuple[Array, dict[str, Array]]:
    """H = 2, 4 .. 2^20 and the sub-optimality by curve."""
    horizons = np.array([2.0**k for k in range(1, 21)])
    return horizons, {
        "imitation, cliff": cliff(horizons, eps, slip),
        "imitation, coins": np.array([coins(int(horizon), eps) for horizon in horizons]),
        "RL, odds exchanged": odds_exchanged(horizons, eps),
    }


ROWS: dict[str, tuple[str, Callable[..., Array]]] = {
    "imitation_worst": ("imitation, worst error: mean", np.mean),
    "imitation_random": ("imitation, random error: root mean square", root_mean_square),
    "rl_worst": ("RL, most that any error can cost: mean", np.mean),
    "rl_random": ("RL, random error: mean", np.mean),
    "expert": ("the expert itself, below the best sequence: mean", np.mean),
}


def print_theorem_2(ensembles: dict[str, list[Suboptimality]], made: tuple[Array, dict[str, Array]]) -> None:
    print("\n(c) Theorem 2: sub-optimality, alpha = 1; exponent of H with its 95% interval")
    for name, runs in ensembles.items():
        print(f"    random {name:8}, vocabulary 3, eps = 0.1 {'':11} H = 1    H = 8   exponent, H = 2 to 8")
        for field, (label, statistic) in ROWS.items():
            losses = [getattr(run, field) for run in runs]
            exponent = bootstrap_exponent(np.arange(2.0, 9.0), losses[1:], statistic)
            print(f"      {label:50} {statistic(losses[0], -1):8.4f} {statistic(losses[-1], -1):8.4f}   {exponent}")
        bound = [
            (run.imitation_worst / (run.range_of_returns * 0.1 * np.sqrt(h) / 2)).max() for h, run in enumerate(runs, 1)
        ]
        print(f"      imitation over range * eps * sqrt(H) / 2: largest {bound[0]:10.4f} {bound[-1]:8.4f}")
    horizons, curves = made
    spans = ((2, 8), (256, 4096), (2**18, 2**20))
    print("    constructed, eps = 0.01: exponent and least to greatest local slope")
    print(f"      {'':20}" + "".join(f" {f'H = {low} to {high}':>23}" for low, high in spans))
    for name, curve in curves.items():
        inside = [(horizons >= low) & (horizons <= high) for low, high in spans]
        cells = [str(range_of_slopes(horizons[span], curve[span])) for span in inside]
        print(f"      {name:20}" + "".join(f" {cell:>23}" for cell in cells))


def draw(ensembles: dict[str, list[Suboptimality]], made: tuple[Array, dict[str, Array]]) -> str:
    """Sub-optimality against H: the constructed instances, and the random bigrams beside the bound 2*alpha*H*eps of RL."""
    horizons, curves = made
    blue, orange, green, purple, grey = "#1f5fa8", "#d9661f", "#2b8a4b", "#7a4fa3", "#9a9a9a"
    labels = (
        ("Imitation, a slip loses the text (slope 2, then 0)", blue),
        ("Imitation, early coins decide (slope 1.5, then 1)", purple),
        ("RL on the elicited reward, odds exchanged (slope 1)", orange),
    )
    constructed = Panel(
        "Sub-optimality, constructed instances, ε = 0.01",
        {2.0**k: f"2<tspan dy='-5' font-size='9'>{k}</tspan>" for k in range(0, 21, 4)},
        {10.0**k: power_of_ten(k) for k in range(-6, 7, 2)},
        [Curve(label, horizons, loss, c) for (label, c), loss in zip(labels, curves.values(), strict=True)],
    )
    for slope, start, height in ((1, 2.0**2, 1.0), (2, 2.0**11, 1e-4)):
        guide = np.array([1.0, 64.0])
        constructed.curves.append(Curve(f"slope {slope}", start * guide, height * guide**slope, grey, dashed=True))
    h = np.arange(1.0, 9.0)
    rows = {
        "imitation_worst": ("Imitation, worst error (mean)", blue),
        "imitation_random": ("Imitation, random error (root mean square)", green),
        "rl_worst": ("RL, most that any error can cost (mean)", orange),
        "rl_random": ("RL, random error (mean)", purple),
    }
    random = Panel(
        "Sub-optimality, random bigrams, ε = 0.1",
        {float(k): str(k) for k in (1, 2, 3, 4, 6, 8)},
        {10.0**k: power_of_ten(k) for k in range(-3, 2)},
    )
    for name, (label, colour) in rows.items():
        loss = np.array([ROWS[name][1](getattr(run, name), -1) for run in ensembles["bigrams"]])
        random.curves.append(Curve(label, h, loss, colour))
    random.curves.append(Curve("bound for RL: 2Hε", h, 0.2 * h, grey, dashed=True))
    return svg([constructed, random], "H, tokens in a response")


def print_rounds() -> None:
    result = another_round()
    print("\n(d) Section 3.3: another round, 1000 instances, vocabulary 3, H = 5, alpha = 0.7")
    print(f"    maximum-entropy RL: largest change of a log-probability        {result.soft_change:.1e}")
    print(f"    plain RL: best sequence kept after one round, after two        {result.kept}, {result.kept_twice}")
    alpha, beta = 0.7, 1.4
    log_pi = log_policy(random_table(np.random.default_rng(6), 1000, 3, 5), alpha)
    before = over_sequences(log_pi)
    print("    KL penalty, beta = 1.4: exponent of pi, and mean P(best)        before    round 1    round 2    round 3")
    for reward, reference in (("last", "last"), ("first", "last"), ("last", "first")):
        row, start = [], f"1.000 {np.exp(before.max(-1)).mean():.2f}"
        for policy in kl_rounds(log_pi, alpha, beta, 3, reward, reference):
            after = over_sequences(policy)
            row.append(f"{measured_exponent(before, after).mean():.3f} {np.exp(after.max(-1)).mean():.2f}")
        print(f"    reward of the {reward:5} policy, {reference:5} as reference {'':14}{'  '.join([start, *row])}")


def print_sharpening() -> None:
    print("\n(e) Optimum under a KL penalty: planning against pi^(1 + alpha/beta) over 243 sequences, 1000 instances")
    for alpha, beta in ((1.0, 0.1), (1.0, 1.0), (0.3, 2.0)):
        print(
            f"    alpha = {alpha}, beta = {beta}: largest difference of a log-probability  {kl_difference(alpha, beta):.1e}"
        )


def kl_difference(alpha: float, beta: float, instances: int = 1000) -> float:
    """Largest difference in log pi*(tau) between planning and the closed form pi(tau)^(1 + alpha/beta)."""
    logits = random_table(np.random.default_rng(7), instances, 3, 5)
    log_pi = log_policy(logits, alpha)
    planned = over_sequences(plan_with_kl(elicit(logits, alpha), log_pi, beta))
    return float(np.abs(planned - sharpened(over_sequences(log_pi), 1 + alpha / beta)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the theory of the endogenous reward on small token MDPs.")
    parser.add_argument("--figure", help="also draw sub-optimality against H, as SVG, to this file")
    arguments = parser.parse_args()
    print_proposition_1()
    print_theorem_1()
    ensembles = {"prefixes": random_curves(bigrams=False), "bigrams": random_curves(bigrams=True)}
    made = constructed_curves()
    print_theorem_2(ensembles, made)
    print_rounds()
    print_sharpening()
    if arguments.figure:
        with open(arguments.figure, "w", encoding="utf-8") as file:
            file.write(draw(ensembles, made))


if __name__ == "__main__":
    main()
