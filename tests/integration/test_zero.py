"""The learner on two workers under ZeRO, against one process and against a plain loop of torch."""

import datetime
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

import tiny
from pipeline.config import ModelConfig
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig

STEPS, PAIRS, RATE = 20, 6, 3e-3
SETTINGS = {
    "plain": {},
    "zero1": {"learner": {"zero_stage": 1}},
    "zero2": {"learner": {"zero_stage": 2}},
    "zero3": {"learner": {"zero_stage": 3}},
    "offload": {"learner": {"zero_stage": 2, "offload": "optimizer"}},
    "lora": {"learner": {"zero_stage": 1}, "lora": {"rank": 4}},
    "lora3": {"learner": {"zero_stage": 3}, "lora": {"rank": 4}},
    "recomputed": {"learner": {"zero_stage": 1, "gradient_checkpointing": True}},
}


def pairs(step: int) -> list[list[Response]]:
    """The pairs of a step: chosen and rejected, with a reference that is not the policy's."""
    rng = np.random.default_rng(step)

    def response(prompt: list[int]) -> Response:
        tokens = rng.integers(0, 250, rng.integers(1, 12)).tolist()
        return Response(prompt, tokens, float(rng.normal()), reference=rng.normal(-5, 1, len(tokens)))

    found = []
    for _ in range(PAIRS):
        prompt = rng.integers(0, 250, rng.integers(1, 9)).tolist()
        found.append([response(prompt), response(prompt)])
    return found


def totals(found: list[list[Response]]) -> dict:
    return {
        "pairs": len(found),
        "responses": 2 * len(found),
        "tokens": sum(len(r.response_ids) for pair in found for r in pair),
    }


def part(found: list[list[Response]], rank: int, world: int) -> list[list[Response]]:
    """Micro-batches of one pair, and of two; the second worker has nothing in the last."""
    cut = [found[:1], found[1:3], found[3:5], found[5:], [], []] if world == 2 else [found[:4], found[4:]]
    return [[r for pair in micro for r in pair] for micro in cut[rank::world]]


def work(rank: int, world: int, port: int, folder: str, name: str, stop: int | None) -> None:
    """Train, through a checkpoint at step `stop` that a second learner takes up, and export."""
    from actors.learner import Learner, LearnerSpec

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0, datetime.timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    config = TrainConfig(policy=ModelConfig(name=f"{folder}/base"), **SETTINGS[name])
    spec = LearnerSpec(config, "cpu")
    learner = Learner(spec)
    rows = []
    for step in range(STEPS):
        if step == stop:
            learner.save(f"{folder}/{name}-checkpoint", step)
            dist.barrier()
            learner = Learner(spec)
            assert learner.restore(f"{folder}/{name}-checkpoint") == step
        found = pairs(step)
        rows.append(learner.step(part(found, rank, world), totals(found), RATE))
    learner.export(f"{folder}/{name}-{world}-{stop}")
    if rank == 0:
        Path(f"{folder}/{name}-{world}-{stop}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def train(folder: Path, name: str, world: int, stop: int | None = None) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (world, port, str(folder), name, stop), world)
    return json.loads((folder / f"{name}-{world}-{stop}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    tiny.save_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step by a loop of torch alone: DPO's equation on the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def logprob(response: Response) -> torch.Tensor:
        logits = model(torch.tensor([response.prompt_ids + response.response_ids])).logits[0].log_softmax(-1)
        begin = len(response.prompt_ids) - 1
        return sum(logits[begin + h, token] for h, token in enumerate(response.response_ids)) - response.reference.sum()

    rows = []
    for step in range(STEPS):
        losses = [
            -torch.nn.functional.logsigmoid(0.1 * (logprob(chosen) - logprob(rejected))) for chosen, rejected in pairs(step)
        ]
        loss = sum(losses) / len(losses)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rows.append((float(loss), float(norm)))
    return rows


def test_one_process_is_the_plain_loop(folder: Path, plain: list) -> None:
    rows = train(folder, "plain", 1)
    np.testing.assert_allclose([(r["loss"], r["grad_norm"]) for r in rows], plain, rtol=1e-4)
    assert plain[-1][0] != pytest.approx(plain[0][0], rel=1e-2), "something was learned"


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "offload", "recomputed"])
def test_two_workers_are_one_process_and_a_checkpoint_changes_nothing(folder: Path, plain: list, name: str) -> None:
    rows = train(folder, name, 2, stop=7)
    np.testing.assert_allclose([(r["loss"], r["grad_norm"]) for r in rows], plain, rtol=1e-4)
