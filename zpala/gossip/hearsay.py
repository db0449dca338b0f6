"""What is known of nodes that this one has no session with: digests pass it on. Owns these entries; runs in the proxy thread.

One entry per line of hosts.txt: its newest process, how far that was, and when anybody last heard of it. A node says of itself that it was
heard of just now; whoever passes it on says how old that is, never younger than it is. Of two entries about one process the younger one
counts, and one older than ``FRESH_S`` is no sign of life. Hearsay starts the run (design D4), says how many live, and at the run's end who
may not know of it; it never makes a partner, and never holds the gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from zpala.gossip.membership import ACTIVE, Phase
from zpala.gossip.messages import AGE_UNKNOWN, Condition, DigestEntry
from zpala.gossip.run import reached

FRESH_S = 30.0
COUNT_EVERY_S = 0.5  # how often the live ones are counted anew
_PHASES = tuple(Phase)
STATES = 2 * len(_PHASES)
_TENTHS = 10  # of a second


@dataclass(slots=True)
class Rumour:
    """``heard_at``: monotonic seconds of this node's clock."""

    line: int
    incarnation: int
    phase: Phase
    reached: bool  # the run's target return
    heard_at: float


def state_of(condition: Condition, target_return: float | None) -> int:
    """As a digest tells it: the phase's place in ``Phase``, times two, plus one when the target is reached."""
    return 2 * _PHASES.index(Phase(condition.phase)) + reached(condition, target_return)


def of_no_run(state: int) -> bool:
    """A node that waits for a run or has left is that to everybody; any other state is about one run."""
    return _PHASES[state // 2] in (Phase.WAITING, Phase.LEAVING) if state < STATES else False


class Hearsay:
    """``line``: my own, of which nobody can tell me anything."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._rumours: dict[int, Rumour] = {}
        self._counted = (-math.inf, 0)

    def __iter__(self) -> Iterator[Rumour]:
        return iter(self._rumours.values())

    def clear(self) -> None:
        """Another run: what was said was of the old one."""
        self._rumours.clear()
        self._counted = (-math.inf, 0)

    def hear(self, digest: Iterable[DigestEntry], now: float) -> None:
        """What a peer tells, of itself or of others."""
        rumours = self._rumours
        for line, incarnation, _, age, state in digest:
            if line == self._line or age >= AGE_UNKNOWN or state >= STATES:
                continue
            heard_at = now - age / _TENTHS
            old = rumours.get(line)
            if old is None:
                rumours[line] = Rumour(line, incarnation, _PHASES[state // 2], bool(state % 2), heard_at)
            elif incarnation > old.incarnation or (incarnation == old.incarnation and heard_at > old.heard_at):
                old.incarnation, old.phase, old.reached, old.heard_at = incarnation, _PHASES[state // 2], bool(state % 2), heard_at

    def entry(self, line: int, incarnation: int, env_steps: int, now: float) -> DigestEntry:
        """What to pass on of this process."""
        rumour = self._rumours.get(line)
        if rumour is None or rumour.incarnation != incarnation:
            return DigestEntry(line, incarnation, env_steps)
        age = min(AGE_UNKNOWN, math.ceil(max(0.0, now - rumour.heard_at) * _TENTHS))
        return DigestEntry(line, incarnation, env_steps, age, 2 * _PHASES.index(rumour.phase) + rumour.reached)

    def fresh(self, now: float) -> list[Rumour]:
        """Those that somebody has heard of lately, and that have not left."""
        since = now - FRESH_S
        return [rumour for rumour in self._rumours.values() if rumour.heard_at >= since and rumour.phase is not Phase.LEAVING]

    def live(self, now: float) -> int:
        """How many of them learn or drain, as counted within the last half second."""
        counted_at, count = self._counted
        if now - counted_at >= COUNT_EVERY_S:
            count = sum(rumour.phase in ACTIVE for rumour in self.fresh(now))
            self._counted = (now, count)
        return count

    def unaware(self, now: float, within_s: float) -> set[int]:
        """Lines that learned when they were last heard of, at most ``within_s`` ago: has the run's end reached them?"""
        return {rumour.line for rumour in self._rumours.values() if rumour.phase is Phase.RUNNING and now - rumour.heard_at <= within_s}

    def all_reached(self, now: float, met: Collection[int]) -> bool:
        """Have all of them that learn reached the target? Not asked of the lines ``met``, which say so themselves."""
        return all(rumour.reached for rumour in self.fresh(now) if rumour.phase in ACTIVE and rumour.line not in met)
