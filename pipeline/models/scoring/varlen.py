"""Attention of a packed row in one or two calls of a kernel for segments of variable length, without a loop over them.

The calls of `pipeline.models.scoring.segments` each see some of a query's keys. With outputs o_1, o_2 and logsumexps of the
scores l_1, l_2 of two calls, the attention to all keys is

    l = logaddexp(l_1, l_2)
    o = exp(l_1 - l) o_1 + exp(l_2 - l) o_2 = o_1 + sigmoid(l_2 - l_1) (o_2 - o_1)

The gradient is not that of this formula by autograd: kernels give no gradient of a logsumexp. But theirs for the scores s,
with weights p = exp(s - l) and g the gradient of o,

    d s = p (g v - g o)                           (Dao et al. 2022, appendix B.2)

holds for the part of the keys that one call sees if it is given the merged o and l. So backward calls each part's backward
with these and adds up.

Shapes: T tokens of the row, N heads, K key-value heads, D head size; of one call Q queries, N heads.
"""

import functools
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from pipeline.models.scoring.segments import Segments

LARGEST_GRID = 65535  # segments of a call: they are a dimension of CUDA's grid other than its first


class Kernel(Protocol):
    """Attention over segments, and its gradient from any output and logsumexp that are given."""

    def takes(self, query: torch.Tensor, parts: tuple[Segments, ...]) -> bool:
        """Whether it is made for this dtype and number of segments."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, of: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Query [Q, N, D], keys and values [_, K, D] -> output [Q, N, D], scores' logsumexp [N, Q], float32 or better."""

    def backward(
        self,
        slope: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        logsumexp: torch.Tensor,
        of: Segments,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients of query, key and value for the gradient `slope` of the output."""


class Flash:
    """PyTorch's own FlashAttention: the operators behind `torch.nn.attention.varlen.varlen_attn`, whose backward takes an
    output and a logsumexp only where it is called by itself.

    Grouped heads are native to them. Where a version can split a segment's keys over blocks, which it would decide by
    what else is in the batch, it is asked not to.
    """

    def takes(self, query: torch.Tensor, parts: tuple[Segments, ...]) -> bool:
        return query.dtype in (torch.float16, torch.bfloat16) and max(map(len, parts)) <= LARGEST_GRID

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, of: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            *_lengths(of),
            0.0,
            of.causal and of.window is None,
            False,
            **_how(of, scale),
            **_unsplit(),
        )
        heads, queries = query.shape[1], query.shape[0]
        if logsumexp.shape != (heads, queries):  # the documentation of varlen_attn has it the other way round
            raise ValueError(f"logsumexp has the shape {tuple(logsumexp.shape)}, not {(heads, queries)}")
        return out, logsumexp

    def backward(
        self,
        slope: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        logsumexp: torch.Tensor,
        of: Segments,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        undrawn = torch.empty(2, dtype=torch.uint64, device=query.device)  # the state of dropout's generator
        unused = torch.empty(0, device=query.device)
        gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten._flash_attention_backward(
            slope.contiguous(),
            query,
            key,
            value,
            out,
            logsumexp.contiguous(),  # read as rows of Q numbers
            *_lengths(of),
            0.0,
            of.causal and of.window is None,
            undrawn,
            unused,
            **_how(of, scale),
        )
        return gradients


def _lengths(of: Segments) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """At grouped heads and a longest query of 1 the forward would take every segment to have a query: so never 1."""
    return of.query_starts, of.key_starts, max(2, of.longest_query), of.longest_key


@functools.cache
def _unsplit() -> dict[str, int]:
    known = torch.ops.aten._flash_attention_forward.default._schema.arguments
    return {"num_splits": 1} if "num_splits" in {argument.name for argument in known} else {}


def _how(of: Segments, scale: float) -> dict[str, Any]:
    left = -1 if of.window is None else of.window - 1
    return {"scale": scale, "window_size_left": left, "window_size_right": 0 if of.causal else -1}


KERNELS: dict[str, Kernel] = {"cuda": Flash()}  # by type of device


def attend(
    query: torch.Tensor,  # [1, N, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    parts: tuple[Segments, ...],
    kernel: Kernel,
    scale: float,
) -> torch.Tensor:
    """Attention to the keys of all parts, [1, T, N, D]. Queries of the first part are the whole row; none sees a key twice."""
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    out: torch.Tensor = _Merged.apply(q, k, v, parts, kernel, scale)  # type: ignore[no-untyped-call]
    return out[None]


class _Merged(torch.autograd.Function):
    """Keeps its inputs, the merged output and the merged logsumexp, whatever the number of parts."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parts: tuple[Segments, ...],
        kernel: Kernel,
        scale: float,
    ) -> torch.Tensor:
        first, *rest = parts
        out, logsumexp = kernel.forward(query, _rows(key, first.keys), _rows(value, first.keys), first, scale)
        for part in rest:
            further = kernel.forward(
                _rows(query, part.queries), _rows(key, part.keys), _rows(value, part.keys), part, scale
            )
            assert part.queries is not None  # only the first part's are the whole row
            _merge(out, logsumexp, part.queries, *further)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.parts, ctx.kernel, ctx.scale = parts, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, logsumexp = ctx.saved_tensors
        totals: list[torch.Tensor | None] = [None, None, None]
        for part in ctx.parts:
            of_query = [_rows(each, part.queries) for each in (slope, query, out)]
            of_key = [_rows(each, part.keys) for each in (key, value)]
            lse = logsumexp if part.queries is None else logsumexp[:, part.queries]
            gradients = ctx.kernel.backward(*of_query[:2], *of_key, of_query[2], lse, part, ctx.scale)
            places = (part.queries, part.keys, part.keys)
            totals = [_add(*each) for each in zip(totals, gradients, places, (query, key, value), strict=True)]
        of_inputs = [None if t is None else t.to(i.dtype) for t, i in zip(totals, (query, key, value), strict=True)]
        return (*of_inputs, None, None, None)


def _rows(tensor: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def _merge(
    out: torch.Tensor,  # [T, N, D]
    logsumexp: torch.Tensor,  # [N, T]
    queries: torch.Tensor,  # [Q]
    further: torch.Tensor,  # [Q, N, D]
    further_logsumexp: torch.Tensor,  # [N, Q]
) -> None:
    """Take a further part into the first one's output and logsumexp, in place."""
    own, own_logsumexp = out.index_select(0, queries), logsumexp.index_select(1, queries)
    weight = torch.sigmoid(further_logsumexp - own_logsumexp).T[..., None]
    merged = torch.lerp(own.to(weight.dtype), further.to(weight.dtype), weight)
    out.index_copy_(0, queries, merged.to(out.dtype))
    logsumexp.index_copy_(1, queries, torch.logaddexp(own_logsumexp, further_logsumexp))


def _add(
    total: torch.Tensor | None, gradient: torch.Tensor, rows: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor:
    """A part's gradient at its rows added to those before, in float32 or better: a key may be in many segments."""
    if total is None and rows is None:
        return gradient
    wide = torch.promote_types(like.dtype, torch.float32)
    total = torch.zeros_like(like, dtype=wide) if total is None else total.to(wide)
    return total + gradient if rows is None else total.index_add_(0, rows, gradient.to(wide))
