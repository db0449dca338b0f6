"""Heartbeats: when they are due, and what they say of this node. Runs in the proxy thread."""

from __future__ import annotations

from zpala.gossip.actions import Outbox, SendUp
from zpala.gossip.budget import BudgetCounter
from zpala.gossip.digest import Digest
from zpala.gossip.load import Load
from zpala.gossip.membership import Membership
from zpala.gossip.messages import Heartbeat
from zpala.gossip.run import Run

END_IS_NEAR_S = 2.0  # of work left at the cluster's rate: heartbeats come every NEAR_END_S
NEAR_END_S = 0.1
NEWS_PER_LEAD = 4  # with ``max_lead``: one whenever the version has grown by a quarter of it ...
NEWS_S = 0.02  # ... but at most so often


class Heartbeats:
    """One to everybody who gave me a session, every ``heartbeat_s`` or when the run has something to announce.

    ``max_lead``: when it is not 0, the others wait for my version, and are told more often than that.
    """

    def __init__(
        self,
        heartbeat_s: float,
        max_lead: int,
        run: Run,
        membership: Membership,
        budget: BudgetCounter,
        digest: Digest,
        load: Load,
        outbox: Outbox,
        now: float,
    ) -> None:
        self._heartbeat_s = heartbeat_s
        self._news_updates = max(1, max_lead // NEWS_PER_LEAD) if max_lead else 0
        self._told = (-1, now)  # version, and when
        self._run = run
        self._membership = membership
        self._budget = budget
        self._digest = digest
        self._load = load
        self._out = outbox
        self.due_at = now

    def postpone(self, now: float) -> None:
        """The next one is due a full interval from now."""
        self.due_at = now + self._heartbeat_s

    def published(self, version: int) -> None:
        """The learner is at ``version``: is that news for those who may wait for it?"""
        if self._news_updates and version >= self._told[0] + self._news_updates:
            self.due_at = min(self.due_at, self._told[1] + NEWS_S)

    def send(self, now: float) -> None:
        near_end = self._run.active and self._budget.remaining() < END_IS_NEAR_S * self._budget.rate(now)
        self.due_at = now + (min(NEAR_END_S, self._heartbeat_s) if near_end else self._heartbeat_s)
        self._run.announce = False
        self._run.load = self._load.share(now)
        condition, digest = self._run.condition(), self._digest.entries(now)
        self._told = (condition.version, now)
        for member in self._membership:
            if member.session_out is not None:
                heartbeat = Heartbeat(session=member.session_out, nonce=self._run.nonce, condition=condition, digest=digest)
                self._out.add(SendUp(member.line, heartbeat))
