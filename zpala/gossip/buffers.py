"""The pool of snapshot buffers: who still needs which one. Owns the counting, not the arithmetic; runs in the proxy thread.

A buffer is free only when nobody holds it (no exchange, doubt or queued delta, not the shadow, not the learner) and no zero-copy send of
it is in flight.
Several may hold one, the shadow and the exchanges that have frozen it; then nobody may write it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


class BufferPool:
    """``buffers``: arrays f32[numel], all of one length."""

    def __init__(self, buffers: Sequence[Vector]) -> None:
        if len({(buffer.shape, buffer.dtype.str) for buffer in buffers}) != 1 or buffers[0].dtype != np.float32 or buffers[0].ndim != 1:
            raise ValueError("the pool needs float32 vectors of one length")
        self.buffers = tuple(buffers)
        self._holders = [0] * len(buffers)
        self._in_flight = [0] * len(buffers)
        self._free = list(range(len(buffers) - 1, -1, -1))  # a stack: the buffer that is still in the cache goes out first

    def __len__(self) -> int:
        return len(self.buffers)

    def __getitem__(self, index: int) -> Vector:
        return self.buffers[index]

    @property
    def free(self) -> int:
        """How many ``take`` could hand out now."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Zero-copy sends not over yet."""
        return sum(self._in_flight)

    def take(self) -> int | None:
        """Hold a free buffer; None when there is none."""
        if not self._free:
            return None
        index = self._free.pop()
        self._holders[index] = 1
        return index

    def share(self, index: int) -> None:
        """One holder more of a held buffer."""
        if not self._holders[index]:
            raise ValueError(f"buffer {index} is shared but nobody holds it")
        self._holders[index] += 1

    def release(self, index: int) -> None:
        """A holder needs it no longer; without another one it becomes free when its sends are over."""
        if not self._holders[index]:
            raise ValueError(f"buffer {index} is released twice")
        self._holders[index] -= 1
        self._free_if_idle(index)

    def send(self, index: int) -> None:
        """A zero-copy send of a held buffer begins."""
        if not self._holders[index]:
            raise ValueError(f"buffer {index} is sent but nobody holds it")
        self._in_flight[index] += 1

    def sent(self, index: int) -> None:
        """One of its sends is over."""
        if self._in_flight[index] == 0:
            raise ValueError(f"buffer {index} has no send in flight")
        self._in_flight[index] -= 1
        self._free_if_idle(index)

    def is_sending(self, index: int) -> bool:
        return self._in_flight[index] > 0

    def is_exclusive(self, index: int) -> bool:
        """Whether its only holder may write it."""
        return self._holders[index] == 1 and not self._in_flight[index]

    def _free_if_idle(self, index: int) -> None:
        if not self._holders[index] and self._in_flight[index] == 0:
            self._free.append(index)
