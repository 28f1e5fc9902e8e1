"""The layers of a model under `torch.compile`, with the attention of packed rows left as it is: its segments have another
number and other lengths in each batch, and each would be compiled anew."""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models.scoring import attention


def compile_layers(model: Any, backend: str = "inductor") -> Any:
    """The model itself, each decoder layer compiled for any number of tokens."""
    registered = AttentionInterface()
    for name in (attention.NAME, attention.LOOPED):
        AttentionInterface.register(
            name, torch.compiler.disable(registered[name])
        )  # nothing else, where nothing is compiled
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers that are known as such")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return model
