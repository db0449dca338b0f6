"""How busy this node is: the share of the last seconds in which it would have answered an offer by BUSY. Owns that average.

It counts whatever makes a node refuse: its one exchange, deltas that its learner has not taken in, buffers still being sent. Heartbeats
carry it, so that others may choose whom they would not ask in vain (``partners``). It costs one exponential per event of the protocol.
"""

from __future__ import annotations

import math

MEMORY_S = 2.0  # what is so long ago has the weight 1/e


class Load:
    """Between two events of the protocol a node is either busy or not, so the average over time is exact."""

    def __init__(self, now: float) -> None:
        self._share = 0.0
        self._busy = False
        self._at = now

    def observe(self, busy: bool, now: float) -> None:
        """From ``now`` on the node is ``busy``, or is not. Monotonic seconds."""
        self._share = self.share(now)
        self._at = now
        self._busy = busy

    def share(self, now: float) -> float:
        """In [0, 1]; 0.0 at the very start."""
        weight = math.exp(-max(now - self._at, 0.0) / MEMORY_S)
        return weight * self._share + (1.0 - weight) * self._busy
