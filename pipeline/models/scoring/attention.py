"""Exact attention over many sequences packed into one row, with shared prefixes.

A row holds families `[prefix | response | response | ...]` one after another. Each response continues its own family's
prefix and sees nothing else; the prefix is computed once. No token is padding. Position ids alone do not say this (a
model would attach the first response to the prefix and leave the second alone), so the structure travels as a keyword
argument of the model call, `packing`, to an attention function registered under `NAME`.

Models that do not route attention through the registry (GPT-Neo) or that need more than a causal or sliding-window mask
raise `CannotPack`, or differ on the scorer's probe; the scorer then pads.

Shapes: B = 1 row, N heads, K key-value heads, T tokens of the row, D head size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "endoreward_packed"


class CannotPack(Exception):
    """This model's attention is not one that `packed_attention` computes."""


@dataclass
class Packing:
    """Families of a packed row: `(start, prefix length, lengths of the continuations)`, in tokens."""

    families: list[tuple[int, int, list[int]]]
    _masks: dict[tuple[int, int, int | None, torch.device], torch.Tensor] = field(default_factory=dict)

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
        """True where a query may look: [queries, keys], causal and aligned at the last token; built once a batch."""
        key = (queries, keys, window, device)
        if key not in self._masks:
            q = torch.arange(keys - queries, keys, device=device)[:, None]
            k = torch.arange(keys, device=device)[None, :]
            seen = k <= q
            self._masks[key] = seen if window is None else seen & (k > q - window)
        return self._masks[key]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, N, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each family; the signature is that of transformers' attention functions. Returns [1, T, N, D]."""
    extra = [name for name in ("s_aux", "position_bias", "sinks") if others.get(name) is not None]
    if packing is None or attention_mask is not None or extra or not getattr(module, "is_causal", True):
        raise CannotPack(f"{type(module).__name__} asks for more than causal attention ({extra or 'a mask'})")
    sizes = [size for _, prefix, continuations in packing.families for size in (prefix, *continuations)]
    # cut at once: the gradient of a slice is a tensor of the whole row, that of all pieces together is one
    pieces = zip(*(each.split(sizes, dim=2) for each in (query, key, value)), strict=True)
    parts: list[torch.Tensor] = []
    for _, _, continuations in packing.families:
        q, prefix_key, prefix_value = next(pieces)
        parts.append(_attend(q, prefix_key, prefix_value, packing, scaling, sliding_window, softcap))
        for length in continuations:
            q, k, v = next(pieces)
            if length:
                k, v = torch.cat([prefix_key, k], dim=2), torch.cat([prefix_value, v], dim=2)
                parts.append(_attend(q, k, v, packing, scaling, sliding_window, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if window is not None and window >= keys:
        window = None
    if softcap is None:
        square = queries == keys and window is None
        mask = None if square else packing.mask(queries, keys, window, query.device)
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=square, scale=scaling, enable_gqa=grouped
        )
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~packing.mask(queries, keys, window, query.device), float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype) @ value


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
