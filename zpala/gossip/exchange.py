"""The lock between two nodes: one exchange at a time, applied by both sides or by neither. Pure; runs in the proxy thread.

Owns the slot (the one exchange that this node is in) and the exchanges in doubt. It takes and gives back pool buffers and queues deltas to
the learner; it never chooses a partner and never decides that it is time. Beside it: what an exchange is (``exchange_state``), its
arithmetic (``exchange_snapshots``), what is said (``exchange_sender``), how exchanges ended (``exchange_outcomes``). Long because the
argument below speaks of every step in it, and can be checked against one text.

Messages of one exchange, I the initiator and R the responder (design §5, reliability §2.6)::

    I -> R  OFFER            I has frozen its shadow; OFFER implies I's FETCH
    R -> I  ACCEPT, DATA     R has frozen too; ACCEPT implies R's FETCH. Large vectors: I sends DATA as soon as it sees ACCEPT.
    I -> R  DATA(ok)         small vectors: I waits for R's DATA, which is right behind, and saves the separate OK
    R -> I  OK               R holds I's data and I's OK: R applies. I, on R's OK, applies too: four hops from OFFER to both applied.

Everything else is retransmission, and every message is idempotent: OFFER and OK(ask) are repeated every ``retransmit_s``, FETCH as soon as
the peer's data are late for its link (``_patience_s``). A side
applies only when it has the peer's data *and* the peer's OK. After its own OK it never aborts: if the peer's OK does not come in
time the exchange is parked in DOUBT, where it blocks nothing but further exchanges with that peer, and is resolved by OK(ask) or, after
``keep_s``, given up as a counted defect.

Why both or neither: A applied, so A got B's OK, so B holds A's snapshot. A said OK before it applied and answers every later question with
OK as long as it remembers (2 x ``keep_s``). B, having said OK, leaves ENGAGED or DOUBT only by A's OK (then it applies), by A's ABORT
(which A never sends after its own OK), or by expiry or A's restart (which are counted). Who let a doubt expire answers what comes later
with ABORT(expired): a peer in doubt drops its half, one that has applied is the other side of the defect that is counted already.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

from zpala.gossip.actions import Outbox
from zpala.gossip.buffers import BufferPool
from zpala.gossip.events import DeltaQueued
from zpala.gossip.exchange_outcomes import Outcomes
from zpala.gossip.exchange_sender import Sender
from zpala.gossip.exchange_snapshots import Snapshots
from zpala.gossip.exchange_state import TRANSITIONS, Ending, Exchange, State, Step
from zpala.gossip.membership import Member
from zpala.gossip.messages import Abort, Accept, Busy, Data, ExchangeId, Fetch, Offer, Ok
from zpala.gossip.mixing import Guard
from zpala.gossip.schema import Schema
from zpala.gossip.settings import GossipSettings
from zpala.gossip.shadow import Shadow

MAX_DOUBTS = 4  # at most one per peer
SMALL_BYTES = 256 * 1024  # below, the initiator waits for the responder's data before it sends its own (one message less)
DURATIONS = 64
LATE = 1.5  # times what the last exchange with a peer took: then a snapshot is lost rather than slow
TIMEOUT = "timeout"  # code of an ABORT: I have waited long enough
EXPIRED = "expired"  # another: I was in doubt for too long and have counted the defect
FIRST_DURATION_S = 0.01  # taken for the median before there is one
COUNTERS = (
    "offers",
    "accepts",
    "applied",
    "applied_late",
    "aborted",
    "unanswered",
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
    "abort_after_expiry",
    "bytes_sent",
    "bytes_received",
)


class Exchanges:
    """All exchanges of one node. ``ended`` is called once per exchange that ends, after its buffers have been given back."""

    def __init__(
        self,
        *,
        line: int,
        schema: Schema,
        pool: BufferPool,
        shadow: Shadow,
        guard: Guard,
        settings: GossipSettings,
        outbox: Outbox,
        ended: Callable[[Ending, float], None],
    ) -> None:
        self.current: Exchange | None = None
        self.doubts: dict[ExchangeId, Exchange] = {}
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.last_distance = 0.0
        self._line = line
        self._nbytes = schema.nbytes
        self._pool = pool
        self._shadow = shadow
        self._settings = settings
        self._out = outbox
        self._ended = ended
        self._number = 0
        self._sender = Sender(outbox)
        self._snapshots = Snapshots(schema, pool, shadow, guard, settings.mixing_weight)
        self._outcomes = Outcomes(settings.keep_s)
        self._durations: deque[float] = deque(maxlen=DURATIONS)
        self._left_behind: dict[int, list[Member]] = {}  # buffer -> to whom it is still being sent though the exchange is over
        self._median_s = FIRST_DURATION_S

    # ---- what the protocol asks -------------------------------------------------------------------------------------------------------

    @property
    def can_start(self) -> bool:
        return self.current is None and len(self.doubts) < MAX_DOUBTS and self._shadow.ready and not self._shadow.full and self._has_buffers

    @property
    def _has_buffers(self) -> bool:
        """One for the delta, one if the shadow has to move first, and one that is left while it is frozen: to move to, or to be lent to the
        learner once it publishes."""
        return self._pool.free >= 2 + self._shadow.moves

    @property
    def idle(self) -> bool:
        """Nothing is open, not even a doubt."""
        return self.current is None and not self.doubts

    def in_doubt(self, member: Member) -> bool:
        return bool(self.doubts) and any(doubt.peer is member for doubt in self.doubts.values())

    def busy_with(self, member: Member) -> bool:
        """Is an exchange with it open, or in doubt?"""
        return (self.current is not None and self.current.peer is member) or self.in_doubt(member)

    def median_s(self) -> float:
        """Median time from freezing to queueing the delta."""
        return self._median_s

    def deadline(self) -> float:
        """When ``on_timer`` has something to do, inf when nothing is open."""
        if self.idle:
            return math.inf
        return min(min(item.deadline, item.retransmit_at) for item in self._open())

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
        self._sender.offer(exchange)
        return True

    def _freeze(self, xid: ExchangeId, member: Member, state: State, final: bool, now: float, limit_s: float) -> Exchange | None:
        own, mine = self._snapshots.freeze()
        theirs = self._pool.take()
        if theirs is None:
            raise ValueError("no buffers: can_start was not asked")
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

    # ---- messages ---------------------------------------------------------------------------------------------------------------------

    def on_offer(self, member: Member, message: Offer, refusal: str | None, final: bool, now: float) -> None:
        """``refusal``: the protocol's own reason for BUSY, if it has one."""
        xid = message.xid
        current = self.current
        if current is not None and current.xid == xid:
            self._sender.accept(current)
            return
        if xid in self.doubts:
            return
        if self._outcomes.get(xid, now) is not None:
            self._deny(member, xid, now)
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
            self._sender.abort(member, xid, "size")
            return
        exchange = None
        if refusal is None:
            exchange = self._freeze(xid, member, State.ENGAGED, final, now, self._settings.exchange_timeout_s)
        if exchange is None:
            self.counters["busy_sent"] += 1
            self._sender.busy(member, xid, refusal or "not_running")
            return
        exchange.peer_version = message.snapshot.version
        exchange.retransmit_at = now + self._patience_s(exchange)
        self.counters["accepts"] += 1
        self._sender.accept(exchange)
        self._send_data(exchange)

    def _refusal(self, member: Member) -> str | None:
        if self.current is not None:
            return "engaged"
        if len(self.doubts) >= MAX_DOUBTS or self.in_doubt(member):
            return "doubt"
        if member.clogged:
            return "backlog"
        if not self._shadow.ready:
            return "not_running"
        if self._shadow.full:
            return "deltas"
        return None if self._has_buffers else "buffers"

    def on_busy(self, member: Member, message: Busy, now: float) -> None:
        current = self._find_current(member, message.xid)
        if current is not None and current.state is State.OFFERED:
            self.counters["busy_received"] += 1
            self._close(current, Step.REFUSED, message.reason, now)

    def on_accept(self, member: Member, message: Accept, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            self._deny(member, message.xid, now)
        elif exchange.state is State.OFFERED:
            self._engage(exchange, message.snapshot.version, now)
            if self._nbytes > SMALL_BYTES:
                self._send_data(exchange)

    def _engage(self, exchange: Exchange, peer_version: int, now: float) -> None:
        self._move(exchange, Step.ACCEPTED)
        exchange.peer_version = peer_version
        exchange.deadline = now + self._settings.exchange_timeout_s
        exchange.retransmit_at = now + self._patience_s(exchange)

    def on_fetch(self, member: Member, message: Fetch, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            self._deny(member, message.xid, now)
        else:
            if exchange.state is State.OFFERED:  # the ACCEPT was lost
                self._engage(exchange, exchange.peer_version, now)
            if not (exchange.data_sent and self._pool.is_sending(exchange.own)):  # else it is on its way, only slow
                self._send_data(exchange)

    def on_data(self, member: Member, message: Data, payload: memoryview | None, now: float) -> None:
        """``payload``: the bytes that came with it; they are not kept."""
        exchange = self._find(member, message.xid)
        if exchange is None:
            self.counters["stray"] += 1
            return
        if not exchange.has_data:
            if exchange.state is State.OFFERED:  # the ACCEPT was lost
                self._engage(exchange, message.snapshot.version, now)
            code = self._snapshots.judge(exchange, message.snapshot, payload)
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

    def on_ok(self, member: Member, message: Ok, now: float) -> None:
        exchange = self._find(member, message.xid)
        if exchange is None:
            if not self._deny(member, message.xid, now) and message.ask:
                self._sender.ok(member, message.xid, ask=False)
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
        elif self._outcomes.get(message.xid, now) is not State.APPLIED:
            return
        elif message.code == EXPIRED:
            self.counters["abort_after_expiry"] += 1  # my OK came too late: the peer has counted the defect
        else:
            self.counters["abort_after_applied"] += 1  # a peer that keeps the rules never does this

    def _deny(self, member: Member, xid: ExchangeId, now: float) -> bool:
        """``xid`` is not open here: ABORT, unless I have applied it. True when I have not."""
        outcome = self._outcomes.get(xid, now)
        if outcome is State.APPLIED:
            return False
        self._sender.abort(member, xid, EXPIRED if outcome is State.GIVEN_UP else "unknown")
        return True

    # ---- time and loss ----------------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        for exchange in list(self._open()):
            if now >= exchange.deadline:
                self._expire(exchange, now)
            elif now >= exchange.retransmit_at:
                exchange.retransmit_at = now + self._patience_s(exchange)
                self._retransmit(exchange)

    def _patience_s(self, exchange: Exchange) -> float:
        """What is waited for before I ask again: a snapshot takes as long as the link needs, and is not to be sent twice for it."""
        least_s = self._settings.retransmit_s
        if exchange.state is State.OFFERED or exchange.has_data:
            return least_s
        return max(least_s, LATE * exchange.peer.exchange_s)

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
            self._abort(exchange, Step.GAVE_UP, TIMEOUT, now)

    def _retransmit(self, exchange: Exchange) -> None:
        if exchange.peer.session_out is None:
            return
        self.counters["retransmits"] += 1
        if exchange.state is State.OFFERED:
            self._sender.offer(exchange)
        elif exchange.has_data:
            self._send_ok(exchange, ask=True)
        else:
            self._sender.fetch(exchange)

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

    def give_up_doubts(self, now: float) -> None:
        """My parameters are to be replaced: a delta of the old ones must not come later. A peer that has applied its half is a defect."""
        for doubt in list(self.doubts.values()):
            self.counters["defects"] += 1
            self._close(doubt, Step.EXPIRED, "", now)

    def withdraw(self, code: str, now: float) -> None:
        """Abort the current exchange if that is still allowed."""
        if self.current is not None and not self.current.ok_sent:
            self._abort(self.current, Step.GAVE_UP, code, now)

    def let_go(self, member: Member, now: float) -> None:
        """The peer has left: what can still be aborted is; what cannot waits for its OK, which may be on the other connection."""
        if self.current is not None and self.current.peer is member and not self.current.ok_sent:
            self._close(self.current, Step.FENCED, "leaving", now)

    # ---- endings ----------------------------------------------------------------------------------------------------------------------

    def sent(self, buffer: int) -> None:
        """A zero-copy send of ``buffer`` is over. Until then who was given up in the middle of it is left alone: its link has enough to
        carry, and every other exchange would take one buffer more of those that all peers share.
        """
        self._pool.sent(buffer)
        if not self._pool.is_sending(buffer):
            for member in self._left_behind.pop(buffer, ()):
                member.clogged -= 1

    def _complete(self, exchange: Exchange, now: float) -> None:
        late = exchange.state is State.DOUBT
        self._move(exchange, Step.COMPLETED)
        self._drop(exchange)
        self._outcomes.remember(exchange, now)
        self._pool.release(exchange.own)
        sequence = self._shadow.queue(exchange.theirs)
        self.counters["applied_late" if late else "applied"] += 1
        self.last_distance = exchange.distance
        if not late:
            exchange.peer.exchange_s = now - exchange.started_at
            self._durations.append(exchange.peer.exchange_s)
            self._median_s = sorted(self._durations)[len(self._durations) // 2]
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
        self._sender.abort(exchange.peer, exchange.xid, code)
        self._close(exchange, step, code, now)

    def _close(self, exchange: Exchange, step: Step, code: str, now: float) -> None:
        engaged, late = exchange.state is not State.OFFERED, exchange.state is State.DOUBT
        self._move(exchange, step)
        self._drop(exchange)
        if engaged:
            self.counters["aborted"] += 1
            self._outcomes.remember(exchange, now)
        else:
            self.counters["unanswered"] += step is Step.GAVE_UP
        timed_out = step in (Step.GAVE_UP, Step.EXPIRED) or code == TIMEOUT
        if timed_out and exchange.data_sent and self._pool.is_sending(exchange.own):
            exchange.peer.clogged += 1
            self._left_behind.setdefault(exchange.own, []).append(exchange.peer)
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

    # ---- finding and sending -----------------------------------------------------------------------------------------------------------

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

    def _send_ok(self, exchange: Exchange, ask: bool) -> None:
        exchange.ok_sent = True
        self._sender.ok(exchange.peer, exchange.xid, ask)

    def _send_data(self, exchange: Exchange) -> None:
        """My frozen snapshot, with my OK when I hold the peer's. Without a link nothing is sent: the peer will FETCH."""
        if exchange.has_data:
            exchange.ok_sent = True  # even if it cannot be sent now: OK(ask) will be
        if self._sender.data(exchange):
            exchange.data_sent = True
            self._pool.send(exchange.own)
            self.counters["bytes_sent"] += self._nbytes
