"""What workers have together: the sums of a step's metrics, read from the device once, whatever the number of micro-batches;
and the budget of these."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from actors.learner import Learner, Sums
from pipeline.training.config import TrainConfig


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Reads(TorchDispatchMode):
    """Counts how often a number of a tensor is read, which waits for the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_metrics_are_read_once_a_step(alone: None) -> None:
    numbers = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    sums = Sums()
    with Reads() as reads:
        for part in numbers:
            sums.add("loss", torch.from_numpy(part))
            sums.add("ratio/max", torch.from_numpy(part))
            sums.add("nothing", torch.empty(0))
    assert reads.count == 0
    sums.add("once", torch.tensor([2.0, 4.0]))
    row = sums.means()
    assert list(row) == ["loss", "once", "ratio/max"]
    assert row["loss"] == pytest.approx(numbers.astype(np.float64).mean(), rel=1e-12)
    assert row["ratio/max"] == numbers.max() and row["once"] == 3.0
    assert Sums().means() == {}


@pytest.mark.parametrize(("configured", "due"), [(None, 2000), (700, 700)])
def test_the_worker_with_the_least_memory_says_what_a_micro_batch_holds(
    configured: int | None, due: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(parts: list[int], own: int) -> None:
        parts[:] = [own, 2000, 5000]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr("actors.learner.training_budget", lambda model, checkpoints: 3000)
    learner: Any = object.__new__(Learner)
    learner.world, learner.policy = 3, SimpleNamespace(model=None)
    config = TrainConfig.model_validate({"learner": {"budget_tokens": configured, "zero_stage": 2}})
    learner.config = config
    learner._agree_on_budget()
    assert learner.config.learner.micro_tokens == due and learner.config.learner.zero_stage == 2
    assert config.learner.budget_tokens == configured, "nobody else's"
