"""A kernel for segments of variable length, written from the definitions, in any dtype: for the CPU, which has none."""

from typing import Any

import torch

from pipeline.models.scoring import varlen
from pipeline.models.scoring.segments import Segments


class Plain:
    """`pipeline.models.scoring.varlen.Kernel`. `keyless`: the logsumexp of queries without keys, in which kernels differ."""

    def __init__(self, keyless: float = float("nan")):
        self.keyless = keyless
        self.calls = 0

    def takes(self, query: torch.Tensor, parts: tuple[Segments, ...]) -> bool:
        return True

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, of: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.zeros(query.shape, dtype=wide)
        logsumexp = torch.full((query.shape[1], len(query)), self.keyless, dtype=wide)
        for queries, keys in _pieces(of, len(query), len(key)):
            scores = _scores(query[queries], key[keys], of, scale)
            if keys.stop > keys.start:
                logsumexp[:, queries] = scores.logsumexp(2)
                weights = (scores - logsumexp[:, queries, None]).exp()
                out[queries] = torch.einsum("nqk,knd->qnd", weights, _heads(value[keys], query).to(wide))
        return out.to(query.dtype), logsumexp

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
        """From the output and the logsumexp as they are given, which no gradient is asked of: as FlashAttention's."""
        wide = logsumexp.dtype
        slope, out = slope.to(wide), out.to(wide)
        of_query, of_key, of_value = (torch.zeros(each.shape, dtype=wide) for each in (query, key, value))
        for queries, keys in _pieces(of, len(query), len(key)):
            q, k, v = query[queries].to(wide), _heads(key[keys], query).to(wide), _heads(value[keys], query).to(wide)
            weights = (_scores(query[queries], key[keys], of, scale) - logsumexp[:, queries, None]).exp()
            mean = (slope[queries] * out[queries]).sum(2).T[..., None]
            of_scores = weights * (torch.einsum("qnd,knd->nqk", slope[queries], v) - mean) * scale
            of_query[queries] += torch.einsum("nqk,knd->qnd", of_scores, k)
            of_key[keys] += _grouped(torch.einsum("nqk,qnd->knd", of_scores, q), key)
            of_value[keys] += _grouped(torch.einsum("nqk,qnd->knd", weights, slope[queries]), value)
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


class PlainVarlen(torch.autograd.Function):
    """`varlen_attn` with its logsumexp: like PyTorch's, the logsumexp carries no gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, of: Segments, scale: float
    ) -> Any:
        out, logsumexp = Plain().forward(query, key, value, of, scale)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.of, ctx.scale = of, scale
        return out, logsumexp

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor, dropped: torch.Tensor) -> Any:
        query, key, value, out, logsumexp = ctx.saved_tensors
        return (*Plain().backward(slope, query, key, value, out, logsumexp, ctx.of, ctx.scale), None, None)


def force(monkeypatch: Any, kernel: varlen.Kernel | None = None) -> Any:
    """Have packed attention take the kernel on the CPU. Returns it."""
    kernel = kernel or Plain()
    monkeypatch.setitem(varlen.KERNELS, "cpu", kernel)
    return kernel


def _pieces(of: Segments, queries: int, keys: int) -> list[tuple[slice, slice]]:
    q, k = of.query_starts.tolist(), of.key_starts.tolist()
    assert of.query_starts.dtype == of.key_starts.dtype == torch.int32
    assert len(q) == len(k) == len(of) + 1 and (q[0], q[-1], k[0], k[-1]) == (0, queries, 0, keys)
    pieces = [(slice(q[i], q[i + 1]), slice(k[i], k[i + 1])) for i in range(len(of))]
    assert of.longest_query == max(a.stop - a.start for a, _ in pieces)
    assert of.longest_key == max(b.stop - b.start for _, b in pieces)
    return pieces


def _scores(query: torch.Tensor, key: torch.Tensor, of: Segments, scale: float) -> torch.Tensor:
    """[N, Q, K] in float32 or better, -inf where a query does not see a key."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("qnd,knd->nqk", query.to(wide), _heads(key, query).to(wide)) * scale
    ahead = torch.arange(len(key)) - torch.arange(len(query))[:, None] - (len(key) - len(query))
    if of.causal:
        scores = scores.masked_fill(ahead > 0, -torch.inf)
    return scores if of.window is None else scores.masked_fill(ahead <= -of.window, -torch.inf)


def _heads(each: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return each.repeat_interleave(query.shape[1] // each.shape[1], dim=1)


def _grouped(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2)
