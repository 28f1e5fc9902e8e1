"""The policy as a module: responses in, log pi of their tokens out, with gradients and without [tokens, vocabulary].

    policy = Policy(model)                          # any Hugging Face causal LM
    logprobs, entropies, values = policy([Response(prompt, response), ...])  # [P] each, the responses one after another

Entropies of the next token and a critic's values are given where they are asked for, else None.

Responses that share a prompt are a family: in a packed row (`pipeline.models.scoring.attention`) the prompt is computed once
and no token is padding. Where the architecture cannot be packed, rows are padded on the right and prompts repeated. Both give
the same gradients up to rounding.

Prompts with pictures lie in the same row, or rows; where they cannot be packed (picture tokens that see both ways), nothing
is.

A tile of [P, V] is all of it that is ever held (`pipeline.training.logprobs`). Dropout is off, and so are dropped layers and
noise in routers: a step is a function of its data, and log-probabilities are those of the labels.

Shapes: P response tokens, D hidden size, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pipeline.corpus.pictures import Picture
from pipeline.errors import ConfigError
from pipeline.models.corrections import correct
from pipeline.models.scoring import attention
from pipeline.models.scoring.batches import Family, families
from pipeline.models.scoring.layouts import agree, joined, pack, pad, probe_families
from pipeline.tokens import TokenizedTurn
from pipeline.training.logprobs import TokenLogprobs

if TYPE_CHECKING:
    from pipeline.training.pictures import PictureInputs

log = logging.getLogger(__name__)

Layout = Literal["packed", "padded"]
WHOLE = 2**62  # a family is never split within a micro-batch
NOISE = ("layerdrop", "jitter_noise", "input_jitter_noise")  # what else some architectures draw while they are trained


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
        pictures: what the model gets of pictures, where there are any to learn from.

    Attributes:
        layout: "packed" or "padded"; set it by `choose_layout`.
        device: where it is computed; set it where parameters are partitioned or offloaded.

    Raises:
        ConfigError: where the output matrix is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        head_chunk_mb: int = 64,
        *,
        entropies: bool = False,
        critic_seed: int | None = None,
        pictures: "PictureInputs | None" = None,
    ):
        super().__init__()
        correct(model)
        self.model = model
        self.head = TokenLogprobs(model, head_chunk_mb, entropies)
        self.critic = None if critic_seed is None else Critic(self.head.weight, critic_seed)
        self.layout: Layout = "padded"
        self.pictures = pictures
        self.plain_attention = model.config.get_text_config()._attn_implementation
        self.packed_attention = attention.LOOPED
        self.device = self.head.weight.device  # a partitioned parameter does not say where it is computed
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():  # some architectures keep the rate as a number
                if (name.endswith(("dropout", "pdrop")) or name in NOISE) and isinstance(value, float):
                    setattr(module, name, 0.0)

    def use_layout(self, layout: Layout) -> None:
        attention.use(self.model, self.packed_attention if layout == "packed" else self.plain_attention)
        self.layout = layout

    def forward(self, turns: Sequence[TokenizedTurn]) -> Outputs:
        """The responses in the order given."""
        groups = families(turns, range(len(turns)), WHOLE)
        states = self._states(groups)
        taken = joined([r for family in groups for r in family.responses])
        order = [member for family in groups for member in family.members]
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

    def own_logits(self, turn: TokenizedTurn) -> torch.Tensor:
        """The model's own logits where it scores a response: [H, V], called as `_padded` calls its trunk. For the probe."""
        ids = joined([turn.prompt_ids, turn.response_ids])[None, :-1]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self._of_pictures(ids, [turn.pictures])}
        logits: torch.Tensor = self.model(**self._here(inputs), use_cache=False).logits
        return logits[0, len(turn.prompt_ids) - 1 :]

    def _states(self, groups: list[Family]) -> torch.Tensor:
        """The states that responses are scored from, [P, D] by family."""
        forward = self._packed if self.layout == "packed" else self._padded
        if self.pictures is None or any(family.pictures for family in groups):
            return forward(groups)
        count = sum(len(r) for family in groups for r in family.responses)
        states, idle = forward([*groups, self.pictures.stand_in]).tensor_split([count])
        return states + 0.0 * idle.sum()

    def _packed(self, groups: list[Family]) -> torch.Tensor:
        ids, positions, chosen, packing = pack(groups)
        inputs = self._of_pictures(ids[None], [family.pictures for family in groups])
        inputs["position_ids"] = positions[None]
        if self.pictures is not None:
            own = self.pictures.positions(groups, inputs.get("image_grid_thw"))
            inputs["position_ids"] = positions[None] if own is None else own
        return self._trunk(ids[None], inputs, packing=packing)[0][chosen.to(self.device)]

    def _padded(self, groups: list[Family]) -> torch.Tensor:
        ids, mask, spans = pad(groups)
        inputs = self._of_pictures(ids, [family.pictures for family in groups for _ in family.responses])
        states = self._trunk(ids, {"attention_mask": mask, **inputs})
        return torch.cat([states[row, begin:end] for row, (begin, end) in enumerate(spans)])

    def _of_pictures(self, ids: torch.Tensor, prompts: Sequence[Sequence[Picture]]) -> dict[str, Any]:
        return {} if self.pictures is None else self.pictures.of(ids, prompts)

    def _trunk(self, ids: torch.Tensor, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
        trunk, inputs = self.model.base_model, self._here({"input_ids": ids, **inputs})
        states: torch.Tensor = trunk(**inputs, use_cache=False, **options).last_hidden_state
        return states

    def _here(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the device, pixels in the model's dtype."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in inputs.items()
        }


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
    name, probe = type(policy.model).__name__, _probe_turns(policy)
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
        return _choose_kernel(policy, lambda: agree(call(probe).logprobs, alone, dtype, slack=5))
    if wanted == "packed":
        raise ConfigError(f"learner.layout = packed does not fit {name} ({why}); leave it at auto")
    policy.use_layout("padded")
    return [f"{name} cannot be packed: rows are padded, and shared prompts computed for each response"]


def _choose_kernel(policy: Policy, agrees: Callable[[], bool]) -> list[str]:
    """Have a packed policy use the device's kernel for segments, where there is one and it agrees. Returns what a person
    should know."""
    if not attention.has_kernel(policy.device):
        return []
    policy.packed_attention = attention.NAME
    policy.use_layout("packed")
    try:
        with torch.no_grad():
            why = None if agrees() else "its log-probabilities differ"
    except Exception as error:  # whatever a kernel raises means the same: not this way
        why = f"{type(error).__name__}: {error}"
    notes = attention.refusals(policy.device)
    if why is None:
        return notes
    policy.packed_attention = attention.LOOPED
    policy.use_layout("packed")
    return [*notes, f"attention goes over segments one by one, which is slower ({why})"]


def _plain_logprobs(policy: Policy, turn: TokenizedTurn) -> torch.Tensor:
    logits = policy.own_logits(turn)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(1).gather(1, joined([turn.response_ids]).to(logits.device)[:, None])[:, 0]


def _probe_turns(policy: Policy) -> list[TokenizedTurn]:
    probe = probe_families(policy.model.config.get_text_config())
    probe += [] if policy.pictures is None else [policy.pictures.stand_in]
    return [TokenizedTurn(f.prompt_ids, r, [], pictures=f.pictures) for f in probe for r in f.responses]
