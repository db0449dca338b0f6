"""Who of the members counts for what, in the run that this node is in. Answers questions, changes nothing; runs in the proxy thread."""

from __future__ import annotations

from collections.abc import Iterator

from zpala.gossip.membership import ACTIVE, Member, Membership, Phase
from zpala.gossip.run import Run
from zpala.gossip.topology import Topology


class Neighbourhood:
    """The lines that ``topology`` lets ``line`` average with; iterating gives them all, of whatever run, dead or alive."""

    def __init__(self, line: int, topology: Topology, membership: Membership, run: Run) -> None:
        self._membership = membership
        self._run = run
        self._line = line
        self._lines = topology.neighbours(line)

    def grow(self, topology: Topology) -> None:
        """``topology`` holds from now on."""
        self._lines = topology.neighbours(self._line)

    def __iter__(self) -> Iterator[Member]:
        return (member for member in self._membership if member.line in self._lines)

    def __contains__(self, member: Member) -> bool:
        return member.line in self._lines

    def of_run(self) -> list[Member]:
        """Live peers of this run that learn or drain, neighbours or not; of a long hosts.txt only those with a session."""
        return [m for m in self._membership if m.live and m.nonce == self._run.nonce and m.condition.phase in ACTIVE]

    def live(self) -> list[Member]:
        """The neighbours among them."""
        return [member for member in self.of_run() if member.line in self._lines]

    def eligible(self, now: float) -> tuple[Member, ...]:
        """The neighbours that may hold the gate of this node."""
        if self._run.phase is not Phase.RUNNING:
            return ()
        nonce = self._run.nonce
        return tuple(member for member in self if member.nonce == nonce and self._membership.holds_gate(member, now))
