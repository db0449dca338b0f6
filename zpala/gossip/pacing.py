"""When this node may start an exchange of its own (design D3). Owns back-off, share of the CPU, and "published since my last offer"."""

from __future__ import annotations

import math
import random

BURST_S = 1.0  # the share may be saved up for that long
DEBT_S = 30.0  # and be owed for that long: what answers and urgent offers took before is forgiven


class Pacing:
    """``max_share``: CPU seconds per second that gossip may take before own offers pause (answers to others never do)."""

    def __init__(self, max_share: float, rng: random.Random, now: float) -> None:
        self._max_share = max_share
        self._rng = rng
        self._saved_s = max_share * BURST_S
        self._saved_at = now
        self._not_before = -math.inf
        self._news = False  # the learner has published since my last offer that was taken
        self.spent_s = 0.0

    def published(self) -> None:
        self._news = True

    def offered(self) -> None:
        self._news = False

    def not_taken(self) -> None:
        """My offer came to nothing: it does not count as one."""
        self._news = True

    def busy(self, median_s: float, now: float) -> None:
        """After BUSY: U(1, 3) times the median duration of an exchange."""
        self._not_before = now + self._rng.uniform(1.0, 3.0) * median_s

    def cost(self, seconds: float, now: float) -> None:
        self.spent_s += seconds
        self._refill(now)
        self._saved_s = max(self._saved_s - seconds, -self._max_share * DEBT_S)

    def _refill(self, now: float) -> None:
        self._saved_s = min(self._max_share * BURST_S, self._saved_s + self._max_share * (now - self._saved_at))
        self._saved_at = now

    def allows(self, urgent: bool, now: float) -> bool:
        if now < self._not_before:
            return False
        if urgent:
            return True
        self._refill(now)
        return self._news and self._saved_s > 0

    def wake_at(self, urgent: bool) -> float:
        """When ``allows`` may become true by itself, inf when it takes an event."""
        if urgent:
            return self._not_before
        if not self._news:
            return math.inf
        paid_at = self._saved_at + max(0.0, -self._saved_s) / self._max_share
        return max(self._not_before, paid_at + 1e-6 if self._saved_s <= 0 else self._not_before)
