"""log pi and entropy of the tokens taken, with gradients and without [tokens, vocabulary]: a tile of it at a time.

With logits z = reshape(states @ weight.T + bias), [P, V], and for each position

    Z = logsumexp(z),  p = exp(z - Z)
    log pi = z[taken] - Z                         d log pi / d z_j = [j is taken] - p_j
    H = -sum_j p_j log p_j                        d H / d z_j = -p_j log p_j - p_j H
    g and e the gradients of log pi and H:        slope_j = g [j is taken] - p_j (g + e H) - e p_j log p_j
    of two parts of the vocabulary:               Z = logaddexp(Z_1, Z_2),  q_i = exp(Z_i - Z)
    and, by Shannon (1948, section 6):            H = sum_i q_i H_i - q_i log q_i

Forward folds tiles by the last two lines and keeps Z and H of each position; backward makes each tile once more.

Shapes: P positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.scoring.head import Reshape, raw_logits, reshape_of

LOWEST = torch.finfo(torch.float32).min  # stands for -inf where that would be taken off itself
COLUMNS = 4096  # of a tile: many positions of a few columns, or the gradient [V, D] would be added to again and again


class TokenLogprobs(nn.Module):
    """States [P, D] and the tokens taken after them [P] -> their log-probabilities and, or None, the entropies: [P] each.

    Holds the output matrix as a parameter of its own (the same tensor, tied or not), so that whatever partitions
    parameters by module gathers it here.
    """

    def __init__(self, model: Any, chunk_mb: int, entropies: bool = False):
        super().__init__()
        layer = model.get_output_embeddings()
        if layer is None or not isinstance(getattr(layer, "weight", None), nn.Parameter):
            raise ConfigError(
                f"{type(model).__name__} has no plain output matrix to train through; leave it out of lora.targets, or "
                "take another architecture"
            )
        _refuse_adapters(model, layer)
        self.weight = layer.weight  # [V, D]
        self.bias = getattr(layer, "bias", None)  # [V]
        self.reshape = reshape_of(model.config)
        self.entropies = entropies
        vocabulary = getattr(layer.weight, "ds_shape", layer.weight.shape)[0]
        self.columns = min(vocabulary, COLUMNS)
        self.rows = max(1, chunk_mb * 2**20 // 4 // self.columns)

    def _save_to_state_dict(self, *_: Any) -> None:
        """The model saves its own tensors."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """And loads them."""

    def forward(self, states: torch.Tensor, taken: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        how = _How(self.reshape, self.rows, self.columns, self.entropies)
        values: tuple[torch.Tensor, torch.Tensor | None] = _Logprobs.apply(  # type: ignore[no-untyped-call]
            states, self.weight, self.bias, taken, how
        )
        return values


def _refuse_adapters(model: Any, head: Any) -> None:
    """Raises ConfigError where the output matrix has adapters: they would be left out of the logits here, get no gradient,
    and move those of whoever samples. Adapters of token embeddings move it too where both are one matrix."""
    tokens = model.get_input_embeddings()
    if hasattr(head, "base_layer"):
        adapted, what = head, "the output matrix"
    elif hasattr(tokens, "base_layer") and tokens.weight is head.weight:
        adapted, what = tokens, "the token embeddings, which are the output matrix too"
    else:
        return
    name = next(name for name, module in model.named_modules() if module is adapted)
    raise ConfigError(
        f"lora.targets puts adapters on {name} of {type(model).__name__}, {what}, through which none can be trained here; "
        "leave it out, as lora.targets = all-linear does"
    )


class _How(NamedTuple):
    """How tiles are made of [P, V]."""

    reshape: Reshape
    rows: int  # of a tile
    columns: int
    entropies: bool  # whether they are wanted

    def tiles(self, positions: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
        """Which positions, which tokens."""
        for top in range(0, positions, self.rows):
            for left in range(0, vocabulary, self.columns):
                yield slice(top, min(top + self.rows, positions)), slice(left, min(left + self.columns, vocabulary))


class _Logprobs(torch.autograd.Function):
    """States, output matrix, bias, tokens -> log pi and entropies; keeps its inputs and one number, with entropies two, for
    each position."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        taken: torch.Tensor,
        how: _How,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        chosen = torch.zeros(len(states), dtype=wide, device=states.device)
        normalisers = torch.full_like(chosen, -torch.inf)
        entropies = torch.zeros_like(chosen) if how.entropies else None
        for here, there in how.tiles(len(states), len(weight)):
            logits = how.reshape(raw_logits(states[here], weight[there], None if bias is None else bias[there]))
            tokens, inside = _within(taken[here], there)
            chosen[here] = torch.where(inside, logits.gather(1, tokens[:, None])[:, 0], chosen[here])
            before = _Folded(normalisers[here], None if entropies is None else entropies[here])
            folded = _join(before, _reduce(logits, how.entropies))
            normalisers[here] = folded.normalisers
            if entropies is not None and folded.entropies is not None:
                entropies[here] = folded.entropies
        ctx.save_for_backward(states, weight, bias, taken, normalisers, entropies)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return (chosen - normalisers).clamp_(max=0.0), entropies

    @staticmethod
    def backward(
        ctx: Any, of_logprobs: torch.Tensor | None, of_entropies: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, taken, normalisers, entropies = ctx.saved_tensors
        how: _How = ctx.how
        of_logprobs = torch.zeros_like(normalisers) if of_logprobs is None else of_logprobs
        of_shares = of_logprobs if of_entropies is None else of_logprobs + of_entropies * entropies  # g + e H
        of_states, of_weight, of_bias = (
            None if each is None or not needed else torch.zeros_like(each, dtype=normalisers.dtype)
            for each, needed in zip((states, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        for here, there in how.tiles(len(states), len(weight)):
            part, matrix = states[here].to(weight.dtype), weight[there]
            logits = how.reshape(raw_logits(part, matrix, None if bias is None else bias[there]))
            shares = logits.clone() if how.reshape.cap else logits  # a cap's own slope is of the logits
            shares.sub_(normalisers[here, None]).exp_()
            entropy_gradient = None if of_entropies is None else of_entropies[here]
            slope = _slope(shares, *_within(taken[here], there), of_logprobs[here], of_shares[here], entropy_gradient)
            slope = how.reshape.pull_back(slope, logits)
            narrow = slope.to(weight.dtype)
            if of_states is not None:
                of_states[here] += _product(narrow, matrix)
            if of_weight is not None:
                of_weight[there] += _product(narrow.T, part)
            if of_bias is not None:
                of_bias[there] += slope.sum(0)
        return (
            None if of_states is None else of_states.to(states.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


class _Folded(NamedTuple):
    """Of each position over some of the vocabulary, [P] each."""

    normalisers: torch.Tensor  # Z
    entropies: torch.Tensor | None  # H


def _reduce(logits: torch.Tensor, entropies: bool) -> _Folded:
    """Of the logits of a tile [P, columns], which are overwritten. They may be -inf, even all of a row; its entropy is then
    0."""
    top = logits.amax(dim=1).clamp_min_(LOWEST)
    total = logits.sub_(top[:, None]).exp_().sum(dim=1)
    if not entropies:
        return _Folded(total.log().add_(top), None)
    shares = logits.div_(total.clamp_min(1.0)[:, None])  # less than 1 only where all are 0
    return _Folded(total.log().add_(top), torch.special.entr(shares, out=shares).sum(dim=1))


def _join(left: _Folded, right: _Folded) -> _Folded:
    """Of two parts of the vocabulary together."""
    normalisers = torch.logaddexp(left.normalisers, right.normalisers)
    if left.entropies is None or right.entropies is None:
        return _Folded(normalisers, None)
    both = torch.stack([left.normalisers, right.normalisers])
    shares = both.sub_(normalisers.clamp_min(LOWEST)).exp_()
    entropies = torch.stack([left.entropies, right.entropies])
    return _Folded(normalisers, (shares * entropies + torch.special.entr(shares)).sum(0))


def _slope(
    shares: torch.Tensor,
    tokens: torch.Tensor,
    inside: torch.Tensor,
    of_logprobs: torch.Tensor,
    of_shares: torch.Tensor,
    of_entropies: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient with respect to the logits of a tile, [P, columns].

    Args:
        shares: p of the tile, [P, columns]; overwritten.
        tokens, inside: of `_within`.
        of_logprobs, of_shares, of_entropies: g, g + e H and e, [P] each; None for e = 0.
    """
    surprises = None if of_entropies is None else torch.special.entr(shares).mul_(of_entropies[:, None])
    slope = shares.mul_(-of_shares[:, None])
    if surprises is not None:
        slope.add_(surprises)
    slope[torch.arange(len(tokens), device=tokens.device), tokens] += torch.where(inside, of_logprobs, 0.0)
    return slope


def _within(taken: torch.Tensor, there: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a tile the taken tokens stand, and whether they do: [P] each. Those that do not stand at its edges."""
    tokens = taken.clamp(there.start, there.stop - 1)
    return tokens - there.start, tokens == taken


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right, in float32 or better."""
    return raw_logits(left, right.T, None)
