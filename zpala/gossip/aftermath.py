"""What follows from the way an exchange ended: whom to leave alone and for how long, whom not to trust, what the pace is.

Writes what it learns of a peer into its ``Member`` and tells ``pacing``, ``drain`` and ``divergence``; starts nothing, sends nothing.
Runs in the proxy thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from zpala.gossip.actions import Outbox
from zpala.gossip.divergence import Divergence
from zpala.gossip.drain import Drain
from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.hosts import Host
from zpala.gossip.membership import Membership
from zpala.gossip.pacing import Pacing
from zpala.gossip.run import Run

NOT_NOW_S = 0.1  # a peer that said BUSY because its learner lags or has not started is left alone for that long
NO_NEWS_FIRST_S = 0.002  # urgent offers to a peer that had nothing new: back-off, doubled each time ...
NO_NEWS_MAX_S = 0.05  # ... up to this
AVOID_MAX_S = 30.0  # a peer that never answers offers


class Aftermath:
    """``line``: my own. ``offer_timeout_s``: the least time for which a peer that did not answer is avoided, or one that is too far off."""

    def __init__(
        self,
        *,
        line: int,
        hosts: Sequence[Host],
        offer_timeout_s: float,
        run: Run,
        membership: Membership,
        pacing: Pacing,
        drain: Drain,
        divergence: Divergence,
        outbox: Outbox,
    ) -> None:
        self._line = line
        self._hosts = hosts
        self._offer_timeout_s = offer_timeout_s
        self._run = run
        self._membership = membership
        self._pacing = pacing
        self._drain = drain
        self._divergence = divergence
        self._out = outbox

    def on_ended(self, ending: Ending, median_s: float, now: float) -> None:
        """An exchange of mine or theirs is over. ``median_s``: what one takes."""
        member = ending.exchange.peer
        name = self._hosts[member.line].name
        own = ending.exchange.xid.line == self._line
        if ending.step is Step.COMPLETED:
            self._averaged(ending, own, now)
        elif ending.step is Step.REFUSED:
            self._pacing.not_taken()
            self._pacing.busy(median_s, now)
            if ending.code in ("not_running", "leaving", "parting", "deltas", "backlog"):
                member.avoid_until = now + NOT_NOW_S
            if ending.code == "not_running":  # it may have quarantined me: it must not hold the gate for ever
                member.unanswered += 1
                self._run.changed = True
        elif ending.step is Step.BAD_DATA and ending.code != "diverged":
            self._out.log("warning", f"a snapshot of {name} was refused: {ending.code}")
            if self._membership.strike(member, now):
                self._out.log("error", f"{name} sent bad snapshots again and again: quarantined")
        elif ending.code == "diverged":
            member.avoid_until = now + self._offer_timeout_s
            self._divergence.too_far(ending.exchange, now)
        elif ending.step is Step.EXPIRED:
            self._out.log("warning", f"an exchange with {name} stayed in doubt and was given up: one defect")
        elif own:
            self._pacing.not_taken()
            if ending.step is Step.GAVE_UP or ending.code == "timeout":  # by my deadline or by the peer's
                member.unanswered += 1
                member.avoid_until = now + min(AVOID_MAX_S, self._offer_timeout_s * 2 ** min(member.unanswered, 10))
                self._run.changed = True

    def _averaged(self, ending: Ending, own: bool, now: float) -> None:
        exchange, member = ending.exchange, ending.exchange.peer
        member.averaged_at = now
        member.strikes = 0
        member.unanswered = 0
        self._divergence.averaged(exchange)
        if ending.late:
            return
        if exchange.final:
            self._drain.exchanged(member.line, exchange.distance)
        if exchange.peer_version > member.mixed_version:
            member.mixed_version = exchange.peer_version
            member.no_news_wait_s = 0.0
        elif own and self._run.gate_closed:
            member.no_news_wait_s = min(max(2 * member.no_news_wait_s, NO_NEWS_FIRST_S), NO_NEWS_MAX_S)
            member.avoid_until = now + member.no_news_wait_s
