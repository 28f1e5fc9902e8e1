"""CPUs that actors ask for: what they leave is enough for those who read and prepare, and too little for one actor more."""

import pytest

from jobs.cluster import LEFT_CPUS, PREPARE_CPUS, READ_CPUS, Pool, _left


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
