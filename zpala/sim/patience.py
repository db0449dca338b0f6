"""For how long a node may wait for a learner that stands still: what the gate's argument says (``gossip.gate``), checked beside it.

A peer whose proxy talks and whose learner counts no updates leaves the gate of a node by that node's own timer, after T_stall without
news of its progress: max(stall_s, 20 of its update periods). The learner knows at the latest with the next heartbeat's view. From then on
no wait of this node may name that peer, and above all no gate that was forced open: while it held the gate, every update would cost
``gate_limit_s``.

Progress is what the node was told, not what happened: news that a partition holds back start the timer when they come. A node that was
paused itself blames nobody for that time, so it starts all its timers anew. Kept here is when each node heard of each peer's newest update;
the length of a period is taken from the node's own account.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpala.gossip.membership import Member
from zpala.gossip.settings import GossipSettings
from zpala.sim.ledger import Process

STALL_PERIODS = 20
MAIL_S = 0.1  # beside the protocol's own limits: from the proxy's judgement to the learner's next look at the gate


class Patience:
    """``settings``: of all nodes."""

    def __init__(self, settings: GossipSettings, violations: list[str]) -> None:
        self._settings = settings
        self._violations = violations
        self._heard: dict[tuple[Process, int], tuple[tuple[int, int], float]] = {}  # (node, peer) -> (peer's incarnation, updates), when
        self._woke: dict[Process, float] = {}
        self._reported: set[tuple[Process, int, tuple[int, int], bool]] = set()

    def heard(self, me: Process, member: Member, now: float) -> None:
        """``me`` has taken what ``member`` says of itself. Old news are no progress."""
        key, news = (me, member.line), (member.incarnation, member.condition.updates)
        before = self._heard.get(key)
        if before is None or news > before[0]:
            self._heard[key] = news, now

    def woke(self, me: Process, now: float) -> None:
        """A pause of ``me`` ends."""
        self._woke[me] = now

    def waits(self, me: Process, holders: Mapping[int, float], now: float, *, forced: bool) -> None:
        """The gate of ``me`` is closed, or was ``forced`` open. ``holders``: those that hold it, line -> update period in seconds."""
        for line, period_s in holders.items():
            news, since = self._heard[me, line]
            silence_s = now - max(since, self._woke.get(me, since))
            allowed_s = max(self._settings.stall_s, STALL_PERIODS * period_s) + self._settings.heartbeat_s + MAIL_S
            if silence_s > allowed_s and (me, line, news, forced) not in self._reported:
                self._reported.add((me, line, news, forced))
                what = "was forced to open its gate, held by" if forced else "waits in its gate for"
                self._violations.append(
                    f"{now:.3f}: node {me[0]} {what} node {line}, whose learner it has not heard of for {silence_s:.1f} s; "
                    f"{allowed_s:.1f} s are allowed"
                )
