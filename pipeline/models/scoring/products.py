"""Matrix products of a CPU in float32, by oneDNN where PyTorch would ask its BLAS.

PyTorch's own choice for `linear` in float32 is MKL, which on other makers' processors is 10 to 50% slower than the kernels
that oneDNN writes for the processor at hand. The weights stay as they are, unless they are packed: a second copy, in the order
in which its kernels read them, pays where the same weights meet many small batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_linear = torch.nn.functional.linear


class OneDnn(TorchFunctionMode):
    """While it is entered, `linear` in float32 on a CPU is oneDNN's. Has no gradient: for inference alone.

    Args:
        rows: of the batches that weights are packed for, each at its first use; None packs none. The weights must not change
            as long as this is there.
    """

    def __init__(self, rows: int | None = None):
        super().__init__()
        self.rows = rows
        self.packed: dict[tuple[int, torch.Size], torch.Tensor] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is _linear and not kwargs and _is_plain(*args):
            inputs, weight, *bias = args
            weight = weight if self.rows is None else self._packed(weight, self.rows)
            return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias[0] if bias else None, "none", [], "")
        return function(*args, **(kwargs or {}))

    def _packed(self, weight: torch.Tensor, rows: int) -> torch.Tensor:
        key = weight.data_ptr(), weight.shape
        if key not in self.packed:
            self.packed[key] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        return self.packed[key]


def fast_products(device: torch.device, rows: int | None = None) -> contextlib.AbstractContextManager[Any]:
    """What to enter around forwards without gradients on this device. `rows`: as `OneDnn` has it."""
    known = device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")
    has = known and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return OneDnn(rows) if has else contextlib.nullcontext()


def _is_plain(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    single = all(each.dtype == torch.float32 for each in (inputs, weight) if each is not None)
    dense = all(each.layout == torch.strided and each.is_cpu for each in (inputs, weight))
    if torch.compiler.is_compiling():  # which has its own choice of products
        return False
    return single and dense and inputs.numel() > 0 and weight.is_contiguous() and not torch.is_grad_enabled()
