"""Who has diverged: of the nodes that are too far from each other, which one stops? Owns who was too far off; runs in the proxy thread."""

from __future__ import annotations

from collections.abc import Callable

from zpala.gossip.actions import Outbox
from zpala.gossip.exchange_state import Exchange
from zpala.gossip.hosts import HostList
from zpala.gossip.neighbourhood import Neighbourhood

EXIT_NUMERICAL = 5


class Divergence:
    """``max_distance``: relative; further is too far. ``fatal`` stops this node, with an exit status and the reason."""

    def __init__(
        self,
        line: int,
        hosts: HostList,
        neighbourhood: Neighbourhood,
        max_distance: float,
        outbox: Outbox,
        fatal: Callable[[int, str], None],
    ) -> None:
        self.found = 0
        self._line = line
        self._hosts = hosts
        self._neighbourhood = neighbourhood
        self._max_distance = max_distance
        self._out = outbox
        self._fatal = fatal
        self._lines: set[int] = set()  # that were too far off, since the last exchange that was not

    def near(self) -> None:
        """An exchange was not too far off: this node is not the one."""
        self._lines.clear()

    def forget(self, line: int) -> None:
        """``line`` is another process now."""
        self._lines.discard(line)

    def too_far(self, exchange: Exchange) -> None:
        """Whoever is too far from most of its neighbours has diverged; of two alone, the one with fewer updates."""
        member = exchange.peer
        self.found += 1
        self._lines.add(member.line)
        live = {peer.line for peer in self._neighbourhood.live()}
        mine, theirs = (exchange.mine.version, self._line), (exchange.peer_version, member.line)
        alone_with_it = len(live) <= 1
        if mine < theirs if alone_with_it else 2 * len(self._lines & live) > len(live):
            names = ", ".join(self._hosts[line].name for line in sorted(self._lines))
            self._fatal(
                EXIT_NUMERICAL,
                f"this node's parameters are further than gossip.max_distance = {self._max_distance:g} from those of {names}: "
                "this node has diverged",
            )
        else:
            self._out.log("warning", f"{self._hosts[member.line].name} is further away than gossip.max_distance")
