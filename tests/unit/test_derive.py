"""Rewards of stored tokens under another configuration, against labelling anew; pairs, against what is written out."""

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.stores.sweep import GAMMAS, sweep
from pipeline.config import RewardConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import ConfigError
from pipeline.models.scores import Scores
from pipeline.rewards.derive import TOKEN_COLUMNS, Outcome, outcomes, relabel, reward_grid, rewards_of, stored_reward
from pipeline.rewards.endogenous import soft_value
from pipeline.rewards.labelling import label, labels_of
from pipeline.store.pairs import PairCounts, preference_pairs
from pipeline.store.schema import LABELS, labels_table
from pipeline.store.summary import ShardStats
from pipeline.tokens import TokenizedTurn

LENGTHS = (1, 2, 7, 40, 3, 1, 300, 12)
ALPHAS = (1.0, 0.5)
REWARDS = [
    {"aggregation": "mean"},
    {"aggregation": "mean", "gamma": 0.9},
    {"aggregation": "sum"},
    {"aggregation": "sum", "gamma": 0.9, "subtract_initial_value": True},
    {"aggregation": "discounted_sum", "gamma": 0.9},
    {"aggregation": "discounted_sum", "gamma": 0.0},
    {"aggregation": "discounted_sum", "gamma": 0.7, "min_weight": 0.2, "subtract_initial_value": True},
    {"aggregation": "discounted_logprobs", "gamma": 0.93, "min_weight": 0.03},
    {"aggregation": "discounted_logprobs", "gamma": 0.9},
]


def labelled(config: RewardConfig) -> pa.Table:
    """What `labelling.label` makes of responses to random logits, which depend on the seed and alpha alone."""
    return labels_table([label(*each, config) for each in scored(config.alpha)])


def scored(alpha: float) -> list[tuple[Turn, TokenizedTurn, Scores]]:
    rng = np.random.default_rng(0)
    responses = []
    for row, length in enumerate(LENGTHS):
        logits = rng.normal(size=(length, 11)) * 4 + rng.normal(size=(length, 1)) * 10
        actions = rng.integers(11, size=length)
        q = logits[np.arange(length), actions]
        scores = Scores(q, soft_value(logits, alpha), q - soft_value(logits))
        side = ("chosen", "rejected")[row % 2]
        turn = Turn(f"a:{row // 2}:{side}:0:0", f"a:{row // 2}", side, 0, 0, [], "text", False, None, {"n": row})  # type: ignore[arg-type]
        tokens = TokenizedTurn([1, 2], actions.tolist(), [{"role": "user", "content": f"question {row // 2}"}])
        responses.append((turn, tokens, scores))
    return responses


def configs(alpha: float) -> list[RewardConfig]:
    return [RewardConfig.model_validate({"alpha": alpha, **fields}) for fields in REWARDS]


@pytest.mark.parametrize("config", [*configs(1.0), *configs(0.5)])
def test_labels_of_many_are_each_label_to_the_last_bit(config: RewardConfig) -> None:
    many = labels_of(scored(config.alpha), config)
    assert labels_table(many).equals(labelled(config))
    for made, (_, _, scores) in zip(many, scored(config.alpha), strict=True):
        values = scores.values.astype(np.float32)
        following = np.append(values[1:].astype(np.float64), 0.0)
        q = scores.logprobs.astype(np.float32).astype(np.float64) + values
        if config.alpha != 1:
            q = scores.q - config.gamma * following + config.gamma * following
        rewards = (q - config.gamma * following).astype(np.float32)
        assert made.token_values.tobytes() == values.tobytes()
        assert made.token_rewards.tobytes() == rewards.tobytes()
        if config.aggregation == "sum":
            first = float(values[0]) if config.subtract_initial_value else 0.0
            assert made.reward == float(np.add.reduce(rewards.astype(np.float64))) - first


@pytest.mark.parametrize(("before", "after"), [*product(configs(1.0), configs(1.0))])
def test_relabelling_at_alpha_1_is_labelling_anew_to_the_last_bit(before: RewardConfig, after: RewardConfig) -> None:
    assert labels_table(relabel(labelled(before), before, after)).equals(labelled(after))


@pytest.mark.parametrize(("before", "after"), [*product(configs(0.5), configs(0.5))])
def test_relabelling_at_another_alpha(before: RewardConfig, after: RewardConfig) -> None:
    found, wanted = labels_table(relabel(labelled(before), before, after)), labelled(after)
    if before.gamma == after.gamma:
        assert found.equals(wanted)
    others = [name for name in wanted.column_names if name not in ("reward", "token_rewards")]
    assert found.select(others).equals(wanted.select(others))
    rounding = 2.0**-22 * np.abs(np.concatenate(wanted["token_rewards"].to_numpy())).max()
    np.testing.assert_allclose(found["reward"], wanted["reward"], atol=rounding * max(LENGTHS))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_responses_at_once_are_each_response_by_itself(alpha: float) -> None:
    for before, after in product(configs(alpha), configs(alpha)):
        labels = labelled(before)
        wanted = [each.reward for each in relabel(labels, before, after)]
        np.testing.assert_allclose(rewards_of(labels, before, after), wanted, rtol=1e-9)


@pytest.mark.parametrize("stored", [RewardConfig(), RewardConfig(aggregation="mean"), RewardConfig(gamma=0.9)])
def test_the_whole_sweep_is_labelling_anew_with_each(stored: RewardConfig) -> None:
    """Three aggregations at the eight gammas that `sweep` takes by itself: its rewards, and the pairs they get right."""
    labels, grid = labelled(stored), reward_grid(stored, GAMMAS)
    assert {(c.aggregation, c.gamma) for c in grid} >= {*product(("sum", "discounted_sum"), GAMMAS)}
    for wanted, outcome in zip(grid, outcomes(labels, stored, grid), strict=True):
        anew = labelled(wanted)["reward"].to_numpy()
        np.testing.assert_allclose(rewards_of(labels, stored, wanted), anew, rtol=1e-9)
        assert outcome.pairs.right == (anew[::2] > anew[1::2]).sum() and outcome.pairs.pairs == len(anew) // 2


def test_the_rewards_are_those_of_the_logits() -> None:
    """Closed forms in float64: the stored float32 columns may cost a rounding each token, no more."""
    stored = RewardConfig()
    labels = labelled(stored)
    logprobs = [np.array(row) for row in labels["token_logprobs"].to_pylist()]
    first = np.array([row[0] for row in labels["token_values"].to_pylist()])
    for gamma in (1.0, 0.9):
        wanted = RewardConfig(gamma=gamma, aggregation="discounted_sum")
        telescoped = first + [np.sum(gamma ** np.arange(len(row)) * row) for row in logprobs]
        np.testing.assert_allclose(rewards_of(labels, stored, wanted), telescoped, rtol=1e-6)
    mean = rewards_of(labels, stored, RewardConfig(aggregation="mean"))
    np.testing.assert_allclose(mean, [row.mean() for row in logprobs], rtol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_floor_on_log_pi_leaks_nothing_where_one_on_rewards_does(alpha: float) -> None:
    """In float64 from the logits' own Q and V, and again with another level of the logits of each state."""
    fields = {"alpha": alpha, "gamma": 0.93, "min_weight": 0.03}
    of_logprobs = RewardConfig.model_validate({**fields, "aggregation": "discounted_logprobs"})
    of_rewards = RewardConfig.model_validate({**fields, "aggregation": "discounted_sum"})
    assert of_logprobs.warnings() == [] and "leak" in of_rewards.warnings()[0]
    level = np.random.default_rng(1)
    for turn, tokens, scores in scored(alpha):
        logprobs = scores.q - scores.values  # alpha log pi at temperature alpha
        wanted = sum(max(0.93**h, 0.03) * each for h, each in enumerate(logprobs))
        shift = np.append(0.0, level.normal(size=len(logprobs) - 1) * 10)  # V(s_1) stays: it is the prompt's
        moved = Scores(scores.q + shift, scores.values + shift, scores.logprobs)
        here, there = (label(turn, tokens, each, of_logprobs).reward for each in (scores, moved))
        assert here == pytest.approx(wanted, rel=1e-5) and there == pytest.approx(here, rel=1e-4, abs=1e-4)
        if len(logprobs) > 60:  # where the floor holds
            here, there = (label(turn, tokens, each, of_rewards).reward for each in (scores, moved))
            assert abs(here - there) > 0.3


def test_a_floor_is_swept_on_both() -> None:
    stored = RewardConfig()
    assert "discounted_logprobs" not in {config.aggregation for config in reward_grid(stored, GAMMAS)}
    grid = reward_grid(stored, [0.93], floor=0.03)
    floors = {(c.aggregation, c.gamma): c.min_weight for c in grid}
    assert floors["discounted_sum", 0.93] == floors["discounted_logprobs", 0.93] == 0.03
    assert floors["sum", 1.0] == floors["mean", 1.0] == 0 and stored in grid
    own = RewardConfig(aggregation="discounted_sum", gamma=0.9, min_weight=0.2)
    assert own in reward_grid(own, [0.93], floor=0.03)
    for config, outcome in zip(grid, outcomes(labelled(stored), stored, grid), strict=True):
        anew = labelled(config)["reward"].to_numpy()
        assert outcome.pairs.right == (anew[::2] > anew[1::2]).sum()
    with pytest.raises(ConfigError, match=r"--floor 1\.5: the floor of a weight"):
        sweep("nowhere", floor=1.5)


def test_slices_and_chunks_are_read_as_they_stand() -> None:
    stored, wanted = configs(1.0)[2], configs(1.0)[6]
    labels = labelled(stored)
    whole = rewards_of(labels, stored, wanted)
    np.testing.assert_allclose(rewards_of(labels[2:5], stored, wanted), whole[2:5], rtol=1e-12)
    chunked = pa.concat_tables([labels[3:], labels[:3]])
    np.testing.assert_allclose(rewards_of(chunked, stored, wanted), np.roll(whole, -3), rtol=1e-12)
    assert len(rewards_of(LABELS.empty_table(), stored, wanted)) == 0
    assert relabel(LABELS.empty_table(), stored, wanted) == []
    assert labels_table(relabel(labels[2:5], stored, wanted)).equals(labelled(wanted)[2:5])


def test_what_the_tokens_do_not_say_is_refused() -> None:
    stored = RewardConfig()
    labels = labelled(stored)
    with pytest.raises(ConfigError, match="another alpha needs the model"):
        rewards_of(labels, stored, RewardConfig(alpha=2))
    with pytest.raises(ConfigError, match="another alpha needs the model"):
        relabel(labels, stored, RewardConfig(alpha=2))
    for name in TOKEN_COLUMNS:
        labels_of_another_kind = labels.set_column(
            labels.schema.get_field_index(name), LABELS.field(name), pa.array([[]] * 8, LABELS.field(name).type)
        )
        with pytest.raises(ConfigError, match="no token rewards"):
            rewards_of(labels_of_another_kind, stored, RewardConfig(gamma=0.5))
        with pytest.raises(ConfigError, match="no token rewards"):
            rewards_of(labels.drop_columns([name]), stored, RewardConfig(gamma=0.5))
    other = labels.set_column(6, LABELS.field("reward"), pa.array(np.arange(8.0)))
    with pytest.raises(ConfigError, match="no token rewards"):
        relabel(other, stored, RewardConfig(gamma=0.5))
    with pytest.raises(ConfigError, match="no token rewards"):
        stored_reward({"classifier.output": 0})


def test_the_stored_reward_is_read_from_a_description() -> None:
    for config in configs(0.5):
        description = {f"reward.{name}": value for name, value in config.model_dump().items()}
        assert stored_reward({"format": 1, **description}) == config


# Outcomes


def test_a_grid_holds_the_stored_reward_once_and_mean_once() -> None:
    gammas = (1.0, 0.9, 0.5)
    for stored in [*configs(1.0), *configs(0.5)]:
        grid = reward_grid(stored, gammas)
        assert grid.count(stored) == 1 and len({config.model_dump_json() for config in grid}) == len(grid)
        assert [config.aggregation for config in grid].count("mean") == 1
        sums = {(config.aggregation, config.gamma) for config in grid} - {("mean", stored.gamma)}
        assert sums >= set(product(("sum", "discounted_sum"), gammas))
        for config in grid:
            assert RewardConfig.model_validate(config.model_dump()) == config and config.alpha == stored.alpha


def test_outcomes_of_parts_merge_to_what_the_summary_of_all_says() -> None:
    stored = RewardConfig()
    labels, wanted = labelled(stored), configs(1.0)
    parts = [outcomes(part, stored, wanted) for part in (labels[:2], labels[2:6], labels[6:])]
    for config, *found in zip(wanted, *parts, strict=True):
        merged = sum(found, Outcome())
        said = ShardStats.of(labelled(config)).summary()
        assert said.pairs and merged.pairs.right == said.pairs.right and merged.pairs.pairs == said.pairs.pairs == 4
        assert merged.margin.mean_x == pytest.approx(said.pairs.margin.mean, rel=1e-9)
        assert merged.labels.correlation == pytest.approx(said.length.reward_length_correlation, rel=1e-9)


# Pairs


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def table(*rows: dict[str, Any]) -> pa.Table:
    usual = {"rubric": None, "preference": None, "response_index": 0, "turn": 0, "prompt": [user("q")], "reward": 0.0}
    schema = pa.schema([LABELS.field(name) for name in ("prompt_id", *usual, "response", "response_other")])
    return pa.Table.from_pylist([{**usual, "response": f"answer {i}", **row} for i, row in enumerate(rows)], schema)


def test_known_preferences_stand_whatever_the_rewards_say() -> None:
    found, counts = preference_pairs(
        table(
            {"prompt_id": "a", "preference": "rejected", "reward": 3.0},
            {"prompt_id": "a", "preference": "chosen", "reward": 1.0},
            {"prompt_id": "b", "preference": "chosen", "reward": 2.0, "rubric": "x"},
            {"prompt_id": "b", "preference": "rejected", "reward": 0.5, "rubric": "x"},
            {"prompt_id": "b", "preference": "rejected", "reward": 1.5, "rubric": "x", "response_index": 1},
            {"prompt_id": "b", "preference": "chosen", "reward": 9.0, "rubric": "y"},
            {"prompt_id": "c", "preference": "rejected", "reward": 1.0},
            {"prompt_id": "c", "preference": "rejected", "reward": 2.0, "response_index": 1},
        )
    )
    assert counts == PairCounts(known=3, against=1, alone=2)
    assert [row["margin"] for row in found] == [-2.0, 1.5, 0.5]
    assert found[0] == {
        "prompt": [user("q")],
        "chosen": [assistant("answer 1")],
        "rejected": [assistant("answer 0")],
        "chosen_reward": 1.0,
        "rejected_reward": 3.0,
        "margin": -2.0,
        "prompt_id": "a",
        "rubric": None,
    }


def test_without_preferences_the_rewards_decide() -> None:
    found, counts = preference_pairs(
        table(
            *({"prompt_id": "a", "response_index": i, "reward": r} for i, r in enumerate((1.0, 5.0, -2.0, 5.0))),
            *({"prompt_id": "tie", "response_index": i, "reward": 1.0} for i in range(2)),
            {"prompt_id": "alone", "reward": 1.0},
            {"prompt_id": "turns", "turn": 0, "reward": 1.0},
            {"prompt_id": "turns", "turn": 1, "reward": 2.0},
        )
    )
    assert counts == PairCounts(by_reward=1, ties=1, alone=2)
    [pair] = found
    assert (pair["chosen"], pair["rejected"]) == ([assistant("answer 1")], [assistant("answer 2")])
    assert pair["margin"] == 7.0


def test_conversations_part_where_they_differ() -> None:
    """The last labelled turn stands for a response; what it has of its own goes before it, not into the prompt."""
    begin = [user("q"), assistant("one"), user("and?")]
    found, _ = preference_pairs(
        table(
            {"prompt_id": "a", "preference": "chosen", "turn": 0, "response": "early"},
            {"prompt_id": "a", "preference": "chosen", "turn": 1, "prompt": begin, "response": "late"},
            {"prompt_id": "a", "preference": "rejected", "turn": 0, "response": "other"},
        )
    )
    [pair] = found
    assert pair["prompt"] == [user("q")]
    assert pair["chosen"] == [assistant("one"), user("and?"), assistant("late")]
    assert pair["rejected"] == [assistant("other")]
