"""Adapters of a learner as the folder that peft writes and vLLM reads."""

import json
import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file

from pipeline.errors import RunError
from pipeline.models.engines.base import Adapters

PARTS = ("lora_A", "lora_B")


def check_adapters(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, list[int]], rank: int) -> None:
    """Raises RunError where weights are not the two matrices of every adapter, [rank, in] and [out, rank], each of a module
    of the model.

    Args:
        shapes: of the model's own weights.
    """
    modules = {_module(name) for name in weights}
    faults = []
    for module in sorted(modules):
        own = shapes.get(f"{module}.weight")
        if own is None or len(own) != 2:
            faults.append(f"{module} is no linear module of the model")
            continue
        due = {"lora_A": [rank, own[1]], "lora_B": [own[0], rank]}
        for part, shape in due.items():
            given = weights.get(f"{module}.{part}.default.weight")
            if given is None or list(given.shape) != shape:
                faults.append(f"{module}.{part} is {'missing' if given is None else list(given.shape)}")
    if faults or not modules:
        shown = ", ".join(faults[:3]) or "there are none"
        raise RunError(f"the learner's adapters are not those of the model that vLLM holds: {shown}")


def write_adapters(folder: str, weights: Mapping[str, torch.Tensor], adapters: Adapters) -> None:
    """Write them as peft does."""
    os.makedirs(folder, exist_ok=True)
    stored = {f"base_model.model.{name.replace('.default', '')}": each.contiguous() for name, each in weights.items()}
    save_file(stored, os.path.join(folder, "adapter_model.safetensors"))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "target_modules": sorted({_module(name).rpartition(".")[2] for name in weights}),
        "bias": "none",
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(settings, file)


def _module(name: str) -> str:
    for part in PARTS:
        module, mark, rest = name.partition(f".{part}.")
        if mark and rest == "default.weight":
            return module
    raise RunError(f"the learner sends {name}, which is no adapter")
