"""The gate (design D1): how far a learner may run without news of its neighbours, and ahead of them. Runs in the learner thread.

Update u+1 may start iff both rules let it, or this wait has lasted ``gate_limit_s``:

* Freshness: u - u_fresh < max_staleness, or nobody eligible exists. u_fresh becomes u when a delta is applied whose peer version is newer
  than the last one applied from that peer; deltas from doubt do not count.
* Lead (``lead``; only with ``max_lead`` > 0): v - c_j < max_lead + a_j for every peer j that counts, where v is my version, c_j that of j
  as last heard and a_j >= 0 the arrears forgiven to j when it came to count. Those that count are the eligible ones that are not SLOW.

Why a closed gate opens
-----------------------
Versions only grow, by one per update; a learner that waits has published its current version, so a peer's proxy can be given it at any
time, whatever the learner does. Write v_A for A's version and seen_A(B) for the last version of B that A applied (not from doubt).

*Lemma 1.* If A and B are both closed by the freshness rule, then v_B > seen_A(B) or v_A > seen_B(A): one of them has news for the other.
Suppose neither. Let E0 be the exchange by which A first applied B's version seen_A(B) = v_B; it made A fresh. A is closed now, so A has
made at least max_staleness >= 1 updates since it applied E0: v_A is newer than A's version in E0. Let E1 be the exchange by which B first
applied version v_A; it was frozen after E0, and it made B fresh, so B too has made an update since it applied E1: v_B is newer than B's
version in E1. But versions only grow: B's version in E1 >= B's version in E0 = v_B. Contradiction. (Doubt only removes applications, never
adds them, so it cannot break the argument: an exchange that does not count leaves its version unseen for the next one.)

*The freshness rule alone.* Take a closed node A and any eligible neighbour B, in an exchange with each other. If v_B > seen_A(B), A opens.
Otherwise B is open, or the lemma says that the exchange opens B; an open B that is progressing makes an update within its update time and
publishes a newer version, and the next exchange opens A. So with max_staleness >= 1 no set of healthy nodes can close one another for
good, in any topology, and A waits at most about one update of its fastest eligible neighbour plus two exchanges, and not at all for a
slow one while a faster one is eligible.

*The lead rule alone.* What is known of a clock is never more than it is, and is at most a heartbeat old. A wait of A for B means v_A >= c_B
+ max_lead, and with fresh news v_A > v_B: along a chain of waits versions fall strictly, so there is no cycle, and the chain ends at a node
that this rule does not hold, the one with the smallest version among them. It makes an update within its update time; so the minimum moves,
and everybody is released in turn. Arrears only loosen the rule, so they cannot break this. They are kept such that v_A <= v_B + max_lead +
arrears always holds: an update starts only below it, one that is forced adds to them.

*Lemma 2, both rules together.* Of finitely many progressing nodes that see one another, not all are closed with no exchange and no
heartbeat able to open one. Suppose they are: all news are known. By lemma 1 no two neighbours are both closed by freshness, and a node C
that is closed by freshness has applied the present version of each neighbour (else an exchange would open it). Let the lead rule close some
node B, with the holder C: v_B >= v_C + max_lead + arrears. Could C be closed by freshness? When C applied v_B for the first time, v_B <=
v_C + max_lead + arrears held; C has made max_staleness >= 1 updates since, so the lead is smaller by now (and arrears shrink only to the
lead itself, or to nothing when that is below max_lead): C does not hold B. So C, closed all the same, is closed by the lead rule, and its
holder has a smaller version than C, and so on without end: there are not so many nodes. So the lead rule closes nobody. Then all are closed
by freshness, also neighbours: contradiction. A node without eligible neighbours is open.

*The rest.* Nothing in an exchange waits for a learner (proxies answer from the shadow, a queue of deltas is emptied by waiting learners as
well), and every state of an exchange has a deadline, so the exchanges themselves happen; heartbeats wait for nothing at all.

*Failures.* A neighbour that cannot give news, or does not move, leaves both sets by a local timer: silent -> SUSPECT after ``suspect_s``;
heartbeats but no updates -> stalled after ``stall_s``; offers not answered, or exchanges broken off -> after three since the last one
applied; left, finished, joining, quarantined, still in its first ten updates -> at once. Far slower than the others -> SLOW after half a
minute (``slowness``), out of the lead rule only. An empty set opens the gate: a node alone runs free. And no single wait outlasts
``gate_limit_s``, whichever of the rules it began with: also where for a moment the nodes do not agree on who counts, which the arguments
above suppose.

A line that leaves the eligible set is forgotten (a restarted peer may come back with smaller versions), so a version may count as
fresh once more after a gap: at most ``max_staleness`` extra updates per gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zpala.gossip.lead import Lead

SMOOTHING = 0.2  # share of the newest update in ``update_s``


@dataclass(frozen=True, slots=True)
class Open:
    """The next update may start."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Apply deltas, publish, and ask again on news, at the latest at ``until``; ``holders`` are the lines whose news would open it.

    ``stale``: fresh parameters are wanted, so exchanges are urgent; otherwise only the holders' updates are waited for.
    """

    holders: tuple[int, ...]
    until: float
    stale: bool


@dataclass(frozen=True, slots=True)
class Forced:
    """The wait has lasted ``gate_limit_s``: one update may start all the same. ``holders`` are to be named in the log."""

    holders: tuple[int, ...]


Verdict = Open | Closed | Forced


class Gate:
    """``max_staleness`` in updates (>= 1), ``gate_limit_s`` in seconds (> 0), ``max_lead`` in updates (>= 0; 0: no such rule)."""

    def __init__(self, max_staleness: int, gate_limit_s: float, max_lead: int = 0) -> None:
        if max_staleness < 1 or not gate_limit_s > 0:
            raise ValueError(f"max_staleness {max_staleness} must be >= 1 and gate_limit_s {gate_limit_s} > 0")
        self.max_staleness = max_staleness
        self.gate_limit_s = gate_limit_s
        self.waited_s = 0.0  # all waits together, up to the last ``ask``
        self.waits = 0
        self.forced = 0
        self.holders: tuple[int, ...] = ()  # of the last wait
        self.update_s = 0.0  # mean seconds from an open gate to the next boundary: an update's work without its wait; 0.0 until known
        self.lead = 0  # updates ahead of the slowest peer that counts, at the last ``ask``
        self._lead = Lead(max_lead)
        self._eligible: Mapping[int, int] = {}
        self._seen: dict[int, int] = {}
        self._fresh_at = 0
        self._wait_since: float | None = None
        self._asked_at = 0.0
        self._opened: tuple[int, float] | None = None  # updates and time

    def view(self, eligible: Mapping[int, int], clocks: Mapping[int, int] | None = None, version: int = 0) -> None:
        """Who may hold the gate, line -> last known version: ``eligible`` for freshness, ``clocks`` for the lead (from ``View``).

        ``version``: my own.
        """
        self._eligible = dict(eligible)
        for line in self._seen.keys() - self._eligible.keys():
            del self._seen[line]
        self._lead.view(clocks or {}, version)

    def mixed(self, line: int, peer_version: int, updates: int, from_doubt: bool = False) -> bool:
        """A delta from ``line`` was applied after ``updates`` updates; True when it is fresh news."""
        self._lead.heard(line, peer_version)
        if from_doubt or peer_version <= self._seen.get(line, -1):
            return False
        self._seen[line] = peer_version
        self._fresh_at = updates
        return True

    def staleness(self, updates: int) -> int:
        """Updates since the last fresh news."""
        return updates - self._fresh_at

    def ask(self, updates: int, version: int, now: float) -> Verdict:
        """May the update after ``updates`` start? ``version``: my own; ``now``: monotonic seconds."""
        if self._wait_since is not None:
            self.waited_s += now - self._asked_at
        self._asked_at = now
        self._measure(updates, now)
        self.lead = self._lead.ahead(version)
        ahead_of = self._lead.holders(version)
        stale = self.staleness(updates) >= self.max_staleness and bool(self._eligible)
        if not stale and not ahead_of:
            return self._open(updates, now, Open())
        if self._wait_since is None:
            self._wait_since = now
            self.waits += 1
        self.holders = tuple(sorted({*ahead_of, *(self._eligible if stale else ())}))
        until = self._wait_since + self.gate_limit_s
        if now < until:
            return Closed(self.holders, until, stale)
        self.forced += 1
        self._lead.passed(ahead_of)
        return self._open(updates, now, Forced(self.holders))

    def _open(self, updates: int, now: float, verdict: Open | Forced) -> Open | Forced:
        self._wait_since = None
        self._opened = (updates, now)
        return verdict

    def _measure(self, updates: int, now: float) -> None:
        """The work of the updates since the gate was open."""
        if self._opened is not None and updates > self._opened[0]:
            took_s = (now - self._opened[1]) / (updates - self._opened[0])
            self.update_s += (SMOOTHING if self.update_s else 1.0) * (took_s - self.update_s)
            self._opened = None
