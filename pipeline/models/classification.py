"""A trained scalar reward model: the reward of each response from a sequence classifier. Needs torch, not Ray.

    from pipeline.models.classification import Classifier
    classifier = Classifier(model)               # any Hugging Face ...ForSequenceClassification, already on its device
    rewards = classifier.score(turns)            # one float, or a RowError, per turn

The reward is what the model's own forward gives for the sequence alone: a batch of one, no padding. Decoders read it at
the last token that is not their padding token, encoders at their first, and both see padding in some architecture or
other; where pad_token_id is missing they refuse batches, and where it is the end token they take an earlier one. So
nothing is ever padded: only sequences of one length are forwarded together. A reward does not depend on what else is in
the batch beyond rounding (1e-6 in float32). The cost is small batches where lengths are spread widely.

Left out: models that need more than token ids (a separator's segment ids, images), and prompts shared between responses.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import ConfigError, RowError
from pipeline.models.corrections import correct
from pipeline.models.loading import context_length
from pipeline.models.memory import scoring_budget
from pipeline.models.scoring.scorer import fitting

if TYPE_CHECKING:
    from pipeline.tokens import TokenizedTurn

NO_TOKEN = -1  # a pad_token_id that no sequence holds
HALF = (torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)


class Classifier:
    """Holds one sequence-classification model and gives a reward per response.

    A bfloat16 or float16 model gets a float32 output layer: rounding there is 0.06 for a reward of 10, and makes ties.

    Args:
        model: a Hugging Face sequence classifier on its device or devices; put in eval mode.
        output: which of the model's outputs is the reward.
        budget_tokens: tokens forwarded at once; halved, for good, whenever memory runs out. None: as `memory.scoring_budget`
            has it.

    Attributes:
        forwarded_tokens: tokens given to the model so far.
        notes: what a person should know of how the model is run, as it comes up; also logged as warnings.

    Raises:
        ConfigError: where the model has no such output.
    """

    def __init__(self, model: Any, *, output: int = 0, budget_tokens: int | None = None):
        count = model.config.num_labels
        if output >= count:
            name = model.config.name_or_path or type(model).__name__
            raise ConfigError(
                f"classifier.output = {output}, but {name} has {count} {'output' if count == 1 else 'outputs'}, "
                f"counted from 0"
            )
        correct(model)
        self.model = model.eval().requires_grad_(False)
        self.output = output
        self.budget_tokens = budget_tokens or scoring_budget(model)
        self.forwarded_tokens = 0
        self.notes: list[str] = []
        self.settings = model.config.get_text_config()
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        self.device = model.get_input_embeddings().weight.device
        self.context = _context(model)
        # encoder-decoders pool at the end token and refuse a batch whose rows have different numbers of them
        self.alone = bool(model.config.is_encoder_decoder)
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self.end_checked = False
        _widen_head(model, count)

    @torch.inference_mode()
    def score(self, turns: Sequence[TokenizedTurn]) -> list[float | RowError]:
        """The reward of each turn's prompt and response, in the order given.

        Rows that cannot be scored: unknown_token, too_long, not_finite, out_of_memory.
        """
        rows = [np.concatenate([turn.prompt_ids, turn.response_ids]).tolist() for turn in turns]
        results: list[float | RowError | None] = [self._refusal(ids) for ids in rows]
        waiting = [i for i, refusal in enumerate(results) if refusal is None]
        with self._batchable():
            self._check_end([rows[i] for i in waiting])
            while waiting:
                for batch in self._batches(rows, waiting):
                    rewards = fitting(partial(self._rewards, [rows[i] for i in batch]))
                    if rewards is None:
                        self._shrink(batch, len(rows[batch[0]]), results)
                        break
                    for i, reward in zip(batch, rewards, strict=True):
                        results[i] = reward if math.isfinite(reward) else _not_finite()
                waiting = [i for i in waiting if results[i] is None]
        return [r for r in results if r is not None]

    def _refusal(self, ids: list[int]) -> RowError | None:
        if max(ids) >= self.vocabulary:
            return RowError("unknown_token", "the tokenizer has more tokens than the model; fit them")
        if len(ids) > self.context:
            return RowError(
                "too_long", f"{len(ids)} tokens, the classifier takes {self.context}; set tokens.max_length"
            )
        return None

    def _batches(self, rows: list[list[int]], waiting: list[int]) -> list[list[int]]:
        """Positions in `rows` that are forwarded together: of one length, at most `budget_tokens` tokens; longest first."""
        batches: list[list[int]] = []
        for i in sorted(waiting, key=lambda i: -len(rows[i])):
            length = len(rows[i])
            room = not self.alone and bool(batches) and (len(batches[-1]) + 1) * length <= self.budget_tokens
            if not room or len(rows[batches[-1][0]]) != length:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _rewards(self, rows: list[list[int]]) -> list[float]:
        """Of rows of one length."""
        rewards: list[float] = self._forward(rows)[:, self.output].tolist()
        return rewards

    def _forward(self, rows: list[list[int]]) -> torch.Tensor:
        """Outputs [B, number of outputs] in float32, or float64 of a model in that, of rows of one length."""
        ids = torch.tensor(rows, device=self.device)  # [B, L]
        self.forwarded_tokens += ids.numel()
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self.options).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    @contextlib.contextmanager
    def _batchable(self) -> Iterator[None]:
        """A padding token that never occurs, for as long as it runs, where there is none: such models refuse batches."""
        own = self.settings.pad_token_id
        self.settings.pad_token_id = NO_TOKEN if own is None else own
        try:
            yield
        finally:
            self.settings.pad_token_id = own

    def _check_end(self, rows: list[list[int]]) -> None:
        """Say so, once, where rows end in the padding token and the model passes over it: tried on a few tokens."""
        pad = self.settings.pad_token_id
        ending = next((ids for ids in rows if ids[-1] == pad), None)
        if self.end_checked or ending is None:
            return
        self.end_checked = True
        some = [i for i in ending if i != pad][:8]
        if some and torch.allclose(self._forward([some]), self._forward([[*some, pad]]), rtol=1e-2, atol=1e-4):
            self._note(f"pad_token_id is the end token, {pad}; the model reads its reward before it")

    def _shrink(self, batch: list[int], length: int, results: list[float | RowError | None]) -> None:
        """Halve the budget after an out-of-memory error; a response that was alone cannot be helped."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            detail = f"a response of {length} tokens alone does not fit; lower tokens.max_length"
            results[batch[0]] = RowError("out_of_memory", detail)
            return
        self.budget_tokens = max(1, min(self.budget_tokens, len(batch) * length) // 2)
        self._note(f"out of memory: scorer.budget_tokens is now {self.budget_tokens}")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        log.warning(text)


def _not_finite() -> RowError:
    return RowError("not_finite", "the model gave a reward that is not a number; try another model.dtype")


def _context(model: Any) -> int:
    """The most tokens the model takes. Tables of positions of RoBERTa's kind begin after the padding token's own."""
    limits = [context_length(model.config, None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def _widen_head(model: Any, count: int) -> None:
    """Let a half-precision output layer, the last linear one with `count` outputs, compute in float32."""
    heads = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == count]
    if heads and heads[-1].weight.dtype in HALF:
        heads[-1].float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
