"""The freshness gate (design D1): how far a learner may run without fresh news from a neighbour. Runs in the learner thread.

Update u+1 may start iff u - u_fresh < max_staleness, or nobody eligible exists, or this wait has lasted ``gate_limit_s``. u_fresh becomes
u when a delta is applied whose peer version is newer than the last one applied from that peer; deltas from doubt do not count.

Why a closed gate opens (the argument for the lead gate does not carry over: no clock minimum is involved here)
------------------------------------------------------------------------------------------------------------------
Versions only grow, by one per update; a learner that waits has published its current version, so a peer's proxy can be given it at any
time, whatever the learner does. Write v_A for A's version and seen_A(B) for the last version of B that A applied (not from doubt).

*Lemma.* If A and B are both closed, then v_B > seen_A(B) or v_A > seen_B(A): one of them has news for the other. Suppose neither. Let E0
be the exchange by which A first applied B's version seen_A(B) = v_B; it made A fresh. A is closed now, so A has made at least
max_staleness >= 1 updates since it applied E0: v_A is newer than A's version in E0. Let E1 be the exchange by which B first applied
version v_A; it was frozen after E0, and it made B fresh, so B too has made an update since it applied E1: v_B is newer than B's version in
E1. But versions only grow: B's version in E1 >= B's version in E0 = v_B. Contradiction. (Doubt only removes applications, never
adds them, so it cannot break the argument: an exchange that does not count leaves its version unseen for the next one.)

*Consequence.* Take a closed node A and any eligible neighbour B, in an exchange with each other. If v_B > seen_A(B), A opens. Otherwise B
is open, or the lemma says that the exchange opens B; an open B that is progressing makes an update within its update time and publishes
a newer version, and the next exchange opens A. So with max_staleness >= 1 no set of healthy nodes can close one another for good, in any
topology, and A waits at most about one update of its fastest eligible neighbour plus two exchanges, and not at all for a slow one
while a faster one is eligible. Nothing in an exchange waits for a learner (proxies answer from the shadow, a queue of deltas is emptied
by waiting learners as well), and every state of an exchange has a deadline, so the exchanges themselves happen.

*Failures.* A neighbour that cannot give news leaves the eligible set by a local timer: silent -> SUSPECT after ``suspect_s``; heartbeats
but no updates -> stalled after ``stall_s``; offers not answered, or exchanges broken off -> after three since the last one applied; left,
finished, joining, still in its first ten updates -> at once.
An empty set opens the gate: a node alone runs free. And no single wait outlasts ``gate_limit_s``.

A line that leaves the eligible set is forgotten (a restarted peer may come back with smaller versions), so a version may count as
fresh once more after a gap: at most ``max_staleness`` extra updates per gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Open:
    """The next update may start."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Apply deltas, publish, and ask again on news, at the latest at ``until``; ``holders`` are the lines whose news would open it."""

    holders: tuple[int, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Forced:
    """The wait has lasted ``gate_limit_s``: one update may start all the same. ``holders`` are to be named in the log."""

    holders: tuple[int, ...]


Verdict = Open | Closed | Forced


class FreshnessGate:
    """``max_staleness`` in updates (>= 1), ``gate_limit_s`` in seconds (> 0)."""

    def __init__(self, max_staleness: int, gate_limit_s: float) -> None:
        if max_staleness < 1 or not gate_limit_s > 0:
            raise ValueError(f"max_staleness {max_staleness} must be >= 1 and gate_limit_s {gate_limit_s} > 0")
        self.max_staleness = max_staleness
        self.gate_limit_s = gate_limit_s
        self.waited_s = 0.0  # all waits together, up to the last ``ask``
        self.waits = 0
        self.forced = 0
        self.holders: tuple[int, ...] = ()  # of the last wait
        self._eligible: Mapping[int, int] = {}
        self._seen: dict[int, int] = {}
        self._fresh_at = 0
        self._wait_since: float | None = None
        self._asked_at = 0.0

    def view(self, eligible: Mapping[int, int]) -> None:
        """Who may hold the gate: line -> last known version (from ``View.eligible``)."""
        self._eligible = dict(eligible)
        for line in self._seen.keys() - self._eligible.keys():
            del self._seen[line]

    def mixed(self, line: int, peer_version: int, updates: int, from_doubt: bool = False) -> bool:
        """A delta from ``line`` was applied after ``updates`` updates; True when it is fresh news."""
        if from_doubt or peer_version <= self._seen.get(line, -1):
            return False
        self._seen[line] = peer_version
        self._fresh_at = updates
        return True

    def staleness(self, updates: int) -> int:
        """Updates since the last fresh news."""
        return updates - self._fresh_at

    def ask(self, updates: int, now: float) -> Verdict:
        """May the update after ``updates`` start? ``now``: monotonic seconds."""
        if self._wait_since is not None:
            self.waited_s += now - self._asked_at
        self._asked_at = now
        if self.staleness(updates) < self.max_staleness or not self._eligible:
            self._wait_since = None
            return Open()
        if self._wait_since is None:
            self._wait_since = now
            self.waits += 1
        self.holders = tuple(sorted(self._eligible))
        until = self._wait_since + self.gate_limit_s
        if now < until:
            return Closed(self.holders, until)
        self._wait_since = None
        self.forced += 1
        return Forced(self.holders)
