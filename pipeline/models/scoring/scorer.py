"""Score tokenised responses with one model: log pi, V and Q of every response token. Needs torch, not Ray.

    from pipeline.models.scoring import Scorer
    scorer = Scorer(model)                       # any Hugging Face causal LM, already on its device
    scores = scorer.score(turns)                 # one Scores, or a RowError, per turn

How a model is run is decided once, on a probe, against its own plain forward:

- **packed**: families of responses lie one after another in a single row, no padding (`pipeline.models.scoring.attention`);
- **cached**: for models whose attention cannot be replaced: a family's prompt fills the key-value cache, its responses
  continue it; single responses are padded on the right;
- **plain**: right-padded rows, prompts repeated. True for any causal model.

and whether the output matrix applied in slices gives the model's logits (`pipeline.models.scoring.head`); where it does not,
the model's own logits are asked for, a response at a time, at the scored positions only.

A reward does not depend on what else is in the batch beyond rounding (1e-6 in float32).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from transformers import DynamicCache

from pipeline.errors import RowError
from pipeline.models.corrections import correct
from pipeline.models.memory import scoring_budget
from pipeline.models.pictures.features import Seeing, View
from pipeline.models.scores import Scores
from pipeline.models.scoring import attention
from pipeline.models.scoring.batches import Family, families, padded_batches, token_batches
from pipeline.models.scoring.head import Head, concatenate, reduce_logits
from pipeline.models.scoring.layouts import agree, joined, pack, pad, picture_positions, probe_families, probe_pictured
from pipeline.models.scoring.products import fast_products

if TYPE_CHECKING:
    from pipeline.models.pictures import PictureProcessor
    from pipeline.tokens import TokenizedTurn

log = logging.getLogger(__name__)
Value = TypeVar("Value")

IN_CACHE = 2048
"""Tokens that a CPU forwards at once where the budget allows more (or a family): beyond, activations leave its caches."""


class Scorer:
    """Holds one model and scores responses with it.

    Args:
        model: a Hugging Face causal LM on its device or devices; put in eval mode.
        alpha: temperature of V.
        budget_tokens: tokens forwarded at once, on a CPU `IN_CACHE` at most; halved, for good, whenever memory runs out. None:
            as `memory.scoring_budget` has it.
        head_chunk_mb: largest slice of logits held, in MiB of float32.
        certainty: whether entropy and self-certainty of each token are among the scores.
        pictures: how the model takes pictures; None for one that sees none.

    Attributes:
        layout: "packed", "cached" or "plain".
        picture_layout: the same for prompts with pictures, from the first on.
        forwarded_tokens: tokens given to the model so far, padding included.
        notes: what a person should know of how the model is run, as it comes up; also logged as warnings.
    """

    def __init__(
        self,
        model: Any,
        *,
        alpha: float = 1.0,
        budget_tokens: int | None = None,
        head_chunk_mb: int = 64,
        certainty: bool = False,
        pictures: PictureProcessor | None = None,
    ):
        correct(model)
        self.model = model.eval().requires_grad_(False)
        self.alpha, self.certainty = alpha, certainty
        self.budget_tokens = budget_tokens or scoring_budget(model)
        self.forwarded_tokens = 0
        self.notes: list[str] = []
        self.text_config = model.config.get_text_config()
        self.plain_attention = self.text_config._attn_implementation
        self.packed_attention = attention.LOOPED
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        self.rope_limit = rope_limit(self.text_config)
        self.device = model.get_input_embeddings().weight.device
        self.layout = self.picture_layout = "plain"
        self.head: Head | None = None
        self.processor, self.seeing = pictures, cast(Seeing | None, None)
        self._probe(head_chunk_mb)

    @property
    def batch_tokens(self) -> int:
        """Tokens that are forwarded at once, where there are as many."""
        return min(self.budget_tokens, IN_CACHE) if self.device.type == "cpu" else self.budget_tokens

    @torch.inference_mode()
    def score(self, turns: Sequence[TokenizedTurn]) -> list[Scores | RowError]:
        """Scores of each turn's response tokens, in the order given. Every turn has a prompt and a response token."""
        with self._attention(), fast_products(self.device):
            return self._score(turns)

    def _score(self, turns: Sequence[TokenizedTurn]) -> list[Scores | RowError]:
        results: list[Scores | RowError | None] = [None] * len(turns)
        for position, turn in enumerate(turns):
            if max(np.max(turn.prompt_ids), np.max(turn.response_ids)) >= self.vocabulary:
                results[position] = RowError("unknown_token", "the tokenizer has more tokens than the model; fit them")
            elif getattr(turn, "pictures", ()):
                results[position] = self._see()
        waiting = [i for i in range(len(turns)) if results[i] is None]
        while waiting:
            for batch in self._batches(families(turns, waiting, self.budget_tokens)):
                members = [m for family in batch for m in family.members]
                scored = fitting(partial(self._scored, batch))
                if scored is None:
                    self._shrink(members, batch, results)
                    break
                for member, scores in zip(members, scored, strict=True):
                    results[member] = scores
            waiting = [i for i in waiting if results[i] is None]
        return [r for r in results if r is not None]

    def _batches(self, ordered: list[Family]) -> list[list[Family]]:
        """What is forwarded together. From `rope_limit` on a response goes alone: its positions depend on the whole batch."""
        long = [] if self.rope_limit is None else [f for f in ordered if f.longest >= self.rope_limit]
        seen = [f for f in ordered if f.pictures and f not in long]
        rest = [f for f in ordered if not f.pictures and f not in long]
        cut = token_batches if self.layout == "packed" else padded_batches
        together = cut(_singles(rest) if self.layout == "plain" else rest, self.batch_tokens)
        if self.picture_layout == "packed":
            return together + token_batches(seen, self.batch_tokens) + [[single] for single in _singles(long)]
        alone = _singles(seen) if self.picture_layout == "plain" else seen
        return together + [[family] for family in [*alone, *_singles(long)]]

    def _shrink(self, members: list[int], batch: list[Family], results: list[Scores | RowError | None]) -> None:
        """Halve the budget after an out-of-memory error; a response that was alone cannot be helped."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(members) == 1:
            results[members[0]] = RowError(
                "out_of_memory", f"a response of {batch[0].tokens} tokens alone does not fit; lower tokens.max_length"
            )
            return
        self.budget_tokens = max(1, min(self.budget_tokens, sum(f.tokens for f in batch)) // 2)
        self._note(f"out of memory: scorer.budget_tokens is now {self.budget_tokens}")

    def _scored(self, batch: list[Family]) -> list[Scores | RowError]:
        """A prompt whose pictures cannot be read fails alone."""
        try:
            return self._score_batch(batch)
        except RowError as error:
            if len(batch) == 1:
                return [error] * len(batch[0].members)
            return [each for family in batch for each in self._scored([family])]

    def _score_batch(self, batch: list[Family]) -> list[Scores | RowError]:
        taken = [joined([r]) for family in batch for r in family.responses]
        lengths = [len(t) for t in taken]
        flat = torch.cat(taken).to(self.device)
        if self.head is not None:
            scores = self.head.score(self._forward(batch), flat, self.alpha, self.certainty)
        else:
            own = zip(_singles(batch), flat.split(lengths), strict=True)
            scores = concatenate([reduce_logits(self._own_logits(f), a, self.alpha, self.certainty) for f, a in own])
        parts = [column.cpu().split(lengths) for column in scores.columns()]
        return [_finite(Scores(*(p.to(torch.float64).numpy() for p in each))) for each in zip(*parts, strict=True)]

    # Forward passes: each gives one state per response token, [P, D], in the order of the batch.

    def _forward(self, batch: list[Family]) -> torch.Tensor:
        if self.rope_limit is not None and batch[0].longest >= self.rope_limit:
            return self._alone(batch)
        layout = self.picture_layout if batch[0].pictures else self.layout
        if layout == "packed":
            return self._packed(batch)
        with self._attention(plain=True):
            if layout == "cached" and len(batch[0].members) > 1:
                return torch.cat([self._cached(family) for family in batch])
            return self._plain(batch)

    def _trunk(self, ids: torch.Tensor, **options: Any) -> Any:
        self.forwarded_tokens += ids.numel()
        return self.model.base_model(input_ids=ids.to(self.device), **options)

    def _packed(self, batch: list[Family]) -> torch.Tensor:
        ids, positions, chosen, packing = pack(batch)
        at, seen = positions[None], dict[str, Any]()
        if view := self._view(batch):
            at, seen = picture_positions(batch, view), view.options(ids[None])
        out = self._trunk(ids[None], position_ids=at.to(self.device), use_cache=False, packing=packing, **seen)
        states: torch.Tensor = out.last_hidden_state[0]  # on the last device of a model that is spread over several
        return states[chosen.to(states.device)]

    def _cached(self, family: Family) -> torch.Tensor:
        prompt = joined([family.prompt_ids])[None]
        view = self._view([family])
        seen = view.options(prompt) if view else {}
        first = self._trunk(prompt, use_cache=True, past_key_values=DynamicCache(config=self.model.config), **seen)
        state: torch.Tensor = first.last_hidden_state[:, -1]
        count, width = len(family.responses), max(len(r) for r in family.responses) - 1
        if width == 0:
            return state.expand(count, -1)
        cache = first.past_key_values
        cache.batch_repeat_interleave(count)
        ids = torch.zeros((count, width), dtype=torch.long)
        for row, response in enumerate(family.responses):
            ids[row, : len(response) - 1] = joined([response[:-1]])
        own = view.positions([prompt[0]])[0] if view else torch.tensor([[prompt.shape[1] - 1]])
        positions = (own.max() + 1 + torch.arange(width)).expand(count, -1).to(self.device)
        positions = positions.expand(len(own), -1, -1) if len(own) > 1 else positions
        rest = self._trunk(ids, past_key_values=cache, use_cache=True, position_ids=positions).last_hidden_state
        return torch.cat([torch.cat([state, rest[row, : len(r) - 1]]) for row, r in enumerate(family.responses)])

    def _plain(self, batch: list[Family], whole: bool = False) -> torch.Tensor:
        ids, mask, spans = pad(batch, whole)
        view = self._view(batch)
        seen = view.options(ids) if view else {}
        states = self._trunk(ids, attention_mask=mask.to(self.device), use_cache=False, **seen).last_hidden_state
        return torch.cat([states[row, begin:end] for row, (begin, end) in enumerate(spans)])

    def _alone(self, single: list[Family]) -> torch.Tensor:
        """One response beyond the rope limit, to its last token, on which the scaling depends too; after a short call,
        because dynamic scaling remembers the longest that it has seen."""
        with self._attention(plain=True):
            self._trunk(joined([single[0].prompt_ids[:1]])[None], use_cache=False)
            return self._plain(single, whole=True)

    def _own_logits(self, single: Family) -> torch.Tensor:
        """The model's own logits at the scored positions of a single response, [H, V]."""
        ids, mask, [(begin, end)] = pad([single])
        self.forwarded_tokens += ids.numel()
        keep = torch.arange(begin, end, device=self.device)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if view := self._view([single]):
            inputs |= view.options(ids)
        logits: torch.Tensor = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits[0]
        logits = logits if len(logits) == end - begin else logits[begin:end]  # a model that keeps them all
        return logits if logits.dtype == torch.float64 else logits.float()

    @contextlib.contextmanager
    def _attention(self, plain: bool = False) -> Iterator[None]:
        """The model's attention replaced for as long as it is called packed: others may use the model too."""
        if self.layout != "packed":
            yield
            return
        own = self.text_config._attn_implementation
        attention.use(self.model, self.plain_attention if plain else self.packed_attention)
        try:
            yield
        finally:
            attention.use(self.model, own)

    # Pictures

    def _see(self) -> RowError | None:
        """Have pictures read, from the first on. A RowError where the model sees none."""
        if self.processor is None:
            return RowError("no_pictures", "the prompt has a picture, and the model reads text alone")
        if self.seeing is None:
            self.seeing = Seeing(self.model, self.processor)
            with self._attention(plain=True):
                self._probe_pictures()
        return None

    def _view(self, batch: list[Family]) -> View | None:
        """Raises RowError for what is no picture."""
        if not batch[0].pictures or self.seeing is None:
            return None
        ids = [joined([family.prompt_ids]) for family in batch]
        return self.seeing.view(*(family.pictures for family in batch), ids=ids)

    def _probe_pictures(self) -> None:
        """Which layouts are true of prompts with pictures, and whether features may be encoded ahead."""
        assert self.processor is not None and self.seeing is not None
        family = probe_pictured(self.text_config, self.processor)
        singles, dtype, forwarded = _singles([family]), self.model.dtype, self.forwarded_tokens
        taken = [joined([single.responses[0]]) for single in singles]

        def logprobs(states: torch.Tensor | None = None) -> torch.Tensor:
            if self.head is None or states is None:
                own = (reduce_logits(self._own_logits(f), a, 1.0) for f, a in zip(singles, taken, strict=True))
                return torch.cat([each.logprobs.cpu() for each in own])
            return self.head.score(states, torch.cat(taken).to(states.device), 1.0).logprobs.cpu()

        ahead, self.seeing.ahead = self.seeing.ahead, False
        due = logprobs()
        self.seeing.ahead = ahead
        if ahead and not agree(logprobs(), due, dtype):
            self.seeing.ahead = False
            self._note(f"{self._name}: pictures are encoded anew for each response")
        for layout in ("packed", "cached") if self.head is not None else ():
            if layout == "packed" and self.layout != "packed":
                continue
            why = self._try(layout, lambda states: agree(logprobs(states), due, dtype, slack=5), [family])
            if why is None:
                self.picture_layout = layout
                break
            log.info("%s: prompts with pictures are not %s (%s)", self._name, layout, why)
        self.forwarded_tokens = forwarded

    # The probe: what of the above is true of this model.

    @torch.inference_mode()
    def _probe(self, head_chunk_mb: int) -> None:
        probe = probe_families(self.text_config)
        singles, dtype = _singles(probe), self.model.dtype
        taken = [joined([single.responses[0]]) for single in singles]
        own = torch.cat(
            [reduce_logits(self._own_logits(f), a, 1.0).logprobs.cpu() for f, a in zip(singles, taken, strict=True)]
        )

        def logprobs(states: torch.Tensor) -> torch.Tensor:
            return head.score(states, torch.cat(taken).to(states.device), 1.0).logprobs.cpu()

        try:
            head = Head(self.model, head_chunk_mb)
            alone = logprobs(torch.cat([self._plain([single]) for single in singles]))
            if not agree(alone, own, dtype):
                raise LookupError("the output matrix alone does not give the model's logits")
            if not agree(logprobs(self._plain(probe)), alone, dtype, slack=5):
                raise LookupError("it sees the padding behind a response")
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            self._note(f"{self._name}: scoring from the model's own logits, which needs more memory ({error})")
            self.forwarded_tokens = 0
            return
        self.head = head
        for layout in ("packed", "cached"):
            why = self._try(layout, lambda states: agree(logprobs(states), alone, dtype), probe)
            if why is None:
                self.layout = layout
                break
            log.info("%s: not %s (%s)", self._name, layout, why)
        if self.layout == "packed" and attention.has_kernel(self.device):
            # the loop rounds as the plain forward does, another kernel rounds otherwise in every layer
            self.packed_attention = attention.NAME
            why = self._try("packed", lambda states: agree(logprobs(states), alone, dtype, slack=5), probe)
            self.notes += attention.refusals(self.device)
            if why is not None:
                self.packed_attention = attention.LOOPED
                self._note(f"{self._name}: attention goes over segments one by one, which is slower ({why})")
        self.forwarded_tokens = 0

    def _try(self, layout: str, agrees: Callable[[torch.Tensor], bool], probe: list[Family]) -> str | None:
        """None when the layout gives the plain forward's logits, else why it does not. Restores `layout`."""
        before, self.layout = self.layout, layout
        try:
            if layout == "packed":
                _refuse_unknown_masks(self.text_config)
            with self._attention(), fast_products(self.device):
                states = self._packed(probe) if layout == "packed" else torch.cat([self._cached(f) for f in probe])
            return None if agrees(states) else "its logits differ"
        except Exception as error:  # whatever an unknown architecture raises means the same: not this way
            return f"{type(error).__name__}: {error}"
        finally:
            self.layout = before

    def _note(self, text: str) -> None:
        self.notes.append(text)
        log.warning(text)

    @property
    def _name(self) -> str:
        return type(self.model).__name__


def _finite(scores: Scores) -> Scores | RowError:
    if scores.finite:
        return scores
    if all(np.isfinite(array).all() for array in (scores.q, scores.values, scores.logprobs)):
        return RowError(
            "not_finite",
            "the model gives a token the logit -inf, so that reward.token_certainty has no finite mean of its logits; leave "
            "that out",
        )
    return RowError("not_finite", "the model gave a logit that is not a number; try another model.dtype")


def fitting(compute: Callable[[], Value]) -> Value | None:
    """What it computes; None where memory runs out. What that had of it is free again then: while an error is handled, its
    traceback holds the tensors."""
    try:
        return compute()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it is one: of PyTorch's allocator, of the CUDA driver, of cuBLAS, or of the CPU's."""
    phrases = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)


def _singles(batch: list[Family]) -> list[Family]:
    alone = ((f, m, r) for f in batch for m, r in zip(f.members, f.responses, strict=True))
    return [replace(f, members=(m,), responses=(r,)) for f, m, r in alone]


def rope_limit(config: Any) -> int | None:
    """The length beyond which rotary positions are scaled by the longest sequence of a call; None where they never are."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [r for r in (rope, *rope.values()) if isinstance(r, dict)]
    for kind in kinds:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            own = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            return int(own or config.max_position_embeddings)
    return None


def _refuse_unknown_masks(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise attention.CannotPack(f"layers of kind {', '.join(sorted(kinds))}")
