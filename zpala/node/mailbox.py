"""Messages between the learner and the proxy of one node: which there are, their bytes, and the two ends of the pipe.

Owns: one inproc PAIR per node, one end in each of the two threads. A message is one frame: msgpack of the dataclasses of
``gossip.events`` and of the six below. Arrays never travel: the number of a buffer does, and with it the right to use that buffer.
Both ends are this program, so a message that cannot be encoded or decoded is a bug of ours and raises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

from zpala.gossip import events

_EXT_MESSAGE = 1


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotReady:
    """Learner to proxy: pool buffer ``buffer``, which ``SnapshotLent`` had lent, holds this snapshot and is the proxy's again."""

    buffer: int
    published: events.Published


@dataclasses.dataclass(frozen=True, slots=True)
class GateChanged:
    """Learner to proxy: the learner has begun (``closed``) or ended a wait for fresh news: exchanges are urgent while it lasts."""

    closed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RunFinished:
    """Learner to proxy: the run is over for this node ("budget", "target", "stop"): drain, then leave."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class StateAdopted:
    """Learner to proxy: what ``AdoptState`` announced is installed; the state parts are the proxy's again."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaveRun:
    """Learner to proxy: leave now, without a drain; to be followed by the proxy's stop message."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyCounters:
    """Proxy to learner, about once a second: what its sockets have done since the start. Times in seconds, sizes in bytes."""

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sends_lost: int = 0
    bad_frames: int = 0
    rate_limited: int = 0  # messages dropped unread: their link said too much
    redials: int = 0
    keys_denied: int = 0  # connections refused because of their keys
    handshakes_failed: int = 0  # others that ended before they were connections; those of this node itself are counted only with keys
    loop_gap_max_s: float = 0.0
    cpu_s: float = 0.0


def message_types() -> dict[str, type[Any]]:
    """Every class that may travel in a mailbox, by its name: the dataclasses of ``gossip.events`` and of this module."""
    found: dict[str, type[Any]] = {}
    for namespace in (vars(events), globals()):
        for value in namespace.values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ in (events.__name__, __name__):
                found[value.__name__] = value
    return found


_TYPES = message_types()
_FIELD_NAMES = {name: tuple(f.name for f in dataclasses.fields(kind)) for name, kind in _TYPES.items()}


def _to_extension(value: object) -> msgpack.ExtType:
    name = type(value).__name__
    if _TYPES.get(name) is not type(value):
        raise TypeError(f"{value!r} ({type(value).__name__}) does not belong into a mailbox message")
    fields = [getattr(value, field) for field in _FIELD_NAMES[name]]
    return msgpack.ExtType(_EXT_MESSAGE, msgpack.packb([name, *fields], default=_to_extension))


def _from_extension(code: int, data: bytes) -> Any:
    if code != _EXT_MESSAGE:
        raise ValueError(f"extension type {code} in a mailbox message")
    name, *values = msgpack.unpackb(data, ext_hook=_from_extension, use_list=False)
    fields = _FIELD_NAMES[name]
    if len(fields) != len(values):
        raise ValueError(f"{name} has {len(fields)} fields, {len(values)} came")
    return _TYPES[name](**dict(zip(fields, values, strict=True)))


def encode(message: object) -> bytes:
    """The one frame of ``message``. Raises ``TypeError`` for anything that is not a mailbox message of plain fields."""
    return bytes(msgpack.packb(_to_extension(message)))


def decode(frame: bytes) -> Any:
    """The message of ``frame``; sequences come back as tuples. Raises ``ValueError`` (or a msgpack error) for anything else."""
    message = msgpack.unpackb(frame, ext_hook=_from_extension, use_list=False)
    if type(message).__name__ not in _TYPES:
        raise ValueError(f"{message!r} is not a mailbox message")
    return message


class Mailbox:
    """One end of the pipe; belongs to the thread that made ``socket``. Poll ``socket``, then ``receive()`` until it is empty."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def send(self, message: object, limit_s: float = 5.0) -> bool:
        """Sends; waits at most ``limit_s`` seconds (0: not at all) for room; False when there was none and nothing was sent."""
        frame = encode(message)
        try:
            self.socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            if limit_s <= 0 or not self.socket.poll(round(limit_s * 1000), zmq.POLLOUT):
                return False
            self.socket.send(frame, zmq.DONTWAIT)
        return True

    def receive(self) -> Iterator[Any]:
        """Yields every message that has arrived, in order, without waiting."""
        while True:
            try:
                frame = self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            yield decode(frame)

    def close(self) -> None:
        self.socket.close()
