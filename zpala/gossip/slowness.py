"""Who is so slow that the lead rule of the gate does not wait for it (SLOW). Owns that judgement; runs in the proxy thread.

A SLOW peer is a full member otherwise: it is averaged with, and its news count as fresh. What is compared is the time of an update without
its waits in the gate, as every node tells it of itself: with them all nodes would seem equally slow, because ``max_lead`` makes everybody
wait for the slowest. Of a peer that does not tell it, the interval between its updates is taken, waits included.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from zpala.gossip.actions import Outbox
from zpala.gossip.hosts import Host
from zpala.gossip.membership import Member, Phase
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run

SLOW_AFTER_S = 30.0  # beyond the limit all that time, then SLOW
KEEPS_UP_BELOW = 0.75  # of the limit: a SLOW peer that stays below ...
KEEPS_UP_AFTER_S = 10.0  # ... for so long is SLOW no longer


class Slowness:
    """``slow_factor``: times the median time of an update, this node's own included; 0: nobody is ever SLOW.

    Of an even number of nodes the smaller of the two middle ones is the median, so that of two the slower cannot excuse itself.
    """

    def __init__(self, slow_factor: float, hosts: Sequence[Host], run: Run, neighbourhood: Neighbourhood, outbox: Outbox) -> None:
        self.found = 0  # times that a peer became SLOW
        self._slow_factor = slow_factor
        self._hosts = hosts
        self._run = run
        self._neighbourhood = neighbourhood
        self._out = outbox

    def judge(self, now: float) -> None:
        """Look at everybody's pace; to be called every heartbeat or so. Logs each change once."""
        if not self._slow_factor or self._run.phase is not Phase.RUNNING:
            return
        own_s = self._run.published.update_s if self._run.published is not None else 0.0
        peers = {member: _update_s(member) for member in self._neighbourhood.of_run() if member.condition.phase == Phase.RUNNING}
        known_s = [seconds for seconds in (own_s, *peers.values()) if seconds > 0]
        if not known_s:
            return
        limit_s = self._slow_factor * median_low(known_s)
        for member in self._neighbourhood:
            self._judge(member, peers.get(member, 0.0), limit_s, now)

    def _judge(self, member: Member, seconds: float, limit_s: float, now: float) -> None:
        otherwise = 0 < seconds < KEEPS_UP_BELOW * limit_s if member.slow else seconds > limit_s
        member.pace_since = min(member.pace_since, now) if otherwise else float("inf")
        if now - member.pace_since < (KEEPS_UP_AFTER_S if member.slow else SLOW_AFTER_S):
            return
        member.slow = not member.slow
        member.pace_since = float("inf")
        self._run.changed = True
        name = self._hosts[member.line].name
        if member.slow:
            self.found += 1
            text = f"{name} is slow ({seconds:.3g} s per update, the limit is {limit_s:.3g} s): max_lead no longer waits for it"
            self._out.log("warning", text)
        else:
            self._out.log("info", f"{name} keeps up again ({seconds:.3g} s per update): max_lead waits for it")


def _update_s(member: Member) -> float:
    """0.0 when it is not known."""
    return member.condition.update_s or member.update_period_s
