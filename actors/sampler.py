"""The actor that lets the policy write: answers to prompts under the weights of the step at hand.

Weights travel as arrays that shared memory can hold, and under a version: an actor that has other ones, because it was
started again or the learner has gone on, loads them first. So nothing is ever sampled from weights that nobody asked for.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reply import Reply
from pipeline.errors import RowError, RunError
from pipeline.models.engines import Adapters, Drawing, EngineSpec, open_engine
from pipeline.models.engines.probe import Logprobs, Probe, probe_text
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.models.questions import Completion, Question
from pipeline.rl.rollouts import Rollout
from pipeline.training.adapters import adapter_shapes, with_adapters

if TYPE_CHECKING:
    from pipeline.config import ModelConfig
    from pipeline.training.config import LoraSection

Serialized = dict[str, tuple[torch.dtype, NDArray[np.generic]]]
"""Weights by name, every tensor as its dtype and its bytes, [..., bytes of a number]: NumPy has no bfloat16."""
REMEDIES = {
    "not_finite": "lower rl.learning_rate, or set learner.dtype = float32",
    "out_of_memory": "lower rl.max_new_tokens, or give a sampler a larger share of a GPU (sampler.gpus_per_actor)",
}  # in place of those that speak of labelling


@dataclass(frozen=True)
class SamplerSpec:
    """What every sampler needs to build its policy; it pickles."""

    model: ModelConfig
    device: str  # "cpu" or "cuda"
    threads: int
    budget_tokens: int | None
    max_new_tokens: int
    max_length: int  # of prompt and response together
    end_tokens: tuple[int, ...]  # beside those of model and tokenizer
    lora: LoraSection  # adapters, as the learner has them
    gpus: int = 0  # the model is spread over these where they are several
    engine: str = "transformers"
    gpu_share: float = 1.0  # of the GPU's memory
    certainty: bool = False  # whether rollouts have it


class PolicySampler:
    def __init__(self, spec: SamplerSpec):
        from pipeline.models.engines.transformers import TransformersEngine  # late: who starts samplers loads no model

        torch.set_num_threads(spec.threads)
        drawing = Drawing(
            max_new_tokens=spec.max_new_tokens,
            max_length=spec.max_length,
            temperature=1.0,
            budget_tokens=spec.budget_tokens,
            end_tokens=spec.end_tokens,
            logprobs=True,
            certainty=spec.certainty,
        )
        settings, adapters = load_settings(spec.model), None
        if spec.lora.rank and spec.engine == "vllm":
            shapes = adapter_shapes(settings, spec.lora)
            adapters = Adapters(spec.lora.rank, spec.lora.alpha or 2 * spec.lora.rank, shapes)
        self.engine = open_engine(
            EngineSpec(
                spec.model, spec.device, drawing, spec.gpus, spec.engine, adapters=adapters, gpu_share=spec.gpu_share
            )
        )
        self.vocabulary = settings.get_text_config().vocab_size
        self.probe = Probe(resolve_dtype(spec.model.dtype, spec.device))
        self.held: int | None = None  # the version that was loaded last and passed its probe
        if spec.lora.rank and isinstance(self.engine, TransformersEngine):
            with_adapters(self.engine.model, spec.lora, seed=0)  # theirs come with the weights
            self.engine.model.eval().requires_grad_(False)

    def sample(
        self, version: int, weights: Serialized, questions: Sequence[Question], probe: Logprobs | None = None
    ) -> Reply[list[list[Rollout]]]:
        """The responses to each question, drawn from the policy at temperature 1. Raises RunError.

        Args:
            probe: what the learner's log-probabilities of the probe's text are under these weights.
        """
        started = time.perf_counter()
        if not self.engine.version == self.held == version:
            self.held = None
            self.engine.load(version, dict(deserialized(weights)))
            if probe is not None:
                self.probe.check(version, probe, self.engine.logprobs(probe_text(self.vocabulary)))
            self.held = version
        rollouts = [self._rollouts(answers) for answers in self.engine.generate(questions)]
        self.engine.rest()
        return Reply.of(rollouts, started, self.engine.notes)

    def _rollouts(self, answers: Sequence[Completion] | RowError) -> list[Rollout]:
        if isinstance(answers, RowError):
            what, _, remedy = answers.detail.partition("; ")
            remedy = REMEDIES.get(answers.reason, remedy or "take another policy")
            raise RunError(
                f"the policy of step {self.engine.version} cannot be sampled from: {what} ({answers.reason}); {remedy}"
            )
        rollouts = []
        for each in answers:
            assert each.logprobs is not None and self.engine.version is not None
            version, certainty = self.engine.version, each.certainty
            rollouts.append(Rollout(each.token_ids, each.text, each.finished, each.logprobs, version, certainty))
        return rollouts


def serialize(state: Mapping[str, torch.Tensor]) -> Serialized:
    """Weights on the CPU as arrays of bytes, without a copy where they are contiguous."""
    return {
        name: (tensor.dtype, tensor.contiguous().unsqueeze(-1).view(torch.uint8).numpy())
        for name, tensor in state.items()
    }


def deserialized(weights: Serialized) -> Iterator[tuple[str, torch.Tensor]]:
    """The same weights, without a copy; they are only to be read."""
    with warnings.catch_warnings():  # shared memory is read-only
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        for name, (dtype, content) in weights.items():
            yield name, torch.from_numpy(content).view(dtype).squeeze(-1)
