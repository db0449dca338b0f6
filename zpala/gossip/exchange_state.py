"""What one exchange is on one side, and what can happen to it: the data and the table of transitions. Nothing here runs.

``exchange`` is the machine that takes the steps. States and steps are enums, and a pair that the table does not have is a bug: the
lookup raises KeyError and nothing has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from zpala.gossip.membership import Member
from zpala.gossip.messages import ExchangeId, SnapshotDescription


class State(Enum):
    """Of one exchange, on one side."""

    OFFERED = auto()
    ENGAGED = auto()
    DOUBT = auto()
    APPLIED = auto()
    ABORTED = auto()
    GIVEN_UP = auto()  # in doubt for too long: counted here as a defect, and the peer may have applied


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
    (State.DOUBT, Step.EXPIRED): State.GIVEN_UP,
    (State.DOUBT, Step.COMPLETED): State.APPLIED,
}


@dataclass(slots=True, eq=False)
class Exchange:
    """One side of one exchange. ``own`` and ``theirs`` are pool buffers held by it; ``theirs`` has the delta once data are valid."""

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
