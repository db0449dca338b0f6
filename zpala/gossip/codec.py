"""Messages to header frames and back. Owns the layout, the limits and the table of fields; makes no sockets and keeps no state.

A header frame is ::

    "ZPA1" | u8 major = 1 | u8 type | u16 flags, little-endian | msgpack map with short string keys

The first 8 bytes let a stranger be refused without touching msgpack. Flags 15..8 are critical: a bit that this version does not know
makes the frame unusable; flags 7..0 may be ignored. Keys that this version does not know are ignored. Anything else that is not exactly as
the table says raises ProtocolError: garbage never raises another exception, and never yields half a message. A payload is a frame of its
own and none of this module's business.
"""

from __future__ import annotations

import struct
from typing import Any, cast, get_args

import msgpack

from zpala.gossip import messages as m
from zpala.gossip.fields import (
    TEXT_MAX_BYTES,
    U64_MAX,
    WORD_MAX_BYTES,
    FieldError,
    Kind,
    binary,
    boolean,
    integer,
    integers,
    mapping,
    real,
    record,
    sequence,
    text,
)

MAGIC = b"ZPA1"
MAJOR = 1
KNOWN_FLAGS = 0
CRITICAL_FLAGS = 0xFF00

UP_MAX = 4096  # bytes of an up frame; the ROUTER's maxmsgsize is this + 33, what CURVE adds
DOWN_HEADER_MAX = 4096  # bytes of a down header, without the payload frame
MAP_MAX_ENTRIES = 64
ARRAY_MAX_ENTRIES = 256
LINES_MAX = 2**16  # lines of hosts.txt
DIGEST_MAX = 64  # entries of a digest in one message
STATES = 32  # of a node, as a digest tells them
PARTS_MAX = 16  # vectors of a node's state
AGREEMENT_MAX_ENTRIES = 32
RETURNS_MAX = 100  # games that a mean return is taken over
PAYLOAD_MAX_BYTES = 2**36
NONCE_BYTES = 8

_FIXED = struct.Struct("<4sBBH")


class ProtocolError(Exception):
    """What came is no message. The sender's fault: count it, answer NACK, go on.

    Attributes:
        code: limit | magic | version | flags | type | msgpack | field.
        detail: a sentence with the offending value.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class EncodeError(ValueError):
    """A message that may not be sent: a field out of bounds, or a frame that is too big. Our own fault."""


_word = text(WORD_MAX_BYTES, empty=False)
_word_or_nothing = text(WORD_MAX_BYTES)
_text = text(TEXT_MAX_BYTES)
_name = text(TEXT_MAX_BYTES, empty=False)
_U64 = (0, U64_MAX)
_IDENTITY = ((0, LINES_MAX - 1), _U64)  # line and incarnation
_u64 = integer(*_U64)
_line = integer(0, LINES_MAX - 1)
_nbytes = integer(0, PAYLOAD_MAX_BYTES)
_nonce = binary(0, NONCE_BYTES)
_xid = integers(m.ExchangeId, *_IDENTITY, _U64)
_digest = sequence(integers(m.DigestEntry, *_IDENTITY, _U64, (0, m.AGE_UNKNOWN), (0, STATES - 1)), DIGEST_MAX)
_agreement = mapping(_text, AGREEMENT_MAX_ENTRIES)
_condition = record(
    m.Condition,
    phase=("p", _word),
    updates=("u", _u64),
    version=("v", _u64),
    env_steps=("e", _u64),
    rate=("r", real(0.0)),
    load=("l", real(0.0)),
    return_mean=("m", real()),
    return_count=("k", integer(0, RETURNS_MAX)),
    finish_reason=("f", _word_or_nothing),
    update_s=("w", real(0.0)),
)
_snapshot = record(
    m.SnapshotDescription,
    version=("v", _u64),
    nbytes=("b", _nbytes),
    checksum=("h", _u64),
    square_norm=("q", real(0.0)),
)
_part = record(m.StatePart, name=("n", _word), nbytes=("b", _nbytes), checksum=("h", _u64))
_session = ("s", _u64)
_exchange = ("x", _xid)

# class -> (type number on the wire, fields). Numbers below 64 go up, the others down; none is ever used again for another message.
TABLE: dict[type, tuple[int, Kind]] = {
    m.Hello: (
        1,
        record(
            m.Hello,
            node=("n", _name),
            line=("l", _line),
            incarnation=("i", _u64),
            version_min=("lo", integer(1, 255)),
            version_max=("hi", integer(1, 255)),
            nonce=("r", _nonce),
            agreement=("a", _agreement),
            condition=("c", _condition),
        ),
    ),
    m.Heartbeat: (2, record(m.Heartbeat, session=_session, nonce=("r", _nonce), condition=("c", _condition), digest=("k", _digest))),
    m.Offer: (3, record(m.Offer, session=_session, xid=_exchange, snapshot=("d", _snapshot))),
    m.Fetch: (4, record(m.Fetch, session=_session, xid=_exchange)),
    m.Ok: (5, record(m.Ok, session=_session, xid=_exchange, ask=("a", boolean()))),
    m.Abort: (6, record(m.Abort, session=_session, xid=_exchange, code=("e", _word))),
    m.StateRequest: (7, record(m.StateRequest, session=_session)),
    m.StateFetch: (8, record(m.StateFetch, session=_session, state_id=("t", _u64), part=("o", integer(0, PARTS_MAX - 1)))),
    m.Leave: (9, record(m.Leave, session=_session, incarnation=("i", _u64), reason=("e", _word))),
    m.Part: (10, record(m.Part, session=_session)),
    m.Welcome: (
        64,
        record(
            m.Welcome,
            session=_session,
            node=("n", _name),
            line=("l", _line),
            incarnation=("i", _u64),
            version=("v", integer(1, 255)),
            nonce=("r", _nonce),
            condition=("c", _condition),
        ),
    ),
    m.Reject: (
        65,
        record(
            m.Reject,
            code=("e", _word),
            field=("f", _word_or_nothing),
            mine=("m", _text),
            yours=("y", _text),
            fatal=("x", boolean()),
            known_incarnation=("i", _u64),
        ),
    ),
    m.Nack: (66, record(m.Nack, code=("e", _word), detail=("m", _text))),
    m.Accept: (67, record(m.Accept, session=_session, xid=_exchange, snapshot=("d", _snapshot))),
    m.Busy: (68, record(m.Busy, session=_session, xid=_exchange, reason=("e", _word))),
    m.Data: (69, record(m.Data, session=_session, xid=_exchange, snapshot=("d", _snapshot), ok=("a", boolean()))),
    m.StateMeta: (
        70,
        record(
            m.StateMeta,
            session=_session,
            state_id=("t", _u64),
            nonce=("r", _nonce),
            version=("v", _u64),
            optimizer_steps=("u", _u64),
            parts=("p", sequence(_part, PARTS_MAX)),
            digest=("k", _digest),
        ),
    ),
    m.StateData: (
        71,
        record(
            m.StateData,
            session=_session,
            state_id=("t", _u64),
            part=("o", integer(0, PARTS_MAX - 1)),
            nbytes=("b", _nbytes),
            checksum=("h", _u64),
        ),
    ),
}

_UP_CLASSES = get_args(m.UpMessage)
_PACK = {
    cls: (_FIXED.pack(MAGIC, MAJOR, number, 0), kind.pack, UP_MAX if cls in _UP_CLASSES else DOWN_HEADER_MAX)
    for cls, (number, kind) in TABLE.items()
}
_NAMES = {number: cls.__name__ for cls, (number, _) in TABLE.items()}
_UP_TYPES = {number: cls for cls, (number, _) in TABLE.items() if cls in _UP_CLASSES}
_UP = {number: kind.unpack for cls, (number, kind) in TABLE.items() if cls in _UP_CLASSES}
_DOWN = {number: kind.unpack for cls, (number, kind) in TABLE.items() if cls not in _UP_CLASSES}


def encode(message: m.Message) -> bytes:
    """The header frame of a message, at most 4096 bytes.

    Raises:
        EncodeError: a field is out of bounds, or the frame would be bigger than UP_MAX or DOWN_HEADER_MAX.
    """
    fixed, pack, limit = _PACK[type(message)]
    try:
        frame: bytes = fixed + msgpack.packb(pack(message))
    except ValueError as error:
        raise EncodeError(str(error)) from None
    if len(frame) > limit:
        raise EncodeError(f"{type(message).__name__} takes {len(frame)} bytes, {limit} are allowed")
    return frame


def decode_up(frame: bytes | memoryview) -> m.UpMessage:
    """The complete message of one up frame (DEALER to ROUTER). Raises ProtocolError for anything else."""
    return cast(m.UpMessage, _decode(frame, UP_MAX, _UP))


def decode_down(frame: bytes | memoryview) -> m.DownMessage:
    """The complete message of one down header (ROUTER to DEALER). Raises ProtocolError for anything else."""
    return cast(m.DownMessage, _decode(frame, DOWN_HEADER_MAX, _DOWN))


def claimed_type(frame: bytes | memoryview) -> type | None:
    """The class of message that an up frame claims to be, without a look at anything else; None: nothing that travels up."""
    return _UP_TYPES.get(frame[5]) if len(frame) > _FIXED.size else None


def _decode(frame: bytes | memoryview, limit: int, unpackers: dict[int, Any]) -> Any:
    if not _FIXED.size < len(frame) <= limit:
        raise ProtocolError("limit", f"a header of {len(frame)} bytes; it has {_FIXED.size + 1} to {limit}")
    magic, major, number, flags = _FIXED.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError("magic", f"the frame starts with {magic!r}, not with {MAGIC!r}")
    if major != MAJOR:
        raise ProtocolError("version", f"the sender speaks version {major}, this node version {MAJOR}")
    if flags & CRITICAL_FLAGS & ~KNOWN_FLAGS:
        raise ProtocolError("flags", f"critical flags {flags:#06x} are not known to version {MAJOR}")
    unpack = unpackers.get(number)
    if unpack is None:
        raise ProtocolError("type", f"type {number} ({_NAMES.get(number, 'unknown')}) does not travel in this direction")
    try:
        fields = msgpack.unpackb(
            memoryview(frame)[_FIXED.size :],
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_refuse_extension,
            max_map_len=MAP_MAX_ENTRIES,
            max_array_len=ARRAY_MAX_ENTRIES,
            max_str_len=TEXT_MAX_BYTES,
            max_bin_len=TEXT_MAX_BYTES,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack has a dozen of its own, and every one means the same here
        raise ProtocolError("msgpack", f"{_NAMES[number]}: {type(error).__name__}: {error}") from None
    try:
        return unpack(fields)
    except FieldError as error:
        raise ProtocolError("field", str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A map from its pairs; a key that appears twice would let two readers see two messages."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key appears twice")
    return fields


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")
