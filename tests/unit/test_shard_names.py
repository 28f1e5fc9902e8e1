"""Names of shards and what is known of committed ones, in columns: the same as sets, dicts and lists of them."""

import random
from dataclasses import replace

import pytest

from pipeline.corpus import Shard
from pipeline.store import Record, Survey
from pipeline.store.commit import Committed, Part
from pipeline.store.names import ShardNames
from pipeline.store.summary import ShardStats

NAMES = ["a-000000", "a-000002", "a-1000000", "a-999999", "b-c-000001", "b-000001"]
ODD = ["a-1", "a-0000002", "a--00001", "a", "", "a-²²²²²²", f"a-{1 << 40}", "a-000002.tmp", "-000001x"]


def test_names_are_those_of_a_set() -> None:
    mixed = random.Random(1).sample(NAMES + ODD, len(NAMES + ODD))
    for names in (NAMES, NAMES[:2], ODD, mixed, []):
        made = ShardNames([*names, *names[:3]])
        assert list(made) == sorted(names) and len(made) == len(names)
        assert all((name in made) == (name in names) for name in NAMES + ODD) and 1 not in made
    left, right = NAMES[:4] + ODD[:2], NAMES[2:] + ODD[1:4]
    for other in (set(right), dict.fromkeys(right).keys(), ShardNames(right)):
        assert ShardNames(left) & other == set(left) & set(right)
        assert ShardNames(left) | other == set(left) | set(right)
        assert ShardNames(left) - other == set(left) - set(right)
    assert dict.fromkeys(left).keys() - ShardNames(right) == set(left) - set(right)
    assert dict.fromkeys(left[:2]).keys() <= ShardNames(left)


def test_a_name_takes_a_byte() -> None:
    names = ShardNames(f"{'a' * 12}-{index:06d}" for index in range(0, 100_000, 2))
    [flags] = names._flags.values()
    assert len(names) == 50_000 and len(flags) < 100_000 and not names._others


@pytest.mark.parametrize("first", [0, 999_998])
def test_committed_shards_are_those_of_their_records(first: int) -> None:
    def part(number: int, kind: int) -> Part:
        merged = [None, f"part-segment-{number // 3:06d}-{'ab' * 4}.parquet#{number}", "odd", "odd#01"][number % 4]
        sha256 = [f"{number + kind:064x}", "no digest"][number % 5 == 3]
        return Part(number % 3, sha256, "ids", merged) if number % 3 else Part(0, None, "ids")

    records = []
    for file in ("a.jsonl", "b/c-d.jsonl"):
        for index in range(first, first + 40):
            shard = Shard(file, index, index, index + 1, 1, "0" * 64)
            parts = part(index, 0), part(index + 1, 7)
            records.append(Record(shard, "f", 0, *parts, {"x": 1} if index % 2 else {}, ShardStats(index)))
    expected = sorted((Committed.of(record) for record in records), key=lambda each: each.name)
    survey = Survey()
    for record in random.Random(2).sample(records, len(records)):
        survey.add(record)
        survey.add(replace(record, labels=Part(9, None, "")))  # says nothing new
    assert len(survey) == 80 and survey.errors == {"x": 40} and survey.labels == sum(r.labels.rows for r in records)
    assert survey.shards == expected and list(survey.shards) == expected and survey.shards[5:9] == expected[5:9]
    assert survey.labelled == [each for each in expected if each.labels.rows] and survey.shards[-1] == expected[-1]
    assert survey.committed("a.jsonl", first + 7) == 7 and survey.committed("z", 7) == 0
    with pytest.raises(IndexError):
        survey.shards[80]
    assert len(Survey().shards) == 0 and not Survey().labelled
