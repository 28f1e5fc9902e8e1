"""Which weights are asked for samples, and when; what a checkpoint holds of older ones; means over minibatches."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.sampler import deserialized, serialize
from jobs.rl import source as module
from jobs.rl.recipe import _means
from jobs.rl.source import PromptSet, RolloutSource, read_version, version_name, write_version
from pipeline.models.engines.transformers import load_into
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt, Rewarded, Rollout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_older_weights_come_out_of_a_checkpoint_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(dtype) for _ in range(2))
    path = tmp_path / version_name(7)
    probe = np.array([-0.1, -7.0], np.float32)
    for learnt in (probe, None):  # without one under the reference, and in checkpoints from before
        write_version(str(path), (serialize(model.state_dict()), learnt))
        weights, again = read_version(path.read_bytes())
        assert again is None if learnt is None else np.array_equal(again, learnt) and again.dtype == learnt.dtype
        assert weights.keys() == model.state_dict().keys()
        load_into(other, dict(deserialized(weights)))
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert path.name == "weights-000007.safetensors"


def test_a_minibatch_without_a_response_has_no_say_in_what_it_did_not_measure() -> None:
    rows = [{"loss": 0.0, "grad_norm": 0.0}, {"loss": 2.0, "grad_norm": 4.0, "kl": 3.0}]
    assert _means(rows) == {"loss": 1.0, "grad_norm": 2.0, "kl": 3.0}


class Pool:
    """In the place of an `ActorPool`: remembers whose weights it was asked to sample from."""

    actors = (0,)

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.seconds = 0.0
        self.asked: list[tuple[int, float, float]] = []  # version, what its one weight holds, and its probe

    def do(self, method: str, parts: Sequence[Sequence[Any]]) -> list[Any]:
        self.seconds += 1.0
        if method == "reward":
            return [[[Rewarded(1.0, {}, np.ones(1), None, None)] * len(rollouts) for _, rollouts in parts[0][0]]]
        version, weights, questions, probe = parts[0]
        self.asked.append((version, float(dict(deserialized(weights))["w"][0]), float(probe[0])))
        rollout = Rollout([1], f"{questions[0].seed}", True, np.zeros(1, np.float32), version)
        return [[[rollout] * question.samples for question in questions]]


def source_of(lag: int, steps: int) -> tuple[RolloutSource, Pool]:
    config = RlConfig.model_validate({"rl": {"lag": lag, "batch_size": 2, "group_size": 2}})
    prompts = [Prompt(str(number), [], False, [1]) for number in range(5)]
    samplers = Pool()
    return RolloutSource(config, PromptSet(prompts, prompts[:1], False), samplers, Pool(), steps), samplers  # type: ignore[arg-type]


def state(version: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Weights and their probe."""
    return {"w": torch.tensor([float(version)])}, np.array([-version], np.float32)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("resumed", [1, 3, 6])
def test_a_step_learns_from_its_version_also_after_a_checkpoint(
    lag: int, resumed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step k, counted from 1, from version max(0, k - 1 - lag), each batch sampled once, each version with its probe;
    `resumed`: steps that are done."""
    monkeypatch.setattr(module, "ray", SimpleNamespace(put=lambda x: x, get=lambda x: x))
    steps = 6
    source, samplers = source_of(lag, steps)
    texts, kept = [], {}
    for step in range(steps):
        source.take(step, *state(step))
        kept[step] = source.older()
        groups = source.step(step)
        assert {r.version for group in groups for r in group.rollouts} == {max(0, step - lag)}
        assert source.measures() == {"time/sampling": 1.0, "time/rewarding": 1.0}
        texts.append([r.text for group in groups for r in group.rollouts])
    source.take(steps, *state(steps))
    assert source.older() == {} and [r.version for group in source.held_out(1) for r in group.rollouts] == [steps]
    wanted = [max(0, step - lag) for step in range(steps)]
    assert samplers.asked == [(version, version, -version) for version in [*wanted, steps]]
    source.close()
    if resumed == steps:
        return
    again, samplers = source_of(lag, steps)
    assert list(kept[resumed]) == ([resumed - 1] if lag else [])
    for version, older in kept[resumed].items():
        again.give(version, older)
    for step in range(resumed, steps):
        again.take(step, *state(step))
        assert [r.text for group in again.step(step) for r in group.rollouts] == texts[step]
    assert samplers.asked == [(version, version, -version) for version in wanted[resumed:]]
    again.close()
