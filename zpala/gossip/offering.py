"""When this node starts an exchange of its own, and with whom (design D3). Owns when to try again; runs in the proxy thread.

Offers are urgent while the learner waits in the gate, first to whoever has news, and to neighbours that are far in the drain. Whether one
may start now is ``pacing``'s to say, what happens in it ``exchange``'s, what follows from how it ended ``aftermath``'s.
"""

from __future__ import annotations

import math
import random

from zpala.gossip.drain import Drain
from zpala.gossip.exchange import Exchanges
from zpala.gossip.membership import ENDED, Member, Membership
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.pacing import Pacing
from zpala.gossip.partners import choose, choose_less_busy
from zpala.gossip.run import Run


class Offering:
    """``rng`` chooses among the candidates: ``partner`` "uniform", or "load" for the less busy of two."""

    def __init__(
        self,
        *,
        run: Run,
        membership: Membership,
        neighbourhood: Neighbourhood,
        exchanges: Exchanges,
        pacing: Pacing,
        drain: Drain,
        partner: str,
        rng: random.Random,
    ) -> None:
        self.due_at = math.inf  # when ``offer`` should be tried again if nothing happens
        self._run = run
        self._membership = membership
        self._neighbourhood = neighbourhood
        self._exchanges = exchanges
        self._pacing = pacing
        self._drain = drain
        self._by_load = partner == "load"
        self._rng = rng

    def rest(self) -> None:
        """No offer is due."""
        self.due_at = math.inf

    def offer(self, incarnation: int, now: float) -> None:
        """Start an exchange if it is time for one; else remember when it may be. ``incarnation``: my own."""
        self.rest()
        if not self._exchanges.can_start:
            return
        draining = self._run.phase in ENDED
        if not draining and not self._run.gate_closed and not self._pacing.allows(False, now):
            self.due_at = max(now, self._pacing.wake_at(False))
            return
        if draining and self._drain.close(self._neighbourhood.live()):
            return  # another exchange could only put off the moment at which nothing is open any more
        nonce, in_doubt, partner = self._run.nonce, self._exchanges.in_doubt, self._membership.partner
        of_run = [member for member in self._neighbourhood if member.nonce == nonce and not in_doubt(member)]
        possible = [member for member in of_run if partner(member, now)]
        urgent = self._urgent(possible, draining)
        candidates = urgent or possible
        if not candidates:
            self.due_at = min((m.avoid_until for m in of_run if m.avoid_until > now), default=math.inf)
            return
        if not self._pacing.allows(bool(urgent), now):
            self.due_at = max(now, self._pacing.wake_at(bool(urgent)))
            return
        member = self._choose(candidates)
        final = draining and member.condition.phase in ENDED
        self._pacing.offered()
        self._exchanges.offer(member, incarnation, final, now)

    def _choose(self, candidates: list[Member]) -> Member:
        by_line = {member.line: member for member in candidates}
        if self._by_load:
            return by_line[choose_less_busy(self._rng, {line: member.condition.load for line, member in by_line.items()})]
        return by_line[choose(self._rng, by_line)]

    def _urgent(self, possible: list[Member], draining: bool) -> list[Member]:
        """Those of ``possible`` that are not to wait for the pace."""
        if draining:
            far = self._drain.far({member.line for member in possible})
            return [member for member in possible if member.line in far and member.condition.phase in ENDED]
        if self._run.gate_closed:
            return [member for member in possible if member.condition.version > member.mixed_version] or possible
        return []
