"""Pictures through a model's vision tower once, and what a forward of the whole model gets of them.

A forward gets either what the model's own processor gives it, pixels and all, or the features, encoded ahead, in place of
the pixels: where the model takes them (`mm_encoder_outputs`), so that one encoding serves all responses to a prompt.
Where a model's positions have three dimensions (Qwen), a prompt's follow from its pictures' grids, and text goes on behind
the largest.

Shapes: P tokens of a prompt, L tokens of a row, D hidden size.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.corpus.pictures import Picture
from pipeline.errors import RowError
from pipeline.models.pictures.processor import PictureProcessor

TYPES = ("mm_token_type_ids", "token_type_ids")  # what a model may call which tokens are pictures'


class View:
    """The pictures of prompts that are forwarded together, for one model.

    Args:
        counts: how many pictures each prompt has.
        pixels: the tensors of the processor.
        features: the vision tower's output; None where the model takes pixels alone.
    """

    def __init__(self, seeing: "Seeing", counts: Sequence[int], pixels: Mapping[str, Any], features: Any):
        self.seeing, self.counts, self.features = seeing, list(counts), features
        self.inputs = {name: seeing.here(value) for name, value in pixels.items() if name in seeing.forward}
        self.grids = pixels.get("image_grid_thw")  # on the CPU
        if features is not None:
            self.inputs = {name: value for name, value in self.inputs.items() if name == "image_grid_thw"}

    def options(self, ids: torch.Tensor) -> dict[str, Any]:
        """For a forward of these tokens [1, L], which hold the prompts'."""
        own = dict(self.inputs)
        if self.features is not None:
            own["mm_encoder_outputs"] = {"image": self.features}
        if self.seeing.kinds is not None:
            own[self.seeing.kinds] = kinds_of(ids, self.seeing.token_id).to(self.seeing.device)
        return own

    def positions(self, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of the tokens of each prompt [P]: [3, P] where the model has those of time, height and width, else [1, P]."""
        grids = [None] * len(prompts) if self.grids is None else self.grids.split(self.counts)
        trunk, token_id = self.seeing.trunk, self.seeing.token_id
        return [prompt_positions(trunk, token_id, *each) for each in zip(prompts, grids, strict=True)]

    def require_fit(self, prompts: Sequence[torch.Tensor]) -> None:
        """Raises RowError where the features are not as many as the prompts' tokens for them [P]."""
        if self.features is None:
            return
        pooled = self.features.pooler_output
        pieces = pooled if isinstance(pooled, list | tuple) else [pooled]
        count = sum(piece.numel() // piece.shape[-1] for piece in pieces)
        due = sum(int(kinds_of(prompt, self.seeing.token_id).sum()) for prompt in prompts)
        if count != due:
            raise _unfit(count, due, "weights")


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
        self._last: tuple[tuple[Any, ...], View] | None = None

    def view(self, *prompts: Sequence[Picture], ids: Sequence[torch.Tensor]) -> View:
        """Of the same pictures as the last time, what was encoded then. Raises RowError for what is no picture, and where the
        tokens of a prompt `ids`, each [P], are not as many as its pictures have."""
        for pictures, prompt in zip(prompts, ids, strict=True):
            shown = self.processor.expanded([picture.size() for picture in pictures])
            count, due = "".join(shown).count(self.processor.token), int(kinds_of(prompt, self.token_id).sum())
            if count != due:
                raise _unfit(count, due, "tokenizer")
        key = (self.ahead, *(tuple(picture.digest for picture in pictures) for pictures in prompts))
        if self._last is None or self._last[0] != key:
            self._last = None  # one batch's at a time
            view = self._encoded(prompts)
            view.require_fit(ids)
            self._last = key, view
        return self._last[1]

    def _encoded(self, prompts: Sequence[Sequence[Picture]]) -> View:
        pixels, features = self.processor.tensors(*prompts), None
        if self.ahead:
            wanted = set(inspect.signature(self.trunk.get_image_features).parameters)
            inputs = {name: self.here(value) for name, value in pixels.items() if name in wanted}
            features = self.trunk.get_image_features(**inputs, return_dict=True)
        return View(self, [len(pictures) for pictures in prompts], pixels, features)

    def here(self, value: Any) -> Any:
        """A tensor where the model is, in its dtype if it is not of whole numbers."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


def kinds_of(ids: torch.Tensor, token_id: int) -> torch.Tensor:
    """1 for a token of a picture, 0 for text; of the shape of `ids`."""
    return (ids == token_id).int()


def prompt_positions(trunk: Any, token_id: int, prompt: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """Of the tokens of a prompt [P]: [3, P] where it has pictures, of these `grids`, and the model positions of time, height
    and width, else [1, P]."""
    if grids is None or not len(grids) or not hasattr(trunk, "get_rope_index"):
        return torch.arange(len(prompt))[None]
    kinds = kinds_of(prompt, token_id)[None]
    positions: torch.Tensor = trunk.get_rope_index(prompt[None], mm_token_type_ids=kinds, image_grid_thw=grids)[0][:, 0]
    return positions


def _unfit(count: int, due: int, other: str) -> RowError:
    return RowError(
        "picture_tokens",
        f"the pictures have {count} parts, and the prompt {due} tokens for them; are processor and {other} of one model?",
    )
