"""What a generator is asked and what it answers, as plain data: no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RowError


def stream_key(seed: int, sample: int) -> int:
    """Where the numbers of one sample begin, as a signed word."""
    return int(np.random.SeedSequence((seed, sample)).generate_state(1, np.uint64).view(np.int64)[0])


@dataclass(frozen=True)
class Question:
    """A prompt's tokens, how many answers it wants, and the seed that makes them its own whatever else is in the batch.
    `messages` are what the tokens are made of, for a server that renders them itself: role and content each."""

    prompt_ids: list[int]
    samples: int = 1
    seed: int = 0
    messages: tuple[Mapping[str, str], ...] = ()

    def room(self, context: int, vocabulary: int) -> int:
        """How many tokens may follow the prompt. Raises RowError where none may, or the model does not know one of it."""
        room = context - len(self.prompt_ids)
        if room < 1:
            raise RowError(
                "prompt_too_long",
                f"{len(self.prompt_ids)} prompt tokens leave no room in a context of {context}; shorten the prompt",
            )
        if max(self.prompt_ids) >= vocabulary:
            raise RowError("unknown_token", "the tokenizer has more tokens than the model; fit them")
        return room


@dataclass(frozen=True)
class Completion:
    """One answer of H tokens.

    `token_ids` hold the end token where there is one; `finished` is False where the limit cut it off. `logprobs`, where
    asked for, are log pi of each token, [H], nats, under the distribution that was sampled: after temperature and top_p;
    greedy, that of temperature 1. `certainty`, where asked for, is of what each token was drawn from: entropy and
    KL(uniform || pi), [H, 2], nats. Both differ by rounding with the batch, so equality leaves them out.
    """

    text: str
    token_ids: list[int]
    finished: bool
    logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    certainty: NDArray[np.float32] | None = field(default=None, compare=False)
