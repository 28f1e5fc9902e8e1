"""Blocks: neighbouring shards that one task prepares; few at first, all of them once, none too large. Without a Ray."""

import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raw_labeller import RawLabeller
from test_backlog import CONFIG, folder, pairs, text

from jobs.cluster import Pool
from jobs.label import feed as of_feed
from jobs.label.backlog import Backlog
from jobs.label.feed import BLOCK, GROWS_AFTER, ROW, Feed, row, table
from jobs.label.flow import prepare_block, read_work
from jobs.label.plan import plan_inputs
from jobs.label.pool import LabelPool, _Member, _Portion, _Seat
from jobs.label.work import Work
from pipeline.apart import unpickled
from pipeline.config import LabelConfig
from pipeline.corpus import find_files
from pipeline.errors import EndorewardError, InputError, RunError
from pipeline.rewards.labellers import Endogenous
from pipeline.rewards.labellers.beside import Preparation
from pipeline.store import StoredInput
from pipeline.store.commit import file_key

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
    [same] = prepare_block(table([row(error)[ROW]]), pickle.dumps(None), False)[ROW]
    assert str(unpickled(same.as_buffer())) == str(error)


def test_what_is_planned_later_is_a_dataset_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = plan_inputs(None, find_files([str(folder)]), CONFIG)
    assert len(inputs) > 1
    every = [shard for stored in inputs for shard in stored.plan.shards]
    for size, most in ((of_feed.DATASET, 2), (2, len(every))):
        monkeypatch.setattr(of_feed, "DATASET", size)
        groups = list(feed_of(Backlog(inputs[:1], later=(stored for stored in inputs[1:])))._groups())
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
    assert [(each.begin, each.size) for each in rest.anew()] == [(5, 1), (6, 1), (7, 1)]


@pytest.mark.parametrize("dies", [False, True])
def test_a_block_is_read_in_one_call_and_shard_by_shard_where_that_dies(folder: Path, dies: bool) -> None:
    [stored] = plan_inputs(None, find_files([str(folder / "a.jsonl")]), CONFIG)
    [work, *_] = Backlog([stored], again={f"{file_key('a.jsonl')}-000002": 5})
    block, preparation, calls = work.part(0, 4), Preparation(), []
    call = preparation.beside.call

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return call(*arguments, **options)

    preparation.beside.call = counted  # type: ignore[method-assign]
    labeller = pickle.dumps(RawLabeller(folder.parent / "died" if dies else None))
    prepared = prepare_block(table([row(block)[ROW]]), labeller, False, preparation)
    preparation.beside.stop()
    shards = [unpickled(each.as_buffer()) for each in prepared[ROW]]
    assert [each.shard for each in shards] == block.shards and [each.generation for each in shards] == [0, 0, 5, 0]
    assert [row for each in shards for row in each.requests] == list(enumerate(pairs(8)))
    assert len(calls) == (5 if dies else 1) and (folder.parent / "died").exists() == dies


def test_what_is_wrong_with_a_block_is_said_of_its_shard(folder: Path) -> None:
    [stored] = plan_inputs(None, find_files([str(folder / "a.jsonl")]), CONFIG)
    [work, *_] = Backlog([stored])
    shards = [*work.part(0, 1).shards, replace(work.shards[1], digest="0" * 64), work.shards[2]]
    block, preparation = replace(work.part(0, 3), shards=shards), Preparation()
    good, bad = prepare_block(table([row(block)[ROW]]), pickle.dumps(RawLabeller()), False, preparation)[ROW]
    preparation.beside.stop()
    assert unpickled(good.as_buffer()).shard.index == 0
    error = unpickled(bad.as_buffer())
    assert isinstance(error, InputError) and "rows 2 to 3" in str(error)


class Anyone:
    """A pool that always has room."""

    def wait_for_room(self) -> bool:
        return True

    def take(self, block: object, size: int) -> None:
        raise AssertionError("nothing was prepared")


def test_closing_ends_a_feed_whose_preparation_does_not_come_to_an_end(folder: Path) -> None:
    inputs = plan_inputs(None, find_files([str(folder)]), CONFIG)
    feed, begun = feed_of(Backlog(inputs)), threading.Event()
    feed.preparations = [Preparation(), Preparation()]
    ends: list[BaseException] = []

    def prepare(block: object, labeller: bytes, own_code: bool, preparation: Preparation) -> None:
        begun.set()
        preparation.beside.call(time.sleep, 60)

    def run() -> None:
        try:
            feed(Anyone())
        except BaseException as error:
            ends.append(error)

    feed.prepare = prepare  # type: ignore[assignment]
    feeder = threading.Thread(target=run, daemon=True)
    feeder.start()
    assert begun.wait(5)
    started = time.perf_counter()
    feed.close()
    feeder.join(5)
    assert not feeder.is_alive() and time.perf_counter() - started < 4
    assert [type(error) for error in ends] == [RunError] and "closed" in str(ends[0])


def test_a_feed_that_came_to_its_end_leaves_its_processes_to_others() -> None:
    feed = feed_of(Backlog([]))
    feed.preparations = [Preparation()]
    feed(Anyone())
    feed.close()
    assert feed.preparations[0].beside.call(len, "abc") == 3
    feed.preparations[0].beside.stop()


def pool() -> LabelPool:
    """One that asks Ray for nothing."""
    size, backlog = Pool(1, 1, 1, 0), Backlog([])
    return LabelPool(Backlog, (), LabelConfig(), size, backlog, lambda state: None, lambda block, position: "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("b.jsonl changed"), "^b.jsonl changed$"),
        (OSError("no space"), "^shards could not be prepared: OSError: no space$"),
    ],
)
def test_whatever_ends_the_feed_is_a_sentence(error: Exception, said: str) -> None:
    def feed(taker: object) -> None:
        raise error

    its = pool()
    its._feed(feed)
    with pytest.raises(EndorewardError, match=said):
        its.events.get(timeout=1)()


def test_an_actor_that_was_dismissed_before_it_answered_is_nobodys_loss() -> None:
    its = pool()
    its.members = [_Member(None, _Seat(), 0.0, node="a")]
    for answer in ("a node", RunError("the model could not be loaded")):
        placed: Future[object] = Future()
        placed.set_result(answer)
        assert its._placed(_Member(None, _Seat(), 0.0), placed) == []
    assert len(its.members) == 1
