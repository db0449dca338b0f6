"""Whom to average with next. One function per way to choose; chance comes from the generator handed in."""

from __future__ import annotations

import random
from collections.abc import Collection


def choose(rng: random.Random, candidates: Collection[int]) -> int:
    """A line of ``candidates`` (at least one), uniformly. Sorted first, so that the same seed chooses the same whatever the set's order."""
    return rng.choice(sorted(candidates))
