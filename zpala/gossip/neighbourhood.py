"""Who of the members counts for what, in the run that this node is in. Answers questions, changes nothing; runs in the proxy thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zpala.gossip.membership import ACTIVE, Liveness, Member, Membership, Phase
from zpala.gossip.run import Run
from zpala.gossip.topology import Topology

_LIVE = frozenset({Liveness.ALIVE, Liveness.SUSPECT})  # ``Member.live``: every event looks at every member


class Neighbourhood:
    """The lines that ``topology`` lets ``line`` average with; iterating gives them all, of whatever run, dead or alive."""

    def __init__(self, line: int, topology: Topology, membership: Membership, run: Run) -> None:
        self._membership = membership
        self._run = run
        self._line = line
        self._lines = topology.neighbours(line)
        self._members: tuple[Member, ...] = ()  # as of ``_generation`` of the membership
        self._neighbours: tuple[Member, ...] = ()
        self._generation = -1

    def grow(self, topology: Topology) -> None:
        """``topology`` holds from now on."""
        self._lines = topology.neighbours(self._line)
        self._generation = -1

    def __iter__(self) -> Iterator[Member]:
        self._follow()
        return iter(self._neighbours)

    def __contains__(self, member: Member) -> bool:
        return member.line in self._lines

    def of_run(self) -> list[Member]:
        """Live peers of this run that learn or drain, neighbours or not; of a long hosts.txt only those with a session."""
        self._follow()
        return self._present(self._members)

    def live(self) -> list[Member]:
        """The neighbours among them."""
        self._follow()
        return self._present(self._neighbours)

    def finish_reasons(self) -> list[str]:
        """Why the peers of this run that say so end it."""
        self._follow()
        ending = [member for member in self._members if member.condition.finish_reason]
        return [member.condition.finish_reason for member in self._present(ending)] if ending else []

    def _follow(self) -> None:
        """Every event asks several times, and who is a member seldom changes."""
        if self._generation != self._membership.generation:
            self._generation = self._membership.generation
            self._members = tuple(self._membership)
            self._neighbours = tuple(member for member in self._members if member.line in self._lines)

    def _present(self, members: Iterable[Member]) -> list[Member]:
        nonce = self._run.nonce
        return [m for m in members if m.liveness in _LIVE and m.nonce == nonce and m.condition.phase in ACTIVE]

    def eligible(self, now: float) -> tuple[Member, ...]:
        """The neighbours that may hold the gate of this node."""
        if self._run.phase is not Phase.RUNNING:
            return ()
        self._follow()
        nonce, holds_gate = self._run.nonce, self._membership.holds_gate
        return tuple([member for member in self._neighbours if member.nonce == nonce and holds_gate(member, now)])
