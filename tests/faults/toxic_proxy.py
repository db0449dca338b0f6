"""A TCP proxy that does to one link what bad networks do to it, when the test says so, and counts what it did.

``ToxicProxy(target)`` listens on a port of 127.0.0.1 and carries every connection on to ``target``. Each direction is a ``Way``: ``up``
from who dialled, ``down`` to it. A way can be slow (latency and seeded jitter, bytes per second), hold everything back (``stall``), lose
everything (``swallow``), and can be armed with one fault at an exact byte: RESET, FLIP or STALL, ``after`` so many bytes or inside the
next big ZMTP frame. All of it is switched at run time, and is in force when the call returns.

One thread with an event loop per proxy; nothing but that thread touches the connections. TCP is a stream: bytes that were swallowed are
missing in its middle, so a connection that lost some is reset when its way swallows no longer, as a real one would have died by then.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import random
import socket
import struct
import termios
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple, Self

from tests.faults.zmtp_frames import COMMAND, FrameScanner, Piece

LIMIT_S: Final = 20.0
CHUNK_BYTES: Final = 1 << 16
HELD_MAX_BYTES: Final = 1 << 20  # on the way in one connection; then the sender waits
NOTICE_S: Final = 0.05  # how late a change that is not the proxy's own is noticed
SLICE_S: Final = 0.01  # of the rate that is sent in one piece

Address = tuple[str, int]


class Fault(StrEnum):
    """What happens at the byte for which a way is armed."""

    RESET = "reset"  # everything before the byte has been delivered; both sides get a RST
    FLIP = "flip"  # the lowest bit of the byte is inverted
    STALL = "stall"  # the byte and all that follow wait for ``stall(False)``


class Happened(NamedTuple):
    """``offset``: of the byte in its way of connection number ``connection``."""

    fault: Fault
    connection: int
    offset: int


class _Armed(NamedTuple):
    """At ``passed`` bytes of the way or, with ``frame``, at ``offset`` in the body of the next frame of at least ``frame`` bytes."""

    fault: Fault
    passed: int
    frame: int | None
    offset: int


class Way:
    """One direction of all connections of a proxy. The methods may be called from any thread, counters read from any."""

    def __init__(self, call: Callable[[Callable[[], None]], None], seed: int) -> None:
        self.counts: Counter[str] = Counter(received=0, delivered=0, swallowed=0, ends_swallowed=0, delayed=0)
        self.happened: list[Happened] = []
        self.delay_sum_s = 0.0
        self._call = call
        self._random = random.Random(seed)
        self._latency_s = self._jitter_s = 0.0
        self._rate = math.inf
        self._rate_free_at = 0.0
        self.stalled = self.swallows = False
        self._armed: deque[_Armed] = deque()

    def delay(self, latency_s: float, jitter_s: float = 0.0) -> None:
        """Every chunk that arrives from now on waits for ``latency_s`` +- ``jitter_s``; the order stays."""
        self._set(_latency_s=latency_s, _jitter_s=jitter_s)

    def limit(self, bytes_per_s: float) -> None:
        """All connections together; ``math.inf``: no limit."""
        self._set(_rate=bytes_per_s)

    def stall(self, on: bool = True) -> None:
        """Holds everything back, and delivers it afterwards: what a network that loses packets does to TCP for a while."""
        self._set(stalled=on)

    def swallow(self, on: bool = True) -> None:
        """Takes everything and delivers nothing, no end of a connection either. Switched off, connections that lost bytes are reset."""
        self._set(swallows=on)

    def arm(self, fault: Fault, *, after: int = 0, frame: int | None = None, offset: int = 0) -> None:
        """One fault, once: ``after`` bytes from now, or at ``offset`` of the next ZMTP frame, no command, of at least ``frame`` bytes.

        A way may be armed for several faults; they happen one after the other.
        """

        def put() -> None:
            self._armed.append(_Armed(fault, self.counts["delivered"] + after, frame, offset))

        self._call(put)

    def disarm(self) -> None:
        self._call(self._armed.clear)

    def _set(self, **values: object) -> None:
        def put() -> None:
            for name, value in values.items():
                setattr(self, name, value)

        self._call(put)

    # ---- in the proxy's thread

    def due(self, now: float) -> float:
        """When what has just come may be delivered."""
        if not self._latency_s and not self._jitter_s:
            return now
        delay_s = max(0.0, self._latency_s + self._random.uniform(-self._jitter_s, self._jitter_s))
        self.counts["delayed"] += 1
        self.delay_sum_s += delay_s
        return now + delay_s

    def share(self, now: float) -> tuple[int, float]:
        """How many bytes may go next, and the time at which they may."""
        if self._rate == math.inf:
            return CHUNK_BYTES, now
        return max(1, int(self._rate * SLICE_S)), max(now, self._rate_free_at)

    def spend(self, nbytes: int, now: float) -> None:
        self.counts["delivered"] += nbytes
        if self._rate != math.inf:
            self._rate_free_at = max(now, self._rate_free_at) + nbytes / self._rate

    def place(self, pieces: list[Piece], nbytes: int) -> int | None:
        """Where in the next ``nbytes`` of a connection the armed fault is to happen; None: not in them."""
        if not self._armed:
            return None
        armed = self._armed[0]
        if armed.frame is None:
            at = max(0, armed.passed - self.counts["delivered"])
            return at if at < nbytes else None
        for piece in pieces:
            fits = piece.size >= armed.frame and not piece.flags & COMMAND
            if fits and piece.offset <= armed.offset < piece.offset + piece.length:
                return piece.start + armed.offset - piece.offset
        return None

    def strike(self, connection: int, offset: int) -> Fault:
        fault = self._armed.popleft().fault
        self.happened.append(Happened(fault, connection, offset))
        return fault


class _Reset(Exception):
    """This connection ends now, with a RST to both sides."""


class _Pipe:
    """One way of one connection: a reader that stamps what comes, and a writer that delivers it when it is due."""

    def __init__(self, proxy: ToxicProxy, way: Way, number: int, source: socket.socket, sink: socket.socket) -> None:
        self.lost = False  # bytes of this stream are missing
        self.way = way
        self._proxy, self._number = proxy, number
        self._source, self._sink = source, sink
        self._scanner = FrameScanner()
        self._held: deque[tuple[float, bytes]] = deque()  # empty bytes: the end
        self._held_bytes = 0
        self._due = 0.0
        self._sent = 0

    async def read(self) -> None:
        loop, way = asyncio.get_running_loop(), self.way
        while True:
            await self._proxy.until(lambda: self._held_bytes < HELD_MAX_BYTES)
            try:
                chunk = await loop.sock_recv(self._source, CHUNK_BYTES)
            except OSError:
                if way.swallows or way.stalled:  # a RST is lost like everything else
                    self.lost = True
                    way.counts["ends_swallowed"] += 1
                    self._proxy.changed()
                    return
                raise
            way.counts["received"] += len(chunk)
            if way.swallows:
                self.lost = True
                way.counts["swallowed"] += len(chunk)
                way.counts["ends_swallowed"] += not chunk
                self._proxy.changed()
                if not chunk:
                    return
                continue
            self._due = max(self._due, way.due(time.monotonic()))
            self._held.append((self._due, chunk))
            self._held_bytes += len(chunk)
            self._proxy.changed()
            if not chunk:
                return

    async def write(self) -> None:
        while True:
            await self._proxy.until(lambda: bool(self._held))
            due, chunk = self._held[0]
            await self._proxy.until(lambda: not self.way.stalled)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not chunk:
                self._sink.shutdown(socket.SHUT_WR)
                return
            pieces = list(self._scanner.feed(chunk))
            while chunk:
                chunk, pieces = await self._deliver(chunk, pieces)
            self._held_bytes -= len(self._held.popleft()[1])
            self._proxy.changed()

    async def _deliver(self, chunk: bytes, pieces: list[Piece]) -> tuple[bytes, list[Piece]]:
        """Delivers a part of ``chunk``; returns the rest."""
        way = self.way
        await self._proxy.until(lambda: not way.stalled)
        if way.swallows:  # switched on while this was under way
            self.lost = True
            way.counts["swallowed"] += len(chunk)
            return b"", []
        at = way.place(pieces, len(chunk))
        if at == 0:
            fault = way.strike(self._number, self._sent)
            if fault is Fault.FLIP:
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
                at = 1  # the next byte may have a fault of its own
            elif fault is Fault.STALL:
                way.stalled = True
            self._proxy.changed()
            if fault is Fault.RESET:
                await self._acknowledged()
                raise _Reset
            if fault is Fault.STALL:
                return chunk, pieces
        most, free_at = way.share(time.monotonic())
        await asyncio.sleep(max(0.0, free_at - time.monotonic()))
        size = min(most, len(chunk), at or len(chunk))
        await asyncio.get_running_loop().sock_sendall(self._sink, chunk[:size])
        way.spend(size, time.monotonic())
        self._sent += size
        self._proxy.changed()
        moved = (piece._replace(start=piece.start - size) for piece in pieces)
        return chunk[size:], [piece for piece in moved if piece.start + piece.length > 0]

    async def _acknowledged(self) -> None:
        """Waits until the other side's kernel has all that was sent; a RST would drop the rest."""
        deadline = time.monotonic() + 2.0
        while struct.unpack("i", fcntl.ioctl(self._sink, termios.TIOCOUTQ, bytes(4)))[0] and time.monotonic() < deadline:
            await asyncio.sleep(0.001)


class _Connection:
    """Both ways of one connection. Its sockets are closed by ``close`` and nowhere else, whatever became of ``carry``."""

    def __init__(self, proxy: ToxicProxy, number: int, near: socket.socket) -> None:
        self.reset = False  # is to end, or has ended, with a RST
        self._proxy = proxy
        self._near, self._far = near, socket.socket()
        self._pumps: list[asyncio.Task[None]] = []
        self._pipes = (_Pipe(proxy, proxy.up, number, near, self._far), _Pipe(proxy, proxy.down, number, self._far, near))
        for end in (near, self._far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def beyond_repair(self) -> bool:
        """A way that swallowed some of its bytes is whole again: what follows would be garbage."""
        return any(pipe.lost and not pipe.way.swallows and not pipe.way.stalled for pipe in self._pipes)

    async def carry(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(self._far, self._proxy.target)
            self._pumps = [loop.create_task(pump()) for pipe in self._pipes for pump in (pipe.read, pipe.write)]
            await asyncio.gather(*self._pumps)
        except (OSError, _Reset):
            self.reset = True

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for end in (self._near, self._far):
            if self.reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class ToxicProxy:
    """A context manager: it listens on ``port`` inside. ``seed`` decides the jitter."""

    def __init__(self, target: Address, *, seed: int = 0, port: int = 0) -> None:
        self.target = target
        self.connections = 0  # accepted so far
        self.resets = 0  # connections ended with a RST from here
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.up = Way(self._call, 2 * seed)
        self.down = Way(self._call, 2 * seed + 1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"toxic proxy {self.port}")
        self._open: dict[_Connection, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._change = asyncio.Event()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._noticed = threading.Condition()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(LIMIT_S), "the toxic proxy does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the toxic proxy does not end"

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._open) + len(self._closing)

    def cut(self, *, reset: bool = False) -> None:
        """Ends every open connection, in order (FIN) or with a RST; new ones are welcome."""
        before = self.connections

        def end() -> None:
            for connection in self._open:
                self._end(connection, reset)

        self._call(end)
        self.wait(lambda: self.open <= self.connections - before)

    def wait(self, condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        """Returns once ``condition()`` holds, asked after whatever happens here and every so often; fails after ``limit_s`` seconds."""
        deadline = time.monotonic() + limit_s
        with self._noticed:
            while not self._noticed.wait_for(condition, NOTICE_S):
                assert time.monotonic() < deadline, (
                    f"not within {limit_s:g} s: {self.open} of {self.connections} connections open, "
                    f"up {dict(self.up.counts)} {self.up.happened}, down {dict(self.down.counts)} {self.down.happened}"
                )

    # ---- in the proxy's thread

    def changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        with self._noticed:
            self._noticed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._change.wait()

    def _call(self, change: Callable[[], None]) -> None:
        """Has ``change`` done in the loop, and returns when it is in force."""
        done = threading.Event()

        def do() -> None:
            change()
            for connection in self._open:
                if connection.beyond_repair:
                    self._end(connection, reset=True)
            self.changed()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(LIMIT_S), "the toxic proxy does not answer"

    def _end(self, connection: _Connection, reset: bool) -> None:
        connection.reset = connection.reset or reset
        self._open[connection].cancel()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._listener.close()

    async def _serve(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        self._started.set()
        await self._stop.wait()
        self._loop.remove_reader(self._listener)
        for connection in self._open:
            self._end(connection, reset=False)
        await self.until(lambda: not self._open and not self._closing)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        self.connections += 1
        connection = _Connection(self, self.connections, near)
        self._open[connection] = self._loop.create_task(connection.carry())
        self._open[connection].add_done_callback(lambda task: self._ended(connection, task))
        self.changed()

    def _ended(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        del self._open[connection]
        self.resets += connection.reset
        closing = self._loop.create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closed)
        if not task.cancelled():
            task.result()

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.remove(closing)
        self.changed()
        closing.result()
