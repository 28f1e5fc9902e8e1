"""Pictures through a model's vision tower once, and what a forward of the whole model gets of them.

A forward gets either what the model's own processor gives it, pixels and all, or the features, encoded ahead, in place of
the pixels: where the model takes them (`mm_encoder_outputs`), so that one encoding serves all responses to a prompt.
Where a model's positions have three dimensions (Qwen), a prompt's follow from its pictures' grids, and text goes on behind
the largest.

Shapes: P tokens of a prompt, L tokens of a row, D hidden size.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.corpus.pictures import Picture
from pipeline.errors import RowError
from pipeline.models.pictures.processor import PictureProcessor

TYPES = ("mm_token_type_ids", "token_type_ids")  # what a model may call which tokens are pictures'


class View:
    """One prompt's pictures, for one model.

    Args:
        pixels: the tensors of the processor.
        features: the vision tower's output; None where the model takes pixels alone.
    """

    def __init__(self, seeing: "Seeing", pixels: dict[str, Any], features: Any):
        self.seeing, self.pixels, self.features = seeing, pixels, features

    def options(self, ids: torch.Tensor) -> dict[str, Any]:
        """For a forward of these tokens [1, L], which begin with the prompt's."""
        if self.features is None:
            own = {name: value for name, value in self.pixels.items() if name in self.seeing.forward}
        else:
            own = {name: value for name, value in self.pixels.items() if name == "image_grid_thw"}
            own["mm_encoder_outputs"] = {"image": self.features}
        if self.seeing.kinds is not None:
            own[self.seeing.kinds] = (ids == self.seeing.token_id).int().to(self.seeing.device)
        return own

    def positions(self, prompt: torch.Tensor) -> torch.Tensor:
        """Of a prompt's tokens [P]: [3, P] where the model has those of time, height and width, else [1, P]."""
        own = getattr(self.seeing.trunk, "get_rope_index", None)
        if own is None:
            return torch.arange(len(prompt), device=prompt.device)[None]
        kinds = (prompt == self.seeing.token_id).int()[None]
        positions: torch.Tensor = own(
            prompt[None], mm_token_type_ids=kinds, image_grid_thw=self.pixels["image_grid_thw"]
        )[0]
        return positions[:, 0]

    def require_fit(self, prompt: torch.Tensor) -> None:
        """Raises RowError where the features are not as many as a prompt's tokens for them [P]."""
        if self.features is None:
            return
        pooled = self.features.pooler_output
        pieces = pooled if isinstance(pooled, list | tuple) else [pooled]
        count = sum(piece.numel() // piece.shape[-1] for piece in pieces)
        due = int((prompt == self.seeing.token_id).sum())
        if count != due:
            raise RowError(
                "picture_tokens",
                f"the model makes {count} parts of the pictures, and the prompt has {due} tokens for them; are processor and "
                "weights of one model?",
            )


class Seeing:
    """What makes views of pictures with one model.

    Attributes:
        ahead: whether features are encoded ahead; views from then on are made so.
    """

    def __init__(self, model: Any, processor: PictureProcessor):
        self.processor, self.token_id = processor, processor.token_id
        self.trunk = model.base_model
        self.device, self.dtype = model.get_input_embeddings().weight.device, model.dtype
        self.forward = set(inspect.signature(self.trunk.forward).parameters)
        self.kinds = next((name for name in TYPES if name in self.forward), None)
        self.ahead = "mm_encoder_outputs" in self.forward
        self._last: tuple[tuple[str, ...], View] | None = None

    def view(self, pictures: Sequence[Picture]) -> View:
        """Of the same pictures as the last time, what was encoded then. Raises RowError for what is no picture."""
        key = (str(self.ahead), *(picture.digest for picture in pictures))
        if self._last is None or self._last[0] != key:
            self._last = None  # one prompt's at a time
            self._last = key, self._encoded(pictures)
        return self._last[1]

    def _encoded(self, pictures: Sequence[Picture]) -> View:
        pixels = {name: self._here(value) for name, value in self.processor.tensors(pictures).items()}
        if not self.ahead:
            return View(self, pixels, None)
        wanted = set(inspect.signature(self.trunk.get_image_features).parameters)
        inputs = {name: value for name, value in pixels.items() if name in wanted}
        return View(self, pixels, self.trunk.get_image_features(**inputs, return_dict=True))

    def _here(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)
