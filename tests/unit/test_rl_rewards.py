"""What responses are worth, against plain float64 forwards of the same weights and the equations."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tiny import CHATML, ENDLESS, save_model, tokenizer

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, InputError, RunError
from pipeline.models.loading import load_model
from pipeline.rewards.answers import extract_and_check
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt, Rewarded, Rollout
from pipeline.rl.sources import RewardMixture, check_prompts, check_rewards, checker

POLICY = tokenizer()
END = POLICY.eos_token_id
TEXTS = ("abcd 12", "abacd, and a longer one", "12")


class Folders(NamedTuple):
    policy: Path
    rewarding: Path  # other weights, the policy's tokenizer
    chat: Path  # and a chat template
    foreign: Path  # another tokenizer
    foreign_chat: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("models")
    found = Folders(*(root / name for name in Folders._fields))
    for seed, (folder, template) in enumerate(zip(found, (None, None, CHATML, None, CHATML), strict=True)):
        save_model(folder, template, seed=seed)
    for folder in (found.foreign, found.foreign_chat):
        other = transformers.AutoTokenizer.from_pretrained(folder)
        other.add_tokens(["zzz"])
        other.save_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(len(other), mean_resizing=False)
        model.save_pretrained(folder)
    return found


def configured(models: Folders, rewards: dict[str, Any] | None = None, **sections: Any) -> RlConfig:
    named = {"policy": {"name": str(models.policy)}, "reward_model": {"name": str(models.rewarding)}}
    rewards = rewards or {"own": {"kind": "endogenous"}}
    rl = {"max_new_tokens": 40, "kl_coefficient": 0.0, **sections.pop("rl", {})}
    return RlConfig.model_validate({**named, "rewards": rewards, "rl": rl, **sections})


def prompted(text: str = "What is ab?", number: int = 0, conversational: bool = False, **columns: Any) -> Prompt:
    ids = POLICY(text, add_special_tokens=False)["input_ids"]
    return Prompt(f"a.jsonl:{number}", [{"role": "user", "content": text}], conversational, ids, columns)


def rolled(text: str, finished: bool = True) -> Rollout:
    """The text cut into single bytes' tokens, as a policy may sample it and no tokenizer would write it."""
    ids = [token for sign in text for token in POLICY(sign, add_special_tokens=False)["input_ids"]]
    ids += [END] if finished else []
    return Rollout(ids, text, finished, np.zeros(len(ids), np.float32), 0)


def sampled(text: str, finished: bool = True) -> Rollout:
    """As `rolled`, from a policy that thought it likely to some degree."""
    rollout = rolled(text, finished)
    return replace(rollout, logprobs=-np.linspace(0.1, 3, len(rollout.ids), dtype=np.float32))


def rewarder(config: RlConfig, hold_reference: bool = False) -> RewardMixture:
    return RewardMixture(config, "cpu", "float64", hold_reference=hold_reference)


def rewarded(config: RlConfig, prompt: Prompt, *rollouts: Rollout, hold_reference: bool = False) -> list[Rewarded]:
    [found] = rewarder(config, hold_reference).reward([(prompt, rollouts)])
    return found


def logits(folder: Path, prompt_ids: Sequence[int], ids: Sequence[int]) -> NDArray[np.float64]:
    """Of each state of the response, [H, V]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        all_of = model(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits[0]
    return all_of[len(prompt_ids) - 1 : -1].numpy()


def q_and_values(
    folder: Path, prompt_ids: Sequence[int], ids: Sequence[int], alpha: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = logits(folder, prompt_ids, ids)
    return found[np.arange(len(ids)), ids], alpha * np.log(np.exp(found / alpha).sum(axis=1))


def logprobs(folder: Path, prompt_ids: Sequence[int], ids: Sequence[int]) -> NDArray[np.float64]:
    q, values = q_and_values(folder, prompt_ids, ids)
    return q - values


# Endogenous


@pytest.mark.parametrize(
    "reward",
    [
        {},
        {"alpha": 0.5, "subtract_initial_value": True},
        {"alpha": 2.0, "aggregation": "mean"},
        {"alpha": 0.7, "gamma": 0.9, "aggregation": "discounted_sum"},
        {"gamma": 0.9, "aggregation": "discounted_sum", "subtract_initial_value": True},
    ],
)
def test_endogenous_reward_is_its_equation_on_the_sampled_tokens(models: Folders, reward: dict[str, Any]) -> None:
    prompt, rollouts = prompted(), [rolled(text) for text in TEXTS]
    config = configured(models, {"own": {"weight": -0.3}}, reward=reward)
    for rollout, found in zip(rollouts, rewarded(config, prompt, *rollouts), strict=True):
        alpha, gamma = reward.get("alpha", 1.0), reward.get("gamma", 1.0)
        q, v = q_and_values(models.rewarding, prompt.ids, rollout.ids, alpha)
        steps = [q[h] - gamma * (v[h + 1] if h + 1 < len(q) else 0) for h in range(len(q))]
        forecast: NDArray[np.float64] | None = v.copy()
        if reward.get("aggregation") == "mean":
            total, shares, forecast = sum(q - v) / len(q), (q - v) / len(q), None
        else:
            discount = gamma if reward.get("aggregation") else 1.0
            total, shares = sum(discount**h * step for h, step in enumerate(steps)), np.array(steps)
            if reward.get("subtract_initial_value"):
                total, shares[0], forecast[0] = total - v[0], shares[0] - v[0], 0.0
        assert found.parts == {"own": pytest.approx(total, abs=1e-9)}
        assert found.reward == pytest.approx(-0.3 * total, abs=1e-9)
        np.testing.assert_allclose(found.token_rewards, -0.3 * shares, atol=1e-9)
        if forecast is None:
            assert found.values is None
        else:
            np.testing.assert_allclose(found.values, -0.3 * forecast, atol=1e-9)


@pytest.mark.parametrize("aggregation", ["self_certainty", "negative_entropy"])
def test_certainty_of_the_reward_model_is_a_reward_of_each_token(models: Folders, aggregation: str) -> None:
    """Of a frozen model, at temperature 1 whatever alpha is; every token has its share, and nothing forecasts them."""
    prompt, rollouts = prompted(), [rolled(text) for text in TEXTS]
    reward = {"alpha": 0.5, "aggregation": aggregation, "token_certainty": True}
    config = configured(models, {"own": {"weight": 2.0}}, reward=reward)
    for rollout, found in zip(rollouts, rewarded(config, prompt, *rollouts), strict=True):
        q = logits(models.rewarding, prompt.ids, rollout.ids)
        log_pi = q - np.logaddexp.reduce(q, axis=1, keepdims=True)
        of_tokens = -np.log(q.shape[1]) - log_pi.mean(axis=1)  # KL(uniform || pi)
        if aggregation == "negative_entropy":
            of_tokens = (np.exp(log_pi) * log_pi).sum(axis=1)
        assert found.parts == {"own": pytest.approx(of_tokens.mean(), abs=1e-6)}
        np.testing.assert_allclose(found.token_rewards, 2 * of_tokens / len(of_tokens), atol=1e-6)
        assert found.values is None


def test_forecast_and_rewards_to_go_differ_by_log_probabilities(models: Folders) -> None:
    """Telescoping (eq. 12): the rewards from h on are V(s_h) plus what remains of alpha * log pi."""
    reward = {"alpha": 0.5, "gamma": 0.8, "aggregation": "discounted_sum", "subtract_initial_value": True}
    prompt, rollout = prompted(), rolled("abacd")
    [found] = rewarded(configured(models, reward=reward), prompt, rollout)
    q, v = q_and_values(models.rewarding, prompt.ids, rollout.ids, 0.5)
    for h in range(len(q)):
        discounts = 0.8 ** np.arange(len(q) - h)
        to_go = (discounts * found.token_rewards[h:]).sum()
        assert found.values is not None
        assert to_go - found.values[h] == pytest.approx((discounts * (q - v)[h:]).sum(), abs=1e-9)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_token_rewards_add_up_to_the_reward(models: Folders, aggregation: str) -> None:
    rewards = {
        "own": {},
        "gain": {"kind": "relative", "reference": str(models.policy), "weight": -0.5},
        "right": {"kind": "maths", "weight": 3.0},
        "short": {"kind": "length", "free_tokens": 4},
    }
    config = configured(models, rewards, reward={"aggregation": aggregation}, rewarding={"missing_eos_penalty": 0.7})
    rollouts = [rolled(TEXTS[0]), rolled(TEXTS[1], finished=False), rolled(TEXTS[2]), rolled("")]
    for found in rewarded(config, prompted(answer="12"), *rollouts):
        assert found.token_rewards.sum() == pytest.approx(found.reward, rel=1e-9)
        assert found.token_rewards.dtype == np.float64


def test_a_cut_off_response_is_penalised_on_its_last_token(models: Folders) -> None:
    rollouts = [rolled("abab"), rolled("abab", finished=False)]
    plain = rewarded(configured(models), prompted(), *rollouts)
    penalised = rewarded(configured(models, rewarding={"missing_eos_penalty": 2.5}), prompted(), *rollouts)
    assert [p.reward - q.reward for p, q in zip(penalised, plain, strict=True)] == [0.0, -2.5]
    np.testing.assert_array_equal(penalised[1].token_rewards - plain[1].token_rewards, [0, 0, 0, -2.5])
    assert penalised[1].parts == plain[1].parts


def test_a_response_that_ended_at_once_is_its_end_token(models: Folders) -> None:
    prompt = prompted()
    [found] = rewarded(configured(models), prompt, rolled(""))
    assert found.reward == pytest.approx(q_and_values(models.rewarding, prompt.ids, [END])[0][0], abs=1e-9)


# Rubrics and other tokenizers


def test_a_rubric_is_rendered_by_the_reward_model(models: Folders) -> None:
    rubric = {"model": str(models.chat), "system_prompt": "Be terse."}
    config = configured(models, {"own": rubric}, tokens={"system_prompt": "Seen by the policy alone."})
    prompt, rollout = prompted(conversational=True), rolled("abcd")
    before = f"<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\n{prompt.messages[0]['content']}<|im_end|>\n"
    ids = POLICY(before + "<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    [found] = rewarded(config, prompt, rollout)
    q, v = q_and_values(models.chat, ids, rollout.ids)
    np.testing.assert_allclose(found.token_rewards, q - np.append(v[1:], 0), atol=1e-9)
    np.testing.assert_allclose(found.values, v, atol=1e-9)


def foreign_case(models: Folders, chat: bool, text: str, finished: bool) -> tuple[Path, list[int], list[int]]:
    """Model, prompt and response as another tokenizer has them: `What is ab?` under the policy's system prompt."""
    folder = models.foreign_chat if chat else models.foreign
    own = transformers.AutoTokenizer.from_pretrained(folder)
    end = "<|im_end|>" if chat else "</s>"
    before = "Kind.\n\nWhat is ab?"
    if chat:
        before = "<|im_start|>system\nKind.<|im_end|>\n<|im_start|>user\nWhat is ab?<|im_end|>\n<|im_start|>assistant\n"
    response = text + (end if finished or not text else "")
    return folder, own(before)["input_ids"], own(response)["input_ids"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("text", "finished"),
    [("abcd zzz", True), ("abcd zzz", False), ("", True), ("", False), (" \n", True), (" \n", False), ("</s>", False)],
)
def test_another_tokenizer_rewards_the_text_as_a_whole(models: Folders, chat: bool, text: str, finished: bool) -> None:
    folder, before, ids = foreign_case(models, chat, text, finished)
    config = configured(
        models, reward_model={"name": str(folder)}, tokens={"system_prompt": "Kind.", "control": "keep"}
    )
    [found] = rewarded(config, prompted(), Rollout([1] * 5, text, finished, np.zeros(5, np.float32), 0))
    q, v = q_and_values(folder, before, ids)
    expected = q.sum() - v[1:].sum()
    assert found.reward == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(found.token_rewards, [0, 0, 0, 0, expected], atol=1e-9)
    assert found.values is None


def test_a_template_file_is_for_the_tokenizer_of_the_policy(models: Folders, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    rewards = {
        "own": {"system_prompt": "Kind."},
        "other": {"model": str(models.foreign_chat), "system_prompt": "Kind."},
    }
    config = configured(models, rewards, tokens={"template": str(path)})
    [found] = rewarded(config, prompted(), rolled("abcd zzz"))
    before = POLICY("<s>system: Kind.</s><s>user: What is ab?</s><s>assistant: ")["input_ids"]
    q, v = q_and_values(models.rewarding, before, rolled("abcd zzz").ids)
    assert found.parts["own"] == pytest.approx(q.sum() - v[1:].sum(), abs=1e-9)
    q, v = q_and_values(*foreign_case(models, True, "abcd zzz", True))
    assert found.parts["other"] == pytest.approx(q.sum() - v[1:].sum(), abs=1e-9)


def test_another_tokenizer_is_noted_or_refused(models: Folders) -> None:
    foreign = {"own": {"model": str(models.foreign)}}
    [note] = check_rewards(configured(models, foreign))
    assert str(models.foreign) in note and str(models.policy) in note and "whole responses" in note
    assert rewarder(configured(models, foreign)).notes == [note]
    with pytest.raises(ConfigError, match="other_tokenizer = refuse") as raised:
        check_rewards(configured(models, foreign, rewarding={"other_tokenizer": "refuse"}))
    assert str(models.foreign) in str(raised.value) and str(models.policy) in str(raised.value)


def test_another_end_token_is_another_tokenizer(models: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(models.rewarding, folder)
    other = transformers.AutoTokenizer.from_pretrained(folder)
    other.eos_token = "<|im_end|>"
    other.save_pretrained(folder)
    assert "another tokenizer" in check_rewards(configured(models, {"own": {"model": str(folder)}}))[0]
    assert check_rewards(configured(models)) == []


def test_a_long_text_is_rewarded_as_far_as_it_fits_and_says_so(models: Folders) -> None:
    found = rewarder(configured(models, {"own": {"model": str(models.foreign)}}))
    found.notes.clear()
    for _ in range(2):
        found.reward([(prompted(), [rolled("x" * 300)])])
    assert len(found.notes) == 1 and "256 tokens" in found.notes[0]


@pytest.mark.parametrize(
    ("rollout", "rewards", "said"),
    [
        (rolled("x" * 300), {}, "too_long.*longer context"),
        (Rollout([10**6], "?", False, np.zeros(1, np.float32), 0), {}, "unknown_token"),
        (rolled("x"), {"system_prompt": "y" * 300}, "prompt_too_long.*shorter prompts"),
    ],
)
def test_what_cannot_be_scored_stops_the_run_with_its_name(
    models: Folders, rollout: Rollout, rewards: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said) as raised:
        rewarded(configured(models, {"mine": rewards}), prompted(number=7), rollout)
    assert "rewards.mine" in str(raised.value) and "a.jsonl:7" in str(raised.value)


# The reference, and models that are one


def test_reference_is_the_policy_on_its_own_prompt(models: Folders) -> None:
    prompt, rollouts = prompted(), [rolled(text) for text in TEXTS]
    for rollout, found in zip(
        rollouts, rewarded(configured(models), prompt, *rollouts, hold_reference=True), strict=True
    ):
        assert found.reference is not None and found.reference.dtype == np.float32
        np.testing.assert_allclose(found.reference, logprobs(models.policy, prompt.ids, rollout.ids), rtol=1e-6)
    assert rewarded(configured(models), prompt, *rollouts)[0].reference is None


def test_one_model_under_several_names_is_loaded_and_asked_once(
    models: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(config: ModelConfig, device: str, gpus: int) -> Any:
        loaded.append(config.name)
        return load_model(config, device, gpus)

    monkeypatch.setattr("pipeline.rl.sources.models.load_model", counted)
    again = tmp_path / "again"
    shutil.copytree(models.rewarding, again)
    rewards = {
        "own": {},
        "copy": {"model": str(again), "weight": 0.5},
        "gain": {"kind": "relative", "reference": str(again)},
    }
    config = configured(models, rewards, policy={"name": str(models.rewarding)})
    prompt, rollouts = prompted(), [rolled(text) for text in TEXTS]
    alone, several = rewarder(configured(models)), rewarder(config, hold_reference=True)
    assert loaded == [str(models.rewarding)] * 2  # one each
    [scorer], [all_of] = alone.models.scorers.values(), several.models.scorers.values()
    alone.reward([(prompt, rollouts)])
    [found] = several.reward([(prompt, rollouts)])
    assert all_of.forwarded_tokens == scorer.forwarded_tokens > 0
    several.reward([(prompt, rollouts)])
    assert all_of.forwarded_tokens == 2 * scorer.forwarded_tokens  # another batch is scored anew
    assert all(each.parts["gain"] == 0 and each.parts["own"] == each.parts["copy"] for each in found)


def test_models_of_another_dtype_are_apart(models: Folders) -> None:
    config = configured(models, {"own": {}, "policy": {"model": str(models.policy)}}, reward_model={"dtype": "float32"})
    config = config.model_copy(
        update={"reward_model": config.reward_model.model_copy(update={"name": str(models.policy)})}
    )
    found = RewardMixture(config, "cpu", "float64", hold_reference=True)
    assert sorted(str(scorer.model.dtype) for scorer in found.models.scorers.values()) == [
        "torch.float32",
        "torch.float64",
    ]


# Relative


@pytest.mark.parametrize("system_prompt", [None, "Be terse."])
def test_relative_reward_is_the_log_ratio_of_two_checkpoints(models: Folders, system_prompt: str | None) -> None:
    section = {"kind": "relative", "reference": str(models.policy), "system_prompt": system_prompt, "weight": 2.0}
    prompt, rollouts = prompted(), [rolled(text) for text in TEXTS]
    before = prompt.ids
    if system_prompt:
        before = POLICY(f"{system_prompt}\n\nWhat is ab?")["input_ids"]
    found = rewarded(configured(models, {"gain": section}, reward={"alpha": 0.5}), prompt, *rollouts)
    for rollout, each in zip(rollouts, found, strict=True):
        ratio = logprobs(models.rewarding, before, rollout.ids) - logprobs(models.policy, before, rollout.ids)
        np.testing.assert_allclose(each.token_rewards, 2 * ratio, atol=1e-9)
        assert each.parts["gain"] == pytest.approx(ratio.sum(), abs=1e-9) and each.values is None


@pytest.mark.parametrize("system_prompt", [None, "You know that it is 12."])
def test_a_teachers_reward_is_the_log_ratio_to_the_policy(models: Folders, system_prompt: str | None) -> None:
    prompt, rollouts = prompted(), [sampled(text) for text in TEXTS]
    before = POLICY(f"{system_prompt}\n\nWhat is ab?")["input_ids"] if system_prompt else prompt.ids
    told = {"kind": "teacher", "weight": 2.0, "system_prompt": system_prompt}
    found = rewarded(configured(models, {"t": told}, reward={"alpha": 0.5}), prompt, *rollouts)
    for rollout, each in zip(rollouts, found, strict=True):
        ratio = logprobs(models.rewarding, before, rollout.ids) - rollout.logprobs
        np.testing.assert_allclose(each.token_rewards, 2 * ratio, atol=1e-9)
        assert each.parts["t"] == pytest.approx(ratio.sum(), abs=1e-9) and each.values is None


@pytest.mark.parametrize("finished", [True, False])
def test_a_teachers_reward_is_its_endogenous_sum_less_the_first_value_and_the_policys_logprobs(
    models: Folders, finished: bool
) -> None:
    """At alpha = 1: what distillation and the endogenous reward have to do with each other. Of single tokens it does not hold:
    there V(s_h) - V(s_{h+1}) is left over, which only a sum does away with."""
    rollout = sampled(TEXTS[0], finished)
    both = {"t": {"kind": "teacher"}, "own": {"kind": "endogenous"}}
    [each] = rewarded(configured(models, both), prompted(), rollout)
    assert each.values is not None
    endogenous = each.parts["own"] - each.values[0] - rollout.logprobs.sum()
    assert each.parts["t"] == pytest.approx(endogenous, abs=1e-6)
    assert np.abs(np.diff(each.values)).max() > 0.1


# Rewards without a model


def test_maths_is_one_for_an_equivalent_answer(models: Folders) -> None:
    config = configured(models, {"right": {"kind": "maths", "answer_key": "row.gold"}})
    rollouts = [rolled("so it is \\boxed{0.5}"), rolled("\\boxed{2}"), rolled("")]
    found = rewarded(config, prompted(row={"gold": "\\frac{1}{2}"}), *rollouts)
    assert [each.reward for each in found] == [1.0, 0.0, 0.0]
    assert found[0].token_rewards[-1] == 1 and found[0].token_rewards.sum() == 1 and found[0].values is None
    assert rewarded(config, prompted(row={"gold": 0.5}), rollouts[0])[0].reward == 1.0


def test_an_answer_that_cannot_be_checked_in_time_earns_nothing_and_is_said(
    models: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    response, gold = ENDLESS
    assert extract_and_check(rf"\boxed{{{gold}}}", gold, False).correct  # kept: a busy machine takes longer than 1 s
    monkeypatch.setattr("pipeline.rewards.answers.CHECKED_WITHIN_S", 1.0)
    rewards = rewarder(configured(models, {"right": {"kind": "maths"}}))
    for count in (1, 2):  # of all so far
        [[first, second]] = rewards.reward([(prompted(answer=gold), [rolled(response), rolled(rf"\boxed{{{gold}}}")])])
        assert (first.reward, second.reward) == (0.0, 1.0)
        assert rewards.notes[-1].startswith(
            f"rewards.right: {count} of {2 * count} answers could not be checked within 1 s"
        )


@pytest.mark.parametrize("columns", [{"solution": "1"}, {"answer": None, "solution": "1"}, {}])
def test_a_missing_answer_is_named(models: Folders, columns: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"rewards\.right: prompt a\.jsonl:3 .*'answer'.*columns: .*") as raised:
        rewarded(configured(models, {"right": {"kind": "maths"}}), prompted(number=3, **columns), rolled("1"))
    assert ("solution" if columns else "columns: none") in str(raised.value)


def test_length_falls_as_the_paper_says(models: Folders) -> None:
    """arXiv 2503.14476, eq. 13, with L_max = 40 and L_cache = 40 - 10."""
    config = configured(models, {"short": {"kind": "length", "free_tokens": 10}})
    lengths = [1, 10, 11, 25, 40]
    found = rewarded(config, prompted(), *(rolled("x" * n, finished=False) for n in lengths))
    expected = [0.0 if n <= 40 - 30 else ((40 - 30) - n) / 30 for n in lengths]
    assert [each.reward for each in found] == pytest.approx(expected) and expected[-1] == -1


def test_a_share_is_drawn_by_prompt(models: Folders) -> None:
    rewards = {"short": {"kind": "length"}, "some": {"kind": "length", "share": 0.3, "weight": 5.0}}
    config = configured(models, rewards, rl={"seed": 4})
    prompts = [prompted(number=n) for n in range(200)]
    found = rewarder(config).reward([(prompt, [rolled("x"), rolled("y")]) for prompt in prompts])
    for prompt, each in zip(prompts, found, strict=True):
        drawn = int(hashlib.sha256(f"4:some:{prompt.id}".encode()).hexdigest(), 16) / 2**256
        assert [("some" in one.parts) for one in each] == [drawn < 0.3] * 2
        assert each[0].reward == pytest.approx(-2 / 40 * (6 if drawn < 0.3 else 1))
    assert 40 < sum("some" in one.parts for one, _ in found) < 80


# Functions


def written(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).write_text(f"import math\nseen = []\n\ndef rate(prompts, completions, **columns):\n    {body}\n")
    return f"{folder / name}:rate"


def test_a_function_gets_prompts_texts_and_columns_at_once(models: Folders, tmp_path: Path) -> None:
    body = "seen.append((prompts, completions, columns)); return [len(c) or None for c in completions]"
    place = written(tmp_path, body)
    config = configured(models, {"own": {"kind": "function", "function": place, "weight": 2.0}})
    groups = [
        (prompted("one?", 1, gold=1, prompts="hidden"), [rolled("ab"), rolled("")]),
        (prompted("two?", 2, conversational=True, level="hard"), [rolled("abc")]),
    ]
    use = rewarder(config)
    [[first, empty], [second]] = use.reward(groups)
    assert (first.parts, first.reward, first.token_rewards.tolist()) == ({"own": 2.0}, 4.0, [0, 0, 4.0])
    assert (empty.parts, empty.reward, second.reward) == ({}, 0.0, 6.0)
    [(prompts, completions, columns)] = use.sources[0].function.__globals__["seen"]  # type: ignore[attr-defined]
    assert prompts == ["one?", "one?", [{"role": "user", "content": "two?"}]]
    assert completions == ["ab", "", "abc"]
    assert columns == {"gold": [1, 1, None], "level": [None, None, "hard"]}


@pytest.mark.parametrize(
    "given",
    ["[True, 0]", "__import__('numpy').array([1, 0])", "__import__('torch').tensor([1.0, 0])", "(n for n in (1, 0))"],
)
def test_numbers_come_in_many_shapes(models: Folders, tmp_path: Path, given: str) -> None:
    config = configured(models, {"own": {"kind": "function", "function": written(tmp_path, f"return {given}")}})
    assert [each.reward for each in rewarded(config, prompted(), rolled("a"), rolled("b"))] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", "gave 1 values for 2 responses"),
        ("return 0.5", "gave 0.5 .*return a list"),
        ("return None", "gave None .*return a list"),
        ("return [1.0, math.nan]", "gave nan .*finite number"),
        ("return [math.inf, 1.0]", "gave inf .*finite number"),
        ("return [10**400, 1.0]", "gave 1000.*finite number"),
        ("return ['1', '2']", "gave '1' .*finite number"),
        ("return 'ab'", "gave 'a' .*finite number"),
        ("return [[1, 2], 1]", "gave \\[1, 2\\] .*finite number"),
        ("return [__import__('numpy').ones(2), 1]", "gave array.*finite number"),
        ("return columns['nothing']", "raised .*KeyError: 'nothing'; mend"),
        ("return (columns['nothing'] for _ in completions)", "raised .*KeyError: 'nothing'; mend"),
        ("return (len(3) for _ in completions)", "raised .*TypeError: .*; mend"),
        ("return __import__('torch').tensor(0.5)", "gave tensor.*return a list"),
        ("__import__('sys').exit()", "raised .*SystemExit; mend"),
        ("raise SystemExit('no judge')", "raised .*SystemExit: no judge; mend"),
    ],
)
def test_what_a_function_may_not_give(models: Folders, tmp_path: Path, body: str, said: str) -> None:
    place = written(tmp_path, body)
    with pytest.raises(RunError, match=said) as raised:
        config = configured(models, {"own": {"kind": "function", "function": place}})
        rewarded(config, prompted(number=5), rolled("a"), rolled("b"))
    assert place in str(raised.value) and "a.jsonl:5" in str(raised.value) and "rewards.own" in str(raised.value)


def test_an_interrupt_in_a_function_is_no_fault_of_its(models: Folders, tmp_path: Path) -> None:
    place = written(tmp_path, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        rewarded(configured(models, {"own": {"kind": "function", "function": place}}), prompted(), rolled("a"))


# Before anything starts


def test_rewards_that_cannot_be_are_refused_before_anything_starts(models: Folders, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    place = written(tmp_path, "return []", "whole.py")

    def function(told: str) -> dict[str, Any]:
        return {"rewards": {"f": {"kind": "function", "function": told}}}

    foreign, policy = str(models.foreign), str(models.policy)
    discounted = {"gamma": 0.9, "aggregation": "discounted_sum"}
    cases: list[tuple[str, dict[str, Any]]] = [
        (
            f"rewards.t: the teacher {foreign} has another tokenizer than the policy",
            {"rewards": {"t": {"kind": "teacher", "model": foreign}}},
        ),
        (
            "rewards.t: the teacher is the policy as it begins",
            {"rewards": {"t": {"kind": "teacher", "model": policy}}},
        ),
        ("rewards.f.function: there is no file", function(f"{tmp_path}/none.py:rate")),
        ("cannot be imported: ModuleNotFoundError", function(f"{tmp_path}/broken.py:rate")),
        ("cannot be imported: SystemExit", function(f"{tmp_path}/leaves.py:rate")),
        ("no function 'other'; it has rate", function(place.replace(":rate", ":other"))),
        ("no function 'seen'", function(place.replace(":rate", ":seen"))),
        ("there is no model folder", {"rewards": {"own": {"model": str(tmp_path / "no")}}}),
        ("rewards.own: no model", {"reward_model": {"name": ""}}),
        ("token by token", {"rewards": {"g": {"kind": "relative", "reference": foreign}}}),
        ("token by token", {"rewards": {"g": {"kind": "relative", "model": foreign, "reference": policy}}}),
        ("the KL is of the same tokens", {"reference": {"name": foreign}, "rl": {"kl_coefficient": 0.1}}),
        ("free_tokens = 40", {"rewards": {"l": {"kind": "length", "free_tokens": 40}}}),
        ("set both alike", {"reward": discounted, "rl": {"credit": "tokens"}}),
        ("no floor", {"reward": {**discounted, "min_weight": 0.1}, "rl": {"credit": "tokens", "gamma": 0.9}}),
        ("ppo.value = critic", {"reward": {"aggregation": "mean"}, "rl": {"algorithm": "ppo"}}),
        ("ppo.value = critic", {"rewards": {"own": {"share": 0.5}}, "rl": {"algorithm": "ppo"}}),
        ("ppo.value = critic", {"rewards": {"own": {"model": foreign}}, "rl": {"algorithm": "ppo"}}),
        ("neither maths nor", {"held_out": {"check": "right"}}),
        ("held_out.check: there is no file", {"held_out": {"check": "none.py:right"}}),
    ]
    for said, sections in cases:
        with pytest.raises(ConfigError, match=said):
            check_rewards(configured(models, **sections))
    allowed = [
        {"reward": discounted},
        {"reward": discounted, "rl": {"credit": "tokens", "gamma": 0.9}},
        {"rl": {"algorithm": "ppo"}},
        {"reference": {"name": foreign}},
        {"held_out": {"check": place}},
        function(place),
    ]
    assert [check_rewards(configured(models, **sections)) for sections in allowed] == [[]] * len(allowed)
    [warned] = check_rewards(configured(models, reward={"gamma": 0.9}))
    assert "leaks" in warned


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The policy's tokenizer, and a context of 64 tokens where the policy has 256."""
    return str(save_model(tmp_path_factory.mktemp("small") / "small", context=64, seed=5))


def test_responses_that_a_model_has_no_room_for_are_said_before_anything_starts(models: Folders, small: str) -> None:
    prompts = [prompted("x" * n, number=n) for n in (3, 30, 25)]
    rubric = "Be terse."
    offset = len(POLICY(f"{rubric}\n\n")["input_ids"])
    tight = {"rl": {"max_new_tokens": 210}}
    cases: list[tuple[dict[str, Any], str, int, int]] = [
        ({"rewards": {"mine": {"model": small}}}, f"rewards.mine: {small}", 64, 34),
        ({"rewards": {"m": {"model": small, "system_prompt": rubric}}}, "rewards.m:", 64 - offset, 34 - offset),
        ({"rewards": {"m": {"kind": "relative", "reference": small}}}, f"rewards.m: {small}", 64, 34),
        ({"reference": {"name": small}, "rl": {"kl_coefficient": 0.1}}, f"reference: {small}", 64, 34),
        (
            {"rewards": {"m": {"system_prompt": "y" * 40}}, **tight},
            "rewards.m:",
            256 - 42,
            256 - 72,
        ),  # of a rubric alone
    ]
    for sections, said, length, new in cases:
        [note] = check_prompts(configured(models, **sections), prompts[:1], prompts[1:])
        assert note.startswith(said) and "prompt a.jsonl:30 with" in note
        assert f"set tokens.max_length = {length} or rl.max_new_tokens = {new} at most" in note
        for remedy in ({"tokens": {"max_length": length}}, {"rl": {**sections.get("rl", {}), "max_new_tokens": new}}):
            assert check_prompts(configured(models, **{**sections, **remedy}), prompts, []) == []
    [note] = check_prompts(configured(models, {"mine": {"model": small}}, tokens={"max_length": 65}), prompts, [])
    assert "its longest response would have 65" in note


def test_a_context_that_is_long_enough_is_not_mentioned(models: Folders, small: str) -> None:
    prompts = [prompted("x" * n, number=n) for n in (3, 30)]
    for sections in (
        {},
        {"reference": {"name": small}},  # without a KL it is not asked
        {
            "rewards": {"mine": {"model": str(models.foreign)}},
            "rl": {"max_new_tokens": 300},
        },  # texts are cut to what fits
        {"rewards": {"brief": {"kind": "length"}}, "rl": {"max_new_tokens": 300}},
        {"rewards": {"mine": {"model": small}}, "rl": {"replay": "kept"}},
    ):
        assert check_prompts(configured(models, **sections), prompts, []) == []
    some = configured(models, {"mine": {"model": small, "share": 1e-9}})
    assert check_prompts(some, prompts, []) == [], "no prompt is in its share"


@pytest.mark.parametrize("system_prompt", [None, "Be terse."])
def test_a_prompt_that_fills_the_context_is_refused(models: Folders, small: str, system_prompt: str | None) -> None:
    config = configured(models, {"mine": {"model": small, "system_prompt": system_prompt}})
    with pytest.raises(ConfigError, match=r"rewards\.mine: .*prompt a\.jsonl:1.*prompt_too_long.*shorter prompts"):
        check_prompts(config, [prompted("x", 0), prompted("x" * 64, 1)], [])


def test_a_check_says_what_is_right(models: Folders, tmp_path: Path) -> None:
    assert checker(configured(models)) is None
    maths = checker(configured(models, held_out={"check": "maths", "answer_key": "gold"}))
    assert maths is not None
    assert maths(prompted(gold="12"), "It is 12") and not maths(prompted(gold="12"), "It is 13")
    with pytest.raises(InputError, match=r"held_out\.check: prompt a\.jsonl:9 has no right answer"):
        maths(prompted(number=9), "12")
    body = "return [{'half': 0.5, 'more': 0.51}.get(c) for c in completions]"
    own = checker(configured(models, held_out={"check": written(tmp_path, body)}))
    assert own is not None
    assert own(prompted(), "more") and not own(prompted(), "half")
    with pytest.raises(RunError, match="gave None"):
        own(prompted(), "else")


def test_certainty_of_the_policy_is_a_mean_of_its_tokens(models: Folders) -> None:
    """A weighted sum of both, by hand; nothing is loaded for it."""
    rewards = {"sure": {"kind": "self_certainty"}, "calm": {"kind": "negative_entropy", "weight": 2.0}}
    mixture = RewardMixture(configured(models, rewards), "cpu", "float32", hold_reference=False)
    assert not mixture.models.scorers
    certainty = np.array([[0.5, 3.0], [1.5, 1.0], [1.0, 2.0]], np.float32)  # entropy, KL(uniform || pi)
    rollout = Rollout([5, 6, END], "ab", True, np.zeros(3, np.float32), 0, certainty)
    prompt = Prompt("a:0", [], False, [1])
    [[rewarded]] = mixture.reward([(prompt, [rollout])])
    assert rewarded.parts == {"sure": 2.0, "calm": -1.0} and rewarded.reward == 0.0
    np.testing.assert_allclose(rewarded.token_rewards, [(3 - 1) / 3, (1 - 3) / 3, (2 - 2) / 3])
    endless = replace(rollout, certainty=np.where(certainty == 3.0, np.inf, certainty).astype(np.float32))
    with pytest.raises(RunError, match="the policy gives a token of a response to prompt a:0 a logit"):
        mixture.reward([(prompt, [endless])])


def test_certainty_needs_the_logits(models: Folders) -> None:
    config = configured(models, {"sure": {"kind": "self_certainty"}}, sampler={"engine": "vllm"})
    with pytest.raises(ConfigError, match=r"set sampler\.engine = transformers"):
        check_rewards(config)
