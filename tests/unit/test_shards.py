"""Shards in columns are the same shards as in a list."""

import hashlib
import json
import pickle
import random
import sys
from itertools import accumulate, pairwise
from typing import Any

import pytest

from pipeline.corpus import FilePlan, Shard, Shards


def listed(number: int, seed: int = 0) -> list[Shard]:
    """Shards of differing rows with gaps between some, each with bytes or all without."""
    rng = random.Random(seed)
    cuts = list(accumulate((rng.randint(1, 200) for _ in range(number)), initial=rng.randint(0, 3)))
    shards = []
    for index, (start, stop) in enumerate(pairwise(cuts)):
        gap = rng.choice([0, 0, min(1, stop - start - 1)])
        place: tuple[Any, ...] = (1000 * start, 1000 * (stop - start)) if seed % 2 else (None, None)
        digest = hashlib.sha256(str(start).encode()).hexdigest()
        shards.append(Shard("a.jsonl", index, start + gap, stop, stop - start - gap, digest, *place))
    return shards


@pytest.mark.parametrize("seed", range(4))
def test_columns_are_the_list(seed: int) -> None:
    expected = listed(50, seed)
    shards = Shards.of("a.jsonl", expected)
    assert shards == expected and shards == tuple(expected) and shards != expected[:-1] and list(shards) == expected
    assert (len(shards), shards.rows) == (50, sum(shard.rows for shard in expected))
    assert shards[-1] == expected[-1] and shards[3:40:7] == expected[3:40:7] and shards[:0] == []
    assert expected[7] in shards and shards.index(expected[7]) == 7
    with pytest.raises(IndexError):
        shards[50]
    assert shards.pick(range(3, 40, 7)) == expected[3:40:7]
    assert pickle.loads(pickle.dumps(shards)) == shards
    plan = FilePlan("a.jsonl", shards.rows, "0" * 64, shards)
    assert FilePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    as_before = {**plan.to_json(), "shards": [shard.to_json() for shard in expected]}
    assert FilePlan.from_json(as_before) == plan


def test_what_follows_is_moved_by_the_rows_before_it() -> None:
    expected = listed(20, 1)
    first, second = Shards.of("a.jsonl", expected[:8]), Shards("a.jsonl")
    begin = expected[8].start
    for shard in expected[8:]:
        second.add(shard.start - begin, shard.stop - begin, shard.rows, shard.offset, shard.length, shard.digest)
    first.extend(second, begin)
    assert first == expected


def test_a_shard_costs_few_bytes() -> None:
    """A list of them costs 1,400 bytes each, of which ten million rows had 110 MB."""
    shards = Shards.of("a.jsonl", listed(10_000, 1))
    assert sum(map(sys.getsizeof, [*shards._numbers.values(), shards._digests])) / 10_000 < 90


def test_what_is_no_plan_is_refused() -> None:
    [first, second] = listed(2)
    with pytest.raises(ValueError, match=r"shard 0 is of a\.jsonl and not of b\.jsonl"):
        Shards.of("b.jsonl", [first])
    with pytest.raises(ValueError, match="no sha256"):
        Shards("a.jsonl").add(0, 1, 1, None, None, "00")
    data = Shards.of("a.jsonl", [first, second]).to_json()
    for wrong in (
        {**data, "stop": [1]},
        {**data, "rows": ["x", 1]},
        {k: v for k, v in data.items() if k != "digest"},
        [{}],
    ):
        with pytest.raises(ValueError):
            Shards.from_json(wrong)
