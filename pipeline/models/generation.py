"""Text from one causal LM, by transformers' own `generate`: greedy, or samples that do not depend on their batch.

    generator = Generator(model, tokenizer, max_new_tokens=512, temperature=0.7)
    [answers] = generator.generate([Question(prompt_ids, samples=4, seed=17)])

Prompts are padded on the left under an attention mask; `generate` takes positions from the mask. What the model's
`generation_config` says (its temperature, penalties, lengths) is put aside for the call; only its end tokens apply.

Where rows of the model's cache can be gathered, the samples of a question start from one computation of its prompt, and
rows that have ended leave as soon as they are a quarter of the batch: less than 4/3 of the tokens that are kept are computed.
Their cache grows in place, where transformers copies it whole for every token.
No cache outlives a call of `generate`, so that weights may change between calls.

Each sample has random numbers of its own, made from the question's seed and the sample's number
(`pipeline.models.drawing`), so that what else is in the batch changes it only where rounding decides between two tokens.

Log-probabilities are of the distribution that was sampled, log p above: after temperature and top_p; greedy, of the
model's own at temperature 1.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.errors import RowError
from pipeline.models.corrections import correct
from pipeline.models.drawing import Blocks
from pipeline.models.growing import grow_in_place
from pipeline.models.loading import context_length
from pipeline.models.memory import sampling_budget
from pipeline.models.questions import Completion, Question, stream_key
from pipeline.models.scoring.layouts import probe_families
from pipeline.models.scoring.products import fast_products
from pipeline.models.scoring.scorer import fitting, out_of_memory, rope_limit

log = logging.getLogger(__name__)

PAD = 0  # is masked before a prompt and cut off behind an end token: any token would do
LEAVING = 4  # one in so many rows has ended when those that have leave
LARGE = 2**24  # parameters; with fewer, calling another library's products costs more than they save
PACKED_BYTES = 2**31  # of weights that are held a second time, packed
PACKED_ROWS, PACKED_TOKENS = 4, 32  # from which on a call saves more than packing costs


@dataclass(frozen=True)
class _Row:
    """One completion to be made: `sample` of question `question`, of `limit` tokens at most."""

    question: int
    sample: int
    prompt_ids: list[int]
    seed: int
    limit: int

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + self.limit


class Generator:
    """Holds one model and completes prompts with it.

    Args:
        model: a Hugging Face causal LM on its device or devices; put in eval mode.
        max_new_tokens: longest completion; less where the context ends before.
        temperature: 0 is greedy.
        top_p: the smallest set of tokens whose probability, at the temperature, reaches this; 1 is all.
        budget_tokens: tokens held at once, prompts and longest completions; halved, for good, when memory runs out. None: as
            `memory.sampling_budget` has it.
        eos_token_ids: further end tokens, such as a chat template's end of turn.
        logprobs: whether completions get the log-probabilities of their tokens.
        certainty: whether they get entropy and self-certainty of what each token is drawn from.

    Attributes:
        forwarded_tokens: tokens given to the model so far, padding and ended rows included.
        notes: what a person should know of how the model is run, as it comes up; also logged as warnings.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        max_length: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        budget_tokens: int | None = None,
        eos_token_ids: Sequence[int] = (),
        logprobs: bool = False,
        certainty: bool = False,
    ):
        correct(model)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.budget_tokens = budget_tokens or sampling_budget(model)
        self.logprobs, self.certainty = logprobs, certainty
        self.forwarded_tokens = 0
        self.notes: list[str] = []
        self.end_tokens = end_tokens(model.generation_config, tokenizer, eos_token_ids)
        context = context_length(model.config, tokenizer)
        self.context = context if max_length is None else min(context, max_length)
        self.rope_limit = rope_limit(model.config.get_text_config())
        embedding = model.get_input_embeddings().weight
        self.vocabulary: int = embedding.shape[0]
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.device = embedding.device

    @torch.inference_mode()
    def generate(self, questions: Sequence[Question]) -> list[list[Completion] | RowError]:
        """The samples of each question, in the order given, or why there are none: prompt_too_long, unknown_token,
        not_finite, out_of_memory."""
        results: list[list[Completion | RowError | None]] = [[None] * question.samples for question in questions]
        errors: dict[int, RowError] = {}
        waiting: list[_Row] = []
        for position, question in enumerate(questions):
            try:
                waiting += self._rows(position, question)
            except RowError as error:
                errors[position] = error
        with self._products(len(waiting)):
            while waiting:
                for batch in self._batches(waiting):
                    completions = fitting(functools.partial(self._complete, batch))
                    if completions is None:
                        completions = self._shrink(batch)
                    for row, completion in zip(batch, completions, strict=False):
                        results[row.question][row.sample] = completion
                    if not completions:
                        break
                waiting = [row for row in waiting if results[row.question][row.sample] is None]
        return [
            errors.get(position)
            or next((sample for sample in samples if isinstance(sample, RowError)), None)
            or [sample for sample in samples if isinstance(sample, Completion)]
            for position, samples in enumerate(results)
        ]

    def _rows(self, position: int, question: Question) -> list[_Row]:
        room = question.room(self.context, self.vocabulary)
        limit = min(room, self.max_new_tokens)
        return [_Row(position, i, question.prompt_ids, question.seed, limit) for i in range(question.samples)]

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows of one limit, of similar length, under the budget. From `rope_limit` on a row goes alone: its positions depend
        on the longest of its batch."""
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda row: (row.limit, len(row.prompt_ids))):
            alone = self.rope_limit is not None and row.tokens >= self.rope_limit
            full = row.tokens * (len(batch) + 1) > self.budget_tokens
            if batch and (row.limit != batch[0].limit or full or alone):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _products(self, rows: int) -> contextlib.AbstractContextManager[Any]:
        """By what the products of a call with so many rows are computed. Packed weights go with the call, as caches do."""
        if self.parameters < LARGE:
            return contextlib.nullcontext()
        pays = rows >= PACKED_ROWS and self.max_new_tokens >= PACKED_TOKENS and 4 * self.parameters <= PACKED_BYTES
        return fast_products(self.device, rows if pays else None)

    def _shrink(self, batch: list[_Row]) -> list[Completion | RowError]:
        """Halve the budget after an out-of-memory error; a row that was alone cannot be helped."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            detail = f"a completion of up to {batch[0].tokens} tokens alone does not fit; lower its longest length"
            return [RowError("out_of_memory", detail)]
        self.budget_tokens = max(1, min(self.budget_tokens, batch[-1].tokens * len(batch)) // 2)
        self.notes.append(f"out of memory: {self.budget_tokens} tokens are now generated at once")
        log.warning(self.notes[-1])
        return []

    @functools.cached_property
    def shares_prompts(self) -> bool:
        """Whether rows of the model's cache can be gathered: tried at first use, against prompts that are repeated. It
        is the architecture that decides, not the weights."""
        before = self.forwarded_tokens
        prompts = [list(family.prompt_ids) for family in probe_families(self.model.config.get_text_config())]
        rows = [1, 0, 1]
        try:
            ids, mask = (each.to(self.device) for each in _left_padded([prompts[row] for row in rows]))
            plain = self._generate(ids, mask, None, 1, output_logits=True).logits[0]
            shared = self._generate(ids, mask, self._prefill(prompts, rows), 1, output_logits=True).logits[0]
            tolerance = 2e-2 if self.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
            return bool((plain - shared).abs().amax() <= tolerance * plain.abs().amax().clamp_min(1e-3))
        except Exception as error:  # whatever an unknown architecture raises means the same: not this way
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise  # which says nothing of the architecture
            log.info("%s: prompts are repeated (%s: %s)", type(self.model).__name__, type(error).__name__, error)
            return False
        finally:
            self.forwarded_tokens = before

    def _complete(self, batch: list[_Row]) -> list[Completion | RowError]:
        gathers = len(batch) > 1 and self.shares_prompts
        cache = self._prefill(*_distinct([row.prompt_ids for row in batch])) if gathers else None
        draw = _Draw(batch, self.temperature > 0, self.logprobs, self.certainty, self.device)
        decoding = _Decoding(batch, draw, cache, torch.tensor(self.end_tokens, dtype=torch.long, device=self.device))
        while decoding.room and len(decoding.running):
            decoding.compact()
            criteria = [_SomeEnded(decoding.ends)] if gathers else []
            begins = (
                gathers and decoding.cache is None
            )  # one token makes the cache, which can grow in place from then on
            room = 1 if begins else decoding.room
            decoding.advance(
                self._generate(decoding.ids, decoding.mask, decoding.cache, room, self._processors(draw), criteria)
            )
        further = (
            [None] * len(batch) if each is None else each.cpu().numpy() for each in (draw.logprobs, draw.certainty)
        )
        rows = zip(decoding.tokens.tolist(), draw.broken.tolist(), *further, strict=True)
        return [
            RowError("not_finite", "the model gave a logit that is not a number; try another model.dtype")
            if broken
            else self._completion(tokens, row_logprobs, row_certainty)
            for tokens, broken, row_logprobs, row_certainty in rows
        ]

    def _prefill(self, prompts: Sequence[Sequence[int]], rows: list[int]) -> Cache | None:
        """A cache of all tokens but the last of each row's prompt, each prompt computed once; None where this saves
        nothing."""
        ids, mask = (each[:, :-1].to(self.device) for each in _left_padded(prompts))
        if ids.shape[1] == 0 or len(rows) == len(prompts):
            return None
        # no padding token: `generate` would warn of prompts of one token, whose row here is all padding
        out = self._generate(ids, mask, None, 1, eos_token_id=None, pad_token_id=None)
        cache: Cache = out.past_key_values
        cache.reorder_cache(torch.tensor(rows, device=self.device))  # type: ignore[arg-type]
        return cache

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache | None,
        new_tokens: int,
        processors: Sequence[LogitsProcessor] = (),
        criteria: Sequence[StoppingCriteria] = (),
        **options: Any,
    ) -> Any:
        """The model's own `generate`. A `cache` holds all tokens of `ids` but the last. `options` override settings."""
        settings = {
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "use_cache": True,
            "eos_token_id": self.end_tokens or None,
            "pad_token_id": PAD,
            "return_dict_in_generate": True,
        }
        with self._own_settings_aside():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=GenerationConfig(**settings | options),
                logits_processor=list(processors),
                stopping_criteria=list(criteria),
            )
        known = 0 if cache is None else ids.shape[1] - 1
        self.forwarded_tokens += len(ids) * (out.sequences.shape[1] - 1 - known)  # the last tokens are not forwarded
        return out

    def _processors(self, draw: "_Draw") -> list[LogitsProcessor]:
        if self.temperature == 0:
            return [draw]
        heat = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        nucleus = [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        return [*heat, *nucleus, draw]

    def _completion(
        self, tokens: list[int], logprobs: NDArray[np.float32] | None, certainty: NDArray[np.float32] | None
    ) -> Completion:
        end = next((position for position, token in enumerate(tokens) if token in self.end_tokens), None)
        token_ids = tokens if end is None else tokens[: end + 1]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        own = [None if each is None else each[: len(token_ids)].copy() for each in (logprobs, certainty)]
        return Completion(text, token_ids, end is not None, *own)

    @contextlib.contextmanager
    def _own_settings_aside(self) -> Iterator[None]:
        """`generate` fills what a call leaves open from the model's `generation_config`."""
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self.model.generation_config = own


class _Draw(LogitsProcessor):
    """Makes the argmax of the scores the token to take, and keeps what is to be known of each step.

    `rows` says which rows of the batch the scores are of, [R].
    """

    def __init__(self, batch: Sequence[_Row], sampled: bool, logprobs: bool, certainty: bool, device: torch.device):
        self.rows = torch.arange(len(batch), device=device)
        self.step = 0
        self.broken = torch.zeros(len(batch), dtype=torch.bool, device=device)  # rows with a logit that is not a number
        self.logprobs = torch.zeros((len(batch), batch[0].limit), device=device) if logprobs else None
        self.certainty = torch.zeros((len(batch), batch[0].limit, 2), device=device) if certainty else None
        self.keys: torch.Tensor | None = None  # [B]; None where nothing is sampled
        if sampled:
            self.keys = torch.tensor([stream_key(row.seed, row.sample) for row in batch], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        blocks = Blocks(scores)
        tokens = scores.argmax(-1) if self.keys is None else blocks.draw(self.keys[self.rows], self.step)
        self.broken[self.rows] |= scores.gather(1, tokens[:, None])[:, 0].isnan()  # the largest of all, for argmax
        if self.logprobs is not None:
            self.logprobs[self.rows, self.step] = blocks.logprobs(tokens)
        if self.certainty is not None:
            self.certainty[self.rows, self.step] = blocks.certainty()
        self.step += 1
        return scores.scatter_(1, tokens[:, None], torch.inf)


class _Decoding:
    """A batch while it is being completed: R of its B rows are computed, the others have ended and left.

    Attributes:
        tokens: what every row has written, PAD behind it: [B, limit].
        ids: prompts and what follows them of the rows that are computed, [R, L]; `mask` likewise.
        cache: of all tokens of `ids` but the last; None before the first step where no prompt is shared.
        running: which of the R rows have not ended.
    """

    def __init__(self, batch: Sequence[_Row], draw: _Draw, cache: Cache | None, ends: torch.Tensor):
        self.draw, self.ends = draw, ends
        self.cache: Any = grow_in_place(cache)  # whose annotations ask for a LongTensor, which no function returns
        self.ids, self.mask = (each.to(ends.device) for each in _left_padded([row.prompt_ids for row in batch]))
        self.width, self.limit = self.ids.shape[1], batch[0].limit
        self.tokens = torch.full((len(batch), self.limit), PAD, device=ends.device)
        self.running = draw.rows

    @property
    def room(self) -> int:
        """How many tokens may still follow."""
        return self.width + self.limit - self.ids.shape[1]

    def advance(self, out: Any) -> None:
        """Take over what `generate` has added to the rows that are computed."""
        before = self.ids.shape[1]
        self.ids, self.cache = out.sequences, grow_in_place(out.past_key_values)
        self.mask = torch.nn.functional.pad(self.mask, (0, self.ids.shape[1] - before), value=1)
        self.tokens[self.draw.rows, : self.ids.shape[1] - self.width] = self.ids[:, self.width :]
        self.running = torch.isin(self.ids[:, before:], self.ends).any(-1).logical_not().nonzero()[:, 0]

    def compact(self) -> None:
        """Let the rows that have ended leave."""
        if len(self.running) == len(self.ids):
            return
        self.draw.rows, self.ids, self.mask = (each[self.running] for each in (self.draw.rows, self.ids, self.mask))
        if self.cache is not None:
            self.cache.reorder_cache(self.running)


class _SomeEnded(StoppingCriteria):
    """Stops all rows when one in LEAVING of them has taken an end token."""

    def __init__(self, ends: torch.Tensor):
        self.ends = ends
        self.ended: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        now = torch.isin(input_ids[:, -1], self.ends)
        self.ended = now if self.ended is None else self.ended | now
        return (LEAVING * self.ended.sum() >= len(now)).expand(len(now))


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [B, L]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _distinct(prompts: Sequence[list[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each prompt once, and which of them each row has."""
    numbers: dict[tuple[int, ...], int] = {}
    rows = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    return list(numbers), rows


def end_tokens(settings: Any, tokenizer: Any, further: Sequence[int]) -> list[int]:
    """What ends a completion: by the model's settings of generation, by the tokenizer, by the caller."""
    own = getattr(settings, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list | tuple) else [own]), *further}
    return sorted(end for end in ends if end is not None)
