"""Blocks: neighbouring shards that one task prepares; few at first, all of them once, none too large. Without a Ray."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from test_backlog import CONFIG, folder, pairs, text

from jobs.cluster import Pool
from jobs.label import feed as of_feed
from jobs.label.backlog import Backlog
from jobs.label.feed import BLOCK, GROWS_AFTER, Feed
from jobs.label.flow import prepare_block, read_blocks
from jobs.label.plan import plan_inputs
from jobs.label.pool import _Portion
from jobs.label.work import Work
from pipeline.apart import unpickled
from pipeline.config import LabelConfig
from pipeline.corpus import Shard, find_files
from pipeline.errors import InputError
from pipeline.rewards.labellers import Endogenous

__all__ = ["folder"]  # the fixture


def feed_of(backlog: Backlog, actors: int = 1) -> Feed:
    config = LabelConfig()
    return Feed(backlog, Endogenous(config, config.model), Pool(1, actors, 1, 0), read_blocks, prepare_block, None)


def blocks_of(feed: Feed) -> list[Work]:
    blocks = []
    for work in feed.backlog:
        for block in feed._blocks(work):
            blocks.append(block)
            feed.asked += 1
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
    feed.asked = 1000
    length = stored.plan.shards[1].length
    assert length is not None
    monkeypatch.setattr(of_feed, "BLOCK_BYTES", 3 * length)
    assert max(len(block.shards) for block in blocks_of(feed)) == 3
    monkeypatch.setattr(of_feed, "BLOCK_BYTES", 1)
    assert {len(block.shards) for block in blocks_of(feed)} == {1}


def test_rows_of_a_file_that_is_read_from_its_front_come_as_blocks(folder: Path) -> None:
    [stored] = plan_inputs(None, find_files([str(folder / "b.jsonl.gz")]), CONFIG)
    [work] = Backlog([stored], again={f"{'0' * 12}-000000": 1})
    assert not work.apart
    rows, sizes, shards = [], [], list[Shard]()
    for block in read_blocks(work, [1, 3]):
        assert isinstance(block, tuple)
        shape, content = block
        assert shape == stored.shape
        sizes.append(len(content))
        for shard, generation, pickled in content:
            assert generation == 0
            shards.append(shard)
            rows += unpickled(pickled.tobytes())
    assert (rows, sizes, shards) == (list(enumerate(pairs(11))), [1, 3, 2], list(stored.plan.shards))
    changed = replace(work, shards=[replace(work.shards[0], digest="0" * 64)], generations=[0])
    [error] = read_blocks(changed, [1])
    assert isinstance(error, InputError) and "changed while it was being labelled" in str(error)
    assert prepare_block(error, pickle.dumps(None), False) == (([], error), [])


def test_portions_of_a_block_are_its_shards() -> None:
    whole = _Portion("block", [f"rows {i}" for i in range(5)], begin=3)
    first, rest = whole.split(2)
    assert (first.begin, first.shards, rest.begin, rest.shards) == (
        3,
        ["rows 0", "rows 1"],
        5,
        ["rows 2", "rows 3", "rows 4"],
    )
    assert whole.split(5) == [whole] and [(each.begin, each.shards) for each in rest.singly()] == [
        (5, ["rows 2"]), (6, ["rows 3"]), (7, ["rows 4"]),
    ]  # fmt: skip
