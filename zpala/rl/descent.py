"""One step downhill in two halves: the device computes the gradient, the host looks at it and allows the optimiser's step.

Nothing may be applied before it is known to be finite (design D17). So the host waits for the device once for every step, between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zpala.rl.flat import FlatParameters
from zpala.rl.optimizers import Optimizer, clip_gradient_norm


def downhill(
    flat: FlatParameters,
    total: Tensor,
    max_grad_norm: float,
    numbers: Sequence[Tensor],
    differentiated: Callable[[], None] = lambda: None,
) -> Tensor:
    """Leaves the gradient of ``total`` (a f32 scalar with a graph), scaled to ``max_grad_norm``, in ``flat.gradients``.

    Args:
        differentiated: called when the gradient lies there and has not been scaled.
    Returns: f32[2 + K] for ``stepped``: ``total``, the L2 norm before clipping, the K ``numbers`` (scalars of the device).
    """
    flat.zero_gradients()
    total.backward()  # type: ignore[no-untyped-call]
    differentiated()
    norm = clip_gradient_norm(flat.gradients, max_grad_norm)
    return torch.stack([total.detach(), norm, *(number.detach() for number in numbers)])


def stepped(found: Sequence[float], flat: FlatParameters, optimizer: Optimizer, learning_rate: float) -> bool:
    """Steps down ``flat.gradients`` unless ``found``, what ``downhill`` gave as floats, says that loss or gradient are not finite."""
    total, norm, *_ = found
    if not (math.isfinite(total) and math.isfinite(norm)):
        return False
    optimizer.step(flat.parameters, flat.gradients, learning_rate)
    return True
