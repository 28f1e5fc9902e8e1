"""KL(pi || pi_ref) estimated from sampled tokens (Schulman 2020, "Approximating KL divergence"), in nats.

With d = log pi_ref - log pi of a token:

k1   -d                   its mean over pi's own tokens is the KL; of single tokens it may be negative
k2   d^2 / 2              near the KL while pi is near pi_ref; over pi's own tokens its gradient is the KL's
k3   exp(d) - 1 - d       its mean over pi's own tokens is the KL, and it is not negative

Arrays and tensors alike, [P] for P tokens.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Values = TypeVar("Values", NDArray[np.float64], "torch.Tensor")


def k2(d: Values) -> Values:
    return d * d / 2


def k3(d: Values) -> Values:
    grown: Values = np.expm1(d) if isinstance(d, np.ndarray) else d.expm1()
    return grown - d


def weighted_k3(logprobs: "torch.Tensor", reference: "torch.Tensor", behaviour: "torch.Tensor") -> "torch.Tensor":
    """k3 of tokens that another policy drew, times pi / pi_behaviour (DeepSeek-V3.2, arXiv 2512.02556): over its tokens the
    mean is the KL in the states that these responses went through, and the gradient of the mean is the KL's.

    Multiplied out: a token that pi all but rules out would else be 0 * inf.
    """
    ratios = (logprobs - behaviour).exp()
    return (reference - behaviour).exp() - ratios * (1 + (reference - logprobs))
