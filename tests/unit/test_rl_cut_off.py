"""Responses that were cut off: what stands for V(s_{H+1}), on token MDPs whose sequences are all listed."""

import os
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.rewards.endogenous import aggregate, soft_value, token_rewards
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.algorithms.ppo import Ppo
from pipeline.rl.config import RlConfig
from pipeline.rl.experience import Experience, forecast, goes_on
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.training.advantages import Siblings, compared
from pipeline.training.config import AdvantageConfig
from pipeline.training.policy import Policy

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "examples", "token_mdp"))
from mdp import Table, log_policy, random_table

WORDS, HORIZON = 3, 4


def along(table: Table, tokens: tuple[int, ...]) -> np.ndarray:
    """What a table of one instance says of each state and the token taken there: [H]."""
    state, found = 0, []
    for level, token in zip(table, tokens, strict=False):
        found.append(level[0][state, token])
        state = state * WORDS + token
    return np.array(found)


def states(values: Table, tokens: tuple[int, ...]) -> np.ndarray:
    """V of every state that the tokens go through, the one behind the last among them: [H + 1]."""
    numbers = [0]
    for token in tokens:
        numbers.append(numbers[-1] * WORDS + token)
    return np.array([level[0][number] for level, number in zip(values, numbers, strict=False)])


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Eq. 16 of arXiv 1506.02438 as a sum; values [H + 1]."""
    deltas = [r + gamma * after - now for r, now, after in zip(rewards, values, values[1:], strict=False)]
    return np.array(
        [sum((gamma * lam) ** (k - h) * deltas[k] for k in range(h, len(deltas))) for h in range(len(deltas))]
    )


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7)])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_endogenous_reward_of_what_was_cut_off_is_bootstrapped_by_its_own_value(
    gamma: float, lam: float, alpha: float
) -> None:
    logits = random_table(np.random.default_rng(0), 1, WORDS, HORIZON, 2.0)
    soft = [soft_value(level, alpha) for level in logits]
    log_pi = log_policy(logits, alpha)
    reward = RlConfig.model_validate(
        {"reward": {"alpha": alpha, "gamma": gamma, "aggregation": "discounted_sum"}}
    ).reward
    for length in range(1, HORIZON):
        for tokens in product(range(WORDS), repeat=length):
            q, values = along(logits, tokens), states(soft, tokens)
            proper = q - gamma * values[1:]  # eq. 11, with the value of the state in which it was cut off
            ours = token_rewards(q, values[:-1], gamma)
            group = Siblings([float(ours.sum())], [length], [ours], [values[:-1]])
            [[found]] = Ppo(credit="tokens", gamma=gamma, gae_lambda=lam).advantages([group])
            np.testing.assert_allclose(found, gae(proper, values, gamma, lam), atol=1e-12)
            worth = compared(AdvantageConfig(credit="tokens", baseline="value", scale="none"), group, gamma)
            np.testing.assert_allclose(worth[0], gae(proper, values, gamma, 1.0), atol=1e-12)
            weights = gamma ** np.arange(length)
            whole = float(weights @ proper) + gamma**length * values[-1]
            assert aggregate(ours, values[:-1], reward) == pytest.approx(whole)
            assert whole == pytest.approx(values[0] + alpha * float(weights @ along(log_pi, tokens)))


@pytest.mark.parametrize("lam", [1.0, 0.6, 0.0])
def test_with_the_critics_value_behind_the_cut_advantages_are_those_of_whole_responses(lam: float) -> None:
    """Of rewards of single tokens, with a critic that is right: the mean of A_h is Q(s_h,a_h) - V(s_h). With 0 it is not."""
    rng = np.random.default_rng(1)
    rewards, log_pi = (random_table(rng, 1, WORDS, HORIZON) for _ in range(2))
    log_pi = log_policy(log_pi, 1.0)
    values, actions, following = [], [], np.zeros((1, WORDS**HORIZON))
    for reward, log_p in zip(reversed(rewards), reversed(log_pi), strict=True):
        actions.insert(0, reward + following.reshape(reward.shape))
        following = (np.exp(log_p) * actions[0]).sum(-1)
        values.insert(0, following)
    cut = 2
    means = {"critic": np.zeros((2, WORDS, WORDS)), "nothing": np.zeros((2, WORDS, WORDS))}
    due = np.zeros((2, WORDS, WORDS))
    for tokens in product(range(WORDS), repeat=cut):
        v = states(values, tokens)
        chance = np.exp(along(log_pi, tokens))
        due[0][tokens] = chance[1] * (along(actions, tokens)[0] - v[0])
        due[1][tokens] = along(actions, tokens)[1] - v[1]
        for name, after in (("critic", [float(v[cut])]), ("nothing", None)):
            group = Siblings([0.0], [cut], [along(rewards, tokens)], [v[:cut]], after=after)
            [[found]] = Ppo(credit="tokens", value="critic", gae_lambda=lam).advantages([group])
            means[name][0][tokens], means[name][1][tokens] = chance[1] * found[0], found[1]
    np.testing.assert_allclose(means["critic"][0].sum(-1), due[0].sum(-1), atol=1e-12)
    np.testing.assert_allclose(means["critic"][1], due[1], atol=1e-12)
    assert np.abs(means["nothing"][1] - due[1]).max() > 0.1


def test_advantages_and_returns_by_hand() -> None:
    group = Siblings([0.0, 0.0], [2, 1], [[1.0, 2.0], [4.0]], [[0.5, 0.25], [3.0]], after=[8.0, 0.0])
    made = Ppo(credit="tokens", value="critic", gamma=0.5, gae_lambda=0.5)
    second = 2 + 0.5 * 8 - 0.25
    first = 1 + 0.5 * 0.25 - 0.5 + 0.25 * second
    [found], [targets] = made.advantages([group]), made.returns([group])
    np.testing.assert_array_equal(np.concatenate(found), [first, second, 1.0])
    np.testing.assert_array_equal(np.concatenate(targets), [first + 0.5, second + 0.25, 4.0])


KINDS: dict[str, dict[str, Any]] = {
    "relative": {"kind": "relative", "reference": "earlier"},
    "endogenous": {"kind": "endogenous"},
    "maths": {"kind": "maths"},
    "length": {"kind": "length"},
}


def config(*kinds: str, credit: str = "tokens") -> RlConfig:
    rl = {"algorithm": "ppo", "group_size": 2, "credit": credit, "kl_coefficient": 0.0, "gamma": 0.5}
    return RlConfig.model_validate(
        {"rl": rl, "ppo": {"value": "critic"}, "rewards": {kind: KINDS[kind] for kind in kinds}}
    )


def a_group(*kinds: str) -> Group:
    """The first response has ended, the second was cut off."""
    rollouts = [Rollout([5, 6][:h], "x", h == 1, np.zeros(h, np.float32), 0) for h in (1, 2)]
    rewarded = [Rewarded(float(h), dict.fromkeys(kinds, 1.0), np.ones(h), None, None) for h in (1, 2)]
    return Group(Prompt("p", [], False, [3, 4]), rollouts, rewarded)


@pytest.mark.parametrize(
    ("kinds", "credit", "due"),
    [
        (["relative"], "tokens", True),
        (["relative"], "response", False),
        (["endogenous"], "tokens", False),  # its last token has V(s_{H+1}) in it
        (["maths"], "tokens", False),  # paid as it stands
        (["relative", "length"], "tokens", False),  # a forecast of both, and one of them is paid
        ([], "tokens", False),  # the prompt is in no source's share
    ],
)
def test_which_responses_go_on(kinds: list[str], credit: str, due: bool) -> None:
    told, group = config(*(kinds or ["maths"]), credit=credit), a_group(*kinds)
    assert [goes_on(told, *each) for each in zip(group.rollouts, group.rewarded, strict=True)] == [False, due]
    assert [len(response.response_ids) for response in forecast(told, [group])] == [1, 2 + due]


def test_what_a_critic_says_behind_a_cut_is_in_advantages_and_returns() -> None:
    told, group = config("relative"), a_group("relative")
    ended, cut = Experience(told, algorithm_of(told), [group], [np.ones(1), np.array([1.0, 2.0, 4.0])]).responses
    np.testing.assert_allclose(ended.advantages, [1 - 1])
    np.testing.assert_allclose(cut.advantages, [1 + 0.5 * (1 + 0.5 * 4) - 1, 1 + 0.5 * 4 - 2])
    np.testing.assert_allclose(cut.returns, [1 + 0.5 * (1 + 0.5 * 4), 1 + 0.5 * 4])
    assert cut.response_ids == [5, 6], "what is learnt from is what was sampled"


def test_the_state_behind_the_last_token_is_looked_at() -> None:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    torch.manual_seed(0)
    policy = Policy(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).double(), critic_seed=0)
    torch.nn.init.normal_(policy.critic.outer)
    states = policy.model(torch.tensor([[3, 4, 5, 6]]), output_hidden_states=True).hidden_states[-1][0]
    for layout in ("packed", "padded"):
        policy.use_layout(layout)
        ended, cut = policy(forecast(config("relative"), [a_group("relative")])).values.split([1, 3])
        torch.testing.assert_close(cut, policy.critic(states[1:]))
        torch.testing.assert_close(ended, cut[:1])
