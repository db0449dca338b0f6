"""With how many bits a network computes. What it learns does not depend on it in kind: parameters, gradients and the optimiser are float32.

=========  ==========================================================================================================================
float32    everywhere. On CUDA torch would compute convolutions in TF32 unless told otherwise; here float32 means float32
tf32       float32 whose factors CUDA devices since 2020 round to 10 bits of fraction when they multiply matrices and convolve
bf16       convolutions and linear layers of the trunks compute in bfloat16 (7 bits of fraction), heads, memory and losses in float32
=========  ==========================================================================================================================

Every node may have another one: what they average is float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]


def set_float32_arithmetic(precision: Precision) -> None:
    """How the process's CUDA devices multiply float32: in TF32 only where that is asked for."""
    how = "tf32" if precision == "tf32" else "ieee"
    backends: Any = torch.backends
    for operation in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        operation.fp32_precision = how


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within, what is for matrices and convolutions computes in bfloat16 if that is the ``precision``. Outputs may be bfloat16, too."""
    if precision != "bf16":
        return nullcontext()
    # Parameters that were rounded are not kept for a second use: they would belong to what a CUDA graph has recorded.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
