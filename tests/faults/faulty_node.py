"""A real node that comes to harm at a named step of the protocol: its proxy's executor is replaced before the program runs.

    python faulty_node.py before_ok kill [--after N] [--record FILE] zpala node --peers hosts.txt ...
    python faulty_node.py before_data go-on --record FILE gossip --peers hosts.txt ...

The step is met in the exchange after ``--after`` others that came to it. The process says so in a line that starts with "fault:", notes in
FILE (npz) the vector that it froze for the exchange and the delta that it would add, and then does the deed. Nothing of this is in the
package: the steps are found where ``ProxyLoop`` carries out an action.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import runpy
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.gossip.actions import Action, Payload
from zpala.gossip.buffers import Vector
from zpala.node import proxy
from zpala.node.proxy_loop import ProxyLoop

ACKNOWLEDGED_LIMIT_S = 10.0
_BYTES_ACKED = slice(120, 128)  # of struct tcp_info
_LISTEN = 10  # its first byte

T = TypeVar("T")


class Point(StrEnum):
    """Steps of an exchange. Its own OK may travel inside DATA."""

    BEFORE_ACCEPT = "before_accept"
    BEFORE_DATA = "before_data"
    BEFORE_OK = "before_ok"
    AFTER_OK = "after_ok"  # the peer's kernel has acknowledged it


class Deed(StrEnum):
    KILL = "kill"  # SIGKILL
    STOP = "stop"  # SIGSTOP; after SIGCONT it goes on as if nothing had been
    RAISE = "raise"  # an exception in the proxy's thread
    GO_ON = "go-on"  # nothing; and from then on it is noted at every exchange


class InjectedFault(Exception):
    pass


class FaultyLoop(ProxyLoop):
    """Carries out actions, and the plan."""

    point: ClassVar[Point]
    deed: ClassVar[Deed]
    after: ClassVar[int]
    record: ClassVar[Path | None]
    _met: ClassVar[list[m.ExchangeId]] = []  # exchanges that came to the point
    _said_ok: ClassVar[set[m.ExchangeId]] = set()

    def _send_up(self, line: int, message: m.UpMessage) -> Iterable[Action]:
        if isinstance(message, m.Ok):
            nbytes = len(codec.encode(message))
            return self._with_ok(message.xid, line, nbytes, lambda: super(FaultyLoop, self)._send_up(line, message))
        return super()._send_up(line, message)

    def _send_down(self, link: bytes, message: m.DownMessage, payload: Payload | None) -> Iterable[Action]:
        def send() -> Iterable[Action]:
            return super(FaultyLoop, self)._send_down(link, message, payload)

        if not isinstance(message, m.Accept | m.Data):
            return send()
        member = self._protocol._membership.of_link(link)
        line = -1 if member is None else member.line
        if isinstance(message, m.Accept):
            self._meet(Point.BEFORE_ACCEPT, message.xid, line)
            return send()
        self._meet(Point.BEFORE_DATA, message.xid, line)
        return self._with_ok(message.xid, line, len(codec.encode(message)) + message.snapshot.nbytes, send) if message.ok else send()

    def _with_ok(self, xid: m.ExchangeId, line: int, nbytes: int, send: Callable[[], T]) -> T:
        """The first OK of an exchange, in a message of ``nbytes``; repetitions are no steps."""
        if xid in self._said_ok:
            return send()
        self._said_ok.add(xid)
        self._meet(Point.BEFORE_OK, xid, line)
        before, _ = _written()
        sent = send()
        if self.point is Point.AFTER_OK:
            deadline = time.monotonic() + ACKNOWLEDGED_LIMIT_S
            while True:
                written, unacknowledged = _written()
                if written >= before + nbytes and not unacknowledged:
                    break
                if time.monotonic() > deadline:
                    raise InjectedFault("the OK does not leave this machine")
        self._meet(Point.AFTER_OK, xid, line)
        return sent

    def _meet(self, point: Point, xid: m.ExchangeId, line: int) -> None:
        if point is not self.point or xid in self._met:
            return
        self._met.append(xid)
        met = len(self._met) - 1
        if met < self.after or (met > self.after and self.deed is not Deed.GO_ON):
            return
        if self.record is not None:
            self._note(self.record, xid)
        role = "initiator" if xid.line != line else "responder"
        # One write, not print: the learner's thread writes lines as well.
        os.write(sys.stdout.fileno(), f"fault: {point} of exchange {xid.number} with line {line}, {role}\n".encode())
        match self.deed:
            case Deed.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Deed.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Deed.RAISE:
                raise InjectedFault(f"{point} of exchange {xid.number}")

    def _note(self, path: Path, xid: m.ExchangeId) -> None:
        own, delta = self._vectors(xid)
        beside = path.with_name(f"new-{path.name}")
        np.savez(beside, own=own, delta=delta)
        beside.replace(path)

    def _vectors(self, xid: m.ExchangeId) -> tuple[Vector, Vector]:
        """What was frozen for the exchange, and the delta that came of it; zeros before there is one."""
        exchanges, shadow = self._protocol._exchanges, self._protocol._shadow
        current = exchanges.current
        if current is not None and current.xid == xid:
            own = exchanges._pool[current.own]
            return own, exchanges._pool[current.theirs] if current.has_data else np.zeros_like(own)
        # It has the peer's OK too: the delta is queued, and the vector that was frozen is the shadow without it.
        delta = exchanges._pool[shadow._queued[-1].buffer]
        own = exchanges._pool[shadow._buffer].copy()
        missing = [exchanges._pool[queued.buffer] for queued in shadow._missing]
        for earlier in missing[:-1]:
            own += earlier
        if not missing:  # it was frozen again at once
            own -= delta
        return own, delta


def _written() -> tuple[int, int]:
    """Bytes that this process has written to all its TCP connections, and how many of them the peers have not acknowledged yet."""
    total = waiting = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    information = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                    if information[0] == _LISTEN:
                        continue
                    (unacknowledged,) = struct.unpack("i", fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)))
                    total += struct.unpack("=Q", information[_BYTES_ACKED])[0] + unacknowledged
                    waiting += unacknowledged
        except OSError:  # closed meanwhile
            continue
    return total, waiting


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("point", type=Point)
    parser.add_argument("deed", type=Deed)
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--record", type=Path, default=None)
    parser.add_argument("program", choices=("zpala", "gossip"))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    FaultyLoop.point, FaultyLoop.deed = given.point, given.deed
    FaultyLoop.after, FaultyLoop.record = given.after, given.record
    setattr(proxy, "ProxyLoop", FaultyLoop)  # noqa: B010 (the module does not export the name)
    sys.argv = [given.program, *given.words]
    if given.program == "zpala":
        runpy.run_module("zpala", run_name="__main__")
    else:
        runpy.run_path(str(Path(__file__).with_name("gossip_node.py")), run_name="__main__")


if __name__ == "__main__":
    main()
