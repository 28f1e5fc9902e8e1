"""From rewarded samples to a step's data: penalties, parts of workers, minibatches."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.experience import Experience, penalty
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout

RNG = np.random.default_rng(0)


def config(**sections: Any) -> RlConfig:
    return RlConfig.model_validate({"rl": {"algorithm": "rloo", "group_size": 3, **sections.pop("rl", {})}, **sections})


def groups(count: int, size: int = 3) -> list[Group]:
    found = []
    for number in range(count):
        lengths = RNG.integers(1, 6, size)
        rollouts = [
            Rollout(RNG.integers(3, 50, h).tolist(), "x", True, -RNG.random(h).astype(np.float32), 0) for h in lengths
        ]
        rewarded = []
        for h in lengths:
            tokens = RNG.normal(size=h)
            rewarded.append(
                Rewarded(float(tokens.sum()), {}, tokens, RNG.normal(size=h), -RNG.random(h).astype(np.float32))
            )
        prompt = Prompt(f"p:{number}", [], False, RNG.integers(3, 50, 4).tolist())
        found.append(Group(prompt, rollouts, rewarded))
    return found


def test_the_kl_is_taken_off_every_tokens_reward() -> None:
    told, batch = config(rl={"kl_coefficient": 0.5, "credit": "response"}), groups(2)
    experience = Experience(told, algorithm_of(told), batch)
    position = 0
    for group in batch:
        totals = [
            r.reward - 0.5 * sum(float(a) - float(b) for a, b in zip(rollout.logprobs, r.reference, strict=True))  # type: ignore[arg-type]
            for rollout, r in zip(group.rollouts, group.rewarded, strict=True)
        ]
        for i, total in enumerate(totals):
            others = (sum(totals) - total) / (len(totals) - 1)
            expected = np.full(len(group.rollouts[i].ids), total - others)
            np.testing.assert_allclose(experience.responses[position].advantages, expected, rtol=1e-9)  # type: ignore[arg-type]
            position += 1


@pytest.mark.parametrize("rl", [{"kl_coefficient": 0.0}, {"kl_coefficient": 0.5, "kl_in": "loss"}])
def test_no_penalty_where_the_kl_is_elsewhere(rl: dict[str, Any]) -> None:
    [group] = groups(1)
    assert not penalty(config(rl=rl), group.rollouts[0], group.rewarded[0]).any()


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce_plus_plus", "rloo"])
@pytest.mark.parametrize("rewards", [[1.0, 1.0], [0.0, 1.0]])
def test_a_kl_is_not_blown_up_where_all_rewards_of_a_group_are_the_same(algorithm: str, rewards: list[float]) -> None:
    """At the default coefficient: what divides by the spread leaves it out, what does not divide keeps it as it is."""
    told = config(rl={"algorithm": algorithm})
    alike = [
        replace(group, rewarded=[replace(r, reward=reward, token_rewards=0 * r.token_rewards) for r in group.rewarded])
        for group, reward in zip(groups(2), rewards, strict=True)
    ]
    for group in alike:
        for r in group.rewarded:
            r.token_rewards[-1] = r.reward
    found = iter(Experience(told, algorithm_of(told), alike).responses)
    for group in alike:
        totals = [penalty(told, *each).sum() for each in zip(group.rollouts, group.rewarded, strict=True)]
        for total in totals:
            mine = next(found).advantages
            assert mine is not None
            wanted = (sum(totals) - total) / 2 - total if algorithm == "rloo" else 0.0
            np.testing.assert_allclose(mine, np.full(len(mine), wanted), atol=1e-9)
            assert algorithm != "rloo" or 0 < abs(wanted) < 0.1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_out_all_responses_once(workers: int) -> None:
    told, batch = config(learner={"budget_tokens": 20}), groups(5)
    experience = Experience(told, algorithm_of(told), batch)
    parts = [experience.part(range(5), rank, workers) for rank in range(workers)]
    assert len({len(part.micro_batches) for part in parts}) == 1
    seen = [tuple(r.response_ids) for part in parts for micro in part.micro_batches for r in micro]
    assert sorted(seen) == sorted(tuple(rollout.ids) for group in batch for rollout in group.rollouts)
    tokens = sum(len(rollout.ids) for group in batch for rollout in group.rollouts)
    assert all(part.totals == {"pairs": 0, "responses": 15, "tokens": tokens} for part in parts)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_cut_off_is_compared_with_and_not_learnt_from(workers: int) -> None:
    told, batch = config(rl={"mask_truncated": True, "kl_coefficient": 0.0, "credit": "response"}), groups(4)
    cut = [
        replace(g, rollouts=[replace(r, finished=i != number) for i, r in enumerate(g.rollouts)])
        for number, g in enumerate(batch)  # of the fourth group none
    ]
    masked, whole = (Experience(told, algorithm_of(told), groups) for groups in (cut, batch))
    for mine, others in zip(masked.responses, whole.responses, strict=True):
        np.testing.assert_array_equal(mine.advantages, others.advantages)  # type: ignore[arg-type]
    parts = [masked.part(range(4), rank, workers) for rank in range(workers)]
    seen = sorted(tuple(r.response_ids) for part in parts for micro in part.micro_batches for r in micro)
    left = [r for g in cut for r in g.rollouts if r.finished]
    assert len(left) == 9 and seen == sorted(tuple(r.ids) for r in left)
    tokens = sum(len(r.ids) for r in left)
    assert all(part.totals == {"pairs": 0, "responses": 12, "tokens": tokens} for part in parts)  # as TRL divides


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_were_cut_off_every_worker_has_an_empty_micro_batch(workers: int) -> None:
    told = config(rl={"mask_truncated": True})
    cut = [replace(g, rollouts=[replace(r, finished=False) for r in g.rollouts]) for g in groups(2)]
    for rank in range(workers):
        part = Experience(told, algorithm_of(told), cut).part(range(2), rank, workers)
        assert (part.micro_batches, part.totals["tokens"], part.tokens) == ([[]], 1, 0)


def test_minibatches_are_all_groups_once_in_an_order_of_the_steps_own() -> None:
    told = config(rl={"minibatches": 3})
    experience = Experience(told, algorithm_of(told), groups(8))
    orders = []
    for step, epoch in [(0, 0), (0, 1), (1, 0)]:
        found = list(experience.minibatches(step, epoch))
        assert [len(each) for each in found] == [3, 3, 2]
        orders.append([number for each in found for number in each])
        assert sorted(orders[-1]) == list(range(8))
        assert found == list(experience.minibatches(step, epoch))
    assert len({tuple(order) for order in orders}) == 3
