"""The policy as a module: responses in, log pi of their tokens out, with gradients and without [tokens, vocabulary].

    policy = Policy(model)                          # any Hugging Face causal LM
    logprobs, entropies, values = policy([Response(prompt, response), ...])  # [P] each, the responses one after another

Entropies of the next token and a critic's values are given where they are asked for, else None.

Responses that share a prompt are a family: in a packed row (`pipeline.models.scoring.attention`) the prompt is computed once
and no token is padding. Where the architecture cannot be packed, rows are padded on the right and prompts repeated. Both give
the same gradients up to rounding.

The output matrix is applied to a tile of [P, V] at a time, some positions and some of the vocabulary, and once more in
the backward pass: a tile is all of [P, V] that is ever held. Dropout is off, and so are dropped layers and noise in routers:
a step is a function of its data, and log-probabilities are those of the labels.

Shapes: P response tokens, D hidden size, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models.corrections import correct
from pipeline.models.scoring import attention
from pipeline.models.scoring.batches import Family, families
from pipeline.models.scoring.head import Reshape, raw_logits, reshape_of
from pipeline.models.scoring.layouts import agree, pack, pad, probe_families
from pipeline.tokens import TokenizedTurn

log = logging.getLogger(__name__)

Layout = Literal["packed", "padded"]
WHOLE = 2**62  # a family is never split within a micro-batch
LOWEST = torch.finfo(torch.float32).min  # stands for -inf where that would be taken off itself
NOISE = ("layerdrop", "jitter_noise", "input_jitter_noise")  # what else some architectures draw while they are trained
COLUMNS = 4096  # of a tile: many positions of a few columns, or the gradient [V, D] would be added to again and again


class Outputs(NamedTuple):
    """Of every response token and the state s_h before it, [P] each, in float32 or better; as `collate` takes them."""

    logprobs: torch.Tensor  # log pi(a_h | s_h)
    entropies: torch.Tensor | None  # -sum_a pi(a | s_h) log pi(a | s_h), in nats
    values: torch.Tensor | None  # the critic's forecast in s_h; its gradient ends at the critic


class Policy(nn.Module):
    """Holds a causal LM and gives its log-probabilities.

    Args:
        model: a Hugging Face causal LM, with adapters in it or not.
        head_chunk_mb: largest tile of logits, in MiB of float32.
        entropies: also give entropies.
        critic_seed: have a critic with first weights of this seed, and give its values; None: have none.

    Attributes:
        layout: "packed" or "padded"; set it by `choose_layout`.
        device: where it is computed; set it where parameters are partitioned or offloaded.

    Raises:
        ConfigError: where the output matrix is not a plain one.
    """

    def __init__(self, model: Any, head_chunk_mb: int = 64, *, entropies: bool = False, critic_seed: int | None = None):
        super().__init__()
        correct(model)
        self.model = model
        self.head = TokenLogprobs(model, head_chunk_mb, entropies)
        self.critic = None if critic_seed is None else Critic(self.head.weight, critic_seed)
        self.layout: Layout = "padded"
        self.plain_attention = model.config._attn_implementation
        self.device = self.head.weight.device  # a partitioned parameter does not say where it is computed
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():  # some architectures keep the rate as a number
                if (name.endswith(("dropout", "pdrop")) or name in NOISE) and isinstance(value, float):
                    setattr(module, name, 0.0)

    def use_layout(self, layout: Layout) -> None:
        self.model.set_attn_implementation(attention.NAME if layout == "packed" else self.plain_attention)
        self.layout = layout

    def forward(self, turns: Sequence[TokenizedTurn]) -> Outputs:
        """The responses in the order given."""
        found = families(turns, range(len(turns)), WHOLE)
        states = self._packed(found) if self.layout == "packed" else self._padded(found)  # [P, D] by family
        taken = torch.tensor([token for family in found for r in family.responses for token in r])
        order = [member for family in found for member in family.members]
        logprobs, entropies = self.head(states, taken.to(states.device))
        outputs = Outputs(logprobs, entropies, None if self.critic is None else self.critic(states))
        if order == sorted(order):
            return outputs
        lengths = [len(turns[member].response_ids) for member in order]

        def as_given(values: torch.Tensor | None) -> Any:
            if values is None:
                return None
            parts = zip(order, values.split(lengths), strict=True)
            return torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0])])

        return Outputs(*map(as_given, outputs))

    def own_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's own logits: ids [1, L] -> [L, V], called as `_padded` calls its trunk. For the probe."""
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]

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


class Critic(nn.Module):
    """States [P, D] -> a forecast of the rewards to come from each, [P] in float32 or better; 0 before it has learned.

    D -> D -> 1 with SiLU between, on states of mean 0 and deviation 1 each, so that architectures with large states learn
    no faster than others. No gradient reaches the states: a critic moves nothing but itself. Its weights are in the
    dtype of the model's, as DeepSpeed's engine wants them, and are computed with in float32 or better.
    """

    def __init__(self, head: torch.Tensor, seed: int):
        super().__init__()
        size = getattr(head, "ds_shape", head.shape)[1]
        first = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) / math.sqrt(size)

        def parameter(values: torch.Tensor) -> nn.Parameter:
            return nn.Parameter(values.to(head.device, head.dtype))

        self.inner, self.inner_bias = parameter(first), parameter(torch.zeros(size))
        self.outer, self.outer_bias = parameter(torch.zeros(1, size)), parameter(torch.zeros(1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(self.inner.dtype, torch.float32)
        inner, inner_bias, outer, outer_bias = (each.to(wide) for each in self.parameters())
        seen = functional.layer_norm(states.detach().to(wide), states.shape[-1:])
        return functional.linear(functional.silu(functional.linear(seen, inner, inner_bias)), outer, outer_bias)[:, 0]


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
        return _Logprobs.apply(
            states, self.weight, self.bias, taken, self.reshape, self.rows, self.columns, self.entropies
        )


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


class _Logprobs(torch.autograd.Function):
    """log_softmax(reshape(states @ weight.T + bias))[taken] and its entropy; keeps its inputs and one number, with
    entropies two, for each position.

    The entropy of a whole is that of its parts' shares and, by their shares, the parts' own (Shannon 1948, section 6):
    tiles of the vocabulary are such parts. Its slope is dH / d logit_j = -p_j (log p_j + H).
    """

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
        wanted: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        chosen = torch.zeros(len(states), dtype=wide, device=states.device)
        normalisers = torch.full_like(chosen, -torch.inf)
        entropies = torch.zeros_like(chosen) if wanted else None
        for here, there in _tiles(len(states), len(weight), rows, columns):
            logits = reshape(raw_logits(states[here], weight[there], None if bias is None else bias[there]))
            tokens, inside = _within(taken[here], there)
            chosen[here] = torch.where(inside, logits.gather(1, tokens[:, None])[:, 0], chosen[here])
            further, entropy = _reduce(logits, wanted)
            both = torch.logaddexp(normalisers[here], further)
            if entropies is not None and entropy is not None:
                shares = torch.stack([normalisers[here], further]).sub_(both.clamp_min(LOWEST)).exp_()
                parts = torch.stack([entropies[here], entropy])
                entropies[here] = (shares * parts + torch.special.entr(shares)).sum(0)
            normalisers[here] = both
        ctx.save_for_backward(states, weight, bias, taken, normalisers, entropies)
        ctx.reshape, ctx.rows, ctx.columns = reshape, rows, columns
        ctx.set_materialize_grads(False)
        return (chosen - normalisers).clamp_(max=0.0), entropies

    @staticmethod
    def backward(
        ctx: Any, of_logprobs: torch.Tensor | None, of_entropies: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, taken, normalisers, entropies = ctx.saved_tensors
        to_states, to_weight, to_bias, *_ = ctx.needs_input_grad
        of_logprobs = torch.zeros_like(normalisers) if of_logprobs is None else of_logprobs
        # the slope of log pi is [j is taken] - p_j, that of H is -p_j log p_j - p_j H
        weights = of_logprobs if of_entropies is None else of_logprobs + of_entropies * entropies

        def zeros(like: torch.Tensor | None, wanted: bool) -> torch.Tensor | None:
            return torch.zeros_like(like, dtype=normalisers.dtype) if like is not None and wanted else None

        of_states, of_weight, of_bias = zeros(states, to_states), zeros(weight, to_weight), zeros(bias, to_bias)
        for here, there in _tiles(len(states), len(weight), ctx.rows, ctx.columns):
            part, matrix, gradient = states[here].to(weight.dtype), weight[there], of_logprobs[here]
            logits = ctx.reshape(raw_logits(part, matrix, None if bias is None else bias[there]))
            slope = logits.clone() if ctx.reshape.cap else logits  # d (log pi, H) / d logits, times the gradients
            slope.sub_(normalisers[here, None]).exp_()
            surprises = None if of_entropies is None else torch.special.entr(slope).mul_(of_entropies[here, None])
            slope.mul_(-weights[here, None])
            if surprises is not None:
                slope.add_(surprises)
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
            *[None] * 5,
        )


def _reduce(logits: torch.Tensor, entropies: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits [P, columns], which are overwritten -> logsumexp and entropy of their softmax, [P] each. Logits may be -inf,
    even all of a row; its entropy is then 0."""
    top = logits.amax(dim=1).clamp_min_(LOWEST)
    total = logits.sub_(top[:, None]).exp_().sum(dim=1)
    if not entropies:
        return total.log().add_(top), None
    shares = logits.div_(total.clamp_min(1.0)[:, None])  # less than 1 only where all are 0
    return total.log().add_(top), torch.special.entr(shares, out=shares).sum(dim=1)


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


def choose_layout(policy: Policy, call: Callable[..., Outputs], wanted: str) -> list[str]:
    """Find out on a probe how this architecture can be run, and set `policy.layout`. Returns what a person should know.

    Like is compared with like: rows of several responses with each response alone, in one dtype through one head; and each
    alone with the model's own logits, which the model has rounded to its dtype.

    Args:
        call: `policy` itself, or what wraps it and takes the same arguments.
        wanted: "auto", "packed" or "padded".

    Raises:
        ConfigError: where the logits in slices are not the model's own, or `wanted` cannot be had.
    """
    name, probe = type(policy.model).__name__, _probe_turns(policy.model.config.get_text_config())
    dtype = policy.model.dtype
    with torch.no_grad():
        policy.use_layout("padded")
        alone = torch.cat([call([turn]).logprobs for turn in probe])
        if not agree(alone, torch.cat([_plain_logprobs(policy, turn) for turn in probe]), dtype):
            raise ConfigError(f"{name} does more to its logits than the output matrix; it cannot be trained here yet")
        if not agree(call(probe).logprobs, alone, dtype, slack=5):  # there is nothing to fall back to
            raise ConfigError(f"{name} sees the padding behind a response; it cannot be trained here yet")
    if wanted == "padded":
        return []
    try:
        policy.use_layout("packed")
        with torch.no_grad():
            why = None if agree(call(probe).logprobs, alone, dtype) else "its log-probabilities differ"
    except Exception as error:  # whatever an unknown architecture raises means the same: not this way
        why = f"{type(error).__name__}: {error}"
    if why is None:
        return []
    if wanted == "packed":
        raise ConfigError(f"learner.layout = packed does not fit {name} ({why}); leave it at auto")
    policy.use_layout("padded")
    return [f"{name} cannot be packed: rows are padded, and shared prompts computed for each response"]


def _plain_logprobs(policy: Policy, turn: TokenizedTurn) -> torch.Tensor:
    ids = torch.tensor([[*turn.prompt_ids, *turn.response_ids]], device=policy.device)
    logits = policy.own_logits(ids[:, :-1])[len(turn.prompt_ids) - 1 :]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(1).gather(1, ids[0, len(turn.prompt_ids) :, None])[:, 0]


def _probe_turns(config: Any) -> list[TokenizedTurn]:
    return [TokenizedTurn(list(f.prompt_ids), list(r), []) for f in probe_families(config) for r in f.responses]
