"""The messages of the gossip protocol, one frozen value object each. No bytes and no sockets here: ``codec`` turns them into frames.

"Up" messages travel on the sender's DEALER to the receiver's ROUTER: one frame of at most ``UP_MAX`` bytes, never a tensor.
"Down" messages travel on the ROUTER as answers to the DEALER that asked. A tensor exists only as the last frame of DATA and STATE_DATA.

========== ==== ========================================================================================================
message    way  said in the sender's voice
========== ==== ========================================================================================================
HELLO      up   "I am this node of this run; here is what we must agree on. Give me a session."
WELCOME    down "We agree. This is your session; here is who I am."
REJECT     down "I refuse you: this field, my value, your value." (``fatal``: do not ask again soon)
NACK       down "I cannot use what you sent: no such session (say HELLO again), bad message, over a limit."
HEARTBEAT  up   "I am alive; here is how far I am, and what I know of the others' counters."
OFFER      up   "I froze a snapshot for exchange ``xid``; freeze yours and average with me."
ACCEPT     down "Agreed: my snapshot is frozen too. We are locked into this exchange."
BUSY       down "Not now (reason); I am in another exchange or out of buffers."
FETCH      up   "Send me the snapshot that you froze for ``xid``."
DATA       down "Here is my frozen snapshot" (+ payload)
OK         up   "I hold your valid snapshot of ``xid`` and will apply once I have your OK." (``ask``: answer me, please)
ABORT      up   "Forget ``xid``, I did not and shall not apply it."
STATE_REQ  up   "I am new: let me have your parameters, optimiser state and version."
STATE_META down "Here is what my state consists of; fetch its parts."
STATE_FETCH up  "Send me part ``part`` of state ``state_id``."
STATE_DATA down "Here is that part" (+ payload)
LEAVE      up   "I leave the run on purpose; do not wait for me."
PART       up   "I give up our session, to have one with somebody else; nothing is wrong. Say so too when nothing of ours is open."
========== ==== ========================================================================================================

Fields that every up message except HELLO carries: ``session``, the number that the receiver gave in WELCOME. A message of another
session is answered by NACK ``no_session``. Down messages repeat the session they answer, so that an answer to an older self is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

PROTOCOL_VERSION = 1


class ExchangeId(NamedTuple):
    """Names one exchange in the whole run: who started it, in which of its lives, and that life's running number."""

    line: int
    incarnation: int
    number: int


AGE_UNKNOWN = 1023  # of a digest entry: nobody says that it is alive


class DigestEntry(NamedTuple):
    """What is known of one incarnation of one line of hosts.txt: its env_steps (design D7), which only grow, and its last sign of life.

    ``age``: tenths of a second since anybody last heard of it, rounded up at every hop; ``AGE_UNKNOWN`` is the most and says nothing.
    ``state``: how far it was then, see ``hearsay``.
    """

    line: int
    incarnation: int
    env_steps: int
    age: int = AGE_UNKNOWN
    state: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How far a node is; rides in HELLO, WELCOME and HEARTBEAT.

    ``phase`` is a value of ``membership.Phase``; ``finish_reason`` is "" until the node is FINISHED ("budget", "target", "stop").
    ``return_mean`` is the raw mean return of the last ``return_count`` (<= 100) finished games, 0.0 when there are none.
    ``load`` is the share of recent time in [0, 1] in which the node could not take part in another exchange, 0.0 when it is not told.
    ``update_s`` is the mean time of an update in seconds without its waits in the gate, 0.0 when it is not known.
    """

    phase: str
    updates: int = 0
    version: int = 0
    env_steps: int = 0
    rate: float = 0.0
    load: float = 0.0
    return_mean: float = 0.0
    return_count: int = 0
    finish_reason: str = ""
    update_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    node: str
    line: int
    incarnation: int
    version_min: int = PROTOCOL_VERSION
    version_max: int = PROTOCOL_VERSION
    nonce: bytes = b""  # 8 bytes; empty while the node waits at the start barrier
    agreement: dict[str, str] = field(default_factory=dict)  # design D8: every value must be equal
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    session: int
    node: str
    line: int
    incarnation: int
    version: int
    nonce: bytes
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    code: str  # key | version | agreement | nonce | stale_incarnation | duplicate | unknown_line | self | full | no_neighbour
    field: str
    mine: str
    yours: str
    fatal: bool
    known_incarnation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    code: str  # no_session | bad_message | limit
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    session: int
    nonce: bytes
    condition: Condition
    digest: tuple[DigestEntry, ...] = ()  # at most 64; the sender's own entry first


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDescription:
    """What a frozen snapshot is: rides in OFFER and ACCEPT. ``checksum`` is xxh3_64 of the payload, ``square_norm`` its x.x."""

    version: int
    nbytes: int
    checksum: int
    square_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    session: int
    xid: ExchangeId
    snapshot: SnapshotDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    session: int
    xid: ExchangeId
    snapshot: SnapshotDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    session: int
    xid: ExchangeId
    reason: str  # engaged | doubt | backlog | buffers | deltas | not_running | leaving | parting


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    session: int
    xid: ExchangeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    session: int
    xid: ExchangeId
    snapshot: SnapshotDescription
    ok: bool = False  # "and I hold your valid snapshot": an OK that travels with the data


@dataclass(frozen=True, slots=True, kw_only=True)
class Ok:
    session: int
    xid: ExchangeId
    ask: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    session: int
    xid: ExchangeId
    code: str  # timeout | crossing | checksum | nonfinite | norm | diverged | size | unknown | expired | leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest:
    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """One vector of a node's state. ``name`` is "parameters" or an optimiser slot's name ("square_average", ...)."""

    name: str
    nbytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMeta:
    session: int
    state_id: int
    nonce: bytes
    version: int
    optimizer_steps: int
    parts: tuple[StatePart, ...]
    digest: tuple[DigestEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFetch:
    session: int
    state_id: int
    part: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateData:
    session: int
    state_id: int
    part: int
    nbytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    session: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    session: int


UpMessage = Hello | Heartbeat | Offer | Fetch | Ok | Abort | StateRequest | StateFetch | Leave | Part
DownMessage = Welcome | Reject | Nack | Accept | Busy | Data | StateMeta | StateData
Message = UpMessage | DownMessage
