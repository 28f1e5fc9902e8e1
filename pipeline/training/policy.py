"""The policy as a module: responses in, log pi of their tokens out, with gradients and without [tokens, vocabulary].

    policy = Policy(model)                          # any Hugging Face causal LM
    logprobs = policy([Response(prompt, response), ...])     # [P], the responses one after another

Responses that share a prompt are a family: in a packed row (`pipeline.scoring.attention`) the prompt is computed once and
no token is padding. Where the architecture cannot be packed, rows are padded on the right and prompts repeated. Both give
the same gradients up to rounding.

The output matrix is applied to a slice of positions at a time, and once more in the backward pass: a slice is all of
[P, V] that is ever held. Dropout is off: a step is a function of its data, and log-probabilities are those of the labels.

Shapes: P response tokens, D hidden size, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
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


class Policy(nn.Module):
    """Holds a causal LM and gives its log-probabilities.

    Args:
        model: a Hugging Face causal LM, with adapters in it or not.
        head_chunk_mb: largest slice of logits, in MiB of float32.

    Attributes:
        layout: "packed" or "padded"; set it by `choose_layout`.

    Raises:
        ConfigError: where the output matrix is not a plain one.
    """

    def __init__(self, model: Any, head_chunk_mb: int = 64):
        super().__init__()
        self.model = model
        self.head = TokenLogprobs(model, head_chunk_mb)
        self.layout: Layout = "padded"
        self.plain_attention = model.config._attn_implementation
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for name, value in vars(model.config.get_text_config()).items():
            if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(model.config.get_text_config(), name, 0.0)

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

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

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
        self.rows = max(1, chunk_mb * 2**20 // 4 // vocabulary)

    def forward(self, states: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        return _Logprobs.apply(states, self.weight, self.bias, taken, self.reshape, self.rows)


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
    ) -> torch.Tensor:
        chosen, normalisers = [], []
        for part, tokens in zip(states.split(rows), taken.split(rows), strict=True):
            scores = reduce_logits(reshape(raw_logits(part, weight, bias)), tokens, alpha=1.0)
            chosen.append(scores.logprobs)
            normalisers.append(scores.values)
        ctx.save_for_backward(states, weight, bias, taken, torch.cat(normalisers))
        ctx.reshape, ctx.rows = reshape, rows
        return torch.cat(chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, taken, normalisers = ctx.saved_tensors
        to_states, to_weight, to_bias, *_ = ctx.needs_input_grad
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_states = []
        of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if to_weight else None
        of_bias = (
            torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if bias is not None and to_bias else None
        )
        pieces = (each.split(ctx.rows) for each in (states, taken, normalisers, gradients[0]))
        for part, tokens, normaliser, gradient in zip(*pieces, strict=True):
            logits = ctx.reshape(raw_logits(part, weight, bias))
            slope = logits.clone() if ctx.reshape.cap else logits  # d log pi / d logits, times the gradient
            slope.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
            slope[torch.arange(len(tokens), device=tokens.device), tokens] += gradient
            slope = ctx.reshape.pull_back(slope, logits)
            narrow = slope.to(weight.dtype)
            if to_states:
                of_states.append((narrow @ weight).to(states.dtype))
            if of_weight is not None:
                of_weight += narrow.T @ part.to(weight.dtype)
            if of_bias is not None:
                of_bias += slope.sum(0)
        return (
            torch.cat(of_states) if to_states else None,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


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
