"""The policy as a module: responses in, log pi of their tokens out, with gradients and without [tokens, vocabulary].

    policy = Policy(model)                          # any Hugging Face causal LM
    logprobs = policy([Response(prompt, response), ...])     # [P], the responses one after another

Responses that share a prompt are a family: in a packed row (`pipeline.scoring.attention`) the prompt is computed once and
no token is padding. Where the architecture cannot be packed, rows are padded on the right and prompts repeated. Both give
the same gradients up to rounding.

The output matrix is applied to a tile of [P, V] at a time, some positions and some of the vocabulary, and once more in
the backward pass: a tile is all of [P, V] that is ever held. Dropout is off: a step is a function of its data, and
log-probabilities are those of the labels.

Shapes: P response tokens, D hidden size, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.scoring import attention
from pipeline.scoring.batches import Family, families
from pipeline.scoring.head import Reshape, raw_logits, reduce_logits, reshape_of
from pipeline.scoring.layouts import pack, pad, probe_families
from pipeline.tokens import TokenizedTurn

log = logging.getLogger(__name__)

Layout = Literal["packed", "padded"]
WHOLE = 2**62  # a family is never split within a micro-batch
COLUMNS = 4096  # of a tile: many positions of a few columns, or the gradient [V, D] would be added to again and again


class Policy(nn.Module):
    """Holds a causal LM and gives its log-probabilities.

    Args:
        model: a Hugging Face causal LM, with adapters in it or not.
        head_chunk_mb: largest tile of logits, in MiB of float32.

    Attributes:
        layout: "packed" or "padded"; set it by `choose_layout`.
        device: where it is computed; set it where parameters are partitioned or offloaded.

    Raises:
        ConfigError: where the output matrix is not a plain one.
    """

    def __init__(self, model: Any, head_chunk_mb: int = 64):
        super().__init__()
        self.model = model
        self.head = TokenLogprobs(model, head_chunk_mb)
        self.layout: Layout = "padded"
        self.plain_attention = model.config._attn_implementation
        self.device = self.head.weight.device  # a partitioned parameter does not say where it is computed
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():  # some architectures keep the rate as a number
                if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
                    setattr(module, name, 0.0)

    def use_layout(self, layout: Layout) -> None:
        self.model.set_attn_implementation(attention.NAME if layout == "packed" else self.plain_attention)
        self.layout = layout

    def forward(self, turns: Sequence[TokenizedTurn]) -> torch.Tensor:
        """log pi of every response token, [P] in float32 or better, the responses in the order given."""
        found = families(turns, range(len(turns)), WHOLE)
        states = self._packed(found) if self.layout == "packed" else self._padded(found)  # [P, D] by family
        taken = torch.tensor([token for family in found for r in family.responses for token in r])
        order = [member for family in found for member in family.members]
        logprobs = self.head(states, taken.to(states.device))
        if order == sorted(order):
            return logprobs
        parts = logprobs.split([len(turns[member].response_ids) for member in order])
        return torch.cat([part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])])

    def own_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's own logits: ids [1, L] -> [L, V]. For the probe."""
        return self.model(input_ids=ids, use_cache=False).logits[0]

    def _packed(self, found: list[Family]) -> torch.Tensor:
        ids, positions, chosen, packing = pack(found)
        out = self._trunk(ids[None], position_ids=positions[None].to(self.device), packing=packing)
        return out[0][chosen.to(self.device)]

    def _padded(self, found: list[Family]) -> torch.Tensor:
        ids, mask, spans = pad(found)
        states = self._trunk(ids, attention_mask=mask.to(self.device))
        return torch.cat([states[row, begin:end] for row, (begin, end) in enumerate(spans)])

    def _trunk(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        trunk = self.model.base_model
        return trunk(input_ids=ids.to(self.device), use_cache=False, **options).last_hidden_state


class TokenLogprobs(nn.Module):
    """States [P, D] and the tokens taken after them [P] -> their log-probabilities [P].

    Holds the output matrix as a parameter of its own (the same tensor, tied or not), so that whatever partitions
    parameters by module gathers it here.
    """

    def __init__(self, model: Any, chunk_mb: int):
        super().__init__()
        layer = model.get_output_embeddings()
        if layer is None or not isinstance(getattr(layer, "weight", None), nn.Parameter):
            raise ConfigError(
                f"{type(model).__name__} has no plain output matrix to train through; leave it out of lora.targets, or "
                "take another architecture"
            )
        self.weight = layer.weight  # [V, D]
        self.bias = getattr(layer, "bias", None)  # [V]
        self.reshape = reshape_of(model.config)
        vocabulary = getattr(layer.weight, "ds_shape", layer.weight.shape)[0]
        self.columns = min(vocabulary, COLUMNS)
        self.rows = max(1, chunk_mb * 2**20 // 4 // self.columns)

    def _save_to_state_dict(self, *_: Any) -> None:
        """The model saves its own tensors."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """And loads them."""

    def forward(self, states: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        return _Logprobs.apply(states, self.weight, self.bias, taken, self.reshape, self.rows, self.columns)


class _Logprobs(torch.autograd.Function):
    """log_softmax(reshape(states @ weight.T + bias))[taken]; keeps its inputs and one number for each position."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        taken: torch.Tensor,
        reshape: Reshape,
        rows: int,
        columns: int,
    ) -> torch.Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        chosen = torch.zeros(len(states), dtype=wide, device=states.device)
        normalisers = torch.full_like(chosen, -torch.inf)
        for here, there in _tiles(len(states), len(weight), rows, columns):
            logits = reshape(raw_logits(states[here], weight[there], None if bias is None else bias[there]))
            tokens, inside = _within(taken[here], there)
            scores = reduce_logits(logits, tokens, alpha=1.0)
            chosen[here] = torch.where(inside, scores.q, chosen[here])
            normalisers[here] = torch.logaddexp(normalisers[here], scores.values)
        ctx.save_for_backward(states, weight, bias, taken, normalisers)
        ctx.reshape, ctx.rows, ctx.columns = reshape, rows, columns
        return (chosen - normalisers).clamp_(max=0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, taken, normalisers = ctx.saved_tensors
        to_states, to_weight, to_bias, *_ = ctx.needs_input_grad

        def zeros(like: torch.Tensor | None, wanted: bool) -> torch.Tensor | None:
            return torch.zeros_like(like, dtype=normalisers.dtype) if like is not None and wanted else None

        of_states, of_weight, of_bias = zeros(states, to_states), zeros(weight, to_weight), zeros(bias, to_bias)
        for here, there in _tiles(len(states), len(weight), ctx.rows, ctx.columns):
            part, matrix, gradient = states[here].to(weight.dtype), weight[there], gradients[0][here]
            logits = ctx.reshape(raw_logits(part, matrix, None if bias is None else bias[there]))
            slope = logits.clone() if ctx.reshape.cap else logits  # d log pi / d logits, times the gradient
            slope.sub_(normalisers[here, None]).exp_().mul_(-gradient[:, None])
            tokens, inside = _within(taken[here], there)
            slope[torch.arange(len(tokens), device=tokens.device), tokens] += torch.where(inside, gradient, 0.0)
            slope = ctx.reshape.pull_back(slope, logits)
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
            *[None] * 4,
        )


def _tiles(positions: int, vocabulary: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Of [positions, vocabulary]: which positions, which tokens."""
    for top in range(0, positions, rows):
        for left in range(0, vocabulary, columns):
            yield slice(top, min(top + rows, positions)), slice(left, min(left + columns, vocabulary))


def _within(taken: torch.Tensor, there: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a tile the taken tokens stand, and whether they do: [P] each. Those that do not stand at its edges."""
    tokens = taken.clamp(there.start, there.stop - 1)
    return tokens - there.start, tokens == taken


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right, in float32 or better."""
    return raw_logits(left, right.T, None)


def choose_layout(policy: Policy, call: Callable[..., torch.Tensor], wanted: str) -> list[str]:
    """Find out on a probe how this architecture can be run, and set `policy.layout`. Returns what a person should know.

    Args:
        call: `policy` itself, or what wraps it and takes the same arguments.
        wanted: "auto", "packed" or "padded".

    Raises:
        ConfigError: where the logits in slices are not the model's own, or `wanted` cannot be had.
    """
    probe = _probe_turns(policy.model.config.get_text_config())
    tolerance = 5e-2 if policy.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    with torch.no_grad():
        policy.use_layout("padded")
        padded = call(probe)
        own = torch.cat([_plain_logprobs(policy, turn) for turn in probe])
    scale = own.abs().amax().clamp_min(1.0)
    if not bool((padded - own).abs().amax() <= tolerance * scale):
        raise ConfigError(
            f"{type(policy.model).__name__} does more to its logits than the output matrix; it cannot be trained here yet"
        )
    if wanted == "padded":
        return []
    try:
        policy.use_layout("packed")
        with torch.no_grad():
            packed = call(probe)
        why = None if bool((packed - own).abs().amax() <= tolerance * scale) else "its log-probabilities differ"
    except Exception as error:  # whatever an unknown architecture raises means the same: not this way
        why = f"{type(error).__name__}: {error}"
    if why is None:
        return []
    if wanted == "packed":
        raise ConfigError(
            f"learner.layout = packed does not fit {type(policy.model).__name__} ({why}); leave it at auto"
        )
    policy.use_layout("padded")
    return [
        f"{type(policy.model).__name__} cannot be packed: rows are padded, and shared prompts computed for each response"
    ]


def _plain_logprobs(policy: Policy, turn: TokenizedTurn) -> torch.Tensor:
    ids = torch.tensor([turn.prompt_ids + turn.response_ids], device=policy.device)
    logits = policy.own_logits(ids)[len(turn.prompt_ids) - 1 : -1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(1).gather(1, ids[0, len(turn.prompt_ids) :, None])[:, 0]


def _probe_turns(config: Any) -> list[TokenizedTurn]:
    return [TokenizedTurn(list(f.prompt_ids), list(r), []) for f in probe_families(config) for r in f.responses]
