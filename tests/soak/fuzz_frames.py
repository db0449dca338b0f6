"""Bodies of up messages that should not be: honest ones with bits, bytes, fields or types changed, replays, and chance. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Final

import msgpack

from tests.faults.raw_zmtp import mutation
from zpala.gossip import codec
from zpala.gossip import messages as m

FIXED_BYTES: Final = 8  # magic, version, type, flags
LINE: Final = 3  # the attacker's
INCARNATION_MAX: Final = 10**17  # honest nodes have more: they count nanoseconds since 1970
_HUGE: Final = (2**63, 2**64 - 1, -1, -(2**63), 2**32, 0)
_WRONG: Final[tuple[Any, ...]] = (
    None,
    True,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 256,
    "x" * 257,
    b"",
    b"\xff" * 8,
    [],
    {},
    [[[]]],
    {"a": 1},
)


def honest(session: int, incarnation: int, number: int, agreement: Mapping[str, str], nbytes: int) -> list[bytes]:
    """One of every up message of the attacker's line, about exchange ``number``."""
    condition = m.Condition(phase="waiting")
    snapshot = m.SnapshotDescription(version=number, nbytes=nbytes, checksum=7, square_norm=1.0)
    own, other = m.ExchangeId(LINE, incarnation, number), m.ExchangeId(number % 3, incarnation, number)
    said: list[m.UpMessage] = [
        m.Hello(node="raw", line=LINE, incarnation=incarnation, agreement=dict(agreement), condition=condition),
        m.Heartbeat(session=session, nonce=b"", condition=condition, digest=(m.DigestEntry(LINE, incarnation, number),)),
        m.Offer(session=session, xid=own, snapshot=snapshot),
        m.Offer(session=session, xid=other, snapshot=snapshot),
        m.Fetch(session=session, xid=own),
        m.Fetch(session=session, xid=other),
        m.Ok(session=session, xid=own, ask=True),
        m.Ok(session=session, xid=other),
        m.Abort(session=session, xid=other, code="timeout"),
        m.StateRequest(session=session),
        m.StateFetch(session=session, state_id=number, part=0),
        m.Leave(session=session, incarnation=incarnation - 1, reason="replay"),
    ]
    return [codec.encode(message) for message in said]


def bodies(frames: list[bytes], random: Random) -> Iterator[list[bytes]]:
    """Messages without end, most of them of one frame. None speaks believably in the name of an honest node: that is a matter of keys."""
    while True:
        kind = random.random()
        if kind < 0.5:
            body = mutation(frames, random)
        elif kind < 0.8:
            body = _other_fields(frames, random)
        elif kind < 0.95:
            body = random.choice(frames)  # a replay
        else:
            body = random.randbytes(random.choice((0, 1, 7, 8, 9, 64, 4095, 4096)))
        if not _impersonates(body):
            yield (
                [body] if random.random() < 0.97 else [body, *(random.randbytes(random.randrange(40)) for _ in range(random.randint(1, 4)))]
            )


def _other_fields(frames: list[bytes], random: Random) -> bytes:
    """A message whose bytes are in order, and whose fields are not."""
    frame = random.choice(frames)
    fields = msgpack.unpackb(frame[FIXED_BYTES:])
    holder, key = fields, random.choice(list(fields))
    while isinstance(inner := holder[key], dict | list) and inner and random.random() < 0.7:
        holder, key = inner, random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    kind = random.randrange(5)
    if kind == 0:
        holder[key] = random.choice(_HUGE)
    elif kind == 1:
        holder[key] = random.choice(_WRONG)
    elif kind == 2:
        del holder[key]
    elif kind == 3:
        other = msgpack.unpackb(random.choice(frames)[FIXED_BYTES:])
        holder[key] = other[random.choice(list(other))]
    else:
        fields.update({str(number): number for number in range(random.randint(1, 80))})
    return (frame[:FIXED_BYTES] + bytes(msgpack.packb(fields)))[: codec.UP_MAX]


def _impersonates(body: bytes) -> bool:
    """Whether a HELLO has come out that is later than that of any honest node; the attacker's own may be so only up to there."""
    if len(body) <= FIXED_BYTES or body[5] != codec.TABLE[m.Hello][0]:
        return False
    try:
        message = codec.decode_up(body)
    except codec.ProtocolError:
        return False
    return isinstance(message, m.Hello) and message.incarnation > INCARNATION_MAX
