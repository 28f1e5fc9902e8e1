"""A checkpoint that fits any number of workers: the trained weights and AdamW's averages whole, by the names of their
parameters, in float32. The first worker writes it, every worker reads it and takes its own part.

Costs the first worker's CPU 12 bytes a trained parameter as it is written, and every worker's as it is read. For ZeRO 1 and 2:
under stage 3 no worker need have room for the whole.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

WHOLE = "whole.pt"
AVERAGES = ("exp_avg", "exp_avg_sq")  # of AdamW


def write_whole(engine: Any, folder: str, step: int) -> None:
    """Write what DeepSpeed's engine trains, after at least one step of the optimizer. All workers call it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    first, parameters = dist.get_rank() == 0, {}
    for name, parameter in _trained(engine):
        parts = [safe_get_full_fp32_param(parameter)]
        parts += [safe_get_full_optimizer_state(parameter, average) for average in AVERAGES]
        if first:
            parameters[name] = [part.cpu() for part in parts]
    if first:
        steps = max(float(state["step"]) for state in engine.optimizer.optimizer.state.values())
        torch.save({"step": step, "steps": steps, "parameters": parameters}, os.path.join(folder, WHOLE))


def read_whole(engine: Any, folder: str) -> int:
    """Take up what `write_whole` wrote, under whatever number of workers. All workers call it, before their first step.

    Returns:
        The number of steps that were done by it.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    saved = torch.load(os.path.join(folder, WHOLE), map_location="cpu", weights_only=True)
    optimizer = engine.optimizer.optimizer
    for group in optimizer.param_groups:
        for flat in group["params"]:  # this worker's part, which AdamW gives averages with its first step only
            averages = {average: torch.zeros_like(flat) for average in AVERAGES}
            optimizer.state[flat] = {"step": torch.tensor(saved["steps"]), **averages}
    engine.optimizer._lazy_init_hp_params_optimizer_state()
    trained = dict(_trained(engine))
    assert trained.keys() == saved["parameters"].keys(), "another policy's checkpoint"
    for name, parameter in trained.items():
        weights, *averages = saved["parameters"][name]
        safe_set_full_fp32_param(parameter, weights)
        for key, average in zip(AVERAGES, averages, strict=True):
            safe_set_full_optimizer_state(parameter, average, key)
        parameter.data.copy_(weights)
    return int(saved["step"])


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, each) for name, each in engine.module.named_parameters() if each.requires_grad)
