"""A batch of rewarded samples as what the learner steps on.

    penalised     rewards less the KL to the reference          k1, where rl.kl_in = reward
    advantages    of every token                                the algorithm
    plan          responses -> micro-batches of each worker     pipeline.training.balance

All workers hold the whole batch and make the same plan; each builds the tensors of its own part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from pipeline.rl.algorithms import Algorithm
from pipeline.rl.config import RlConfig
from pipeline.rl.corrections import weights
from pipeline.rl.rollouts import Array, Group, Rewarded, Rollout, Tokens
from pipeline.training.advantages import Siblings
from pipeline.training.balance import Atom, plan_step
from pipeline.training.batch import Response
from pipeline.training.steps import StepPart

SHUFFLE = 1  # stream of random numbers, beside that of the order of prompts


class Experience:
    """The samples of one step: n responses to each of the groups' prompts, R in all, one group after another.

    Args:
        values: the critic's V(s_h), R arrays as `forecast` has them; None where the algorithm takes the reward model's, or
            none.
        before: the learner's own log pi before its first step on this batch, R arrays [H]; None where the sampler's is taken
            for it. With it advantages are weighted by `pipeline.rl.corrections`, ratios are to it, and what rewards hold of
            log pi is of it.
    """

    def __init__(
        self,
        config: RlConfig,
        algorithm: Algorithm,
        groups: Sequence[Group],
        values: Sequence[Tokens] | None = None,
        before: Sequence[Tokens] | None = None,
    ):
        self.config, self.groups, self.before = config, groups, before
        self.first = np.cumsum([0, *(len(group.rollouts) for group in groups)]).tolist()
        siblings = [self._siblings(number, values) for number in range(len(groups))]
        advantages = list(chain.from_iterable(algorithm.advantages(siblings)))
        returns = list(chain.from_iterable(algorithm.returns(siblings))) if algorithm.uses_critic else []
        self.responses = [
            replace(response, advantages=advantages[i], returns=returns[i] if returns else None)
            for i, response in enumerate(learnable(groups))
        ]
        if before is not None:
            self.responses = self._corrected(before, advantages)

    def _corrected(self, before: Sequence[Tokens], advantages: Sequence[Array]) -> list[Response]:
        """The responses, weighted, as if `before` had been their sampler's."""
        sampled = [rollout.logprobs for group in self.groups for rollout in group.rollouts]
        of = weights(self.config.correction, self.config.rl.correction_cap, before, sampled)
        return [
            replace(response, behaviour=own, advantages=advantage * weight)
            for response, own, advantage, weight in zip(self.responses, before, advantages, of, strict=True)
        ]

    def _siblings(self, number: int, values: Sequence[Tokens] | None) -> Siblings:
        group, first = self.groups[number], self.first[number]
        count = len(group.rollouts)
        before = [None] * count if self.before is None else self.before[first : first + count]
        penalties = [
            penalty(self.config, rollout, rewarded, own)
            for rollout, rewarded, own in zip(group.rollouts, group.rewarded, before, strict=True)
        ]
        own = [rewarded.values for rewarded in group.rewarded if rewarded.values is not None]
        lengths = [len(rollout.ids) for rollout in group.rollouts]
        critics = None if values is None else values[first : first + count]
        return Siblings(
            rewards=[r.reward - float(p.sum()) for r, p in zip(group.rewarded, penalties, strict=True)],
            lengths=lengths,
            token_rewards=[r.token_rewards - p for r, p in zip(group.rewarded, penalties, strict=True)],
            before=[rewarded.reward for rewarded in group.rewarded],
            token_values=own if critics is None else [v[:h] for v, h in zip(critics, lengths, strict=True)],
            after=None if critics is None else [float(v[h:].sum()) for v, h in zip(critics, lengths, strict=True)],
        )

    def minibatches(self, step: int, epoch: int) -> Iterator[list[int]]:
        """Numbers of the groups of each step of the optimizer: all groups once, shuffled where there are several."""
        section, count = self.config.rl, len(self.groups)
        if section.minibatches == 1:
            yield list(range(count))
            return
        words = np.random.PCG64(np.random.SeedSequence([section.seed, step, epoch, SHUFFLE])).random_raw(count)
        for part in np.array_split(np.argsort(words, kind="stable"), section.minibatches):
            yield part.tolist()

    def part(self, numbers: Sequence[int], rank: int, workers: int) -> StepPart:
        """One worker's part of a step on these groups."""
        batches = plan(self.config, self.groups, numbers, workers, self.config.rl.mask_truncated)
        learnt = [self.responses[position] for micros in batches for micro in micros for position in micro]
        tokens = sum(len(response.response_ids) for response in learnt)
        return StepPart(
            micro_batches=[[self.responses[position] for position in micro] for micro in batches[rank]],
            totals={
                "pairs": 0,
                "responses": sum(len(self.groups[number].rollouts) for number in numbers),
                "tokens": max(tokens, 1),
            },
            tokens=tokens + sum(len(response.prompt_ids) for response in learnt),
        )


def plan(
    config: RlConfig, groups: Sequence[Group], numbers: Sequence[int], workers: int, masks_truncated: bool = False
) -> list[list[list[int]]]:
    """Which responses each worker computes, and in which micro-batches: [workers][micro-batches], positions among all.

    Args:
        masks_truncated: those that were cut off are computed by nobody.
    """
    first = np.cumsum([0, *(len(group.rollouts) for group in groups)]).tolist()
    atoms = [
        Atom((first[number] + i,), number, len(groups[number].prompt.ids), len(rollout.ids) - 1)
        for number in numbers
        for i, rollout in enumerate(groups[number].rollouts)
        if rollout.finished or not masks_truncated
    ]
    batches = plan_step(atoms, workers, config.learner.micro_tokens) if atoms else [[[]]] * workers
    return [[[atoms[atom].positions[0] for atom in micro] for micro in worker] for worker in batches]


def penalty(config: RlConfig, rollout: Rollout, rewarded: Rewarded, before: Tokens | None = None) -> Array:
    """What the KL takes off the reward of each token: beta * (log pi - log pi_ref), [H].

    pi is the policy that learns where its `before` is known, else that which sampled. Known, a teacher's reward, which was
    made with the latter, becomes one of it too.
    """
    sampled = rollout.logprobs.astype(np.float64)
    own = sampled if before is None else before.astype(np.float64)
    taken: Array = np.zeros(len(rollout.ids))
    if config.rl.kl_in == "reward" and config.rl.kl_coefficient:
        assert rewarded.reference is not None
        taken = config.rl.kl_coefficient * (own - rewarded.reference)
    teachers = sum(s.weight for name in rewarded.parts if (s := config.rewards[name]).kind == "teacher")
    return taken + teachers * (own - sampled) if teachers else taken


def goes_on(config: RlConfig, rollout: Rollout, rewarded: Rewarded) -> bool:
    """Whether a response earns further from s_{H+1} on: it was cut off, and all its rewards are of single tokens and hold
    nothing of what is to come. A reward of the whole response has been paid for it as it stands, and the endogenous one's
    last token has the reward model's V(s_{H+1}) in it (`pipeline.rewards.endogenous`): a forecast would come on top of
    either."""
    kinds = {config.rewards[name].kind for name in rewarded.parts}
    of_tokens = bool(kinds) and kinds <= {"relative", "teacher"}
    return not rollout.finished and config.credit == "tokens" and of_tokens


def forecast(config: RlConfig, groups: Sequence[Group]) -> list[Response]:
    """All responses as a critic is to look at them, for V(s_1) to V(s_H): [H], of one that goes on V(s_{H+1}) too: [H + 1], by
    a token more, whichever, that is never forwarded."""
    pairs = [pair for group in groups for pair in zip(group.rollouts, group.rewarded, strict=True)]
    return [
        replace(response, response_ids=[*rollout.ids, rollout.ids[-1]])
        if goes_on(config, rollout, rewarded)
        else response
        for response, (rollout, rewarded) in zip(learnable(groups), pairs, strict=True)
    ]


def learnable(groups: Sequence[Group]) -> list[Response]:
    """All responses as the learner sees them, without advantages."""
    return [
        Response(group.prompt.ids, rollout.ids, rewarded.reward, rewarded.reference, rollout.logprobs)
        for group in groups
        for rollout, rewarded in zip(group.rollouts, group.rewarded, strict=True)
    ]
