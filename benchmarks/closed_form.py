"""Do the algorithms of online RL end where theory says: pi^(1 + alpha/beta), on a token MDP whose sequences are all listed?

`examples/token_mdp/online.py` trains a table of logits on its own samples, rewarded by the frozen base's endogenous reward.
Figures are total variations over all sequences. Two runs of each: with the reward, from pi; and without one, where the KL has
to bring a policy back to pi that starts away from it. An instance and its samples go by the seed.

Required: with k1 in the reward, gamma = lambda = 1 and no rescaling, every algorithm ends within 0.02 of both; and opd
without a KL within 0.02 of a teacher that is another such table, with one of pi_T^(1/(1 + beta)) * pi^(beta/(1 + beta)).
Under rl.lag = 1 all, with each correction and without, within 0.03 of pi^(1 + alpha/beta). The other rows, for the first beta
and with the reward only, have no claim: where k2 and k3 in the loss end, and what rescaling does.
Four to five minutes on a free core.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from machine import CONSOLE, ROOT, table, verdict
from rich.table import Table

sys.path.insert(0, str(Path(ROOT, "examples", "token_mdp")))

import mdp
import online

from pipeline.rl.config import RlConfig

NEAR = 0.02
BEHIND = 0.03  # of a step that learns from samples of the one before
OTHERS = {
    "ppo, gae_lambda 0": {"rl": {"algorithm": "ppo"}, "ppo": {"gae_lambda": 0.0}},
    "ppo, normalised": {"rl": {"algorithm": "ppo"}, "ppo": {"normalize": True}},
    "grpo": {"rl": {"algorithm": "grpo"}},
    "reinforce_plus_plus": {"rl": {"algorithm": "reinforce_plus_plus"}},
    "reinforce_plus_plus, no baseline": {
        "rl": {"algorithm": "reinforce_plus_plus"},
        "reinforce_plus_plus": {"baseline": "none"},
    },
    **{
        f"{name}, {kl} in the loss": {**told, "rl": {**told["rl"], "kl_in": "loss", "kl_estimator": kl}}
        for name, told in {
            "reinforce": {"rl": {"algorithm": "reinforce"}},
            "ppo": {"rl": {"algorithm": "ppo"}},
            "grpo, scale none": {"rl": {"algorithm": "grpo"}, "grpo": {"scale": "none"}},
            "grpo": {"rl": {"algorithm": "grpo"}},
            "reinforce_plus_plus": {"rl": {"algorithm": "reinforce_plus_plus"}},
        }.items()
        for kl in ("k2", "k3")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=3)
    parser.add_argument("--horizon", type=int, default=3, help="tokens of a response")
    parser.add_argument("--alpha", type=float, default=1.0, help="the reward's temperature")
    parser.add_argument("--beta", type=float, nargs="+", default=[1.0, 0.5, 2.0], help="the KL's coefficients")
    parser.add_argument("--responses", type=int, default=2048, help="of a step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.1, help="Adam's, at first")
    options = parser.parse_args()

    bases = [
        mdp.random_table(np.random.default_rng(seed), 1, options.vocabulary, options.horizon)
        for seed in range(options.seeds)
    ]

    def distances(config: RlConfig, weight: float, away: float) -> list[float]:
        """From the optimum at the end of a run, of each seed."""
        amount = options.responses, options.steps, options.rate
        ends = [online.train(config, logits, seed, *amount, weight, away) for seed, logits in enumerate(bases)]
        wanted = [online.optimum(config, logits, weight) for logits in bases]
        return [online.total_variation(*pair) for pair in zip(ends, wanted, strict=True)]

    claims = {}
    for beta in options.beta:
        shown = table(
            f"total variation over {options.vocabulary**options.horizon} sequences, alpha = {options.alpha:g}, "
            f"beta = {beta:g}, {options.responses} responses a step, {options.steps} steps, {options.seeds} seeds",
            "", "from pi^(1 + alpha/beta)", "without a reward, from pi",
        )  # fmt: skip
        for name, told in {**online.REQUIRED, **(OTHERS if beta == options.beta[0] else {})}.items():
            config = online.configured(told, options.alpha, beta)
            found = [distances(config, 1.0, 0.0)]
            if name in online.REQUIRED:
                found.append(distances(config, 0.0, 1.0))
                claims[f"{name}, beta = {beta:g}: within {NEAR:g} of both"] = max(map(max, found)) < NEAR
            shown.add_row(name, *(" ".join(f"{distance:.4f}" for distance in each) for each in found))
        first = [online.total_variation(*(online.optimum(config, b, w) for w in (0.0, 1.0))) for b in bases]
        shown.add_row("pi itself", " ".join(f"{distance:.4f}" for distance in first))
        CONSOLE.print(shown)
    CONSOLE.print(_behind(options, bases, claims))
    CONSOLE.print(_distillation(options, bases, claims))
    verdict(claims)


def _behind(options: argparse.Namespace, bases: list[mdp.Table], claims: dict[str, bool]) -> Table:
    """Distances from pi^(1 + alpha/beta) of each seed, where a step learns from samples of the table before the last step."""
    corrections = ("sequence-mask", "sequence-truncate", "token-truncate", "token-mask", "none")
    shown = table(f"rl.lag = 1, total variation, beta = {options.beta[0]:g}", "", *corrections)
    for name, told in online.REQUIRED.items():
        row = []
        for correction in corrections:
            if name == "rloo" and correction.startswith("token"):
                row.append("")
                continue
            rl = {**told["rl"], "lag": 1, "correction": correction}
            config = online.configured({**told, "rl": rl}, options.alpha, options.beta[0])
            amount = options.responses, options.steps, options.rate
            ends = [online.train(config, base, seed, *amount) for seed, base in enumerate(bases)]
            wanted = [online.optimum(config, base) for base in bases]
            found = [online.total_variation(*pair) for pair in zip(ends, wanted, strict=True)]
            row.append(" ".join(f"{distance:.4f}" for distance in found))
            claims[f"{name}, lag 1, {correction}: within {BEHIND:g}"] = max(found) < BEHIND
        shown.add_row(name, *row)
    return shown


def _distillation(options: argparse.Namespace, bases: list[mdp.Table], claims: dict[str, bool]) -> Table:
    """Distances of each seed from where a teacher, the next seed's table, and the reference take a student."""
    teachers = [
        mdp.random_table(np.random.default_rng(seed + 1), 1, options.vocabulary, options.horizon)
        for seed in range(options.seeds)
    ]
    shown = table("a teacher distilled, total variation", "", "from its optimum", "at first")
    for name, told in online.DISTILLED.items():
        for beta in (0.0, options.beta[0]):
            config = online.configured(told, 1.0, beta)
            amount = options.responses, options.steps, options.rate
            pairs = list(zip(bases, teachers, strict=True))
            wanted = [online.distilled(config, *pair) for pair in pairs]
            ends = [online.train(config, b, seed, *amount, teacher=t) for seed, (b, t) in enumerate(pairs)]
            begun = [np.exp(mdp.over_sequences(mdp.log_policy(b, 1.0))[0]) for b in bases]
            found, first = ([online.total_variation(*p) for p in zip(x, wanted, strict=True)] for x in (ends, begun))
            shown.add_row(f"{name}, beta = {beta:g}", *(" ".join(f"{d:.4f}" for d in each) for each in (found, first)))
            claims[f"{name}, beta = {beta:g}: within {NEAR:g} of its optimum"] = max(found) < NEAR
    return shown


if __name__ == "__main__":
    main()
