"""Times of parts: measured in turn, round after round, so that a machine that grows slower meanwhile favours none of them; then medians.

The first round is the warm-up (libraries choose kernels, memory is taken) and counts for nothing. Knows nothing of what it measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

ROUNDS_LEAST = 3  # counted ones, however short the time: a median of fewer says nothing


@dataclass(frozen=True, slots=True)
class Timing:
    """One part at one setting.

    Attributes:
        part: its name in the floor's formula.
        how: the setting, for a person: "2 threads, channels-last, batch 80".
        setting: names it for comparisons between parts.
        seconds: median, per one ``per``.
        rounds: measurements that it is the median of.
    """

    part: str
    how: str
    setting: str
    seconds: float
    per: str
    rounds: int


def rounds(
    measures: Mapping[str, Callable[[], float]],
    seconds: float,
    *,
    least: int = ROUNDS_LEAST,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Calls every one of ``measures`` in turn until ``seconds`` have passed, after at least ``least`` rounds; a warm-up comes first.

    Returns:
        by name, what the calls returned.
    """
    for measure in measures.values():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    begun, made = clock(), 0
    while made < least or clock() - begun < seconds:
        for name, measure in measures.items():
            found[name].append(measure())
        made += 1
    return found


def timed(
    call: Callable[[], object], units: float, *, settle: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """What ``rounds`` takes, from something to be called: seconds for each of the ``units`` that one call makes.

    Args:
        settle: returns when everything that the call has begun is done; waits for a device.
    """

    def measure() -> float:
        settle()
        begun = clock()
        call()
        settle()
        return (clock() - begun) / units

    return measure


def timings(found: Mapping[str, list[float]], how: Callable[[str], str], setting: str, per: Callable[[str], str]) -> list[Timing]:
    """The medians of what ``rounds`` returned."""
    return [Timing(part, how(part), setting, statistics.median(times), per(part), len(times)) for part, times in found.items()]


def best(measured: Iterable[Timing], part: str) -> Timing:
    """The fastest setting of ``part``. Raises KeyError where it was not measured."""
    candidates = [timing for timing in measured if timing.part == part]
    if not candidates:
        raise KeyError(part)
    return min(candidates, key=lambda timing: timing.seconds)
