"""How much one inbound link may say: token buckets and strikes per link. Pure; used by the proxy thread.

A link is a connection to this node's ROUTER, known by its routing id. libzmq can drop all connections or none, so a link that says too much
keeps its connection: what it says is read away without a look, which costs 8 us instead of 40, and is as good as lost on the way. Who dials
anew starts afresh, at the price of a handshake; only keys keep strangers from that. Owned here: the allowance of every link that has said
something lately, of at most ``LINKS_MAX``; a link that is forgotten starts afresh.

The numbers leave honest peers room. Two nodes on one machine that average vectors of 16 numbers without a pause make at most 480
exchanges/s: 1390 up messages/s on the busier link, 1700 in its busiest second, 200 in its busiest tenth of a second. With ``max_lead`` 50
heartbeats/s are among them, near the end of a run 10/s. HELLOs are at least 0.05 s apart. Nodes with a learner stay far below.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from zpala.gossip.messages import Hello, Offer


class Allowance(NamedTuple):
    """So many per second in the long run, and ``burst`` at once after a pause."""

    per_s: float
    burst: int


UP: Final = Allowance(5000.0, 5000)  # messages of a link with a session
STRANGER: Final = Allowance(100.0, 100)  # messages of one without: it has reason for a HELLO, and for what an ended session had under way
HELLO: Final = Allowance(20.0, 20)
OFFER: Final = Allowance(1500.0, 1500)
STRIKE: Final = Allowance(
    2.0, 16
)  # bad frames; a later version's messages of an unknown type, one per heartbeat, are no reason to ignore it
IGNORED_S: Final = 10.0  # a link with more strikes than that
COMPLAINT_S: Final = 1.0  # between two NACKs about it
LINKS_MAX: Final = 1024


class _Link:
    """``full_at``: when the bucket of each allowance will be full again."""

    __slots__ = ("complained_at", "full_at", "ignored_until")

    def __init__(self) -> None:
        self.full_at: dict[Allowance, float] = {}
        self.ignored_until = 0.0
        self.complained_at = float("-inf")

    def take(self, allowance: Allowance, now: float) -> bool:
        """One more, if there is still one to take."""
        full_at = max(self.full_at.get(allowance, now), now) + 1.0 / allowance.per_s
        if full_at - now > allowance.burst / allowance.per_s + 1e-9:
            return False
        self.full_at[allowance] = full_at
        return True


class LinkLimits:
    """What each link has left. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._links: OrderedDict[bytes, _Link] = OrderedDict()  # who spoke last comes last

    def __len__(self) -> int:
        return len(self._links)

    def admits(self, link: bytes, kind: type | None, has_session: bool, now: float) -> bool:
        """Whether a message that has come by ``link`` is to be looked at. ``kind``: what it claims to be, None: nothing known."""
        state = self._links.get(link)
        if state is None:
            state = self._new(link)
        else:
            self._links.move_to_end(link)
        if now < state.ignored_until or not state.take(UP if has_session else STRANGER, now):
            return False
        if kind is Hello:
            return state.take(HELLO, now)
        return kind is not Offer or state.take(OFFER, now)

    def strike(self, link: bytes, now: float) -> bool:
        """``link`` has sent a bad frame. True: that was one too many, and it is ignored for a while."""
        state = self._links.get(link) or self._new(link)
        if state.take(STRIKE, now):
            return False
        state.ignored_until = now + IGNORED_S
        return True

    def complains(self, link: bytes, now: float) -> bool:
        """Whether ``link`` is to be told, now, that a message of it was not looked at."""
        state = self._links.get(link) or self._new(link)
        if now < state.complained_at + COMPLAINT_S:
            return False
        state.complained_at = now
        return True

    def _new(self, link: bytes) -> _Link:
        if len(self._links) >= LINKS_MAX:
            self._links.popitem(last=False)
        state = self._links[link] = _Link()
        return state
