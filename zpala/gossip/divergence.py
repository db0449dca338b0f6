"""Who has diverged, and what follows (design D16): of the nodes that are too far from each other, which one stops or gives way?

Owns who was too far off; runs in the proxy thread. Both sides of an exchange compute the same distance of the same two snapshots, so both
see that it was too far, and one of them says so by ABORT in case that rounding made a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpala.gossip.actions import Outbox
from zpala.gossip.exchange_state import Exchange
from zpala.gossip.hosts import Host
from zpala.gossip.membership import ACTIVE, Member, Phase
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run
from zpala.gossip.settings import GossipSettings

EXIT_NUMERICAL = 5


class Divergence:
    """``fatal`` stops this node, with an exit status and the reason; ``rejoin`` makes it adopt the state of the given peer."""

    def __init__(
        self,
        *,
        line: int,
        hosts: Sequence[Host],
        settings: GossipSettings,
        run: Run,
        neighbourhood: Neighbourhood,
        outbox: Outbox,
        fatal: Callable[[int, str], None],
        rejoin: Callable[[Member, float], None],
    ) -> None:
        self.found = 0  # exchanges that were too far
        self.rejoins = 0  # times that this node gave way
        self._line = line
        self._hosts = hosts
        self._max_distance = settings.max_distance
        self._bootstrap = settings.on_diverged == "bootstrap"
        self._run = run
        self._neighbourhood = neighbourhood
        self._out = outbox
        self._fatal = fatal
        self._rejoin = rejoin
        self._lines: set[int] = set()  # that were too far off in the last exchange with them

    def averaged(self, exchange: Exchange) -> None:
        """An exchange was applied; too far off only where such are averaged all the same."""
        if exchange.distance <= self._max_distance:
            self._lines.discard(exchange.peer.line)
            return
        self.found += 1
        if exchange.peer.line not in self._lines:
            self._lines.add(exchange.peer.line)
            name = self._hosts[exchange.peer.line].name
            self._out.log("warning", f"averaged with {name} at the relative distance {exchange.distance:.3g}, above gossip.max_distance")

    def forget(self, line: int) -> None:
        """``line`` is another process now."""
        self._lines.discard(line)

    def too_far(self, exchange: Exchange, now: float) -> None:
        """An exchange was refused, by me or by the peer: its two snapshots are too far from each other."""
        self.found += 1
        if self._bootstrap:
            self._give_way(exchange, now)
        else:
            self._stop(exchange)

    def _give_way(self, exchange: Exchange, now: float) -> None:
        """Of the two the one with the smaller version adopts the other's state; of equals the higher line."""
        member = exchange.peer
        name = self._hosts[member.line].name
        mine, theirs = (exchange.mine.version, -self._line), (exchange.peer_version, -member.line)
        learning = self._run.phase is Phase.RUNNING and not self._run.finish_reason
        if mine < theirs and learning and member.condition.phase in ACTIVE:
            self._out.log("warning", f"{name} is further away than gossip.max_distance and has more updates: adopting its state")
            self.rejoins += 1
            self._rejoin(member, now)
        else:
            self._out.log("warning", f"{name} is further away than gossip.max_distance")

    def _stop(self, exchange: Exchange) -> None:
        """Whoever is too far from more than half of the nodes it sees, itself among them, has diverged.

        Of two equal halves the one with fewer updates: were both to stop, nobody would be left. Two alone are such halves.
        """
        member = exchange.peer
        self._lines.add(member.line)
        live = {member.line, *(peer.line for peer in self._neighbourhood.live())}
        mine, theirs = (exchange.mine.version, self._line), (exchange.peer_version, member.line)
        far, near = len(self._lines & live), 1 + len(live - self._lines)
        if far > near or (far == near and mine < theirs):
            names = ", ".join(self._hosts[line].name for line in sorted(self._lines))
            self._fatal(
                EXIT_NUMERICAL,
                f"this node's parameters are further than gossip.max_distance = {self._max_distance:g} from those of {names}: "
                "this node has diverged",
            )
        else:
            self._out.log("warning", f"{self._hosts[member.line].name} is further away than gossip.max_distance")
