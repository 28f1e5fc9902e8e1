"""The pool of actors that label, on a real Ray: each block once, whoever dies; how often is enough; who leaves."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_actor import Doubler

from jobs.cluster import Pool, cluster
from jobs.label import pool as of_label
from jobs.label.backlog import Backlog
from jobs.label.pool import LabelPool
from jobs.label.work import PoolState
from pipeline.config import LabelConfig
from pipeline.errors import RunError


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:  # workers do not have this process's sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield from _started()


def _started() -> Iterator[None]:
    with cluster(LabelConfig.model_validate({"run": {"num_cpus": 2}}).run):
        yield


def run(
    folder: Path, numbers: list[int], deaths: int, size: Pool, watch: Callable[[PoolState], None] = print, **scorer: Any
) -> list[int]:
    import ray

    folder.mkdir(exist_ok=True)
    patience = 1.0 if size.cpus > 2 else 120.0
    config = LabelConfig.model_validate({"scorer": scorer, "run": {"wait_for_actors_s": patience}})
    backlog = Backlog([])
    backlog.shards = len(numbers)

    def feed(pool: LabelPool) -> None:
        """Blocks of three."""
        for begin in range(0, len(numbers), 3):
            if not pool.wait_for_room():
                return
            block = numbers[begin : begin + 3]
            pool.take(ray.put(block), len(block))

    def name(block: list[int], position: int) -> str:
        return f"rows {block[position]} to {block[position]} of a.jsonl"

    with LabelPool(Doubler, (str(folder), deaths), config, size, backlog, watch, name) as pool:
        return sorted(pool.results(feed))


@pytest.mark.usefixtures("local_ray")
class TestPool:
    def test_what_a_dead_actor_had_in_hand_is_done_by_another(self, tmp_path: Path) -> None:
        numbers = [*range(20), -1]
        done = run(tmp_path / "deaths", numbers, 2, Pool(2, 2, 1, 0), max_restarts=2, max_task_retries=2)
        assert done == [-2, *range(0, 40, 2)]

    def test_a_block_whose_actors_die_too_often_ends_the_run(self, tmp_path: Path) -> None:
        said = r"rows -1 to -1 of a.jsonl: 2 actors died .* scorer.max_task_retries = 1 allows"
        with pytest.raises(RunError, match=said):
            run(tmp_path / "deaths", [1, -1], 9, Pool(1, 1, 1, 0), max_restarts=9, max_task_retries=1)
        assert len(list((tmp_path / "deaths").iterdir())) == 2

    def test_actors_that_die_too_often_end_the_run(self, tmp_path: Path) -> None:
        from ray.exceptions import ActorDiedError

        with pytest.raises(ActorDiedError):
            run(tmp_path / "deaths", [1, -1], 9, Pool(1, 1, 1, 0), max_restarts=0, max_task_retries=9)
        assert len(list((tmp_path / "deaths").iterdir())) == 1

    def test_no_more_actors_than_blocks_and_those_without_work_leave(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_label, "LOOK_S", 0.0)
        states: list[PoolState] = []
        assert run(tmp_path / "deaths", [7], 0, Pool(1, 2, 1, 0), states.append) == [14]
        assert {state.wanted for state in states} == {1} and states[-1].running + states[-1].pending <= 1

    def test_a_cluster_without_room_is_given_up_with_what_it_lacks(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"within run\.wait_for_actors_s = 1 s.*64 CPUs.*has 2 CPUs"):
            run(tmp_path / "deaths", [1], 0, Pool(1, 1, 64, 0))
