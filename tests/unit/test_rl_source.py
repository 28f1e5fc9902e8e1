"""What a checkpoint holds of older weights, and means over minibatches."""

from pathlib import Path

import pytest
import torch

from actors.sampler import deserialize, serialize
from jobs.rl.recipe import _means
from jobs.rl.source import read_version, version_name, write_version


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_older_weights_come_out_of_a_checkpoint_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(dtype) for _ in range(2))
    path = tmp_path / version_name(7)
    write_version(str(path), serialize(model.state_dict()))
    assert path.name == "weights-000007.safetensors"
    deserialize(read_version(path.read_bytes()), other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_minibatch_without_a_response_has_no_say_in_what_it_did_not_measure() -> None:
    rows = [{"loss": 0.0, "grad_norm": 0.0}, {"loss": 2.0, "grad_norm": 4.0, "kl": 3.0}]
    assert _means(rows) == {"loss": 1.0, "grad_norm": 2.0, "kl": 3.0}
