"""Online RL where its end is known: a table of logits learns from its own samples, by the algorithms of `endoreward rl`.

The base policy pi is a table of logits, frozen; its endogenous reward and k1 in the reward are what a run of `rl` would make
of it, the advantages and losses are `pipeline.rl.algorithms`. With kl_in = reward and gamma = 1 the optimum over sequences is
proportional to pi^(1 + alpha/beta), and without a reward it is pi. Every sequence is listed, so that the distance to it is
exact; only the samples are random.

The reference is pi, as the reward's temperature alpha gives it: softmax(logits / alpha). Left out: prompts (there is one, so
one group a step), responses that end early, a critic, several steps of the optimizer to a batch. Under rl.lag the samples of
a step come from the table as it was before the last, and `pipeline.rl.corrections` weighs them.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mdp import Array, Table, log_policy, over_sequences
from numpy.typing import NDArray

from pipeline.rewards.endogenous import soft_value, token_rewards
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.corrections import weights
from pipeline.training.advantages import Siblings
from pipeline.training.objectives.base import Batch

REQUIRED: dict[str, dict[str, Any]] = {
    "ppo": {"rl": {"algorithm": "ppo"}},
    "rloo": {"rl": {"algorithm": "rloo"}},
    "reinforce": {"rl": {"algorithm": "reinforce"}},
    "grpo, scale none, dapo": {"rl": {"algorithm": "grpo"}, "grpo": {"scale": "none"}},
    "grpo, scale none, dr_grpo": {"rl": {"algorithm": "grpo"}, "grpo": {"scale": "none", "loss_type": "dr_grpo"}},
}
"""Settings that end in the optimum: KL in the reward, gamma = lambda = 1 and no rescaling, as is their default."""
DISTILLED: dict[str, dict[str, Any]] = {
    "opd": {"rl": {"algorithm": "opd"}},
    "opd, gamma 1": {"rl": {"algorithm": "opd"}, "opd": {"gamma": 1.0}},
}
"""Settings that end at a teacher, where there is no KL to the reference."""


def configured(told: Mapping[str, Any], alpha: float, beta: float) -> RlConfig:
    """These settings of an algorithm with the reward's temperature and the KL's coefficient."""
    return RlConfig.model_validate({**told, "rl": {**told["rl"], "kl_coefficient": beta}, "reward": {"alpha": alpha}})


@dataclass(frozen=True)
class Paths:
    """The entries of a table that each sequence meets: of S = A^H sequences, H tokens."""

    prefixes: NDArray[np.int64]  # [S, H], number of the state
    tokens: NDArray[np.int64]  # [S, H]

    @classmethod
    def of(cls, vocabulary: int, horizon: int) -> "Paths":
        numbers = np.arange(vocabulary**horizon)[:, None]
        ends = numbers // vocabulary ** np.arange(horizon)[::-1]  # [S, H], number of the state after each token
        return cls(ends // vocabulary, ends % vocabulary)

    def actions(self, table: Table) -> Array:
        """What a table of one instance says of each state and the token taken, [S, H]."""
        return np.stack([level[0][self.prefixes[:, h], self.tokens[:, h]] for h, level in enumerate(table)], axis=1)

    def states(self, values: Table) -> Array:
        """[S, H], of values of shape [1, A^h]."""
        return np.stack([level[0][self.prefixes[:, h]] for h, level in enumerate(values)], axis=1)


def train(
    config: RlConfig,
    logits: Table,
    seed: int,
    responses: int,
    steps: int,
    rate: float,
    weight: float = 1.0,
    away: float = 0.0,
    teacher: Table | None = None,
) -> Array:
    """What the policy ends at: probabilities of all sequences, [A^H].

    Adam, whose rate falls from `rate` to 0 along a cosine. Of `config` it takes rl, the algorithm's section and reward.

    Args:
        logits: of the frozen base, one instance.
        responses: sampled from the policy at each step.
        weight: of the endogenous reward and its values; 0: there is no reward but the KL.
        away: standard deviation of what is added to the first policy's logits.
        teacher: logits of the one that rewards in place of the base, by r_h = log pi_T - log pi.
    """
    algorithm, alpha = algorithm_of(config), config.reward.alpha
    penalised = config.rl.kl_coefficient if config.rl.kl_in == "reward" else 0.0
    vocabulary, horizon = logits[0].shape[-1], len(logits)
    paths = Paths.of(vocabulary, horizon)
    base = log_policy(logits, alpha)
    reference = paths.actions(base)
    values = paths.states([soft_value(level, alpha) for level in logits])
    rewards = np.array([token_rewards(q, v) for q, v in zip(paths.actions(logits), values, strict=True)])
    if teacher is not None:
        rewards = paths.actions(log_policy(teacher, 1.0))

    draw = torch.Generator().manual_seed(seed)
    learnt = [
        (
            torch.from_numpy(level[0]) + away * torch.randn(level[0].shape, generator=draw, dtype=torch.float64)
        ).requires_grad_()
        for level in base
    ]
    optimizer = torch.optim.Adam(learnt, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prefixes, tokens = torch.from_numpy(paths.prefixes), torch.from_numpy(paths.tokens)

    def log_probabilities() -> torch.Tensor:
        """[S, H]"""
        levels = [level.log_softmax(-1) for level in learnt]
        return torch.stack([level[prefixes[:, h], tokens[:, h]] for h, level in enumerate(levels)], dim=1)

    versions = deque([log_probabilities().detach()], maxlen=config.rl.lag + 1)
    for _ in range(steps):
        whole = log_probabilities()
        versions.append(whole.detach())
        # a sequence drawn by its number is what drawing its tokens one by one gives
        drawn = torch.multinomial(versions[0].sum(1).exp(), responses, replacement=True, generator=draw)
        logprobs, chosen, sampler = whole[drawn], drawn.numpy(), versions[0][drawn]
        corrects = config.correction != "none"
        before = logprobs.detach() if corrects else sampler
        own = before.numpy()
        earned = weight * rewards[chosen] - penalised * (own - reference[chosen])
        if teacher is not None:
            earned -= weight * own
        group = Siblings(earned.sum(1), [horizon] * responses, list(earned), list(weight * values[chosen]))
        batch = Batch(
            logprobs=logprobs.flatten(),
            lengths=torch.full((responses,), horizon),
            rewards=torch.from_numpy(rewards[chosen].sum(1)),
            reference=torch.from_numpy(reference[chosen].ravel()),
            behaviour=before.flatten(),
            advantages=torch.from_numpy(np.concatenate(algorithm.advantages([group])[0])),
        )
        if corrects:
            of = weights(config.correction, config.rl.correction_cap, list(own), list(sampler.numpy()))
            batch = replace(batch, advantages=batch.advantages * torch.from_numpy(np.concatenate(of)))
        losses = algorithm.terms(batch).losses
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
    return log_probabilities().detach().sum(1).exp().numpy()


def optimum(config: RlConfig, logits: Table, weight: float = 1.0) -> Array:
    """pi^(1 + weight * alpha / beta), normalised over all sequences: [A^H]."""
    alpha, beta = config.reward.alpha, config.rl.kl_coefficient
    log_pi = over_sequences(log_policy(logits, alpha))[0]
    return np.exp(log_policy([(1 + weight * alpha / beta) * log_pi], 1.0)[0])


def distilled(config: RlConfig, logits: Table, teacher: Table) -> Array:
    """pi_T^(1/(1 + beta)) * pi_ref^(beta/(1 + beta)), normalised over sequences at gamma = 1, in each state at 0: [A^H]."""
    beta = config.rl.kl_coefficient
    taught, base = log_policy(teacher, 1.0), log_policy(logits, config.reward.alpha)
    if config.opd.gamma == 0:
        mixed = [(log_t + beta * log_ref) / (1 + beta) for log_t, log_ref in zip(taught, base, strict=True)]
        return np.exp(over_sequences(log_policy(mixed, 1.0))[0])
    whole = (over_sequences(taught)[0] + beta * over_sequences(base)[0]) / (1 + beta)
    return np.exp(log_policy([whole], 1.0)[0])


def total_variation(first: Array, second: Array) -> float:
    return float(np.abs(first - second).sum() / 2)
