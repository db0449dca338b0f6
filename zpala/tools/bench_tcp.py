"""The least that an exchange can be: two processes, one TCP connection, a reader thread each, and no protocol at all.

Runs twice as a process of its own (see ``bench_peers``). Both sides send their vector at once while a thread of theirs receives the other's
straight into its place, and both compute the mean. Nothing is framed, checked, agreed on or repeated: it is the floor of
``zpala bench exchange``, and one way of it that of ``zpala bench wire``.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zpala.tools.bench_vectors import digest, start_vector
from zpala.tools.child import orders, say
from zpala.tools.parent import die_with_parent

Vector = npt.NDArray[np.float32]

LIMIT_S = 30.0
BLOCK_ELEMENTS = 1 << 17  # 512 KiB: the second step of the mean finds it in the cache


@dataclass(frozen=True, slots=True)
class Settings:
    """``size``: floats of the vector; ``side``: 0 listens, 1 connects."""

    size: int
    side: int


def mean_into(mine: Vector, theirs: Vector) -> None:
    """mine = (mine + theirs) / 2, both f32[size]."""
    for start in range(0, len(mine), BLOCK_ELEMENTS):
        block = mine[start : start + BLOCK_ELEMENTS]
        np.add(block, theirs[start : start + BLOCK_ELEMENTS], out=block)
        np.multiply(block, np.float32(0.5), out=block)


def receive_into(connection: socket.socket, place: memoryview) -> None:
    """Fills ``place``. Raises ConnectionError when the other side ends."""
    filled = 0
    while filled < len(place):
        count = connection.recv_into(place[filled:])
        if not count:
            raise ConnectionError("the other side has gone")
        filled += count


class Reader:
    """The thread that receives: one vector for every ``start``, and ``wait`` until it is there."""

    def __init__(self, connection: socket.socket, place: Vector) -> None:
        self._connection, self._place = connection, place.data.cast("B")
        self._begun: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def start(self) -> None:
        self._begun.put(True)

    def wait(self) -> None:
        if (error := self._done.get(timeout=LIMIT_S)) is not None:
            raise error

    def _run(self) -> None:
        try:
            while self._begun.get():
                receive_into(self._connection, self._place)
                self._done.put(None)
        except OSError as error:
            self._done.put(error)


class Wire:
    """One side: its vector, the place for the other's, the connection."""

    def __init__(self, settings: Settings, connection: socket.socket) -> None:
        self.mine, self.theirs = start_vector(settings.side, settings.size), np.zeros(settings.size, dtype=np.float32)
        self._connection, self._side = connection, settings.side
        self._reader = Reader(connection, self.theirs)

    def exchange(self) -> tuple[float, float]:
        """When it began and when the mean was there."""
        began = time.monotonic()
        self._reader.start()
        self._connection.sendall(self.mine.data.cast("B"))
        self._reader.wait()
        mean_into(self.mine, self.theirs)
        return began, time.monotonic()

    def one_way(self) -> tuple[float, float]:
        """Side 0 sends, side 1 receives and then says so; begin and end are those of the side that calls it."""
        began = time.monotonic()
        if self._side == 0:
            self._connection.sendall(self.mine.data.cast("B"))
            receive_into(self._connection, memoryview(bytearray(1)))
        else:
            receive_into(self._connection, self.theirs.data.cast("B"))
        ended = time.monotonic()
        if self._side == 1:
            self._connection.sendall(b"\0")
        return began, ended


def block(count: int, step: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """``step`` so many times, as ``bench_peers.Block`` wants it."""
    cpu_s = time.process_time()
    stamps = [step() for _ in range(count)]
    cpu_s = time.process_time() - cpu_s
    return {"event": "block", "starts": [s[0] for s in stamps], "ends": [s[1] for s in stamps], "cpu_s": cpu_s, "rows": []}


def main() -> None:
    """Does what its orders say."""
    die_with_parent(os.environ)
    settings = Settings(**json.loads(sys.argv[1]))
    told = orders()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say({"event": "here", "port": listener.getsockname()[1]})
        port = next(told)["peers"][0]["port"]
        listener.settimeout(LIMIT_S)
        connection = listener.accept()[0] if settings.side == 0 else socket.create_connection(("127.0.0.1", port), LIMIT_S)
    with connection:
        connection.settimeout(None)  # a timeout would make every call a poll and a call; the parent has a limit for every block
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(settings, connection)
        say({"event": "ready"})
        for order in told:
            if "result" in order:
                say({"event": "result", **digest(wire.mine)})
            else:
                say(block(order["count"], wire.one_way if order.get("one_way") else wire.exchange))


if __name__ == "__main__":
    main()
