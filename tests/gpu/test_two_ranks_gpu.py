"""Two ranks on one device over gloo, since NCCL refuses two ranks on one: their gradients add up to one rank's."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def gradients(folder: str, turns: list, pairs: int) -> dict:
    """Of these turns' part of the mean DPO loss over `pairs` pairs, by name, on the CPU."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from pipeline.training.batch import Response, collate
    from pipeline.training.objectives.dpo import Dpo
    from pipeline.training.policy import Policy, choose_layout

    model = AutoModelForCausalLM.from_pretrained(folder).to(DEVICE)
    policy = Policy(model)
    choose_layout(policy, policy, "packed")
    responses = [
        Response(t.prompt_ids, t.response_ids, 0.0, np.full(len(t.response_ids), -5.0, np.float32)) for t in turns
    ]
    loss = Dpo(0.1).terms(collate(responses, *policy(responses))).losses.sum() / pairs
    loss.backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters()}


def rank(number: int, store: str, folder: str, turns: list) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    half = len(turns) // 2
    mine = gradients(folder, turns[number * half : (number + 1) * half], len(turns) // 2)
    for each in mine.values():
        dist.all_reduce(each)
    if number == 0:
        torch.save(mine, f"{store}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_of_two_ranks_add_up(tmp_path: Path) -> None:
    from device import models

    folder = str(tmp_path / "model")
    models.small("qwen3", 4).save_pretrained(folder)
    turns = models.awkward_turns(2)[:16]
    torch.multiprocessing.spawn(rank, (str(tmp_path / "store"), folder, turns), nprocs=2)
    together = torch.load(tmp_path / "store.pt")
    alone = gradients(folder, turns, len(turns) // 2)
    assert together.keys() == alone.keys()
    for name, due in alone.items():
        assert (together[name] - due).norm() <= 1e-4 * due.norm(), name


def learner(number: int, world: int, store: str, folder: str, turns: list) -> None:
    """One step of a learner under ZeRO-2, and its weights as samplers get them."""
    import os

    import numpy as np
    import torch.distributed as dist

    from actors.learner import Learner, LearnerSpec
    from pipeline.config import ModelConfig
    from pipeline.training.batch import Response
    from pipeline.training.config import TrainConfig
    from pipeline.training.objectives import objective_of

    os.environ["LOCAL_RANK"] = "0"  # the one device
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    config = TrainConfig(policy=ModelConfig(name=folder), learner={"zero_stage": 2, "dtype": "float32"})  # type: ignore[arg-type]
    own = Learner(LearnerSpec(config, objective_of(config), DEVICE))
    responses = [
        Response(t.prompt_ids, t.response_ids, 0.0, np.full(len(t.response_ids), -5.0, np.float32)) for t in turns
    ]
    part = len(responses) // world
    counts = {"pairs": len(turns) // 2, "responses": len(turns), "tokens": sum(len(t.response_ids) for t in turns)}
    row = own.step([responses[number * part : (number + 1) * part]], counts, 1e-3)  # type: ignore[arg-type]
    weights = own.weights()
    if number == 0:
        assert weights and all(each.is_pinned() for each in weights.values()), "the host's copy, for samplers"
        torch.save((row, weights), f"{store}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_learner_on_two_ranks_of_one_device(tmp_path: Path) -> None:
    for needed in ("deepspeed", "pydantic"):
        pytest.importorskip(needed)
    from device import models

    folder = tmp_path / "model"
    models.small("llama", 4).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    turns = models.awkward_turns(2)[:16]
    for world in (1, 2):
        arguments = (world, str(tmp_path / f"store{world}"), str(folder), turns)
        torch.multiprocessing.spawn(learner, arguments, nprocs=world)
    (alone, one), (together, two) = (torch.load(tmp_path / f"store{world}.pt") for world in (1, 2))
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    assert one.keys() == two.keys() and all(not each.is_cuda for each in two.values())
    apart = sum(float((one[n] - two[n]).abs().sum()) for n in one) / sum(each.numel() for each in one.values())
    assert apart < 1e-5  # the first step of Adam is 1e-3 in size
