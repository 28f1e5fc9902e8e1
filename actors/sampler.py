"""The actor that lets the policy write: answers to prompts under the weights of the step at hand.

Weights travel as arrays that shared memory can hold, and under a version: an actor that has other ones, because it was
started again or the learner has gone on, loads them first. So nothing is ever sampled from weights that nobody asked for.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reply import Reply
from pipeline.errors import RowError, RunError
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Completion, Question
from pipeline.rl.rollouts import Rollout
from pipeline.training.adapters import with_adapters

if TYPE_CHECKING:
    from pipeline.config import ModelConfig
    from pipeline.training.config import LoraSection

Serialized = dict[str, tuple[torch.dtype, NDArray[np.generic]]]
"""Weights by name, every tensor as its dtype and its bytes: NumPy has no bfloat16."""
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
    budget_tokens: int
    max_new_tokens: int
    max_length: int  # of prompt and response together
    end_tokens: tuple[int, ...]  # beside those of model and tokenizer
    lora: LoraSection  # adapters, as the learner has them
    gpus: int = 0  # the model is spread over these where they are several


class PolicySampler:
    def __init__(self, spec: SamplerSpec):
        from pipeline.models.generation import Generator  # late: who starts samplers loads no model

        torch.set_num_threads(spec.threads)
        self.model = load_model(spec.model, spec.device, spec.gpus)
        if spec.lora.rank:
            with_adapters(self.model, spec.lora, seed=0)  # theirs come with the weights
        self.version: int | None = None  # of the weights; the model's own have none
        self.generator = Generator(
            self.model,
            load_tokenizer(spec.model),
            max_new_tokens=spec.max_new_tokens,
            max_length=spec.max_length,
            temperature=1.0,
            budget_tokens=spec.budget_tokens,
            eos_token_ids=spec.end_tokens,
            logprobs=True,
        )

    def sample(self, version: int, weights: Serialized, questions: Sequence[Question]) -> Reply[list[list[Rollout]]]:
        """The responses to each question, drawn from the policy at temperature 1. Raises RunError."""
        started = time.perf_counter()
        if self.version != version:
            deserialize(weights, self.model)
            self.version = version
        rollouts = [self._rollouts(answers) for answers in self.generator.generate(questions)]
        return Reply.of(rollouts, started, self.generator.notes)

    def _rollouts(self, answers: Sequence[Completion] | RowError) -> list[Rollout]:
        if isinstance(answers, RowError):
            what, _, remedy = answers.detail.partition("; ")
            remedy = REMEDIES.get(answers.reason, remedy or "take another policy")
            raise RunError(
                f"the policy of step {self.version} cannot be sampled from: {what} ({answers.reason}); {remedy}"
            )
        rollouts = []
        for each in answers:
            assert each.logprobs is not None and self.version is not None
            rollouts.append(Rollout(each.token_ids, each.text, each.finished, each.logprobs, self.version))
        return rollouts


def serialize(state: Mapping[str, torch.Tensor]) -> Serialized:
    """Weights on the CPU as arrays of bytes, without a copy where they are contiguous."""
    return {
        name: (tensor.dtype, tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        for name, tensor in state.items()
    }


@torch.no_grad()
def deserialize(weights: Serialized, model: torch.nn.Module) -> None:
    """Put weights into a model of the same architecture, each in the dtype that it has there: some architectures keep single
    weights in float32. Raises RunError where a name is not the model's."""
    own = dict(model.state_dict(keep_vars=True))
    with warnings.catch_warnings():  # shared memory is read-only, and is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        for name, (dtype, content) in weights.items():
            if name not in own:
                raise RunError(f"the learner sends {name}, which {type(model).__name__} does not have")
            own[name].copy_(torch.from_numpy(content).view(dtype).view(own[name].shape))
