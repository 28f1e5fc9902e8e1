"""The weights of a model as transformers names them, which a learner sends; held against a complete set before an engine that
passes over what is missing gets them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import RunError


@dataclass(frozen=True)
class Held:
    """The weights of a model, as transformers names them.

    Attributes:
        shapes: of what a learner sends: parameters, tied ones once, and the buffers that are saved with the model.
        tied: further names of these, and which they are.
    """

    shapes: dict[str, list[int]]
    tied: dict[str, str]

    @classmethod
    def of(cls, settings: Any) -> "Held":
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings)
        saved = model.state_dict(keep_vars=True)
        sent = {name: each for name, each in [*model.named_parameters(), *model.named_buffers()] if name in saved}
        first = {id(tensor): name for name, tensor in sent.items()}
        tied = {name: first[id(tensor)] for name, tensor in saved.items() if name not in sent}
        return cls({name: list(tensor.shape) for name, tensor in sent.items()}, tied)

    def whole(self, weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        yield from weights.items()
        for name, of in self.tied.items():
            yield name, weights[of]


def check_weights(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises RunError where weights are not the complete set of a model, or of its adapters, each in its shape."""
    faults = [f"{name} is missing" for name in shapes if name not in weights]
    faults += [f"{name} is none of the model's" for name in weights if name not in shapes]
    faults += [
        f"{name} is {list(weights[name].shape)} and should be {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and list(weights[name].shape) != list(shape)
    ]
    if faults:
        shown = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise RunError(f"the learner's weights are not those of the model that vLLM holds: {shown}")
