"""Merged statistics against numpy on all labels together, and pairs against enumeration."""

import json
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from pipeline.store.summary import Moments, ShardStats, find_pairs, merge, plain, signed, summary_rows, wilson_interval

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "preference": pa.string(),
        "response_index": pa.int32(),
        "reward": pa.float64(),
        "num_tokens": pa.int32(),
        "num_prompt_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "turn": pa.int32(),
        "rubric": pa.string(),
    }
)


def label(prompt_id: str, preference: str | None, reward: float, tokens: int = 5, **others: Any) -> dict[str, Any]:
    base = {"response_index": 0, "num_prompt_tokens": 7, "truncated": False, "turn": 0, "rubric": None}
    return base | {"prompt_id": prompt_id, "preference": preference, "reward": reward, "num_tokens": tokens} | others


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def random_rows(
    rng: np.random.Generator, prompts: int, rubrics: tuple[str | None, ...] = (None,), level: float = 0.0
) -> list[dict[str, Any]]:
    """Labels of prompts with 0 to 3 responses of each kind and 1 or 2 turns; rewards on a grid, so that ties occur."""
    rows = []
    for prompt, rubric, kind in product(range(prompts), rubrics, ("chosen", "rejected", None)):
        for index, turns in enumerate(rng.integers(1, 3, rng.integers(0, 4))):
            for turn in range(turns):
                tokens = int(rng.integers(1, 12))
                reward = level - tokens + round(rng.normal(scale=3)) / 3
                place = {"response_index": index, "turn": turn, "rubric": rubric, "truncated": bool(rng.random() < 0.2)}
                rows.append(label(f"f:{prompt}", kind, reward, tokens, **place))
    return rows


def enumerate_pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    def is_last(row: dict[str, Any]) -> bool:
        same = ("prompt_id", "rubric", "preference", "response_index")
        return all(row["turn"] >= other["turn"] for other in rows if all(row[k] == other[k] for k in same))

    return [
        (a, b)
        for a, b in product(rows, rows)
        if (a["preference"], b["preference"]) == ("chosen", "rejected")
        and (a["prompt_id"], a["rubric"]) == (b["prompt_id"], b["rubric"])
        and is_last(a)
        and is_last(b)
    ]


def split(rng: np.random.Generator, rows: list[dict[str, Any]], shards: int) -> list[list[dict[str, Any]]]:
    """Rows in shards, some of them empty, all rows of a prompt in one."""
    place = {prompt_id: rng.integers(shards) for prompt_id in {row["prompt_id"]: None for row in rows}}
    return [[row for row in rows if place[row["prompt_id"]] == shard] for shard in range(shards)]


@pytest.mark.parametrize(("seed", "rubrics", "level"), [(0, (None,), 0.0), (1, ("a", "b"), 0.0), (2, (None,), 1e3)])
def test_merged_shards_equal_numpy_on_all_labels(seed, rubrics, level):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 25, rubrics, level)
    found = merge(ShardStats.of(table(shard)) for shard in split(rng, rows, 9)).summary().model_dump()

    def near(value: float) -> Any:
        return pytest.approx(value, rel=1e-12)

    reward, tokens = np.array([r["reward"] for r in rows]), np.array([r["num_tokens"] for r in rows])
    assert found["labels"] == len(rows)
    assert found["truncated"] == sum(r["truncated"] for r in rows)
    assert found["tokens"] == {"response": tokens.sum(), "prompt": 7 * len(rows)}
    assert (found["reward"]["min"], found["reward"]["max"]) == (reward.min(), reward.max())
    assert (found["reward"]["mean"], found["reward"]["std"]) == (near(reward.mean()), near(reward.std()))
    for kind in ("chosen", "rejected"):
        of = np.array([r["preference"] == kind for r in rows])
        assert found["preferences"][kind]["labels"] == of.sum()
        assert found["preferences"][kind]["mean"] == near(reward[of].mean())
        assert found["preferences"][kind]["std"] == near(reward[of].std())
        assert found["length"][f"{kind}_tokens_mean"] == near(tokens[of].mean())

    pairs = enumerate_pairs(rows)
    margin = np.array([a["reward"] - b["reward"] for a, b in pairs])
    longer = np.array([a["num_tokens"] - b["num_tokens"] for a, b in pairs])
    right, ties, unequal = margin > 0, margin == 0, longer != 0
    assert ties.any()
    assert found["pairs"] == {
        "pairs": len(pairs),
        "right": right.sum(),
        "ties": ties.sum(),
        "accuracy": right.mean(),
        "margin": {"mean": near(margin.mean()), "std": near(margin.std())},
    }
    length = found["length"]
    assert length["reward_length_correlation"] == near(np.corrcoef(reward, tokens)[0, 1])
    assert length["margin_length_correlation"] == near(np.corrcoef(margin, longer)[0, 1])
    assert length["longer_wins"] == near((margin * longer > 0)[unequal].mean())
    assert length["chosen_longer"] == near((longer > 0)[unequal].mean())
    assert length["accuracy_chosen_longer"] == near(right[longer > 0].mean())
    assert length["accuracy_chosen_shorter"] == near(right[longer < 0].mean())
    if rubrics == (None,):
        assert found["rubrics"] is None
    else:
        for name in rubrics:
            of = np.array([a["rubric"] == name for a, _ in pairs])
            assert found["rubrics"][name]["pairs"] == of.sum()
            assert found["rubrics"][name]["accuracy"] == near(right[of].mean())


def test_find_pairs_gives_the_rows_of_every_chosen_and_rejected():
    rows = random_rows(np.random.default_rng(3), 12, ("a", None))
    found = [(rows[c], rows[r]) for c, r in find_pairs(table(rows))]
    assert sorted(map(str, found)) == sorted(map(str, enumerate_pairs(rows)))


def test_any_grouping_of_shards_gives_the_same_counts_and_nearly_the_same_figures():
    rng = np.random.default_rng(4)
    stats = [ShardStats.of(table(rows)) for rows in split(rng, random_rows(rng, 40), 8)]
    whole = merge(stats)
    assert merge(stats) == whole  # the same order: the same bits
    grouped = merge([merge(stats[:3]), merge([]), merge(stats[3:])]).summary().model_dump()
    expected = whole.summary().model_dump()
    assert grouped["pairs"]["right"] == expected["pairs"]["right"]
    assert grouped["pairs"]["margin"] == pytest.approx(expected["pairs"]["margin"], rel=1e-12)
    assert grouped["reward"] == pytest.approx(expected["reward"], rel=1e-12)


def test_statistics_do_not_depend_on_the_order_of_rows():
    rows = random_rows(np.random.default_rng(5), 20)
    assert ShardStats.of(table(rows)) == ShardStats.of(table(rows[::-1]))


def test_records_round_trip_exactly():
    rng = np.random.default_rng(6)
    for rows in ([], random_rows(rng, 5), random_rows(rng, 5, ("a", "b")), [label("p", None, 0.1)]):
        stats = ShardStats.of(table(rows))
        assert TypeAdapter(ShardStats).validate_json(json.dumps(stats.to_json(), allow_nan=False)) == stats


def test_many_merges_keep_a_small_spread_on_a_high_level():
    """The naive sum of squares has no digit left here: 1e9 squared is 1e18."""
    rng = np.random.default_rng(7)
    x = 1e9 + rng.normal(size=20_000)
    merged = sum((Moments.of(part, part) for part in np.split(x, 2000)), Moments())
    assert merged.std_x == pytest.approx(x.std(), rel=1e-7)


def test_no_label():
    summary = merge([ShardStats.of(table([]))]).summary()
    assert (summary.labels, summary.pairs, summary.preferences, summary.rubrics) == (0, None, None, None)
    assert summary.reward.model_dump() == {"mean": None, "std": None, "min": None, "max": None}
    assert set(summary.length.model_dump().values()) == {None}
    assert summary_rows(summary) == [("Labels", "0")]
    json.dumps(summary.model_dump(), allow_nan=False)


def test_what_is_undefined_is_none():
    one = ShardStats.of(table([label("p", None, -2.5)])).summary()
    assert one.reward.model_dump() == {"mean": -2.5, "std": 0.0, "min": -2.5, "max": -2.5}
    assert one.length.reward_length_correlation is None
    same = [label(f"p{i}", "chosen", 0.1, i + 1) for i in range(7)]  # 0.1 seven times has a mean that is not 0.1
    assert ShardStats.of(table(same)).summary().length.reward_length_correlation is None
    even = ShardStats.of(table([label("p", "chosen", 1.0), label("p", "rejected", 1.0)])).summary()
    assert even.pairs and even.pairs.ties == 1 and even.pairs.accuracy == 0.0
    assert even.length.longer_wins is None


def test_wilson_interval():
    assert wilson_interval(244, 400) == pytest.approx((0.5614, 0.6565), abs=1e-4)  # by hand from Wilson's formula
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234567.8, "+1,234,568"),
        (-123.456, "-123.5"),
        (12.346, "+12.35"),
        (0.5, "+0.5000"),
        (1.5e-9, "+1.50e-09"),
    ],
)
def test_numbers_have_four_figures(value, text):
    assert signed(value) == text
    assert plain(value) == text.removeprefix("+")


def test_rows_of_the_table():
    rows = [label("p", "chosen", -1.0, 9), label("p", "rejected", -3.0, 4)]
    rows += [label("q", "chosen", -2.0, 4, truncated=True)]
    said = dict(summary_rows(ShardStats.of(table(rows)).summary()))
    assert said["Labels"] == "3"
    assert said["Truncated"] == "1 (33.3%)"
    assert said["Response tokens"] == "17 (5.7 a label)"
    assert said["Accuracy"] == "100.0% (95%: 20.7% to 100.0%)"
    assert said["Margin"] == "+2.000 ± 0"
    assert said["Accuracy, chosen longer"] == "100.0%"
    assert "Accuracy, chosen shorter" not in said


def test_rubrics_have_a_row_each():
    sides = (("chosen", 1.0), ("rejected", 0.0))
    rows = [label("p", kind, reward, rubric=name) for name in ("kind", "terse") for kind, reward in sides]
    rows += [label("p", None, 2.0, rubric="plain")]
    said = dict(summary_rows(ShardStats.of(table(rows)).summary()))
    assert said["Accuracy, rubric kind"].startswith("100.0%")
    assert said["Reward, rubric plain"] == "+2.000 ± 0 (+2.000 to +2.000)"
