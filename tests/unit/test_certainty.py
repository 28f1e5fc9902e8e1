"""Entropy and self-certainty of each token: against the full distribution in float64, and what is made of the columns."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from tiny import SMALL, save_model
from torch.utils._python_dispatch import TorchDispatchMode

import endoreward
from jobs.stores.aggregate import _changed
from pipeline.config import CERTAINTY, EvaluateConfig, LabelConfig, RewardConfig
from pipeline.corpus import Shard
from pipeline.corpus.samples import Turn
from pipeline.errors import ConfigError, RowError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.stores import evaluated
from pipeline.evaluation.variants import check_rewards, variants_of
from pipeline.models.scores import Scores
from pipeline.models.scoring import Scorer
from pipeline.models.scoring.head import reduce_logits
from pipeline.report.bias import bias_by_aggregation
from pipeline.rewards.derive import NO_TOKENS, outcomes, relabel, reward_grid, rewards_of
from pipeline.rewards.labellers import Endogenous
from pipeline.rewards.labelling import label
from pipeline.rl.sources.endogenous import earned
from pipeline.store import LabelStore, commit
from pipeline.store.schema import LABELS, WIDE_LABELS, Label, labels_table
from pipeline.store.validate import SCHEMAS
from pipeline.tokens import TokenizedTurn

LENGTHS = (1, 2, 7, 40, 3, 12)
ON = {"token_certainty": True}


def exact(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the softmax and KL(uniform || softmax) of rows of logits, in float64, by their definitions."""
    logits = np.asarray(logits, np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    uniform = 1 / logits.shape[1]
    entropies = -(np.exp(logprobs) * logprobs).sum(axis=1)
    return entropies, (uniform * (np.log(uniform) - logprobs)).sum(axis=1)


class LargeResults(TorchDispatchMode):
    """Counts results of at least `size` entries that are new: of operations that do not write into their first argument."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        known = {each.data_ptr() for each in (*args, *(kwargs or {}).values()) if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.numel() >= self.size and result.data_ptr() not in known:
            self.count += 1
        return result


@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_two_more_reductions_leave_the_others_to_the_bit(alpha: float, scale: float) -> None:
    logits = torch.randn(20, 997, generator=torch.Generator().manual_seed(0)) * scale + 50
    taken = torch.arange(20)
    plain, with_both = reduce_logits(logits.clone(), taken, alpha), reduce_logits(logits.clone(), taken, alpha, True)
    for name in ("q", "values", "logprobs"):
        assert torch.equal(getattr(plain, name), getattr(with_both, name))
    assert plain.entropies is plain.self_certainty is None
    entropies, certainty = exact(logits.numpy())
    np.testing.assert_allclose(with_both.entropies, entropies, atol=2e-6 * max(1, scale))
    np.testing.assert_allclose(with_both.self_certainty, certainty, rtol=1e-6, atol=2e-6 * max(1, scale))


def test_no_second_slice_of_logits_is_made() -> None:
    taken = torch.arange(8)
    with LargeResults(8 * 1000) as counted:
        reduce_logits(torch.zeros(8, 1000), taken, 1.0)
    made = counted.count
    with LargeResults(8 * 1000) as counted:
        reduce_logits(torch.zeros(8, 1000), taken, 1.0, True)
    assert counted.count == made


def model() -> torch.nn.Module:
    torch.manual_seed(7)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()


def turns() -> list[TokenizedTurn]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 97, n).tolist() for n in (1, 9)]
    return [TokenizedTurn(prompts[i % 2], rng.integers(1, 97, n).tolist(), []) for i, n in enumerate((1, 12, 5, 30))]


@pytest.mark.parametrize("sliced", [True, False])
def test_the_scorer_gives_both_at_temperature_1_whatever_else_is_in_the_batch(sliced: bool) -> None:
    together, alone = (Scorer(model(), alpha=0.3, certainty=True, budget_tokens=n) for n in (10**6, 1))
    plain = Scorer(model(), alpha=0.3)
    for scorer in (together, alone, plain):
        assert scorer.head is not None
        scorer.head.rows = 7  # several slices
        if not sliced:  # from the model's own logits
            scorer.head, scorer.layout = None, "plain"
    exactly = copy.deepcopy(model()).double()
    for turn, got, other in zip(turns(), together.score(turns()), plain.score(turns()), strict=True):
        with torch.no_grad():
            ids = torch.tensor([[*turn.prompt_ids.tolist(), *turn.response_ids.tolist()]])
            logits = exactly(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
        [by_itself] = alone.score([turn])
        for scores in (got, by_itself):
            assert isinstance(scores, Scores)
            entropies, certainty = exact(logits.numpy())
            np.testing.assert_allclose(scores.entropies, entropies, atol=1e-4)
            np.testing.assert_allclose(scores.self_certainty, certainty, atol=1e-4)
        assert isinstance(other, Scores) and isinstance(got, Scores) and other.entropies is None
        for name in ("q", "values", "logprobs"):
            assert getattr(got, name).tobytes() == getattr(other, name).tobytes()


def test_an_infinite_logit_is_an_error_row_only_where_the_columns_are_asked_for() -> None:
    for certainty, is_error in ((True, True), (False, False)):
        scorer = Scorer(model(), certainty=certainty)
        assert scorer.head is not None
        scorer.head.bias = torch.zeros(97)
        scorer.head.bias[96] = -torch.inf
        [result] = scorer.score([TokenizedTurn([1, 2], [3, 4], [])])
        assert isinstance(result, RowError) == is_error
        if isinstance(result, RowError):
            assert result.reason == "not_finite" and "reward.token_certainty" in result.detail


# What is made of the columns


def drawn(alpha: float, with_certainty: bool = True) -> list[tuple[Turn, TokenizedTurn, Scores, np.ndarray]]:
    """Responses to random logits, which are the fourth of each."""
    rng = np.random.default_rng(0)
    responses = []
    for row, length in enumerate(LENGTHS):
        logits = rng.normal(size=(length, 11)) * 4 + rng.normal(size=(length, 1)) * 10
        q = logits[:, row]
        logsum = np.logaddexp.reduce(logits, axis=1)
        values = alpha * np.logaddexp.reduce(logits / alpha, axis=1)
        scores = Scores(q, values, q - logsum, *(exact(logits) if with_certainty else ()))
        side = ("chosen", "rejected")[row % 2]
        turn = Turn(f"a:{row // 2}:{side}:0:0", f"a:{row // 2}", side, 0, 0, [], "text", False, None, {})  # type: ignore[arg-type]
        tokens = TokenizedTurn([1, 2], [row] * length, [{"role": "user", "content": "?"}])
        responses.append((turn, tokens, scores, logits))
    return responses


def labels(config: RewardConfig) -> list[Label]:
    return [label(*each, config) for *each, _ in drawn(config.alpha, config.token_certainty)]


def labelled(config: RewardConfig) -> pa.Table:
    return labels_table(labels(config))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_rewards_are_means_of_the_distribution_in_float64(alpha: float) -> None:
    expected = [exact(logits) for *_, logits in drawn(alpha)]
    wanted = {"negative_entropy": [-e.mean() for e, _ in expected], "self_certainty": [c.mean() for _, c in expected]}
    for name in CERTAINTY:
        config = RewardConfig.model_validate({**ON, "alpha": alpha, "aggregation": name})
        np.testing.assert_allclose(labelled(config)["reward"], wanted[name], rtol=1e-6)
        plain = RewardConfig.model_validate({**ON, "alpha": alpha})
        assert labels_table(relabel(labelled(plain), plain, config)).equals(labelled(config))
        np.testing.assert_allclose(rewards_of(labelled(plain), plain, config), wanted[name], rtol=1e-6)
        share = earned(drawn(alpha)[3][2], config)
        assert share.reward == pytest.approx(wanted[name][3], rel=1e-6)
        assert share.tokens.sum() == pytest.approx(share.reward, rel=1e-6)


def test_the_columns_are_stored_only_when_asked_for_and_move_no_other() -> None:
    off, on = labelled(RewardConfig()), labelled(RewardConfig(token_certainty=True))
    assert off.schema.equals(LABELS) and on.schema.equals(WIDE_LABELS) and WIDE_LABELS in SCHEMAS["labels"]
    assert on.select(LABELS.names).equals(off)


def test_the_description_names_the_switch_only_where_it_is_on(tmp_path: Path) -> None:
    def described(**reward: object) -> dict[str, object]:
        config = LabelConfig.model_validate({"model": {"name": str(save_model(tmp_path))}, "reward": reward})
        return Endogenous(config, config.model).settings()

    assert list(described()) == [
        "reward.alpha", "reward.gamma", "reward.aggregation", "reward.subtract_initial_value", "reward.min_weight",
    ]  # fmt: skip
    assert described(**ON) == {**described(), "reward.token_certainty": True}


def test_a_sweep_shows_them_where_the_store_has_them() -> None:
    off, on = RewardConfig(), RewardConfig(token_certainty=True)
    assert not {config.aggregation for config in reward_grid(off, [1.0])} & set(CERTAINTY)
    grid = reward_grid(on, [1.0, 0.9])
    assert [config.aggregation for config in grid if config.aggregation in CERTAINTY] == list(CERTAINTY)
    for config, outcome in zip(grid, outcomes(labelled(on), on, grid), strict=True):
        anew = labelled(config)["reward"].to_numpy()
        assert outcome.pairs.right == (anew[::2] > anew[1::2]).sum()
    names = [name for name, _ in bias_by_aggregation(labelled(on), on)]
    assert names[-2:] == list(CERTAINTY)


def test_what_a_store_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="only token_certainty = true stores"):
        RewardConfig(aggregation="self_certainty")
    off, wanted = RewardConfig(), RewardConfig(aggregation="negative_entropy", token_certainty=True)
    with pytest.raises(ConfigError, match=r"label anew with reward\.token_certainty = true"):
        rewards_of(labelled(off), off, wanted)
    with pytest.raises(ConfigError, match=r"label anew with reward\.token_certainty = true"):
        relabel(labelled(off), off, wanted)
    with pytest.raises(ConfigError, match="its columns need the model: label anew with true"):
        _changed(off, ["reward.token_certainty=true"])
    assert _changed(RewardConfig(**ON), ["reward.aggregation=self_certainty"]).aggregation == "self_certainty"
    on = RewardConfig(token_certainty=True)
    with pytest.raises(ConfigError, match=NO_TOKENS):
        relabel(labelled(on).drop_columns(["token_entropies"]), on, wanted)
    short = [dataclasses.replace(each, token_entropies=np.ones(1, np.float32)) for each in labels(on)]
    with pytest.raises(ConfigError, match="differ in length"):
        rewards_of(labels_table(short), on, wanted)


def test_evaluate_reads_them_from_a_store(tmp_path: Path) -> None:
    on = RewardConfig(token_certainty=True)
    for number, part in enumerate((labels(on)[:2], labels(on)[2:])):
        commit(str(tmp_path), Shard("a", number, 0, 10, 10, "0" * 64, 0, 10), "f", 0, part, [])
    rewards = {"rewards": ["self-certainty", "endogenous", "negative-entropy"]}
    config = EvaluateConfig.model_validate({"evaluate": rewards, "reward": ON, "model": {"name": "m"}})
    check_rewards(config)
    found = evaluated({"endogenous": LabelStore(str(tmp_path))}, variants_of(config, on), find_benchmark("pairs"))
    by_name = {each.variant.name: each for each in found}
    assert list(by_name) == [
        "self-certainty", "endogenous (sum)", "endogenous (mean)", "endogenous (discounted_sum, gamma 0.95)",
        "negative-entropy",
    ]  # fmt: skip
    expected = [exact(logits)[1].mean() for *_, logits in drawn(1.0)]
    got = [item.chosen[0].reward for item in by_name["self-certainty"].items]
    np.testing.assert_allclose(got, expected[::2], rtol=1e-6)
    with pytest.raises(ConfigError, match=r"give --set reward\.token_certainty=true"):
        check_rewards(config.model_copy(update={"reward": RewardConfig()}))
    with pytest.raises(ConfigError, match=r"label anew with reward\.token_certainty = true"):
        variants_of(config, RewardConfig())


def test_a_python_scorer_gives_them(tmp_path: Path) -> None:
    scorer = endoreward.Scorer.from_pretrained(save_model(tmp_path), reward=ON)
    one = scorer.score("ab?", "cd a")
    assert set(CERTAINTY) <= set(one.rewards) and one.token_entropies is not None
    assert one.reward_under(aggregation="negative_entropy") == pytest.approx(-one.token_entropies.mean(), rel=1e-6)
    plain = endoreward.Scorer.from_pretrained(save_model(tmp_path)).score("ab?", "cd a")
    assert plain.token_entropies is None and plain.reward == one.reward and not set(CERTAINTY) & set(plain.rewards)
