"""What adding up a step's micro-batches costs a gradient in bfloat16, by the dtype that it is added up in.

A random Llama in bfloat16 takes the gradient of a step of `sft`, a micro-batch to each response, over two workers. It is held
against that of the same weights in float64, all responses at once: the error is the norm of the difference over the norm.
Every ZeRO stage, and with offload; each as the learner has it, in float32, and with `data_types.grad_accum_dtype` = bf16 in
`learner.deepspeed`, which is what DeepSpeed does of itself.

Gradients of single micro-batches, rounded as forward and backward pass round them and then added up in float64, are the least
error that there is. Left out: GPUs, whose matrix products round elsewhere.
"""

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from machine import CONSOLE, table, verdict

from pipeline.config import ModelConfig
from pipeline.tokens import TokenizedTurn
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig
from pipeline.training.objectives import objective_of
from pipeline.training.policy import Policy

SETTINGS = {
    "ZeRO 1": {"zero_stage": 1},
    "ZeRO 1, optimiser offloaded": {"zero_stage": 1, "offload": "optimizer"},
    "ZeRO 2": {"zero_stage": 2},
    "ZeRO 2, optimiser offloaded": {"zero_stage": 2, "offload": "optimizer"},
    "ZeRO 3": {"zero_stage": 3},
    "ZeRO 3, all offloaded": {"zero_stage": 3, "offload": "all"},
}
LOW = json.dumps({"data_types": {"grad_accum_dtype": "bf16"}})
WORKERS = 2


def responses(number: int, seed: int) -> list[Response]:
    rng = np.random.default_rng(seed)
    return [
        Response(rng.integers(0, 512, rng.integers(4, 12)).tolist(), rng.integers(0, 512, n).tolist(), 0.0)
        for n in rng.integers(8, 25, number)
    ]


def save_model(folder: str) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def gradient(folder: str, micro_batches: list[list[Response]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of the weights as bfloat16 has them, computed in `dtype` and added up in float64."""
    policy = Policy(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    policy.use_layout("packed")
    tokens = sum(len(each.response_ids) for micro in micro_batches for each in micro)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in policy.named_parameters()}
    for micro in micro_batches:
        policy.zero_grad()
        turns = [TokenizedTurn(each.prompt_ids, each.response_ids, []) for each in micro]
        (-policy(turns).logprobs.sum() / tokens).backward()
        for name, p in policy.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad
    return {name: grad for name, grad in sums.items() if grad.any()}


def error(got: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> float:
    apart = sum(float((got[name].double() - due[name]).square().sum()) for name in due)
    return (apart / sum(float(each.square().sum()) for each in due.values())) ** 0.5


def work(rank: int, port: int, folder: str, number: int, seed: int) -> None:
    from deepspeed.utils import safe_get_full_grad

    from actors.learner import Learner, LearnerSpec

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    store = dist.TCPStore("127.0.0.1", port, WORKERS, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    found, due = responses(number, seed), torch.load(f"{folder}/due.pt")
    totals = {"pairs": 0, "responses": number, "tokens": sum(len(each.response_ids) for each in found)}
    rows: dict[str, list[float]] = {}
    for name, learner_settings in SETTINGS.items():
        for low in (False, True):
            config = TrainConfig.model_validate(
                {
                    "train": {"objective": "sft"},
                    "policy": ModelConfig(name=folder),
                    "learner": {"dtype": "bfloat16", **learner_settings},
                }
            )
            learner = Learner(LearnerSpec(config, objective_of(config), "cpu", LOW if low else None))
            step, got = learner.engine.step, {}

            def stepping(learner: Learner = learner, step: object = step, got: dict = got) -> None:
                if learner.engine.is_gradient_accumulation_boundary():
                    got |= {
                        key: grad.cpu().view(due[key].shape)
                        for key, p in learner.policy.named_parameters()
                        if (grad := safe_get_full_grad(p)) is not None
                    }
                step()

            learner.engine.step = stepping
            learner.step([[each] for each in found[rank::WORKERS]], totals, 0.0)
            rows.setdefault(name, []).append(error(got, due))
    if rank == 0:
        Path(f"{folder}/rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=256, help="of the step, a micro-batch each")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    found = responses(told.responses, told.seed)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        due = gradient(folder, [found], torch.float64)
        least = error(gradient(folder, [[each] for each in found], torch.bfloat16), due)
        torch.save(due, f"{folder}/due.pt")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(work, (port, folder, told.responses, told.seed), WORKERS)
        rows = json.loads(Path(f"{folder}/rows.json").read_text())
    shown = table(
        f"Error of a gradient in bfloat16, {told.responses} micro-batches", "added up in", "float32", "bfloat16"
    )
    for name, (ours, low) in rows.items():
        shown.add_row(name, f"{ours:.2%}", f"{low:.2%}")
    CONSOLE.print(shown)
    CONSOLE.print(f"the least, micro-batches added up in float64: {least:.2%}")
    verdict(
        {
            "float32 adds less than a twentieth to the least error": all(
                ours < 1.05 * least for ours, _ in rows.values()
            ),
            "bfloat16 adds more than a tenth": all(low > 1.1 * least for _, low in rows.values()),
        }
    )


if __name__ == "__main__":
    main()
