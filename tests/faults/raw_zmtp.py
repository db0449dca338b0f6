"""A peer that speaks ZMTP 3.1 with bare sockets, so that it can say what no library would: the bytes are the test's.

``RawClient`` plays a DEALER that dials a node's ROUTER, ``RawServer`` a ROUTER that a node's DEALER dials. ``handshake`` is honest unless
it is told otherwise; ``send`` sends whole messages, ``send_raw`` anything. PINGs are answered while messages are awaited, and only then: a
peer that is not asked for messages is silent. All waits have a limit; a missing message is an assertion.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence
from random import Random
from typing import Any, Final, NamedTuple, Self

from tests.faults.zmtp_frames import COMMAND, GREETING_BYTES, LONG, MORE, command, frame, greeting, ready
from zpala.gossip import codec
from zpala.gossip import messages as m

LIMIT_S: Final = 20.0
_SIZE: Final = struct.Struct(">Q")


class Frame(NamedTuple):
    body: bytes
    flags: int


class RawConnection:
    """One connection after ``accept`` or ``connect``: bytes in, bytes out."""

    def __init__(self, connection: socket.socket) -> None:
        self.payload: list[bytes] = []  # what followed the header of the message that was heard last
        self.socket = connection
        self.socket.settimeout(LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def close(self, *, reset: bool = False) -> None:
        """Ends the connection: in order, or with a RST."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # ---- saying things

    def handshake(self, socket_type: bytes, **properties: bytes) -> bytes:
        """An honest greeting and READY; returns the body of the other side's READY."""
        self.send_raw(greeting())
        self._read(GREETING_BYTES)
        self.send_raw(ready(socket_type, **properties))
        answer = self.receive_frame()
        assert answer.flags & COMMAND, f"{answer} is no command"
        assert answer.body.startswith(b"\x05READY"), answer
        return answer.body

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, *bodies: bytes) -> None:
        """One message of these frames."""
        *first, last = bodies
        self.send_raw(b"".join(frame(body, MORE) for body in first) + frame(last))

    def say(self, message: m.Message, payload: bytes | None = None) -> None:
        """One message of the gossip protocol."""
        self.send(codec.encode(message), *([] if payload is None else [payload]))

    # ---- hearing things

    def receive_frame(self) -> Frame:
        flags = self._read(1)[0]
        size = _SIZE.unpack(self._read(8))[0] if flags & LONG else self._read(1)[0]
        return Frame(self._read(size), flags)

    def receive(self, limit_s: float = LIMIT_S) -> list[bytes]:
        """The next message; PINGs before it are answered."""
        message = self.receive_within(limit_s)
        assert message is not None, f"no message within {limit_s:g} s"
        return message

    def receive_within(self, limit_s: float) -> list[bytes] | None:
        """The next message, if it begins within ``limit_s`` seconds."""
        deadline = time.monotonic() + limit_s
        bodies: list[bytes] = []
        while True:
            if not bodies and not select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            body, flags = self.receive_frame()
            if flags & COMMAND:
                if body.startswith(b"\x04PING"):
                    self.send_raw(command(b"PONG", body[7:]))  # after the name and the time to live comes what is sent back
                continue
            bodies.append(body)
            if not flags & MORE:
                return bodies

    def hear(self, *kinds: type, down: bool) -> Any:
        """The next gossip message of one of ``kinds``, others are passed over; ``down``: it comes from a ROUTER."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            header, *self.payload = self.receive(max(0.0, deadline - time.monotonic()))
            message = codec.decode_down(header) if down else codec.decode_up(header)
            if isinstance(message, kinds):
                return message

    def ended(self, limit_s: float = LIMIT_S) -> float:
        """Waits until the other side ends the connection, whatever it says before; returns how long that took, in seconds."""
        began = time.monotonic()
        while True:
            left_s = began + limit_s - time.monotonic()
            assert left_s > 0, f"the connection is open after {limit_s:g} s"
            self.socket.settimeout(left_s)
            try:
                if not self.socket.recv(1 << 16):
                    break
            except ConnectionError:
                break
            except TimeoutError:
                continue
        return time.monotonic() - began

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError(f"the other side ended the connection after {len(data)} of {count} bytes")
            data += chunk
        return bytes(data)


class RawClient(RawConnection):
    """Dials a port of 127.0.0.1; says nothing by itself."""

    def __init__(self, port: int) -> None:
        super().__init__(socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S))

    @classmethod
    def dealer(cls, port: int) -> Self:
        """With a finished handshake of a DEALER."""
        client = cls(port)
        try:
            client.handshake(b"DEALER", Identity=b"")
        except BaseException:
            client.close()
            raise
        return client


class RawServer:
    """Listens on a port of 127.0.0.1; ``accept`` gives the next connection."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(LIMIT_S)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def accept(self) -> RawConnection:
        return RawConnection(self._listener.accept()[0])

    def router(self) -> RawConnection:
        """The next connection whose other end is still there, with a finished handshake of a ROUTER."""
        while True:
            connection = self.accept()
            try:
                connection.handshake(b"ROUTER", Identity=b"")
            except ConnectionError:  # who dialled has given up before it was accepted
                connection.close()
            except BaseException:
                connection.close()
                raise
            else:
                return connection


class RawNode:
    """Plays line ``line`` towards one node: a client to its ROUTER, a server for its DEALER, a session each way.

    Args:
        server: on the port that the node's hosts file says for ``line``.
        port: of the node.
        agreement: what the node demands in HELLO.
    """

    def __init__(self, server: RawServer, port: int, *, line: int, incarnation: int, agreement: dict[str, str]) -> None:
        self.line = line
        self.incarnation = incarnation
        self.agreement = agreement
        self.condition = m.Condition(phase="waiting")
        self.nonce = b""
        self.client = RawClient.dealer(port)
        self._server = server
        self._connections: list[RawConnection] = [self.client]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def hello(self) -> m.Welcome:
        """Asks the node for a session. It joins the node's run as soon as it hears of it."""
        self.client.say(
            m.Hello(
                node=f"raw {self.line}",
                line=self.line,
                incarnation=self.incarnation,
                nonce=self.nonce,
                agreement=self.agreement,
                condition=self.condition,
            )
        )
        welcome: m.Welcome = self.client.hear(m.Welcome, down=True)
        self.welcome = welcome
        return welcome

    def serve(self, line: int, session: int = 77) -> m.Hello:
        """Answers the next HELLO of node ``line`` with a session; others are heard and not answered."""
        while True:
            self.server = self._server.router()
            self._connections.append(self.server)
            try:
                hello: m.Hello = self.server.hear(m.Hello, down=False)
            except ConnectionError:  # it has dialled anew
                continue
            if hello.line == line:
                break
        self.session = session
        self.server.say(
            m.Welcome(
                session=session,
                node=f"raw {self.line}",
                line=self.line,
                incarnation=self.incarnation,
                version=1,
                nonce=self.nonce,
                condition=self.condition,
            )
        )
        return hello

    def heartbeat(self) -> None:
        self.client.say(m.Heartbeat(session=self.welcome.session, nonce=self.nonce, condition=self.condition))


def mutation(frames: Sequence[bytes], random: Random) -> bytes:
    """One of ``frames`` with some damage: bits, a cut, an insertion, a repetition, another's end, or nothing but chance."""
    honest = bytearray(random.choice(frames))
    kind = random.randrange(6)
    at = random.randrange(len(honest))
    if kind == 0:
        for _ in range(random.randint(1, 8)):
            honest[random.randrange(len(honest))] ^= 1 << random.randrange(8)
    elif kind == 1:
        del honest[at:]
    elif kind == 2:
        honest[at:at] = random.randbytes(random.randint(1, 64))
    elif kind == 3:
        honest[at:at] = honest[: random.randint(1, len(honest))]
    elif kind == 4:
        other = random.choice(frames)
        honest[at:] = other[random.randrange(len(other)) :]
    else:
        honest[:] = random.randbytes(random.randint(0, 300))
    return bytes(honest[:4096])
