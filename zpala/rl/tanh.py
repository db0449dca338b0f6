"""The hyperbolic tangent on the CPU, by the library that uses the whole width of the processor.

torch leaves it to MKL, which takes 2.1 ns an element on an AMD EPYC (Zen 5), as long as a small layer's whole product; NumPy's own, also
within 1.1e-7 of the exact value, takes 0.2. The rule looks at the processor and not at a clock, see ``products``: torch decides itself on
Intel's processors, on another device, in another dtype, in what torch.compile compiles, and where there are few elements.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zpala.rl.products import vendor

WORTH_IT = 2048  # elements: the way to NumPy and back takes as long as so many take torch

_tanh_backward = torch.ops.aten.tanh_backward


def tanh(x: Tensor) -> Tensor:
    """``x`` [...] of any dtype and device -> the same shape and dtype, in [-1, 1]. Any strides."""
    if not _wanted(x):
        return torch.tanh(x)
    y: Tensor = _Tanh.apply(x) if x.requires_grad and torch.is_grad_enabled() else _numpys(x)  # type: ignore[no-untyped-call]
    return y


class _Tanh(torch.autograd.Function):
    """The gradient is torch's, and has a gradient itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _numpys(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        found: Tensor = _tanh_backward(gradient, y)
        return found


def _numpys(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    np.tanh(x.detach().numpy(), out=y.numpy())
    return y


def _wanted(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() >= WORTH_IT and x.dtype is torch.float32 and numpy_pays()
    )


@cache
def numpy_pays() -> bool:
    """Whether NumPy is faster than torch on this machine."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and vendor() not in ("", "GenuineIntel") and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
