"""The lock between two nodes: one exchange at a time, applied by both sides or by neither. Pure; runs in the proxy thread.

Owns the slot (the one exchange that this node is in), the exchanges in doubt, and the memory of how exchanges ended. It takes and gives
back pool buffers, freezes the shadow and queues deltas to the learner; it never chooses a partner and never decides that it is time.

Messages of one exchange, I the initiator and R the responder (design §5, reliability §2.6)::

    I -> R  OFFER            I has frozen its shadow; OFFER implies I's FETCH
    R -> I  ACCEPT, DATA     R has frozen too; ACCEPT implies R's FETCH. Large vectors: I sends DATA as soon as it sees ACCEPT.
    I -> R  DATA(ok)         small vectors: I waits for R's DATA, which is right behind, and saves the separate OK
    R -> I  OK               R holds I's data and I's OK: R applies. I, on R's OK, applies too: four hops from OFFER to both applied.

Everything else is retransmission, and every message is idempotent: OFFER, FETCH and OK(ask) are repeated every ``retransmit_s``. A side
applies only when it has the peer's data *and* the peer's OK. After its own OK it never aborts: if the peer's OK does not come in
time the exchange is parked in DOUBT, where it blocks nothing but further exchanges with that peer, and is resolved by OK(ask) or, after
``keep_s``, given up as a counted defect.

Why both or neither: A applied, so A got B's OK, so B holds A's snapshot. A said OK before it applied and answers every later question with
OK as long as it remembers (2 x ``keep_s``). B, having said OK, leaves ENGAGED or DOUBT only by A's OK (then it applies), by A's ABORT
(which A never sends after its own OK), or by expiry or A's restart (which are counted).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from zpala.gossip.actions import Outbox, Payload, SendDown, SendUp
from zpala.gossip.buffers import BufferPool, Vector
from zpala.gossip.events import DeltaQueued
from zpala.gossip.membership import Member
from zpala.gossip.messages import Abort, Accept, Busy, Data, ExchangeId, Fetch, Offer, Ok, SnapshotDescription
from zpala.gossip.mixing import Guard, checksum, delta_into, relative_distance, square_norm
from zpala.gossip.settings import GossipSettings
from zpala.gossip.shadow import Shadow

MAX_DOUBTS = 4  # at most one per peer
OUTCOMES_MAX = 16_384
SMALL_BYTES = 256 * 1024  # below, the initiator waits for the responder's data before it sends its own (one message less)
DURATIONS = 64
FIRST_DURATION_S = 0.01  # taken for the median before there is one
COUNTERS = (
    "offers",
    "accepts",
    "applied",
    "applied_late",
    "aborted",
    "busy_sent",
    "busy_received",
    "doubts",
    "defects",
    "crossings",
    "retransmits",
    "stray",
    "own_nonfinite",
    "rejected_checksum",
    "rejected_size",
    "rejected_nonfinite",
    "rejected_norm",
    "rejected_diverged",
    "abort_after_applied",
    "bytes_sent",
    "bytes_received",
)


class State(Enum):
    """Of one exchange, on one side."""

    OFFERED = auto()
    ENGAGED = auto()
    DOUBT = auto()
    APPLIED = auto()
    ABORTED = auto()


class Step(Enum):
    """What can happen to an exchange."""

    ACCEPTED = auto()  # the peer is locked in
    REFUSED = auto()  # BUSY
    CROSSED = auto()  # I gave way to an initiator with a lower line
    PEER_ABORTED = auto()
    FENCED = auto()  # the peer is another process now, or left before it could know
    BAD_DATA = auto()
    GAVE_UP = auto()  # a deadline before my own OK
    PARKED = auto()  # a deadline after my own OK
    COMPLETED = auto()  # data and the peer's OK
    EXPIRED = auto()  # in doubt for keep_s


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.OFFERED, Step.ACCEPTED): State.ENGAGED,
    (State.OFFERED, Step.REFUSED): State.ABORTED,
    (State.OFFERED, Step.CROSSED): State.ABORTED,
    (State.OFFERED, Step.PEER_ABORTED): State.ABORTED,
    (State.OFFERED, Step.FENCED): State.ABORTED,
    (State.OFFERED, Step.GAVE_UP): State.ABORTED,
    (State.ENGAGED, Step.PEER_ABORTED): State.ABORTED,
    (State.ENGAGED, Step.FENCED): State.ABORTED,
    (State.ENGAGED, Step.BAD_DATA): State.ABORTED,
    (State.ENGAGED, Step.GAVE_UP): State.ABORTED,
    (State.ENGAGED, Step.PARKED): State.DOUBT,
    (State.ENGAGED, Step.COMPLETED): State.APPLIED,
    (State.DOUBT, Step.PEER_ABORTED): State.ABORTED,
    (State.DOUBT, Step.FENCED): State.ABORTED,
    (State.DOUBT, Step.EXPIRED): State.ABORTED,
    (State.DOUBT, Step.COMPLETED): State.APPLIED,
}


@dataclass(slots=True, eq=False)
class Exchange:
    """One side of one exchange. ``own`` and ``theirs`` are pool buffers held by it; ``theirs`` becomes the delta once data are valid."""

    xid: ExchangeId
    peer: Member
    state: State
    own: int
    theirs: int
    mine: SnapshotDescription
    final: bool  # both nodes were finished when it was frozen: counts for the drain
    started_at: float
    deadline: float
    retransmit_at: float
    peer_version: int = -1
    has_data: bool = False
    ok_sent: bool = False  # from here on, no ABORT
    ok_received: bool = False
    data_sent: bool = False
    distance: float = math.inf


@dataclass(frozen=True, slots=True)
class Ending:
    """How an exchange left the slot or the doubts: for the protocol's bookkeeping."""

    exchange: Exchange
    step: Step
    code: str  # of an ABORT or BUSY, else ""
    late: bool  # it had been in doubt


class Exchanges:
    """All exchanges of one node. ``ended`` is called once per exchange that ends, after its buffers have been given back."""

    def __init__(
        self,
        *,
        line: int,
        nbytes: int,
        pool: BufferPool,
        shadow: Shadow,
        guard: Guard,
        settings: GossipSettings,
        rng: random.Random,
        outbox: Outbox,
        ended: Callable[[Ending, float], None],
    ) -> None:
        self.current: Exchange | None = None
        self.doubts: dict[ExchangeId, Exchange] = {}
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.last_distance = 0.0
        self._line = line
        self._nbytes = nbytes
        self._pool = pool
        self._shadow = shadow
        self._guard = guard
        self._settings = settings
        self._rng = rng
        self._out = outbox
        self._ended = ended
        self._number = 0
        self._outcomes: dict[ExchangeId, tuple[State, float]] = {}
        self._durations: deque[float] = deque(maxlen=DURATIONS)
        self._described: tuple[int, SnapshotDescription | None] = (-1, None)  # of a shadow revision; None: not finite

    # ---- what the protocol asks -------------------------------------------------------------------------------------------------------

    @property
    def can_start(self) -> bool:
        return (
            self.current is None
            and len(self.doubts) < MAX_DOUBTS
            and self._shadow.ready
            and not self._shadow.full
            and self._pool.free >= 2  # one to freeze into, one to receive into
        )

    def in_doubt(self, member: Member) -> bool:
        return any(doubt.peer is member for doubt in self.doubts.values())

    def median_s(self) -> float:
        """Median time from freezing to queueing the delta."""
        if not self._durations:
            return FIRST_DURATION_S
        return sorted(self._durations)[len(self._durations) // 2]

    def deadline(self) -> float:
        """When ``on_timer`` has something to do, inf when nothing is open."""
        return min((min(item.deadline, item.retransmit_at) for item in self._open()), default=math.inf)

    # ---- starting ---------------------------------------------------------------------------------------------------------------------

    def offer(self, member: Member, incarnation: int, final: bool, now: float) -> bool:
        """Freeze and offer; ``can_start`` must hold. False when my own parameters are not finite."""
        if member.session_out is None:
            raise ValueError(f"no session to line {member.line}")
        xid = ExchangeId(self._line, incarnation, self._number)
        exchange = self._freeze(xid, member, State.OFFERED, final, now, self._settings.offer_timeout_s)
        if exchange is None:
            return False
        self._number += 1
        self.counters["offers"] += 1
        self._up(member, Offer(session=member.session_out, xid=xid, snapshot=exchange.mine))
        return True

    def _freeze(self, xid: ExchangeId, member: Member, state: State, final: bool, now: float, limit_s: float) -> Exchange | None:
        own, theirs = self._pool.take(), self._pool.take()
        if own is None or theirs is None:
            raise ValueError("no buffers: can_start was not asked")
        self._shadow.freeze_into(self._pool[own])
        mine = self._describe(own)
        if mine is None:
            self.counters["own_nonfinite"] += 1
            self._pool.release(theirs)
            self._pool.release(own)
            return None
        self.current = Exchange(
            xid=xid,
            peer=member,
            state=state,
            own=own,
            theirs=theirs,
            mine=mine,
            final=final,
            started_at=now,
            deadline=now + limit_s,
            retransmit_at=now + self._settings.retransmit_s,
        )
        return self.current

    def _describe(self, frozen: int) -> SnapshotDescription | None:
        """Of a buffer just frozen. The shadow is often frozen again unchanged (after BUSY), so the last description is kept."""
        revision, described = self._described
        if revision != self._shadow.revision:
            norm = square_norm(self._pool[frozen])
            described = None
            if math.isfinite(norm):
                described = SnapshotDescription(
                    version=self._shadow.version, nbytes=self._nbytes, checksum=checksum(self._pool[frozen]), square_norm=norm
                )
            self._described = (self._shadow.revision, described)
        return described

    # ---- messages ---------------------------------------------------------------------------------------------------------------------

    def on_offer(self, member: Member, message: Offer, refusal: str | None, final: bool, now: float) -> None:
        """``refusal``: the protocol's own reason for BUSY, if it has one."""
        xid = message.xid
        current = self.current
        if current is not None and current.xid == xid:
            self._accept(current)
            return
        if xid in self.doubts:
            return
        outcome = self._outcome(xid, now)
        if outcome is not None:
            if outcome is State.ABORTED:
                self._abort_unknown(member, xid)
            return
        if refusal is None and member.session_out is None:
            refusal = "not_running"
        if refusal is None and current is not None and current.state is State.OFFERED and xid.line < self._line:
            self.counters["crossings"] += 1
            self._abort(current, Step.CROSSED, "crossing", now)
        if refusal is None:
            refusal = self._refusal(member)
        if refusal is None and message.snapshot.nbytes != self._nbytes:
            self.counters["rejected_size"] += 1
            self._up_abort(member, xid, "size")
            return
        exchange = None
        if refusal is None:
            exchange = self._freeze(xid, member, State.ENGAGED, final, now, self._settings.exchange_timeout_s)
        if exchange is None:
            self.counters["busy_sent"] += 1
            if member.link is not None:
                self._out.add(SendDown(member.link, Busy(session=member.session_in, xid=xid, reason=refusal or "not_running")))
            return
        exchange.peer_version = message.snapshot.version
        self.counters["accepts"] += 1
        self._accept(exchange)
        self._send_data(exchange)

    def _refusal(self, member: Member) -> str | None:
        if self.current is not None:
            return "engaged"
        if len(self.doubts) >= MAX_DOUBTS or self.in_doubt(member):
            return "doubt"
        if not self._shadow.ready:
            return "not_running"
        if self._shadow.full:
            return "deltas"
        return None if self._pool.free >= 2 else "buffers"

    def _accept(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if peer.link is not None:
            self._out.add(SendDown(peer.link, Accept(session=peer.session_in, xid=exchange.xid, snapshot=exchange.mine)))

    def on_busy(self, member: Member, message: Busy, now: float) -> None:
        current = self._find_current(member, message.xid)
        if current is not None and current.state is State.OFFERED:
            self.counters["busy_received"] += 1
            member.unanswered = 0
            self._close(current, Step.REFUSED, message.reason, now)

    def on_accept(self, member: Member, message: Accept, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            if self._outcome(message.xid, now) is not State.APPLIED:
                self._abort_unknown(member, message.xid)
        elif exchange.state is State.OFFERED:
            self._engage(exchange, message.snapshot.version, now)
            if self._nbytes > SMALL_BYTES:
                self._send_data(exchange)

    def _engage(self, exchange: Exchange, peer_version: int, now: float) -> None:
        self._move(exchange, Step.ACCEPTED)
        exchange.peer_version = peer_version
        exchange.deadline = now + self._settings.exchange_timeout_s
        exchange.retransmit_at = now + self._settings.retransmit_s
        exchange.peer.unanswered = 0

    def on_fetch(self, member: Member, message: Fetch, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            if self._outcome(message.xid, now) is not State.APPLIED:
                self._abort_unknown(member, message.xid)
        else:
            if exchange.state is State.OFFERED:  # the ACCEPT was lost
                self._engage(exchange, exchange.peer_version, now)
            if not self._pool.is_sending(exchange.own):  # else it is on its way, only slow
                self._send_data(exchange)

    def receive_buffer(self, member: Member, message: Data) -> Vector | None:
        """Where the payload of this DATA belongs; None when it is not wanted (any more)."""
        current = self._find_current(member, message.xid)
        return None if current is None or current.has_data else self._pool[current.theirs]

    def on_data(self, member: Member, message: Data, payload_nbytes: int | None, now: float) -> None:
        """The payload, if it was wanted, lies in ``receive_buffer``."""
        exchange = self._find(member, message.xid)
        if exchange is None:
            self.counters["stray"] += 1
            return
        if not exchange.has_data:
            if exchange.state is State.OFFERED:  # the ACCEPT was lost
                self._engage(exchange, message.snapshot.version, now)
            code = self._judge(exchange, message.snapshot, payload_nbytes)
            if code is not None:
                self.counters[f"rejected_{code}"] += 1
                self._abort(exchange, Step.BAD_DATA, code, now)
                return
            self.counters["bytes_received"] += self._nbytes
            exchange.has_data = True
            exchange.retransmit_at = now + self._settings.retransmit_s
            if exchange.data_sent:
                self._send_ok(exchange, ask=False)
            else:
                self._send_data(exchange)
        if message.ok:
            exchange.ok_received = True
        if exchange.ok_received:
            self._complete(exchange, now)

    def _judge(self, exchange: Exchange, theirs: SnapshotDescription, payload_nbytes: int | None) -> str | None:
        """None and the delta in place when the data are good, else the code of the refusal."""
        own, peer = self._pool[exchange.own], self._pool[exchange.theirs]
        if payload_nbytes != self._nbytes or theirs.nbytes != self._nbytes:
            return "size"
        if checksum(peer) != theirs.checksum:
            return "checksum"
        norm = square_norm(peer)
        square_distance = delta_into(peer, own, self._settings.mixing_weight, out=peer)
        exchange.distance = relative_distance(exchange.mine.square_norm, norm, square_distance)
        exchange.peer_version = theirs.version
        return self._guard.verdict(exchange.mine.square_norm, norm, square_distance)

    def on_ok(self, member: Member, message: Ok, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            if self._outcome(message.xid, now) is not State.APPLIED:
                self._abort_unknown(member, message.xid)
            elif message.ask and member.session_out is not None:
                self._up(member, Ok(session=member.session_out, xid=message.xid))
            return
        if exchange.state is State.OFFERED:  # its OK overtook its DATA and ACCEPT on the other connection
            self._engage(exchange, exchange.peer_version, now)
        exchange.ok_received = True
        if not exchange.has_data:
            return
        self._complete(exchange, now)
        if message.ask:
            self._send_ok(exchange, ask=False)

    def on_abort(self, member: Member, message: Abort, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is not None:
            self._close(exchange, Step.PEER_ABORTED, message.code, now)
        elif self._outcome(message.xid, now) is State.APPLIED:
            self.counters["abort_after_applied"] += 1  # a peer that keeps the rules never does this

    # ---- time and loss ----------------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        for exchange in list(self._open()):
            if now >= exchange.deadline:
                self._expire(exchange, now)
            elif now >= exchange.retransmit_at:
                exchange.retransmit_at = now + self._settings.retransmit_s
                self._retransmit(exchange)

    def _expire(self, exchange: Exchange, now: float) -> None:
        if exchange.state is State.DOUBT:
            self.counters["defects"] += 1
            self._close(exchange, Step.EXPIRED, "", now)
        elif exchange.ok_sent:
            self._move(exchange, Step.PARKED)
            self.counters["doubts"] += 1
            self.current = None
            self.doubts[exchange.xid] = exchange
            exchange.deadline = now + self._settings.keep_s
        else:
            self._abort(exchange, Step.GAVE_UP, "timeout", now)

    def _retransmit(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if peer.session_out is None:
            return
        self.counters["retransmits"] += 1
        if exchange.state is State.OFFERED:
            self._up(peer, Offer(session=peer.session_out, xid=exchange.xid, snapshot=exchange.mine))
        elif exchange.has_data:
            self._send_ok(exchange, ask=True)
        else:
            self._up(peer, Fetch(session=peer.session_out, xid=exchange.xid))

    def fence(self, member: Member, now: float) -> None:
        """The process that these exchanges were with is gone."""
        for exchange in [item for item in self._open() if item.peer is member]:
            self._close(exchange, Step.FENCED, "", now)

    def silent(self, member: Member, now: float) -> None:
        """The peer is suspected: it must not hold the slot until the deadline. Aborts, or parks what cannot be aborted."""
        if self.current is not None and self.current.peer is member:
            self._expire(self.current, now)

    def unreachable(self, member: Member, now: float) -> None:
        """My link to the peer is gone: an offer that it has not answered is dropped; whatever it makes of it is answered by ABORT."""
        if self.current is not None and self.current.peer is member and self.current.state is State.OFFERED:
            self._close(self.current, Step.FENCED, "", now)

    def withdraw(self, code: str, now: float) -> None:
        """Abort the current exchange if that is still allowed."""
        if self.current is not None and not self.current.ok_sent:
            self._abort(self.current, Step.GAVE_UP, code, now)

    def let_go(self, member: Member, now: float) -> None:
        """The peer has left: what can still be aborted is; what cannot waits for its OK, which may be on the other connection."""
        if self.current is not None and self.current.peer is member and not self.current.ok_sent:
            self._close(self.current, Step.FENCED, "leaving", now)

    # ---- endings ----------------------------------------------------------------------------------------------------------------------

    def _complete(self, exchange: Exchange, now: float) -> None:
        late = exchange.state is State.DOUBT
        self._move(exchange, Step.COMPLETED)
        self._drop(exchange)
        self._remember(exchange, now)
        self._pool.release(exchange.own)
        sequence = self._shadow.queue(exchange.theirs)
        self.counters["applied_late" if late else "applied"] += 1
        self.last_distance = exchange.distance
        if not late:
            self._durations.append(now - exchange.started_at)
        self._out.learner(
            DeltaQueued(
                sequence=sequence,
                buffer=exchange.theirs,
                line=exchange.peer.line,
                peer_version=exchange.peer_version,
                from_doubt=late,
                distance=exchange.distance,
            )
        )
        self._ended(Ending(exchange, Step.COMPLETED, "", late), now)

    def _abort(self, exchange: Exchange, step: Step, code: str, now: float) -> None:
        """End it from my side and say so. Never after my own OK: the peer may have applied."""
        if exchange.ok_sent:
            raise ValueError(f"abort of {exchange.xid} after OK")
        self._up_abort(exchange.peer, exchange.xid, code)
        self._close(exchange, step, code, now)

    def _close(self, exchange: Exchange, step: Step, code: str, now: float) -> None:
        engaged, late = exchange.state is not State.OFFERED, exchange.state is State.DOUBT
        self._move(exchange, step)
        self._drop(exchange)
        if engaged:
            self.counters["aborted"] += 1
            self._remember(exchange, now)
        self._pool.release(exchange.theirs)
        self._pool.release(exchange.own)
        self._ended(Ending(exchange, step, code, late), now)

    def _move(self, exchange: Exchange, step: Step) -> None:
        exchange.state = TRANSITIONS[exchange.state, step]

    def _drop(self, exchange: Exchange) -> None:
        if self.current is exchange:
            self.current = None
        else:
            del self.doubts[exchange.xid]

    def _remember(self, exchange: Exchange, now: float) -> None:
        self._outcomes[exchange.xid] = (exchange.state, now)
        horizon = now - 2 * self._settings.keep_s
        while len(self._outcomes) > 1:
            oldest = next(iter(self._outcomes))
            if self._outcomes[oldest][1] >= horizon and len(self._outcomes) <= OUTCOMES_MAX:
                break
            del self._outcomes[oldest]

    def _outcome(self, xid: ExchangeId, now: float) -> State | None:
        state, at = self._outcomes.get(xid, (None, now))
        return state if now - at <= 2 * self._settings.keep_s else None

    # ---- sending ----------------------------------------------------------------------------------------------------------------------

    def _open(self) -> Iterator[Exchange]:
        if self.current is not None:
            yield self.current
        yield from self.doubts.values()

    def _find_current(self, member: Member, xid: ExchangeId) -> Exchange | None:
        current = self.current
        return current if current is not None and current.xid == xid and current.peer is member else None

    def _find(self, member: Member, xid: ExchangeId) -> Exchange | None:
        exchange = self._find_current(member, xid) or self.doubts.get(xid)
        return exchange if exchange is not None and exchange.peer is member else None

    def _up(self, member: Member, message: Offer | Fetch | Ok | Abort) -> None:
        self._out.add(SendUp(member.line, message))

    def _send_ok(self, exchange: Exchange, ask: bool) -> None:
        exchange.ok_sent = True
        if exchange.peer.session_out is not None:
            self._up(exchange.peer, Ok(session=exchange.peer.session_out, xid=exchange.xid, ask=ask))

    def _send_data(self, exchange: Exchange) -> None:
        """My frozen snapshot, with my OK when I hold the peer's. Without a link nothing is sent: the peer will FETCH."""
        peer = exchange.peer
        if exchange.has_data:
            exchange.ok_sent = True  # even if it cannot be sent now: OK(ask) will be
        if peer.link is None:
            return
        exchange.data_sent = True
        self._pool.send(exchange.own)
        self.counters["bytes_sent"] += self._nbytes
        message = Data(session=peer.session_in, xid=exchange.xid, snapshot=exchange.mine, ok=exchange.has_data)
        self._out.add(SendDown(peer.link, message, Payload("buffer", exchange.own)))

    def _up_abort(self, member: Member, xid: ExchangeId, code: str) -> None:
        if member.session_out is not None:
            self._up(member, Abort(session=member.session_out, xid=xid, code=code))

    def _abort_unknown(self, member: Member, xid: ExchangeId) -> None:
        self._up_abort(member, xid, "unknown")
