"""Whole messages in and out of ROUTER and DEALER sockets: the one place that knows which frames a message has.

Up, a DEALER sends one header frame. Down, the ROUTER sends a header and, for DATA and STATE_DATA, the payload as the *last* frame: a
tracker follows the last frame only. libzmq hands a message over when all its parts have come, so nothing here ever waits; a message
with other parts than it should have is read to its end, or as far as ``UNBROKEN_MAX`` allows, and refused. Used by the proxy's thread;
owns a buffer, no socket.

A payload is not copied: whoever reads gets libzmq's own memory. ``recv_into``, which headers are read with, truncates without a word and
returns the frame's true size; so sizes are compared, never assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zmq

from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.node.sockets import Socket

Vector = npt.NDArray[np.float32]

UNBROKEN_MAX: Final = 98
"""How many frames may be read from a DEALER until it has been found empty.

A DEALER with ``immediate`` drops what is unread as soon as it learns that its connection has gone, even the rest of a message that is
half read; the next read then aborts the process (``!_more``, libzmq 4.3.5). It learns that when it is asked for events, finds itself
empty, or reads the hundredth frame since: never within a message, if none begins after this many.
"""

_NOWHERE: Final = bytearray()  # receiving into it discards a frame and tells its size
_LOST: Final = (zmq.EAGAIN, zmq.EHOSTUNREACH)  # the peer takes no more, or has gone


class Up(NamedTuple):
    """What one read of the ROUTER gave: the message, why it is none, or None: it was not admitted.

    ``nbytes``: everything that came. ``key``: as whose it came.
    """

    link: bytes
    message: m.UpMessage | codec.ProtocolError | None
    nbytes: int
    key: str | None = None


class Down(NamedTuple):
    """What one read of a DEALER gave. ``payload``: the bytes of the frame behind the header, in libzmq's memory, which lives as long as
    this view; empty when there were several (no node sends that), None when there was none. ``nbytes``, ``frames``: everything that was
    read.
    """

    message: m.DownMessage | codec.ProtocolError
    payload: memoryview | None
    nbytes: int
    frames: int


class FrameReader:
    """Reads messages through one reused header buffer. ``authenticated``: every message of the ROUTER comes with its sender's key."""

    def __init__(self, *, authenticated: bool = False) -> None:
        self._authenticated = authenticated
        self._header = bytearray(max(codec.UP_MAX, codec.DOWN_HEADER_MAX) + 1)  # one more: what is longer is refused, not truncated

    def read_up(self, router: Socket, admits: Callable[[bytes, type | None], bool] = lambda link, kind: True) -> Up | None:
        """The next message of a ROUTER; None when there is none. ``admits`` (link, claimed type) says whether it is looked at."""
        key: str | None = None
        try:
            if self._authenticated:
                first = router.recv(zmq.DONTWAIT, copy=False)
                link, key = first.bytes, _user_id(first)
            else:
                link = router.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        size = router.recv_into(self._header, flags=zmq.DONTWAIT) if router.rcvmore else 0
        has_surplus = bool(router.rcvmore)
        nbytes = size + _drain(router)[0]
        if not admits(link, codec.claimed_type(memoryview(self._header)[:size])):
            return Up(link, None, nbytes, key)
        try:
            if has_surplus:
                raise codec.ProtocolError("limit", f"an up message of more than one frame, {nbytes} bytes")
            return Up(link, codec.decode_up(self._frame(size)), nbytes, key)
        except codec.ProtocolError as error:
            return Up(link, error, nbytes, key)

    def read_down(self, dealer: Socket, frames_max: int = UNBROKEN_MAX) -> Down | None:
        """The next message of a DEALER; None when there is none.

        No more than ``frames_max`` frames of it (at least 2) are read: of a longer one the rest is left, and the DEALER is of no more use.
        """
        try:
            size = dealer.recv_into(self._header, flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        message: m.DownMessage | codec.ProtocolError
        payload: memoryview | None = None
        try:
            message = codec.decode_down(self._frame(size))
            if dealer.rcvmore:
                if not isinstance(message, m.Data | m.StateData):
                    raise codec.ProtocolError("limit", f"{type(message).__name__} of more than one frame")
                payload = dealer.recv(zmq.DONTWAIT, copy=False).buffer
        except codec.ProtocolError as error:
            message = error
        count, nbytes = (1, size) if payload is None else (2, size + payload.nbytes)
        surplus_bytes, surplus = _drain(dealer, frames_max - count)
        if payload is not None and (surplus or dealer.rcvmore):
            payload = memoryview(b"")
        return Down(message, payload, nbytes + surplus_bytes, count + surplus)

    def _frame(self, size: int) -> memoryview:
        if size >= len(self._header):
            raise codec.ProtocolError("limit", f"a header of {size} bytes; {len(self._header) - 1} are allowed")
        return memoryview(self._header)[:size]


def send_up(dealer: Socket, frame: bytes) -> bool:
    """Sends one frame; False when nobody is connected, or reads: then nothing was sent."""
    try:
        dealer.send(frame, zmq.DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno not in _LOST:
            raise
        return False
    return True


def send_down(router: Socket, link: bytes, header: bytes, payload: Vector | None = None) -> zmq.MessageTracker | bool:
    """Sends a message to the DEALER ``link``; False when it has gone, or takes no more: then nothing was sent.

    A payload is not copied: the tracker that is returned for it is done when its memory may be written again. That is at once when
    it is smaller than pyzmq's ``copy_threshold`` (64 KiB) and was copied all the same.
    """
    body = None if payload is None else bytes_of(payload)  # every part exists before the first is sent
    if not (_begin(router, link) or _begin(router, link)):
        return False
    if body is None:
        router.send(header, zmq.DONTWAIT)
        return True
    router.send(header, zmq.SNDMORE | zmq.DONTWAIT)
    return router.send(body, zmq.DONTWAIT, copy=False, track=True)


def _begin(router: Socket, link: bytes) -> bool:
    """Sends the routing id, the only frame that can fail; False when it did.

    A queue may seem full although the I/O thread has emptied it: libzmq looks at what that thread says only now and then, and always when
    it is asked for events. So that is asked for after a failure: it may be tried once more.
    """
    try:
        router.send(link, zmq.SNDMORE | zmq.DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno not in _LOST:
            raise
        router.getsockopt(zmq.EVENTS)
        return False
    return True


def bytes_of(vector: Vector) -> memoryview:
    """The bytes of a vector, in place."""
    return vector.data.cast("B")


def _user_id(frame: zmq.Frame) -> str | None:
    """The public key that the ZAP handler put on the frame's connection; no peer can set it. None: the connection has none."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return None


def _drain(socket: Socket, frames_max: float = math.inf) -> tuple[int, int]:
    """Reads away what is left of the current message, or ``frames_max`` frames of it; returns their size in bytes and their number."""
    size, count = 0, 0
    while count < frames_max and socket.rcvmore:
        size += int(socket.recv_into(_NOWHERE, flags=zmq.DONTWAIT))
        count += 1
    return size, count
