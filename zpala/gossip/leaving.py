"""How a node leaves: with the others when all are equal to their neighbours (design D6), or alone and soon when it is told to stop.

Owns the phases after RUNNING, the limit on leaving alone, and the count of what was still in doubt. Who is close is ``drain``'s knowledge,
why the run ends is ``finish``'s. Runs in the proxy thread.
"""

from __future__ import annotations

import math

from zpala.gossip.actions import Outbox
from zpala.gossip.drain import Drain
from zpala.gossip.events import Drained
from zpala.gossip.exchange import Exchanges
from zpala.gossip.hearsay import Hearsay
from zpala.gossip.membership import ENDED, Phase
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run
from zpala.gossip.sessions import Sessions
from zpala.gossip.shadow import Shadow

STOP_S = 1.0  # a node that leaves alone finishes its exchange within that


class Leaving:
    """``enabled``: does this node average at all? Without, there is nothing to be equal in. ``dead_s``: silent that long is dead."""

    def __init__(
        self,
        *,
        enabled: bool,
        run: Run,
        neighbourhood: Neighbourhood,
        hearsay: Hearsay,
        dead_s: float,
        drain: Drain,
        exchanges: Exchanges,
        shadow: Shadow,
        sessions: Sessions,
        outbox: Outbox,
    ) -> None:
        self.in_doubt = 0  # exchanges that were, when this node left
        self._enabled = enabled
        self._run = run
        self._neighbourhood = neighbourhood
        self._hearsay = hearsay
        self._dead_s = dead_s
        self._drain = drain
        self._exchanges = exchanges
        self._shadow = shadow
        self._sessions = sessions
        self._out = outbox
        self._stop_at = math.inf

    @property
    def stopping(self) -> bool:
        """Told to leave alone: no new exchange, mine or theirs."""
        return self._stop_at < math.inf

    def deadline(self) -> float:
        return self._stop_at if self._drain.until is None else min(self._stop_at, self._drain.until)

    def finish(self, now: float) -> None:
        """The learner learns no more: exchange until equal."""
        self._run.enter(Phase.FINISHED, now)
        self._drain.begin(now)

    def stop(self, now: float) -> None:
        """Leave alone, within ``STOP_S``."""
        self._stop_at = min(self._stop_at, now + STOP_S)

    def check_drained(self, now: float) -> None:
        """Equal to the neighbours: say so, and leave when everybody is.

        A node that left on its own closeness would be left behind by a neighbour that still moves towards others, and one that left on
        its neighbours' by whoever moves them: along a ring that can be far away. Of a long hosts.txt only those with a session are asked;
        for whoever is between two sessions, and so has not heard of the end, a drained node stays ``dead_s`` longer and dials it.
        """
        if self._run.phase not in ENDED:
            return
        if self._drain.over(now):
            self.leave("timeout", now)
            return
        close = not self._enabled or self._drain.close(self._neighbourhood.live())
        settled = self._exchanges.idle and not self._shadow.queued  # the last snapshot contains every delta
        if self._run.phase is Phase.DRAINED and not close:
            self._run.enter(Phase.FINISHED, now)
        elif self._run.phase is Phase.FINISHED and close and settled:
            self._run.enter(Phase.DRAINED, now)
        if self._run.phase is Phase.DRAINED and settled and self._all_drained(now):
            self.leave("drained", now)

    def _all_drained(self, now: float) -> bool:
        met = self._neighbourhood.of_run()
        if self._enabled and not all(member.condition.phase == Phase.DRAINED for member in met):
            return False
        unaware = self._hearsay.unaware(now, self._dead_s) - {member.line for member in met}
        return not unaware or now - self._run.since > self._dead_s

    def check_stop(self, now: float) -> None:
        if self.stopping and self._run.phase is not Phase.LEAVING and (self._exchanges.idle or now >= self._stop_at):
            self.leave("leave", now)

    def leave(self, reason: str, now: float) -> None:
        """LEAVE to everybody; what is still in doubt stays so and is counted."""
        self._exchanges.withdraw("leaving", now)
        self.in_doubt += len(self._exchanges.doubts) + (self._exchanges.current is not None)
        self._run.enter(Phase.LEAVING, now)
        self._run.announce = False
        self._sessions.leave(reason)
        self._out.learner(Drained(reason=reason))
