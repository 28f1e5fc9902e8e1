"""Matrix products of a CPU in float32, by oneDNN where PyTorch would ask its BLAS.

PyTorch's own choice for `linear` in float32 is MKL, which on other makers' processors is 10 to 50% slower than the kernels
that oneDNN writes for the processor at hand. The weights stay as they are; no second copy of them is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_linear = torch.nn.functional.linear


class OneDnn(TorchFunctionMode):
    """While it is entered, `linear` in float32 on a CPU is oneDNN's. Has no gradient: for inference alone."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is _linear and not kwargs and _is_plain(*args):
            inputs, weight, *bias = args
            return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias[0] if bias else None, "none", [], "")
        return function(*args, **(kwargs or {}))


def fast_products(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What to enter around a forward without gradients on this device."""
    known = device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")
    return OneDnn() if known and hasattr(torch.ops.mkldnn, "_linear_pointwise") else contextlib.nullcontext()


def _is_plain(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    single = all(each.dtype == torch.float32 for each in (inputs, weight) if each is not None)
    dense = all(each.layout == torch.strided and each.is_cpu for each in (inputs, weight))
    if torch.compiler.is_compiling():  # which has its own choice of products
        return False
    return single and dense and inputs.numel() > 0 and weight.is_contiguous() and not torch.is_grad_enabled()
