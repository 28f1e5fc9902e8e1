"""A key-value cache to which a token is added without copying what is there: transformers' own concatenates at every step."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 128  # tokens that are made room for at once: one copy of the cache for so many


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are the first tokens of larger tensors, where there is room for more."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: DynamicLayer):
        super().__init__()  # type: ignore[no-untyped-call]
        vars(self).update(vars(layer))
        self.rooms: dict[int, torch.Tensor] = {}  # of keys, of values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def _append(self, number: int, states: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """[B, K, L, D] and [B, K, H, D] -> [B, K, L + H, D]. Where the rows are others than before, there is no room yet."""
        length = states.shape[-2]
        end = length + new.shape[-2]
        room = self.rooms.get(number)
        if room is None or room.data_ptr() != states.data_ptr() or room.shape[-2] < end:
            room = self.rooms[number] = new.new_empty((*states.shape[:-2], end + ROOM, states.shape[-1]))
            room[..., :length, :] = states
        room[..., length:end, :] = new
        return room[..., :end, :]


def grow_in_place(cache: Any) -> Any:
    """Have the layers that would be concatenated grow in place instead; all others, and caches of other kinds, stay as they
    are. Returns the cache."""
    layers: Any = getattr(cache, "layers", ())
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            layers[number] = GrowingLayer(layer)
    return cache
