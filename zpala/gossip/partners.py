"""Whom to average with next. One function per way to choose; chance comes from the generator handed in."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping


def choose(rng: random.Random, candidates: Collection[int]) -> int:
    """A line of ``candidates`` (at least one), uniformly. Sorted first, so that the same seed chooses the same whatever the set's order."""
    return rng.choice(sorted(candidates))


def choose_less_busy(rng: random.Random, loads: Mapping[int, float]) -> int:
    """The less busy of two lines of ``loads`` (at least one; line -> load), each drawn uniformly; of two equally busy ones the first.

    The two may be one and the same, so even the busiest of n is chosen with the probability 1/n^2 and is never left out. Two draws
    keep most of what asking everybody would gain, and do not send all nodes at once to the one that was idle half a second ago.
    """
    first, second = choose(rng, loads), choose(rng, loads)
    return second if loads[second] < loads[first] else first
