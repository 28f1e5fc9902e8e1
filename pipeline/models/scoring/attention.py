"""Exact attention over many sequences packed into one row, with shared prefixes.

A row holds families `[prefix | response | response | ...]` one after another. Each response continues its own family's
prefix and sees nothing else; the prefix is computed once. No token is padding. Position ids alone do not say this (a
model would attach the first response to the prefix and leave the second alone), so the structure travels as a keyword
argument of the model call, `packing`, to an attention function registered under `NAME`.

On CUDA in 16 bits a layer is one or two calls of a kernel for segments of variable length
(`pipeline.models.scoring.varlen`), once that kernel has shown on the device itself, on a small row and with gradients, that it
gives what the loop over segments gives. Elsewhere, where scores are capped, and under the name `LOOPED`, that loop runs.

Models that do not route attention through the registry (GPT-Neo) or that need more than a causal or sliding-window mask
raise `CannotPack`, or differ on the scorer's probe; the scorer then pads.

Shapes: B = 1 row, N heads, K key-value heads, T tokens of the row, D head size.
"""

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from pipeline.models.scoring import segments, varlen

log = logging.getLogger(__name__)

NAME = "endoreward_packed"
LOOPED = "endoreward_packed_looped"  # the same without kernels for segments
APART = 0.05  # a share of the norm: 16 bits round by about 0.01, a gradient without its siblings' share is off by 0.8


class CannotPack(Exception):
    """This model's attention is not one that `packed_attention` computes."""


def use(model: Any, name: str) -> None:
    """Have a model's language model attend by a function of the registry; a vision tower keeps its own."""
    text = model.config.get_text_config()
    part = next((key for key, each in vars(model.config).items() if each is text), None)
    model.set_attn_implementation(name if part is None else {part: name})


@dataclass
class Packing:
    """Families of a packed row: `(start, prefix length, lengths of the continuations)`, in tokens."""

    families: list[tuple[int, int, list[int]]]
    _masks: dict[tuple[int, int, int | None, torch.device], torch.Tensor] = field(default_factory=dict)
    _parts: dict[tuple[int | None, torch.device], tuple[segments.Segments, ...]] = field(default_factory=dict)

    @functools.cached_property
    def tokens(self) -> int:
        return sum(prefix + sum(lengths) for _, prefix, lengths in self.families)

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest prefix with one of its continuations."""
        return max(prefix + max(lengths, default=0) for _, prefix, lengths in self.families)

    def parts(self, window: int | None, device: torch.device) -> tuple[segments.Segments, ...]:
        """The calls of a kernel for segments that make up this attention; built once a batch."""
        if window is not None and window >= self.longest:
            window = None
        key = (window, device)
        if key not in self._parts:
            if window is None:
                self._parts[key] = segments.shared(self.families, device)
            else:
                self._parts[key] = segments.windowed(self.families, window, device)
        return self._parts[key]

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
    looped: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each family; the signature is that of transformers' attention functions. Returns [1, T, N, D].

    `looped`: over segments one by one, whatever kernel there is.
    """
    extra = [name for name in ("s_aux", "position_bias", "sinks") if others.get(name) is not None]
    if packing is None or attention_mask is not None or extra or not getattr(module, "is_causal", True):
        raise CannotPack(f"{type(module).__name__} asks for more than causal attention ({extra or 'a mask'})")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is None and not looped:
        out = _by_segments(query, key, value, packing, scale, sliding_window)
        if out is not None:
            return out, None
    return _looped(query, key, value, packing, scale, sliding_window, softcap), None


def _by_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scale: float, window: int | None
) -> torch.Tensor | None:
    """[1, T, N, D] from a kernel for segments, None where none is right for these tensors."""
    kernel = varlen.KERNELS.get(query.device.type)
    if kernel is None or packing.tokens != query.shape[2]:
        return None
    parts = packing.parts(window, query.device)
    if not kernel.takes(query, parts):
        return None
    sizes = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    if _refusal((kernel, query.device, query.dtype, sizes, parts[0].window is not None)) is not None:
        return None
    return varlen.attend(query, key, value, parts, kernel, scale)


Case = tuple[varlen.Kernel, torch.device, torch.dtype, tuple[int, int, int, int], bool]
_refusals: dict[Case, str | None] = {}


def has_kernel(device: torch.device) -> bool:
    """Whether there is anything but the loop there, for some dtype."""
    return device.type in varlen.KERNELS


def refusals(device: torch.device) -> list[str]:
    """What a person should know of how attention runs on this type of device, of all that this process has run there."""
    reasons = [reason for (_, there, *_), reason in _refusals.items() if reason and there.type == device.type]
    return list(dict.fromkeys(reasons))


def _refusal(case: Case) -> str | None:
    """Why a kernel is not used for such tensors, also logged; None where it gives the output and the gradients of the loop
    on a small row. Found out once.

    Args:
        case: kernel, device, dtype, sizes (N, K, and D of keys and of values), and whether there is a window.
    """
    if case not in _refusals:
        reason = _difference(*case)
        _refusals[case] = reason and f"attention goes over segments one by one, which is slower ({reason})"
        if reason:
            log.warning(_refusals[case])
    return _refusals[case]


def _difference(
    kernel: varlen.Kernel, device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int, int], windowed: bool
) -> str | None:
    try:
        apart = _distance(kernel, device, dtype, sizes, 6 if windowed else None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel, a version or a device raises means the same: not this way
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if apart <= APART else f"the kernel's numbers are {apart:.0%} off"


@torch.inference_mode(False)
@torch.enable_grad()
def _distance(
    kernel: varlen.Kernel,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    window: int | None,
) -> float:
    """The largest, over output and the three gradients, of the norm of kernel minus loop in float32, over the norm."""
    packing = Packing([(0, 5, [3, 0, 7]), (15, 140, [1, 130]), (286, 9, [4]), (299, 3, [0]), (302, 1, [1, 1])])
    heads, groups, size, value_size = sizes
    draw = torch.Generator().manual_seed(0)

    def normal(count: int, width: int) -> torch.Tensor:
        return torch.randn(1, count, packing.tokens, width, generator=draw).to(device, dtype)

    slope, wide = normal(heads, value_size).transpose(1, 2), torch.promote_types(dtype, torch.float32)
    q, k, v = (normal(n, d).requires_grad_() for n, d in ((heads, size), (groups, size), (groups, value_size)))
    exact_q, exact_k, exact_v = (each.detach().to(wide).requires_grad_() for each in (q, k, v))
    out = varlen.attend(q, k, v, packing.parts(window, device), kernel, size**-0.5)
    due_out = _looped(exact_q, exact_k, exact_v, packing, size**-0.5, window, None)
    ours = [out, *torch.autograd.grad(out, (q, k, v), slope)]
    due = [due_out, *torch.autograd.grad(due_out, (exact_q, exact_k, exact_v), slope.to(wide))]
    with torch.no_grad():
        return max(float((a.to(wide) - b).norm() / b.norm()) for a, b in zip(ours, due, strict=True))


def _looped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """[1, T, N, D], one segment after another."""
    sizes = [size for _, prefix, continuations in packing.families for size in (prefix, *continuations)]
    # cut at once: the gradient of a slice is a tensor of the whole row, that of all pieces together is one
    pieces = zip(*(each.split(sizes, dim=2) for each in (query, key, value)), strict=True)
    parts: list[torch.Tensor] = []
    for _, _, continuations in packing.families:
        q, prefix_key, prefix_value = next(pieces)
        parts.append(_attend(q, prefix_key, prefix_value, packing, scale, window, softcap))
        for length in continuations:
            q, k, v = next(pieces)
            if length:
                k, v = torch.cat([prefix_key, k], dim=2), torch.cat([prefix_value, v], dim=2)
                parts.append(_attend(q, k, v, packing, scale, window, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    queries, keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if window is not None and window >= keys:
        window = None
    square = queries == keys and window is None
    # on CUDA, grouped heads with a mask or in float32 would fall to a kernel that holds all weights
    if groups > 1 and (softcap is not None or query.is_cuda):
        key, value, groups = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), 1
    if softcap is None:
        mask = None if square else packing.mask(queries, keys, window, query.device)
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=square, scale=scale, enable_gqa=groups > 1
        )
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    scores = scores.masked_fill(~packing.mask(queries, keys, window, query.device), float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype) @ value


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionInterface.register(LOOPED, functools.partial(packed_attention, looped=True))
for name in (NAME, LOOPED):
    AttentionMaskInterface.register(name, _no_mask)
