"""What a model says of one response, as plain arrays: no torch, no Ray."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Of a response's H tokens, each [H] float64, in nats (times alpha): `q` = Q(s_h,a_h), `values` = V(s_h) at alpha,
    `logprobs` = log pi(a_h|s_h) at temperature 1; where they were asked for, at temperature 1 too, `entropies` = the entropy
    of pi(.|s_h) and `self_certainty` = V(s_h) - mean_a Q(s_h,a) - log A, of the A rows of the output matrix."""

    q: NDArray[np.float64]
    values: NDArray[np.float64]
    logprobs: NDArray[np.float64]
    entropies: NDArray[np.float64] | None = None
    self_certainty: NDArray[np.float64] | None = None

    @property
    def finite(self) -> bool:
        columns = (self.q, self.values, self.logprobs, self.entropies, self.self_certainty)
        return all(np.isfinite(array).all() for array in columns if array is not None)
