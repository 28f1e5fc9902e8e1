"""Items from labels: the rows of a real store, found again by hand."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.reading import LabelRows, items_of
from pipeline.store.schema import Label, labels_table
from pipeline.store.summary import find_pairs

NONE = np.zeros(0, np.float32)


def row(prompt_id: str, preference: str | None, index: int = 0, turn: int = 0, **others) -> Label:
    extra = others.pop("extra", {})
    given = {
        "id": f"{prompt_id}:{preference}:{index}:{turn}@{others.get('rubric')}",
        "prompt": [],
        "response": f"{preference} {index}",
        "reward": index + 10.0 * turn,
        "num_tokens": 3 + index,
        "num_prompt_tokens": 1,
        "truncated": False,
        "token_ids": [],
        "token_logprobs": NONE,
        "token_values": NONE,
        "token_rewards": NONE,
        "rubric": None,
    } | others
    return Label(
        prompt_id=prompt_id,
        preference=preference,  # type: ignore[arg-type]
        response_index=index,
        turn=turn,
        extra_info=json.dumps(extra),
        **given,
    )


def test_an_item_is_its_input_row():
    rows = [
        row(
            "a.json:0",
            "rejected",
            1,
            extra={"domain": "chat", "response_key": "y", "reward_info": {"judgement": "bad"}},
        ),
        row("a.json:0", "chosen", 0, extra={"domain": "chat", "nested": {"x": [1, None]}}, truncated=True),
        row("a.json:0", "rejected", 0, extra={"domain": "chat", "response_key": "x"}),
        row("a.json:0", None, 0, extra={"domain": "chat", "reward_info": {"verdicts": {"response:1": 1}}}),
    ]
    [item] = items_of(labels_table(rows))
    assert item == Item(
        "a.json:0",
        chosen=(Answer(0.0, 3, "chosen 0", True),),
        rejected=(
            Answer(0.0, 3, "rejected 0", extra={"response_key": "x"}),
            Answer(1.0, 4, "rejected 1", extra={"response_key": "y", "judgement": "bad"}),
        ),
        others=(Answer(0.0, 3, "None 0", extra={"verdicts": {"response:1": 1}}),),
        extra=item.extra,
    )
    assert item.extra["domain"] == "chat" and not {"response_key", "judgement", "verdicts"} & item.extra.keys()
    assert item.file == "a.json"


def test_the_row_s_columns_come_from_the_row_alone():
    [item] = items_of(labels_table([row("a:0", "chosen", extra={"n": {"x": [1, None]}, "response_key": "k"})]))
    assert item.extra == {"n": {"x": [1, None]}}


def test_the_last_labelled_turn_stands_for_a_response():
    rows = [row("a:0", "chosen", turn=2), row("a:0", "chosen", turn=0), row("a:0", "rejected", turn=1)]
    [item] = items_of(labels_table(rows))
    assert [a.reward for a in (*item.chosen, *item.rejected)] == [20.0, 10.0]


def test_rubrics_are_items_of_their_own_in_the_order_of_the_table():
    rows = [
        row(f"a:{i}", side, rubric=rubric) for i in (3, 1) for side in ("chosen", "rejected") for rubric in ("x", "y")
    ]
    items = items_of(labels_table(rows))
    assert [(item.id, item.rubric) for item in items] == [("a:3", "x"), ("a:3", "y"), ("a:1", "x"), ("a:1", "y")]


def test_another_reward_takes_the_stored_one_s_place():
    rows = [row("a:0", "chosen"), row("a:0", "rejected"), row("b:0", None)]
    first, second = items_of(labels_table(rows), np.array([5.0, 7.0, 9.0], np.float32))
    assert first.margin(0, 0) == -2.0 and second.others[0].reward == 9.0


def test_nothing_comes_of_nothing():
    assert items_of(labels_table([])) == []


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_the_summary(seed: int):
    rng = random.Random(seed)
    rows = [
        row(f"a:{i}", side, index, turn, rubric=rubric, reward=rng.random())
        for i in range(12)
        for rubric in (None, "r")
        for side in ("chosen", "rejected", None)
        for index in range(rng.randrange(3))
        for turn in range(rng.randrange(1, 3))
    ]
    rng.shuffle(rows)
    labels: pa.Table = labels_table(rows)
    rewards = labels["reward"].to_numpy()
    expected = sorted(rewards[c] - rewards[r] for c, r in find_pairs(labels))
    assert sorted(m for item in items_of(labels) for line in item.margins() for m in line) == expected


def test_items_have_the_messages_of_their_prompts_where_they_are_asked_for():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?", "name": "Ann"}]
    labels = labels_table([row("a:0", "chosen", prompt=asked), row("a:0", "rejected", prompt=asked)])
    [known], [unknown] = (LabelRows(labels, prompts).items(np.zeros(2)) for prompts in (True, False))
    assert known.prompt == tuple(asked) and unknown.prompt == ()
