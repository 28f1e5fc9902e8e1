"""From hidden states to Q(s_h,a_h), V(s_h) and log pi, without ever holding [tokens, vocabulary].

The output matrix is applied to a slice of positions at a time; each slice is reduced to its taken logit and its
logsumexp in float32 (float64 for a float64 model) and overwritten. Rounding logits to bfloat16 would cost up to 0.1 in
Q and V, so a low-precision matrix product accumulates and returns float32.

Shapes: P scored positions, D hidden size, V vocabulary.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

CPU_CHUNK_MB = 24
"""A larger slice leaves a CPU's caches, and from 32 MiB on the allocator gives each back and faults its pages in anew."""


@dataclass
class HeadScores:
    """Per scored token, each [P]: the taken logit, V at alpha, and log pi at temperature 1; where they are asked for, at
    temperature 1 too, the entropy of pi and its self-certainty KL(uniform || pi) over the A rows of the output matrix."""

    q: torch.Tensor
    values: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor | None = None
    self_certainty: torch.Tensor | None = None

    def columns(self) -> list[torch.Tensor]:
        """Those that are there, in the order of the fields."""
        return [column for field in fields(self) if (column := getattr(self, field.name)) is not None]


class Head:
    """The output matrix of a causal LM and what its architecture does to the logits afterwards.

    Args:
        model: any Hugging Face causal LM with output embeddings.
        chunk_mb: largest slice of logits, in MiB of float32; of a float32 CPU at most `CPU_CHUNK_MB`.

    Raises:
        LookupError: where the model has no output embeddings.
    """

    def __init__(self, model: Any, chunk_mb: int):
        layer = model.get_output_embeddings()
        if layer is None or not hasattr(layer, "weight"):
            raise LookupError(f"{type(model).__name__} has no output embeddings")
        self.weight: torch.Tensor = layer.weight  # [V, D]
        self.bias: torch.Tensor | None = getattr(layer, "bias", None)  # [V]
        self.reshape = reshape_of(model.config)
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32:
            chunk_mb = min(chunk_mb, CPU_CHUNK_MB)
        self.rows = max(1, chunk_mb * 2**20 // 4 // self.weight.shape[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[P, D] -> [P, V] in float32 or better. Callers keep P small."""
        return self.reshape(raw_logits(hidden.to(self.weight.device), self.weight, self.bias))

    def score(self, hidden: torch.Tensor, taken: torch.Tensor, alpha: float, certainty: bool = False) -> HeadScores:
        """Hidden states [P, D] and the tokens taken after them [P] -> scores, each [P]; with `certainty` all five."""
        # Made before the slices: a result that stays would lie where a slice's logits were, and the next slice fits nowhere.
        dtype, device = torch.promote_types(self.weight.dtype, torch.float32), self.weight.device
        scores = HeadScores(
            *(torch.empty(len(hidden), dtype=dtype, device=device) for _ in range(5 if certainty else 3))
        )
        for begin in range(0, len(hidden), self.rows):
            part = slice(begin, begin + self.rows)
            reduced = reduce_logits(self.logits(hidden[part]), taken[part], alpha, certainty)
            for whole, own in zip(scores.columns(), reduced.columns(), strict=True):
                whole[part] = own
        return scores


def raw_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[P, D] x [V, D] -> [P, V] in float32 or better, whatever the weights are."""
    if weight.dtype in (torch.float32, torch.float64):
        logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight)
    elif weight.is_cuda:
        logits = torch.mm(hidden.to(weight.dtype), weight.T, out_dtype=torch.float32)
    else:  # a CPU has no such product: widen a part of the matrix at a time
        parts = weight.split(max(1, 2**24 // weight.shape[1]))
        logits = torch.cat([torch.nn.functional.linear(hidden.float(), part.float()) for part in parts], dim=1)
    return logits if bias is None else logits.add_(bias)


def reduce_logits(logits: torch.Tensor, taken: torch.Tensor, alpha: float, certainty: bool = False) -> HeadScores:
    """Logits [P, V], which are overwritten, and the tokens taken [P] -> scores, each [P].

    With `certainty` two more reductions of the same slice, at temperature 1 and without another slice. Where a logit is
    infinite, what comes out is not finite.
    """
    q = logits.gather(1, taken.to(logits.device)[:, None])[:, 0]
    top = logits.amax(dim=1, keepdim=True)
    logits -= top
    scaled = None if alpha == 1 else (logits / alpha).exp_().sum(dim=1).log_() * alpha + top[:, 0]
    mean = logits.mean(dim=1) if certainty else None  # of Q - max Q
    shares = logits.exp_().sum(dim=1)
    logsum = shares.log() + top[:, 0]
    values = logsum if scaled is None else scaled
    # V >= Q holds exactly; in floating point both come from sums that round on their own.
    scores = HeadScores(q=q, values=torch.maximum(values, q), logprobs=(q - logsum).clamp_(max=0.0))
    if mean is not None:
        # d = Q - max Q, e = exp d: entropy = log sum e - (sum e log e) / sum e, KL(uniform || pi) = log sum e - mean d - log A
        negated = torch.special.entr(logits, out=logits).sum(dim=1)  # -sum e log e
        scores.entropies = (shares.log() + negated / shares).clamp_(min=0.0)
        scores.self_certainty = (shares.log() - mean - math.log(logits.shape[1])).clamp_(min=0.0)
    return scores


def concatenate(parts: list[HeadScores]) -> HeadScores:
    """Scores one after another."""
    return HeadScores(*(torch.cat(column) for column in zip(*(part.columns() for part in parts), strict=True)))


@dataclass(frozen=True)
class Reshape:
    """What an architecture does to its logits after the output matrix: cap * tanh(logits / cap), or factor * logits."""

    cap: float | None = None
    factor: float = 1.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.cap:
            return logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits if self.factor == 1 else logits.mul_(self.factor)

    def pull_back(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of the raw logits, from that of the reshaped `logits`; `gradient` is overwritten."""
        if self.cap:
            return gradient.mul_(1 - (logits / self.cap).square_())
        return gradient if self.factor == 1 else gradient.mul_(self.factor)


def reshape_of(config: Any) -> Reshape:
    """What is known of this architecture; a probe says whether it is all."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)  # Gemma 2 and later
    divisor = getattr(text, "logits_scaling", None)  # Granite
    factor = getattr(text, "logit_scale", None)  # Cohere
    return Reshape(cap or None, 1.0 if cap else 1 / divisor if divisor else factor or 1.0)
