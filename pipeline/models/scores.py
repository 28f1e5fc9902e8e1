"""What a model says of one response, as plain arrays: no torch, no Ray."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Of a response's H tokens, each [H] float64, in nats (times alpha): `q` = Q(s_h,a_h), `values` = V(s_h) at alpha,
    `logprobs` = log pi(a_h|s_h) at temperature 1."""

    q: NDArray[np.float64]
    values: NDArray[np.float64]
    logprobs: NDArray[np.float64]

    @property
    def finite(self) -> bool:
        return all(np.isfinite(array).all() for array in (self.q, self.values, self.logprobs))
