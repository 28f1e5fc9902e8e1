"""Deaths of actors that Ray makes up its mind about only later: they count for whoever has taken the place since, and for the
shard that they had in hand. Real deaths are in tests/integration/test_pool.py; Ray cannot be made to lose touch with an actor
at will."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from jobs.cluster import Pool
from jobs.label import pool as of_label
from jobs.label.backlog import Backlog
from jobs.label.pool import LabelPool
from pipeline.config import LabelConfig
from pipeline.errors import RunError


class Silent:
    """A handle, a method of it, a reference: nothing that is asked is ever answered."""

    def __getattr__(self, name: str) -> "Silent":
        return self

    def __call__(self, *values: Any) -> "Silent":
        return self


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {
        "put": lambda value: value,
        "get": lambda value: value,
        "kill": lambda handle: None,
        "remote": lambda **asks: lambda kind: SimpleNamespace(remote=lambda *values: Silent()),
    }
    monkeypatch.setattr(of_label, "ray", SimpleNamespace(**functions))
    monkeypatch.setattr(of_label, "alive_nodes", lambda: {"node"})
    monkeypatch.setattr(of_label, "draining_nodes", set)
    monkeypatch.setattr(of_label, "pending_nodes", lambda: None)
    monkeypatch.setattr(of_label, "DECIDED_S", 0.0)


def one_actor(**scorer: int) -> LabelPool:
    backlog = Backlog([])
    backlog.shards = 1
    config = LabelConfig.model_validate({"scorer": scorer})
    size = Pool(1, 1, 1, 0)
    pool = LabelPool(object, (), config, size, backlog, lambda state: None, lambda block, at: f"{block}, row {at}")
    pool._grow()
    pool._prepared("a.jsonl", 1)
    return pool


def lose(pool: LabelPool) -> None:
    """The actor has loaded its model and is given the shard; then it cannot be reached."""
    [member] = pool.members
    member.node = "node"
    pool._assign()
    assert len(member.portions) == 1 and not pool.waiting
    pool._lost(member, ActorUnavailableError("the network is slow", None))
    assert len(pool.members) == 1 and pool.members != [member] and len(pool.waiting) == 1


def test_actors_that_cannot_be_reached_are_restarted_as_often_as_is_allowed() -> None:
    """One in the place of the other: it was the dead one that was charged, and the run never ended."""
    pool = one_actor(max_restarts=2, max_task_retries=9)
    for _ in range(2):
        lose(pool)
        pool._look()
    lose(pool)
    with pytest.raises(ActorUnavailableError):
        pool._look()


def test_a_successor_is_charged_that_has_died_in_its_turn() -> None:
    """Three are lost before Ray has made up its mind about any of them."""
    pool = one_actor(max_restarts=2, max_task_retries=9)
    for _ in range(3):
        lose(pool)
    with pytest.raises(ActorUnavailableError):
        pool._look()


def test_a_shard_is_tried_as_often_as_is_allowed() -> None:
    pool = one_actor(max_restarts=9, max_task_retries=1)
    lose(pool)
    lose(pool)
    with pytest.raises(RunError, match=r"a.jsonl, row 0: 2 actors died .* scorer.max_task_retries = 1"):
        pool._look()


def test_the_death_of_a_node_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = one_actor(max_restarts=0, max_task_retries=0)
    for _ in range(3):
        lose(pool)
        monkeypatch.setattr(of_label, "alive_nodes", set)
        pool._look()
        monkeypatch.setattr(of_label, "alive_nodes", lambda: {"node"})
    assert not pool.unreachable
