"""The peers as this node sees them: sessions, incarnations, liveness, progress. Sends nothing; runs in the proxy thread.

Three signals of life are kept apart: a session each way (connection), any message heard (process), updates counted (work). A peer
counts fully only when all three are there. Times are monotonic seconds handed in.

Iterating gives the peers that this node has, or wants, sessions with: everybody, or, in a long hosts.txt, its ``contacts``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from zpala.gossip.messages import Condition
from zpala.gossip.settings import GossipSettings

WARM_UPDATES = 10  # a learner's first updates may take long (compilation): until then it neither stalls nor holds a gate
UNANSWERED_MAX = 3  # own offers without an answer, or exchanges broken off, since the last one applied; then the peer holds no gate
PERIOD_GROWTH = 4.0  # an update that takes longer than so many others counts as so many
STRIKES_MAX = 3  # bad snapshots, then the peer is quarantined
QUARANTINE_S = 60.0  # doubles every time


class Phase(StrEnum):
    """Where a node stands in its run."""

    WAITING = "waiting"  # at the start barrier
    STARTING = "starting"  # the run has a nonce, the initial parameters are under way
    READY = "ready"  # has the initial parameters, waits for the others
    JOINING = "joining"  # adopts the state of a running node
    RUNNING = "running"
    FINISHED = "finished"  # learns no more, drains
    DRAINED = "drained"  # finished, and equal to its neighbours; leaves when they are drained too
    LEAVING = "leaving"


class Liveness(StrEnum):
    UNKNOWN = "unknown"  # never heard of
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"  # said LEAVE; only a higher incarnation brings it back


_OF_THE_PROCESS = (
    "condition",
    "nonce",
    "liveness",
    "heard_at",
    "progress_at",
    "update_period_s",
    "mixed_version",
    "averaged_at",
    "unanswered",
    "avoid_until",
    "no_news_wait_s",
    "strikes",
    "exchange_s",
    "slow",
    "pace_since",
    "parting",
)
ENDED = frozenset({Phase.FINISHED, Phase.DRAINED})
ACTIVE = ENDED | {Phase.RUNNING}
FORMING = frozenset({Phase.STARTING, Phase.READY})


@dataclass(slots=True, eq=False)
class Member:
    """One other line of hosts.txt. Fields down to ``session_out`` belong to the process of ``incarnation`` and are reset with it."""

    line: int
    incarnation: int = 0  # 0: no process of this line has been heard of
    liveness: Liveness = Liveness.UNKNOWN
    condition: Condition = field(default_factory=lambda: Condition(phase=Phase.WAITING))
    nonce: bytes = b""
    heard_at: float = 0.0
    progress_at: float = 0.0
    update_period_s: float = 0.0  # EWMA; 0.0 until known
    mixed_version: int = -1  # newest version of it that was averaged with (not from doubt)
    averaged_at: float = float("-inf")
    unanswered: int = 0
    avoid_until: float = 0.0
    no_news_wait_s: float = 0.0
    strikes: int = 0
    exchange_s: float = 0.0  # what the last exchange with it took, 0.0 until there was one
    slow: bool = False  # see ``slowness``
    pace_since: float = float("inf")  # when its pace began to speak against what ``slow`` says
    parting: bool = False  # the sessions with it are being given up, see ``contacts``
    # inbound: its DEALER on my ROUTER
    link: bytes | None = None
    session_in: int = 0
    # outbound: my DEALER on its ROUTER
    session_out: int | None = None
    incarnation_out: int = 0
    # of the line, whatever the process
    quarantined_until: float = 0.0
    quarantines: int = 0
    hello_at: float = 0.0  # next HELLO while there is no outbound session
    hello_wait_s: float = 0.0
    hello_sent_at: float = float("-inf")
    dialled_at: float = float("-inf")
    redial_at: float = float("inf")
    redial_wait_s: float = 0.0
    clogged: int = 0  # snapshots on their way to it that were of exchanges which have been given up

    @property
    def established(self) -> bool:
        """A session each way, both with the same process."""
        return self.link is not None and self.session_out is not None and self.incarnation_out == self.incarnation

    @property
    def live(self) -> bool:
        return self.liveness is Liveness.ALIVE or self.liveness is Liveness.SUSPECT


@dataclass(frozen=True, slots=True)
class Transition:
    member: Member
    before: Liveness
    after: Liveness


class Membership:
    """All lines but my own. ``bounded``: they are more than ``max_sessions``, so that ``contacts`` says who is iterated over."""

    def __init__(self, line: int, size: int, settings: GossipSettings, now: float) -> None:
        self.bounded = size - 1 > settings.max_sessions
        self._line = line
        self._size = size
        self._settings = settings
        self._members: dict[int, Member] = {} if self.bounded else {other: Member(other) for other in range(size) if other != line}
        self._present = {} if self.bounded else self._members
        self.generation = 0  # grows whenever others are iterated over than before
        self._links: dict[bytes, Member] = {}
        self._seen_at = now
        self.pauses = 0  # of this very process

    def __iter__(self) -> Iterator[Member]:
        return iter(self._present.values())

    def __len__(self) -> int:
        return len(self._present)

    def get(self, line: int) -> Member | None:
        """The member of ``line``, iterated over or not; None when there is no such line, or it is mine."""
        member = self._members.get(line)
        if member is None and self.bounded and line != self._line and 0 <= line < self._size:
            member = self._members[line] = Member(line)
        return member

    def grow(self, size: int) -> None:
        """hosts.txt has ``size`` lines now. Who is iterated over stays; new lines come in unless this becomes ``bounded``, or is."""
        before, self._size = self._size, size
        if self.bounded:
            return
        self.generation += 1
        if size - 1 > self._settings.max_sessions:
            self.bounded = True
            self._present = dict(self._members)
        else:
            self._members.update({other: Member(other) for other in range(before, size)})

    def take(self, member: Member) -> None:
        """It is to be iterated over from now on, as one that has not been heard of."""
        self._present[member.line] = member
        self.generation += 1
        member.liveness = Liveness.UNKNOWN

    def drop(self, member: Member) -> None:
        """No sessions with it any more; what its process has said of itself, and its incarnation, are remembered."""
        del self._present[member.line]
        self.generation += 1
        self.unbind(member)
        member.session_out = None
        member.parting = False
        member.pace_since = float("inf")  # nobody looks at it meanwhile
        member.dialled_at = float("-inf")
        member.redial_at = float("inf")
        member.redial_wait_s = 0.0

    def of_link(self, link: bytes) -> Member | None:
        return self._links.get(link)

    # ---- sessions ---------------------------------------------------------------------------------------------------------------------

    def bind(self, member: Member, link: bytes, session: int) -> int:
        """Its DEALER is ``link``: give it ``session``, or keep the session that the link has. Returns the session in force."""
        if member.link == link:
            return member.session_in
        self.unbind(member)
        other = self._links.get(link)
        if other is not None:
            self.unbind(other)
        member.link, member.session_in = link, session
        self._links[link] = member
        return session

    def unbind(self, member: Member) -> None:
        if member.link is not None:
            del self._links[member.link]
            member.link = None

    def renew(self, member: Member, incarnation: int, now: float) -> None:
        """Another process speaks for this line: forget everything that the old one said."""
        self.unbind(member)
        if member.incarnation_out != incarnation:
            member.session_out = None
        fresh = Member(member.line)
        for name in _OF_THE_PROCESS:
            setattr(member, name, getattr(fresh, name))
        member.incarnation = incarnation
        member.progress_at = now

    # ---- news -------------------------------------------------------------------------------------------------------------------------

    def heard(self, member: Member, now: float) -> Liveness:
        """Anything valid from the process of its incarnation; returns the liveness before."""
        before = member.liveness
        member.heard_at = now
        if before is not Liveness.LEFT:
            member.liveness = Liveness.ALIVE
            member.redial_at = float("inf")
            member.redial_wait_s = 0.0
        return before

    def learn(self, member: Member, condition: Condition, nonce: bytes, now: float) -> bool:
        """Its own account of how far it is; True when its phase, nonce or end changed. Older news (fewer updates) is not taken."""
        before = member.condition
        if condition.updates < before.updates:
            return False
        gained = condition.updates - before.updates
        if gained or condition.phase != before.phase:
            if gained and before.updates:
                period = (now - member.progress_at) / gained
                if member.update_period_s:  # a learner that hung for long does not have long updates
                    period = min(period, PERIOD_GROWTH * member.update_period_s)
                member.update_period_s += (0.2 if member.update_period_s else 1.0) * (period - member.update_period_s)
            member.progress_at = now
        changed = condition.phase != before.phase or condition.finish_reason != before.finish_reason or nonce != member.nonce
        member.condition, member.nonce = condition, nonce
        return changed

    def left(self, member: Member) -> None:
        member.liveness = Liveness.LEFT
        member.session_out = None
        member.redial_at = float("inf")

    # ---- judgements -------------------------------------------------------------------------------------------------------------------

    def observe(self, now: float) -> bool:
        """Must be called at every event. After a gap of more than two heartbeats *I* was paused: nobody is blamed for my silence."""
        gap, self._seen_at = now - self._seen_at, now
        if gap <= 2 * self._settings.heartbeat_s:
            return False
        self.pauses += 1
        for member in self:
            if member.live:
                member.heard_at = now
            member.progress_at = now
        return True

    def judge(self, now: float) -> list[Transition]:
        """Turn silence into SUSPECT and DEAD; returns what changed."""
        changes = []
        for member in self:
            if not member.live:
                continue
            silence = now - member.heard_at
            after = Liveness.DEAD if silence > self._settings.dead_s else Liveness.SUSPECT if silence > self._settings.suspect_s else None
            if after is not None and after is not member.liveness:
                changes.append(Transition(member, member.liveness, after))
                member.liveness = after
        return changes

    def stalled(self, member: Member, now: float) -> bool:
        """Its learner counts no updates although its proxy talks: T_stall = max(stall_s, 20 update periods), after its first updates."""
        limit_s = max(self._settings.stall_s, 20 * member.update_period_s)
        return member.condition.updates >= WARM_UPDATES and now - member.progress_at > limit_s

    def strike(self, member: Member, now: float) -> bool:
        """A bad snapshot; True when that quarantines the peer."""
        member.strikes += 1
        if member.strikes < STRIKES_MAX:
            return False
        member.strikes = 0
        member.quarantined_until = now + QUARANTINE_S * 2**member.quarantines
        member.quarantines = min(member.quarantines + 1, 10)
        return True

    def partner(self, member: Member, now: float) -> bool:
        """May an exchange be offered to it? (Topology, run and doubts are the caller's business.)"""
        return (
            member.liveness is Liveness.ALIVE
            and member.established
            and not member.parting
            and not member.clogged
            and member.condition.phase in ACTIVE
            and now >= member.avoid_until
            and now >= member.quarantined_until
        )

    def holds_gate(self, member: Member, now: float) -> bool:
        """Eligible in the sense of design D1 (topology and run are the caller's business)."""
        return (
            member.liveness is Liveness.ALIVE
            and member.established
            and not member.parting
            and not member.clogged
            and member.condition.phase == Phase.RUNNING
            and not member.condition.finish_reason
            and member.condition.updates >= WARM_UPDATES
            and member.unanswered < UNANSWERED_MAX
            and now >= member.quarantined_until
            and not self.stalled(member, now)
        )
