"""Blocks: neighbouring shards that one task prepares; few at first, all of them once, none too large. Without a Ray."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_backlog import CONFIG, folder, pairs, text

from jobs.cluster import Pool
from jobs.label import feed as of_feed
from jobs.label.backlog import Backlog
from jobs.label.feed import BLOCK, GROWS_AFTER, ROW, Feed, row, table
from jobs.label.flow import prepare_block, read_work
from jobs.label.plan import plan_inputs
from jobs.label.pool import _Portion
from jobs.label.work import Work
from pipeline.apart import unpickled
from pipeline.config import LabelConfig
from pipeline.corpus import find_files
from pipeline.errors import InputError
from pipeline.rewards.labellers import Endogenous
from pipeline.store import StoredInput

__all__ = ["folder"]  # the fixture


def feed_of(backlog: Backlog, actors: int = 1) -> Feed:
    config = LabelConfig()
    return Feed(backlog, Endogenous(config, config.model), Pool(1, actors, 1, 0), read_work, prepare_block, [])


def blocks_of(feed: Feed) -> list[Work]:
    blocks: list[Work] = []
    for work in feed.backlog:
        blocks += feed._blocks(work)
    return blocks


def test_blocks_grow_and_hold_every_shard_once(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(text(400))
    inputs = plan_inputs(None, find_files([str(folder)]), CONFIG)
    blocks = blocks_of(feed_of(Backlog(inputs)))
    assert [shard for block in blocks for shard in block.shards] == [s for stored in inputs for s in stored.plan.shards]
    sizes = [len(block.shards) for block in blocks if block.file.name == "a.jsonl"]
    assert sizes[: 2 * GROWS_AFTER] == [1] * GROWS_AFTER + [2] * GROWS_AFTER and max(sizes) == BLOCK
    few = [len(block.shards) for block in blocks_of(feed_of(Backlog(inputs), actors=16))]
    assert max(few[:-4]) == 1  # so that there are some for each actor


def test_a_block_is_bounded_by_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [stored] = plan_inputs(None, find_files([str(folder / "a.jsonl")]), CONFIG)
    feed = feed_of(Backlog([stored]))
    feed.blocks = 1000
    length = stored.plan.shards[1].length
    assert length is not None
    monkeypatch.setattr(of_feed, "BLOCK_BYTES", 3 * length)
    assert max(len(block.shards) for block in blocks_of(feed)) == 3
    monkeypatch.setattr(of_feed, "BLOCK_BYTES", 1)
    assert {len(block.shards) for block in blocks_of(feed)} == {1}


def test_rows_of_a_file_that_is_read_from_its_front_come_shard_by_shard(folder: Path) -> None:
    [stored] = plan_inputs(None, find_files([str(folder / "b.jsonl.gz")]), CONFIG)
    [work] = Backlog([stored], again={f"{'0' * 12}-000000": 1})
    assert not work.apart
    rows, shards = [], []
    for each in read_work(row(work)):
        shard, generation, pickled, shape = unpickled(each[ROW])
        assert (generation, shape) == (0, stored.shape)
        shards.append(shard)
        rows += unpickled(pickled)
    assert (rows, shards) == (list(enumerate(pairs(11))), list(stored.plan.shards))
    changed = replace(work, shards=[replace(work.shards[0], digest="0" * 64)], generations=[0])
    [error] = map(unpickled, (each[ROW] for each in read_work(row(changed))))
    assert isinstance(error, InputError) and "changed while it was being labelled" in str(error)
    [same] = prepare_block(table([error]), pickle.dumps(None), False)[ROW]
    assert str(unpickled(same.as_buffer())) == str(error)


def test_what_is_planned_later_is_a_dataset_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = plan_inputs(None, find_files([str(folder)]), CONFIG)
    assert len(inputs) > 1
    every = [shard for stored in inputs for shard in stored.plan.shards]
    for size, most in ((of_feed.DATASET, 2), (2, len(every))):
        monkeypatch.setattr(of_feed, "DATASET", size)
        groups = list(feed_of(Backlog(inputs[:1], later=iter(inputs[1:])))._groups())
        assert 2 <= len(groups) <= most and all(len(group) <= size for group in groups)
        assert [shard for group in groups for block in group for shard in block.shards] == every


def test_a_plan_that_fails_ends_the_feed(folder: Path) -> None:
    def later() -> Iterator[StoredInput]:
        raise InputError("b.jsonl changed")
        yield

    with pytest.raises(InputError, match="changed"):
        list(feed_of(Backlog([], later=later()))._groups())


def test_portions_of_a_block_are_its_shards() -> None:
    whole = _Portion("block", 5, begin=3)
    first, rest = whole.split(2)
    assert (first.begin, first.size, rest.begin, rest.size) == (3, 2, 5, 3)
    assert whole.split(5) == [whole]
    assert [(each.begin, each.size) for each in rest.singly()] == [(5, 1), (6, 1), (7, 1)]
