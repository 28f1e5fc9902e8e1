"""vLLM in this process (0.30): continuous batches over a paged cache; on a GPU many times the reference's tokens a second.

The tokens are drawn by our own random numbers (`pipeline.models.drawing`), as those of the reference are: a logits processor
makes the token to take the largest of its row. So a completion follows from its question's seed here too, whatever else is
in the batch, and differs from the reference's only where rounding decides between two tokens. vLLM's own generators, one a
request, give other texts with another order of requests, and on a CPU raise in large batches.

Log-probabilities are vLLM's of the logits before the processor (`raw_logprobs`), which at temperature 1 and top_p 1 are
those of the distribution that is sampled, and greedy what the reference gives. At others a completion has none.

Weights come by name, as the learner has them. vLLM loads what it is given and passes over what is missing, so the names and
shapes are held against the model's own first; after each load its cache of prompts must be empty. A weight that is tied to
another goes by both names: on a CPU vLLM packs the output's anew only where it comes itself.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, TemperatureLogitsWarper, TopPLogitsWarper

from pipeline.errors import ConfigError, RowError
from pipeline.models.drawing import Blocks
from pipeline.models.engines.base import Abilities, Adapters, Drawing, EngineSpec
from pipeline.models.engines.checks import LORA_RANKS
from pipeline.models.engines.lora import write_adapters
from pipeline.models.engines.turns import DISCARDING, KEEPING, Turns
from pipeline.models.engines.weights import Held, check_weights
from pipeline.models.generation import end_tokens
from pipeline.models.loading import context_length, load_settings, load_tokenizer, resolve_dtype
from pipeline.models.memory import cache_token_bytes, paged_budget
from pipeline.models.questions import Completion, Question, stream_key

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, which weights reach without a copy
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one takes no logits processors
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the actor says how many threads
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions and tensors as arguments, which stay in this process
}
for _name, _value in ENVIRONMENT.items():  # vLLM reads them once, when it is imported
    os.environ.setdefault(_name, _value)

from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality  # noqa: E402


class VllmEngine:
    """Raises ConfigError where vLLM cannot load the model.

    Attributes:
        held: the weights of this model.
    """

    name = "vllm"
    layout = "paged"
    can = Abilities(tokens=True, logprobs=True, weights=True, repeatable=True)

    def __init__(self, spec: EngineSpec):
        drawing, name = spec.drawing, spec.model.name
        self.notes: list[str] = []
        self.forwarded_tokens = 0
        self.drawing = drawing
        self.tokenizer = load_tokenizer(spec.model)
        settings = load_settings(spec.model)
        self.end_tokens = end_tokens(_generation_settings(spec, settings), self.tokenizer, drawing.end_tokens)
        self.vocabulary: int = settings.get_text_config().vocab_size
        self.held, self.adapters = Held.of(settings), spec.adapters
        self.lora: LoRARequest | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="endoreward-adapters-") if spec.adapters else None
        context = context_length(settings, self.tokenizer)
        self.context = context if drawing.max_length is None else min(context, drawing.max_length)
        dtype = resolve_dtype(spec.model.dtype, spec.device)
        budget = drawing.budget_tokens or paged_budget(settings, itemsize(dtype), spec.device, spec.gpu_share)
        self.most = min(self.context, max(budget, 2))  # tokens of one sequence
        if os.path.isdir(name):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            self.llm = LLM(
                model=name,
                revision=spec.model.revision,
                trust_remote_code=spec.model.trust_remote_code,
                load_format="auto" if spec.model.allow_pickle else "safetensors",
                dtype=dtype,
                max_model_len=self.most,
                kv_cache_memory_bytes=cache_bytes(settings, dtype, max(budget, self.most)),
                tensor_parallel_size=max(1, spec.gpus),
                enforce_eager=spec.device == "cpu",  # compiling takes minutes there
                logits_processors=[_draws_of(drawing)],
                generation_config="vllm",  # nothing of the model's own: we give all
                logprobs_mode="raw_logprobs",
                seed=0,
                enable_sleep_mode=spec.shares_gpu,
                **_lora_options(spec.adapters),
            )
        except ConfigError:
            raise
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"vLLM cannot load {name}: {first}; take sampler.engine = transformers") from error

        # of a model with adapters the other weights come once, from its files
        self.turns = Turns(self.llm, self._put, spec.shares_gpu, KEEPING if spec.adapters else DISCARDING)

    def generate(self, questions: Sequence[Question]) -> list[list[Completion] | RowError]:
        self.turns.require()
        results: list[list[Completion] | RowError] = []
        rows: list[tuple[list[Completion], TokensPrompt, SamplingParams]] = []
        for question in questions:
            try:
                limit = self._limit(question)
            except RowError as error:
                results.append(error)
                continue
            samples: list[Completion] = []
            results.append(samples)
            for sample in range(question.samples):
                key = stream_key(question.seed, sample) if self.drawing.temperature > 0 else None
                rows.append((samples, TokensPrompt(prompt_token_ids=question.prompt_ids), self._options(limit, key)))
        prompts, options = [row[1] for row in rows], [row[2] for row in rows]
        outputs = self.llm.generate(prompts, options, use_tqdm=False, lora_request=self.lora) if rows else []
        for (samples, *_), output in zip(rows, outputs, strict=True):
            samples.append(self._completion(output))
        return [_whole(result, self.drawing.wants_raw) for result in results]

    def _limit(self, question: Question) -> int:
        """The most tokens that may follow. Raises RowError."""
        limit: int = min(question.room(self.context, self.vocabulary), self.drawing.max_new_tokens)
        tokens = len(question.prompt_ids) + limit
        if tokens > self.most:
            raise RowError(
                "out_of_memory",
                f"a completion of up to {tokens} tokens is more than budget_tokens = {self.most}; raise it",
            )
        return limit

    def _options(self, limit: int, key: int | None) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,  # the processor has drawn by then
            max_tokens=limit,
            stop_token_ids=self.end_tokens,
            ignore_eos=True,  # ours are all
            logprobs=0,  # of the token that was taken
            detokenize=False,
            skip_clone=True,
            extra_args=None if key is None else {"key": key},
        )

    def _completion(self, output: Any) -> Completion:
        [written] = output.outputs
        token_ids = list(written.token_ids)
        self.forwarded_tokens += len(output.prompt_token_ids) + len(token_ids) - 1 - (output.num_cached_tokens or 0)
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs = np.array([step[token].logprob for step, token in zip(written.logprobs, token_ids, strict=True)])
        finished = bool(token_ids) and token_ids[-1] in self.end_tokens
        return Completion(text, token_ids, finished, logprobs.astype(np.float32))

    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.turns.require()
        options = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        [output] = self.llm.generate([prompt], options, use_tqdm=False, lora_request=self.lora)
        steps = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        return np.array([step[token].logprob for step, token in steps], np.float32)

    @property
    def version(self) -> int | None:
        return self.turns.version

    def load(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        check_weights(weights, self.adapters.shapes if self.adapters else self.held.shapes)
        self.turns.load(version, weights)

    def rest(self) -> None:
        self.turns.rest()

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self.adapters:
            self._load_adapters(weights, self.adapters)
        else:
            options = {"weights_iterator": self.held.whole(weights), "is_checkpoint_format": True}
            self.llm.collective_rpc("reload_weights", kwargs=options)

    def _load_adapters(self, weights: Mapping[str, torch.Tensor], adapters: Adapters) -> None:
        assert self.folder is not None
        write_adapters(self.folder.name, weights, adapters)
        self.llm.llm_engine.add_lora(LoRARequest("policy", 1, self.folder.name, load_inplace=True))
        self.lora = LoRARequest("policy", 1, self.folder.name)  # as it is there


def cache_bytes(settings: Any, dtype: str, tokens: int) -> int:
    """Of keys and values of so many tokens, in whole blocks and two to spare."""
    a_token = cache_token_bytes(settings, itemsize(dtype))
    block = 128  # tokens of the largest block that any platform has
    return a_token * block * (-(-tokens // block) + 2)


def itemsize(dtype: str) -> int:
    size: int = getattr(torch, dtype).itemsize
    return size


def _lora_options(adapters: Adapters | None) -> dict[str, Any]:
    if adapters is None:
        return {}
    rank = next(each for each in LORA_RANKS if each >= adapters.rank)
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}


def _generation_settings(spec: EngineSpec, settings: Any) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(spec.model.name, revision=spec.model.revision or "main")
    except OSError:  # it has none of its own
        return GenerationConfig.from_model_config(settings)


def _whole(result: list[Completion] | RowError, wants_raw: bool) -> list[Completion] | RowError:
    """A RowError in place of completions from logits that are no numbers; log-probabilities only where raw ones are right."""
    if isinstance(result, RowError):
        return result
    if any(completion.logprobs is not None and np.isnan(completion.logprobs).any() for completion in result):
        return RowError("not_finite", "the model gave a logit that is not a number; try another model.dtype")
    return result if wants_raw else [replace(completion, logprobs=None) for completion in result]


class _Draws(LogitsProcessor):  # type: ignore[misc]
    """Makes the token to take the largest of its row, for the requests that have a key.

    vLLM tells how rows come, go and move; a request's own list of output tokens says which step it is at.
    """

    warpers: Sequence[Any] = ()

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.device = device
        self.rows: dict[int, tuple[int, list[int]]] = {}  # key and output tokens of a row

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            key = (params.extra_args or {}).get("key")
            self.rows.pop(row, None)
            if key is not None:
                self.rows[row] = (key, output)
        for here, there, how in batch_update.moved:
            moving, other = self.rows.pop(here, None), self.rows.pop(there, None)
            if moving is not None:
                self.rows[there] = moving
            if other is not None and how == MoveDirectionality.SWAP:
                self.rows[here] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        numbers = [row for row in self.rows if row < len(logits)]
        if not numbers:
            return logits
        rows, keys, steps = torch.tensor(
            [[row, self.rows[row][0], len(self.rows[row][1])] for row in numbers], device=self.device
        ).T
        scores = logits[rows]
        for warper in self.warpers:
            scores = warper(None, scores)
        tokens = Blocks(scores).draw(keys, steps)
        logits[rows, tokens] = torch.inf
        return logits


def _draws_of(drawing: Drawing) -> type[_Draws]:
    heat = [TemperatureLogitsWarper(drawing.temperature)] if drawing.temperature not in (0, 1) else []
    nucleus = [TopPLogitsWarper(drawing.top_p)] if drawing.top_p < 1 else []
    return type("Draws", (_Draws,), {"warpers": [*heat, *nucleus]})
