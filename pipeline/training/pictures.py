"""What a policy's trunk gets beside token ids where its prompts have pictures: pixels, kinds of tokens, positions.

All pictures of a micro-batch go through the vision tower in the one call of the trunk that its tokens go through, so they
have gradients. A micro-batch without pictures gets a stand-in with one, of which nothing is learnt: every worker calls the
same modules, however pictures are spread over micro-batches.

Shapes: B rows of length L, T tokens of a packed row.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.corpus.pictures import Picture
from pipeline.errors import RowError, RunError
from pipeline.models.pictures import PictureProcessor
from pipeline.models.pictures.features import TYPES, kinds_of, prompt_positions
from pipeline.models.scoring.batches import Family
from pipeline.models.scoring.layouts import joined, probe_pictured


class PictureInputs:
    """Of one model.

    Attributes:
        stand_in: a prompt with a picture, and responses to it.
    """

    def __init__(self, model: Any, processor: PictureProcessor):
        self.processor, self.trunk = processor, model.base_model
        self.taken = set(inspect.signature(self.trunk.forward).parameters)
        self.kinds = next((name for name in TYPES if name in self.taken), None)
        self.stand_in: Family = probe_pictured(model.config.get_text_config(), processor)

    def of(self, ids: torch.Tensor, prompts: Sequence[Sequence[Picture]]) -> dict[str, Any]:
        """For a forward of these tokens [B, L], which hold those of the prompts' pictures in this order. On the CPU.

        Raises RunError where a picture cannot be decoded, or the processor refuses it.
        """
        kinds = {} if self.kinds is None else {self.kinds: kinds_of(ids, self.processor.token_id)}
        pictured = [prompt for prompt in prompts if prompt]
        if not pictured:
            return kinds
        try:
            pixels = self.processor.tensors(*pictured)
        except RowError as error:
            raise RunError(f"a picture cannot be learnt from: {error.detail}") from None
        return {**{name: value for name, value in pixels.items() if name in self.taken}, **kinds}

    def positions(self, batch: Sequence[Family], grids: torch.Tensor | None) -> torch.Tensor | None:
        """Of a packed row [3, 1, T] where the model has those of time, height and width; else None.

        Args:
            grids: of the batch's pictures in order, `image_grid_thw`.
        """
        if not hasattr(self.trunk, "get_rope_index"):
            return None
        parts, begin = [], 0
        for family in batch:
            prompt, end = joined([family.prompt_ids]), begin + len(family.pictures)
            its = grids[begin:end] if family.pictures and grids is not None else None
            own = prompt_positions(self.trunk, self.processor.token_id, prompt, its).expand(3, -1)
            behind = [own.max() + 1 + torch.arange(len(response) - 1) for response in family.responses]
            parts += [own, *(each.expand(3, -1) for each in behind)]
            begin = end
        return torch.cat(parts, dim=1)[:, None]
