"""Schedules: functions of the cluster's progress, a number in [0, 1] that every node knows (design D7)."""

from __future__ import annotations


def linear(start: float, progress: float) -> float:
    """Falls from ``start`` at progress 0 to 0 at progress 1; ``progress`` beyond [0, 1] counts as its nearer end."""
    return start * (1.0 - min(max(progress, 0.0), 1.0))
