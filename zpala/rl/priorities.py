"""Sum tree: draws slots with probabilities proportional to their priorities. Many slots a call, no loop over them.

Owned here: the sums. What a priority is made of, and which slot is whose, is the replay's business.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def tree_bytes(size: int) -> int:
    """Memory of ``Priorities(size)``."""
    return 2 * _leaves(size) * np.dtype(np.float64).itemsize


class Priorities:
    """One priority f64 >= 0 for each of ``size`` slots, all 0 at first. A slot with priority 0 is never drawn."""

    def __init__(self, size: int) -> None:
        self._leaves = _leaves(size)
        self._sums = np.full(2 * self._leaves, 0.0)  # node i is the sum of 2i and 2i + 1; slot s is node leaves + s

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def get(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """The priorities of ``slots``."""
        found: NDArray[np.float64] = self._sums[self._leaves + slots]
        return found

    def set(self, slots: NDArray[np.int64], priorities: NDArray[Any] | float) -> None:
        """Gives every one of ``slots`` its priority. Of a slot that comes twice the last one counts."""
        nodes = self._leaves + slots
        self._sums[nodes] = priorities
        while nodes.size and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def draw(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """``count`` slots, one from each of as many equal shares of the total (Schaul et al. 2016, arXiv 1511.05952, appendix B.2.1)."""
        if self.total <= 0.0:
            raise ValueError("no slot has a priority above 0")
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
        rest = (np.arange(count) + uniform) * (self.total / count)
        nodes = np.ones(count, dtype=np.int64)
        for _ in range(self._leaves.bit_length() - 1):
            nodes *= 2
            left = self._sums[nodes]
            # Rounding may carry a point beyond the last slot: never into a half that holds nothing.
            right = (rest >= left) & (self._sums[nodes + 1] > 0.0)
            rest -= np.where(right, left, 0.0)
            nodes += right
        return nodes - self._leaves


def _leaves(size: int) -> int:
    if size < 1:
        raise ValueError(f"a sum tree needs at least one slot, not {size}")
    return 1 << (size - 1).bit_length()
