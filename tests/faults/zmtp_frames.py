"""The framing of ZMTP 3.1 (greeting, flags, short and long sizes) and nothing above it; knows no socket.

After the 64 bytes of a greeting each way is a row of frames: a byte of flags, the size in one byte or, LONG, in eight (big-endian), a body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

GREETING_BYTES: Final = 64
MORE: Final = 1
LONG: Final = 2
COMMAND: Final = 4
SHORT_MAX: Final = 255


def greeting(*, signature: bytes = b"\xff" + bytes(8) + b"\x7f", version: tuple[int, int] = (3, 1), mechanism: bytes = b"NULL") -> bytes:
    """64 bytes; the defaults are an honest client's or server's of the NULL mechanism."""
    return signature + bytes(version) + mechanism.ljust(20, b"\0") + bytes(1 + 31)


def frame(body: bytes, flags: int = 0, *, long: bool | None = None) -> bytes:
    """One frame; its size is written long when it must be, or when ``long`` says so."""
    if long or len(body) > SHORT_MAX:
        return struct.pack(">BQ", flags | LONG, len(body)) + body
    return struct.pack(">BB", flags, len(body)) + body


def command(name: bytes, data: bytes = b"") -> bytes:
    """A command frame: READY, PING, PONG, ERROR, ..."""
    return frame(bytes([len(name)]) + name + data, COMMAND)


def ready(socket_type: bytes, **more: bytes) -> bytes:
    """The READY of a NULL handshake, with Socket-Type and whatever else."""
    properties = {b"Socket-Type": socket_type, **{name.encode(): value for name, value in more.items()}}
    return command(b"READY", b"".join(struct.pack(">B", len(k)) + k + struct.pack(">I", len(v)) + v for k, v in properties.items()))


class Piece(NamedTuple):
    """A part of a frame's body within one chunk of the stream: chunk[start:start + length] is body[offset:offset + length] of ``size``."""

    start: int
    length: int
    offset: int
    size: int
    flags: int


class FrameScanner:
    """Follows one direction of one connection, chunk by chunk, however it is cut."""

    def __init__(self) -> None:
        self._greeting_left = GREETING_BYTES
        self._header = bytearray()
        self._flags = self._size = self._offset = 0
        self._in_body = False

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """The pieces of bodies in ``chunk``; must be read to its end. Empty bodies are no pieces."""
        at = min(self._greeting_left, len(chunk))
        self._greeting_left -= at
        while at < len(chunk):
            if not self._in_body:
                self._header.append(chunk[at])
                at += 1
                self._flags = self._header[0]
                if len(self._header) == (9 if self._flags & LONG else 2):
                    self._size = int.from_bytes(self._header[1:], "big")
                    self._header.clear()
                    self._offset = 0
                    self._in_body = self._size > 0
                continue
            length = min(self._size - self._offset, len(chunk) - at)
            yield Piece(at, length, self._offset, self._size, self._flags)
            at += length
            self._offset += length
            self._in_body = self._offset < self._size
