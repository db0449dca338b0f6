"""A node takes over the state of another: parameters, optimiser vectors, version, counters (design D4). Pure; runs in the proxy thread.

``Joiner`` is the receiving end, ``Donor`` the giving one. The state travels as whole parts, one after the other, each checked by its
checksum. Both ends use the node's state parts (arrays f32[numel]); whose turn it is with them is this module's business:

* Joiner: from ``begin`` until the learner is told to install they are where received parts are put, then the learner's.
* Donor: from CaptureState to StateCaptured they are the learner's; afterwards they are read by transfers. They are captured anew
  only when no transfer is under way and no zero-copy send of them is in flight; until then a request stays unanswered, and is repeated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from enum import Enum, auto

import numpy as np

from zpala.gossip.actions import Outbox, Payload, SendDown, SendUp
from zpala.gossip.buffers import Vector
from zpala.gossip.events import AdoptState, CaptureState, StateCaptured
from zpala.gossip.membership import Member
from zpala.gossip.messages import DigestEntry, StateData, StateFetch, StateMeta, StatePart, StateRequest
from zpala.gossip.mixing import checksum, square_norm
from zpala.gossip.settings import GossipSettings

FRESH_S = 1.0  # a captured state serves whoever asks within that time


class _Stage(Enum):
    IDLE = auto()
    SEARCHING = auto()  # no donor
    ASKED = auto()  # waiting for STATE_META
    FETCHING = auto()  # waiting for STATE_DATA of part ``_part``
    INSTALLING = auto()  # the learner's turn


class Joiner:
    """Gets one state from one donor, and starts over with the next donor when that fails."""

    def __init__(self, parts: Mapping[str, Vector], settings: GossipSettings, rng: random.Random, outbox: Outbox) -> None:
        self._parts = dict(parts)
        self._names = tuple(parts)
        self._settings = settings
        self._rng = rng
        self._out = outbox
        self._stage = _Stage.IDLE
        self._donor: Member | None = None
        self._donor_incarnation = 0
        self._failed: set[int] = set()
        self._meta: StateMeta | None = None
        self._part = 0
        self._repeat_at = math.inf
        self._give_up_at = math.inf
        self._unlinked_at = math.inf  # since when the donor has no session with me
        self.failures = 0
        self.rejected = 0

    @property
    def searching(self) -> bool:
        return self._stage is _Stage.SEARCHING

    @property
    def installing(self) -> bool:
        return self._stage is _Stage.INSTALLING

    def begin(self) -> None:
        """Forget whatever was under way; ``on_timer`` chooses the first donor."""
        self._stage = _Stage.SEARCHING
        self._donor = self._meta = None
        self._failed.clear()
        self._repeat_at = self._give_up_at = math.inf

    def finish(self) -> StateMeta:
        """The learner has installed the state; returns what it consisted of."""
        if self._stage is not _Stage.INSTALLING or self._meta is None:
            raise ValueError("nothing is being adopted")
        self._stage = _Stage.IDLE
        return self._meta

    def cancel(self) -> None:
        self._stage = _Stage.IDLE
        self._donor = None
        self._repeat_at = self._give_up_at = math.inf

    def deadline(self) -> float:
        return min(self._repeat_at, self._give_up_at)

    def on_timer(self, donors: Collection[Member], now: float) -> None:
        """``donors``: whoever could give the state of the right run."""
        donor = self._donor
        if donor is not None and self._stage in (_Stage.ASKED, _Stage.FETCHING):
            if now >= self._give_up_at or self._is_gone(donor, donors, now):
                self._fail(f"line {donor.line} did not answer in time or is gone")
            elif now >= self._repeat_at:
                self._ask(now)
        if self._stage is _Stage.SEARCHING and donors:
            self._choose(donors, now)

    def _is_gone(self, donor: Member, donors: Collection[Member], now: float) -> bool:
        """A connection that was reset is soon another one: what is here stays, and the part is asked for again."""
        if donor.incarnation != self._donor_incarnation:
            return True
        if donor.established:
            if self._unlinked_at < math.inf:
                self._unlinked_at, self._repeat_at = math.inf, now
            return donor not in donors
        self._unlinked_at = min(self._unlinked_at, now)
        return now >= self._unlinked_at + self._settings.suspect_s

    def _choose(self, donors: Collection[Member], now: float) -> None:
        untried = [member for member in donors if member.line not in self._failed]
        if not untried:
            self._failed.clear()
            untried = list(donors)
        load = min(member.condition.load for member in untried)
        self._donor = self._rng.choice(sorted((m for m in untried if m.condition.load <= load + 0.1), key=lambda member: member.line))
        self._donor_incarnation = self._donor.incarnation
        self._stage = _Stage.ASKED
        self._unlinked_at = math.inf
        self._progress(now)
        self._ask(now)

    def _progress(self, now: float) -> None:
        self._give_up_at = now + 2 * self._settings.exchange_timeout_s

    def _ask(self, now: float) -> None:
        self._repeat_at = now + self._settings.exchange_timeout_s / 3
        donor = self._donor
        if donor is None or donor.session_out is None:
            return
        if self._stage is _Stage.ASKED:
            self._out.add(SendUp(donor.line, StateRequest(session=donor.session_out)))
        elif self._meta is not None:
            self._out.add(SendUp(donor.line, StateFetch(session=donor.session_out, state_id=self._meta.state_id, part=self._part)))

    def _fail(self, why: str) -> None:
        self.failures += 1
        if self._donor is not None:
            self._failed.add(self._donor.line)
        self._out.log("warning", f"adopting a state failed: {why}; trying the next donor")
        self._donor = self._meta = None
        self._stage = _Stage.SEARCHING
        self._repeat_at = self._give_up_at = math.inf

    def on_meta(self, member: Member, meta: StateMeta, nonce: bytes, now: float) -> None:
        """``nonce``: of the run whose state is wanted."""
        if member is not self._donor or self._stage not in (_Stage.ASKED, _Stage.FETCHING):
            return
        if self._stage is _Stage.FETCHING and self._meta is not None and meta.state_id == self._meta.state_id:
            return
        offered = tuple((part.name, part.nbytes) for part in meta.parts)
        if meta.nonce != nonce or offered != tuple((name, self._parts[name].nbytes) for name in self._names):
            self.rejected += 1
            self._fail(f"line {member.line} offers {[name for name, _ in offered]} of another run or layout")
            return
        self._meta, self._part, self._stage = meta, 0, _Stage.FETCHING
        self._progress(now)
        self._ask(now)

    def _wanted(self, member: Member, message: StateData) -> bool:
        return (
            member is self._donor
            and self._stage is _Stage.FETCHING
            and self._meta is not None
            and message.state_id == self._meta.state_id
            and message.part == self._part
        )

    def on_data(self, member: Member, message: StateData, payload: memoryview | None, now: float) -> None:
        """``payload``: the bytes that came with it. After the last part the learner is told to install."""
        meta = self._meta
        if meta is None or not self._wanted(member, message):
            return
        part = meta.parts[self._part]
        received = np.frombuffer(payload, dtype=np.float32) if payload is not None and payload.nbytes == part.nbytes else None
        if received is None or checksum(received) != part.checksum or not math.isfinite(square_norm(received)):
            self.rejected += 1
            self._fail(f"part {part.name!r} from line {member.line} is damaged")
            return
        np.copyto(self._parts[part.name], received)
        self._part += 1
        if self._part < len(meta.parts):
            self._progress(now)
            self._ask(now)
            return
        self._stage = _Stage.INSTALLING
        self._repeat_at = self._give_up_at = math.inf
        self._out.learner(AdoptState(version=meta.version, optimizer_steps=meta.optimizer_steps, parts=self._names))


class Donor:
    """Serves this node's state to any number of joiners."""

    def __init__(self, parts: Mapping[str, Vector], settings: GossipSettings, outbox: Outbox) -> None:
        self._arrays = tuple(parts.values())
        self._names = tuple(parts)
        self._settings = settings
        self._out = outbox
        self._state_id = 0
        self._capturing = False
        self._captured: StateCaptured | None = None
        self._captured_at = -math.inf
        self._described: tuple[StatePart, ...] = ()
        self._waiting: dict[int, Member] = {}  # line -> who wants a STATE_META
        self._transfers: dict[tuple[int, int], float] = {}  # (line, incarnation) -> last sign of a transfer under way
        self._in_flight: list[int] = [0] * len(self._arrays)
        self._to: dict[tuple[int, int], int] = {}  # (line, part) -> sends of it in flight, not known one by one: an upper bound
        self.bytes_sent = 0

    def array(self, part: int) -> Vector:
        return self._arrays[part]

    @property
    def in_flight(self) -> int:
        return sum(self._in_flight)

    @property
    def capturing(self) -> bool:
        """The learner has the parts."""
        return self._capturing

    def on_request(self, member: Member, nonce: bytes, digest: tuple[DigestEntry, ...], now: float) -> None:
        """Whoever asks again while a transfer to it is under way has not got the STATE_META: it is sent again."""
        self._forget_stalled(now)
        if self._capturing:
            self._waiting[member.line] = member
        elif self._captured is not None and (now - self._captured_at < FRESH_S or _process(member) in self._transfers):
            self._send_meta(member, nonce, digest, now)
        elif not self._transfers and not self.in_flight:
            self._waiting[member.line] = member
            self.capture()

    def outdate(self) -> None:
        """The learner moves on: what was captured still serves the transfers under way, but no new one."""
        self._captured_at = -math.inf

    def withdraw(self) -> None:
        """My own state is about to be replaced: nobody gets any more of it. What is ``in_flight`` is sent to its end."""
        self._captured = None
        self._waiting.clear()
        self._transfers.clear()

    def capture(self) -> None:
        """Ask the learner for its state."""
        self._capturing = True
        self._captured = None
        self._state_id += 1
        self._out.learner(CaptureState(state_id=self._state_id))

    def _forget_stalled(self, now: float) -> None:
        """Transfers without a sign of life, or what is captured would be given to whoever comes back, however old."""
        limit_s = self._settings.exchange_timeout_s
        self._transfers = {process: at for process, at in self._transfers.items() if now - at < limit_s}

    def on_captured(self, captured: StateCaptured, nonce: bytes, digest: tuple[DigestEntry, ...], now: float) -> bool:
        """True when this is the state that was asked for."""
        if not self._capturing or captured.state_id != self._state_id:
            return False
        self._capturing = False
        self._captured, self._captured_at = captured, now
        self._described = tuple(
            StatePart(name=name, nbytes=array.nbytes, checksum=checksum(array))
            for name, array in zip(self._names, self._arrays, strict=True)
        )
        for member in self._waiting.values():
            self._send_meta(member, nonce, digest, now)
        self._waiting.clear()
        return True

    def _send_meta(self, member: Member, nonce: bytes, digest: tuple[DigestEntry, ...], now: float) -> None:
        if self._captured is None or member.link is None:
            return
        self._transfers[_process(member)] = now
        meta = StateMeta(
            session=member.session_in,
            state_id=self._state_id,
            nonce=nonce,
            version=self._captured.version,
            optimizer_steps=self._captured.optimizer_steps,
            parts=self._described,
            digest=digest,
        )
        self._out.add(SendDown(member.link, meta))

    def on_fetch(self, member: Member, message: StateFetch, nonce: bytes, digest: tuple[DigestEntry, ...], now: float) -> None:
        """A fetch of a state that is no longer there is answered by the present one's STATE_META: the joiner starts over."""
        if self._captured is None or member.link is None or message.part >= len(self._arrays):
            return
        if message.state_id != self._state_id:
            self._send_meta(member, nonce, digest, now)
            return
        if self._to.get((member.line, message.part), 0) and self._in_flight[message.part]:
            return  # asked again while it is on its way
        self._transfers[_process(member)] = now
        if message.part == len(self._arrays) - 1:
            del self._transfers[_process(member)]  # in flight until the send is over; a repeated fetch brings it back
        self._to[member.line, message.part] = 1
        self._in_flight[message.part] += 1
        described = self._described[message.part]
        self.bytes_sent += described.nbytes
        data = StateData(
            session=member.session_in, state_id=self._state_id, part=message.part, nbytes=described.nbytes, checksum=described.checksum
        )
        self._out.add(SendDown(member.link, data, Payload("state", message.part)))

    def on_sent(self, part: int) -> None:
        self._in_flight[part] -= 1
        if not self._in_flight[part]:
            self._to = {key: count for key, count in self._to.items() if key[1] != part}


def _process(member: Member) -> tuple[int, int]:
    """Who of the line is meant: a process that was started anew is another one."""
    return member.line, member.incarnation
