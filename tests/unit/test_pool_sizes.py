"""CPUs that actors ask for: what they leave is enough for those who read and prepare, and too little for one actor more."""

import os

import pytest

from jobs.cluster import LEFT_CPUS, PREPARE_CPUS, READ_CPUS, Pool, _left
from jobs.label.backlog import Backlog
from jobs.label.label_run import FEW, _prepared_at_once
from pipeline.config import LabelConfig


@pytest.mark.parametrize("cpus", [1, 2, 3, 8])
@pytest.mark.parametrize("there", [1, 2, 3, 4, 7, 8, 16, 64, 96, 192])
def test_a_node_holds_as_many_actors_as_it_has_threads_for(there: int, cpus: int) -> None:
    if there < cpus:
        return
    pool = Pool(1, 1, cpus, 0, left=min(LEFT_CPUS, _left(there, cpus)))
    actors = there // cpus
    assert actors * pool.actor_cpus + READ_CPUS + PREPARE_CPUS <= there < (actors + 1) * pool.actor_cpus


def test_few_read_at_once() -> None:
    small, large = Pool(1, 1, 2, 0), Pool(1, 64, 1, 1, spare=True)
    assert (small.reads, small.prepare_cpus) == (1, PREPARE_CPUS)
    assert (large.reads, large.prepare_cpus) == (8, 1.0)


@pytest.mark.parametrize(
    ("cpus", "actors", "due"), [(1, 1, 2), (2, 1, 2), (7, 1, 3), (64, 1, 4), (64, 4, 16), (64, 64, 32)]
)
def test_processes_that_prepare_beside_the_driver(cpus: int, actors: int, due: int) -> None:
    backlog = Backlog([])
    config, pool = LabelConfig.model_validate({"run": {"num_cpus": cpus}}), Pool(1, actors, 1, 0)
    assert _prepared_at_once(config, backlog, pool) == 1
    backlog.shards = FEW + 1
    assert _prepared_at_once(config, backlog, pool) == due


def test_cpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = Backlog([])
    backlog.shards = FEW + 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert _prepared_at_once(LabelConfig(), backlog, Pool(1, 1, 1, 0)) == 3
