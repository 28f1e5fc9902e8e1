"""From rewarded samples to a step's data: penalties, parts of workers, minibatches."""

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
