"""Whether weights have arrived: the log-probabilities of a fixed text, by the learner and by the engine that loaded them.

An engine that passes over a weight, or goes on with a packed copy of one, raises nothing and samples from another policy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError

LENGTH = 24  # tokens
STEP = 7919  # a prime: the tokens of the text lie all over the vocabulary
TOLERANCES = {"float64": (1e-3, 1e-4), "float32": (1e-3, 1e-4), "float16": (0.05, 0.02), "bfloat16": (0.2, 0.05)}
"""By dtype: nats, and the share of a log-probability that come on top."""
Logprobs = NDArray[np.float32]


def probe_text(vocabulary: int) -> list[int]:
    """The ids of the text, the same for everyone with this vocabulary.

    >>> probe_text(100)[:3]
    [19, 38, 57]
    """
    return [STEP * number % vocabulary for number in range(1, LENGTH + 1)]


@dataclass
class Probe:
    """Compares each version with the learner's, and with the one before it."""

    dtype: str
    before: tuple[Logprobs, Logprobs] | None = None  # the learner's and the engine's

    def check(self, version: int, learner: Logprobs, engine: Logprobs) -> None:
        """Raises RunError where the engine holds other weights than the learner sent."""
        nats, share = TOLERANCES[self.dtype]
        distances = np.abs(engine - learner)
        if not (distances <= nats + share * np.abs(learner)).all():  # nor where one is not a number
            raise RunError(
                f"the weights of version {version} have not arrived in the sampler: its log-probabilities of a fixed text are "
                f"up to {distances.max():.2g} nats from the learner's; take sampler.engine = transformers"
            )
        if self.before and not np.array_equal(learner, self.before[0]) and np.array_equal(engine, self.before[1]):
            raise RunError(
                f"the sampler goes on with the weights before version {version}: it gives a fixed text the very "
                "log-probabilities that it gave it before, and the learner does not; take sampler.engine = transformers"
            )
        self.before = learner, engine
