"""Adapters of a learner as the folder that peft writes and vLLM reads."""

import json
import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file

from pipeline.models.engines.base import Adapters


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
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights}),
        "bias": "none",
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(settings, file)
