"""From the responses of a micro-batch to the tensors that an objective sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.corpus.pictures import Picture
from pipeline.training.objectives.base import Batch

Tokens = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """A stored response as a step sees it; H tokens."""

    prompt_ids: Sequence[int] | NDArray[np.int32]
    response_ids: Sequence[int] | NDArray[np.int32]  # [H]
    reward: float
    reference: Tokens | None = None  # [H]
    behaviour: Tokens | None = None  # [H]
    advantages: Tokens | None = None  # [H]
    returns: Tokens | None = None  # [H], what a critic should have forecast
    pictures: tuple[Picture, ...] = ()  # of the prompt, in order; prompt_ids hold each one's tokens


def collate(
    responses: Sequence[Response],
    logprobs: torch.Tensor,
    entropies: torch.Tensor | None = None,
    values: torch.Tensor | None = None,
) -> Batch:
    """The batch of these responses, of which the policy said `logprobs`, `entropies`, `values`: [P] each."""
    device, dtype = logprobs.device, logprobs.dtype

    def flat(name: str) -> torch.Tensor | None:
        parts = [getattr(response, name) for response in responses]
        if any(part is None for part in parts):
            return None
        return torch.from_numpy(np.concatenate(parts)).to(device, dtype)

    return Batch(
        logprobs=logprobs,
        lengths=torch.tensor([len(response.response_ids) for response in responses], device=device),
        rewards=torch.tensor([response.reward for response in responses], dtype=torch.float64, device=device),
        reference=flat("reference"),
        behaviour=flat("behaviour"),
        advantages=flat("advantages"),
        entropies=entropies,
        values=values,
        returns=flat("returns"),
    )
