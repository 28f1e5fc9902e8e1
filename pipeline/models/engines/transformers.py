"""The reference: transformers' model in this process, completed by `pipeline.models.generation`."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import RowError, RunError
from pipeline.models.engines.base import Abilities, EngineSpec
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.memory import sampling_budget
from pipeline.models.questions import Completion, Question


class TransformersEngine:
    """Raises ConfigError where the model cannot be loaded.

    Attributes:
        model: whoever puts adapters into it does so before the first `load`.
    """

    name = "transformers"
    layout = "left padded"
    can = Abilities(tokens=True, logprobs=True, weights=True, repeatable=True)

    def __init__(self, spec: EngineSpec):
        drawing = spec.drawing
        self.version: int | None = None
        self.model = load_model(spec.model, spec.device, spec.gpus)
        self.generator = Generator(
            self.model,
            load_tokenizer(spec.model),
            max_new_tokens=drawing.max_new_tokens,
            max_length=drawing.max_length,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            budget_tokens=drawing.budget_tokens or sampling_budget(self.model, spec.gpu_share),
            eos_token_ids=drawing.end_tokens,
            logprobs=drawing.logprobs,
            certainty=drawing.certainty,
        )
        self.notes = self.generator.notes

    @property
    def forwarded_tokens(self) -> int:
        return self.generator.forwarded_tokens

    def generate(self, questions: Sequence[Question]) -> list[list[Completion] | RowError]:
        return self.generator.generate(questions)

    @torch.inference_mode()
    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        ids = torch.tensor([list(token_ids)], device=self.generator.device)
        logits = self.model(ids).logits[0, :-1].float()
        taken: NDArray[np.float32] = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
        return taken

    def load(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        self.version = None
        load_into(self.model, weights)
        self.version = version

    def rest(self) -> None:
        """It holds nothing but its weights."""


@torch.no_grad()
def load_into(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights into a model of the same architecture, each in the dtype that it has there: some architectures keep single
    weights in float32. Raises RunError where a name is not the model's."""
    own = dict(model.state_dict(keep_vars=True))
    for name, tensor in weights.items():
        if name not in own:
            raise RunError(f"the learner sends {name}, which {type(model).__name__} does not have")
        own[name].copy_(tensor.view(own[name].shape))
