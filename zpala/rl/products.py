"""Products of large matrices on the CPU, by the library that uses the whole width of the processor.

torch leaves float32 products to MKL, which uses AVX-512 on Intel's processors only, and convolutions to oneDNN, which uses it everywhere.
On one core of an AMD EPYC (Zen 5) MKL makes 79 GFLOP/s and oneDNN 179, so there ``affine`` calls oneDNN: the linear layer behind an Atari
network's convolutions is twice as fast. The rule looks at the processor and not at a clock: two runs on one machine compute the same bits.

torch decides itself without such a processor, on another device, in another dtype, under autocast, in what torch.compile compiles, and
where this operator is missing or means something else: it is what torch.compile itself may emit, and not a documented part of torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WORTH_IT = 2**21  # multiplications: a call of oneDNN costs 10 us more than one of MKL, so small products are faster without it


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [B, I] times ``weight`` [O, I] transposed, plus ``bias`` [O]: [B, O]. Any strides."""
    if not _wanted(x, weight):
        return functional.linear(x, weight, bias)
    y: Tensor = _Affine.apply(x, weight, bias) if torch.is_grad_enabled() else _onednn(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


class AffineLayer(nn.Linear):
    """A linear layer that computes ``affine``."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)


class _Affine(torch.autograd.Function):
    """Gradients are products, too, and have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            affine(gradient, weight.t()) if of_x else None,
            affine(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _wanted(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dim() == 2
        and len(x) * weight.numel() >= WORTH_IT
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and onednn_pays()
    )


@cache
def onednn_pays() -> bool:
    """Whether oneDNN multiplies large float32 matrices faster than MKL on this machine, and does it right."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and vendor() not in ("", "GenuineIntel") and _works()


@cache
def vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Who made the processor, as it says itself; "" where that cannot be read."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def _works() -> bool:
    """The operator is there, takes what ``affine`` gives it, and agrees with torch's own product."""
    x, weight, bias = (torch.linspace(-1.0, 1.0, n).sin() for n in (5 * 48, 33 * 48, 33))
    x, weight = x.view(48, 5).t(), weight.view(33, 48)
    try:
        with torch.no_grad():
            found = _onednn(x, weight, bias)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found, functional.linear(x, weight, bias), atol=1e-5)
