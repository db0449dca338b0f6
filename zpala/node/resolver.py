"""Host names to numeric endpoints, off every thread that must not wait.

libzmq resolves names in its I/O threads and stalls all sockets of the context while a name server is silent (libzmq#3243, #2961). So
``connect`` only ever sees numbers, and names are looked up here: numeric hosts at once, others by ``getaddrinfo`` in at most
``LOOKUPS_MAX`` short-lived threads; answers come back over inproc. A ``Resolver`` belongs to the proxy's thread. Each dial asks again,
so a peer that moved is found.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgpack
import zmq

from zpala.node import sockets

LOOKUPS_MAX: Final = 4

_numbers = itertools.count()

Lookup = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of line ``line``'s host: numeric endpoints, IPv4 first; or none, and the reason in ``error``."""

    line: int
    endpoints: tuple[str, ...]
    error: str = ""


def addresses_of(host: str) -> tuple[str, ...]:
    """The numeric addresses of a host, IPv4 first, each once. Waits as long as the system's resolver does. Raises ``OSError``.

    IPv4 comes first because "localhost" has both, and a node that claims a loopback line binds the first one.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(_numeric(entry[4]) for entry in found))


def look_up_all(hosts: Iterable[str], limit_s: float) -> dict[str, tuple[str, ...]]:
    """The addresses of many hosts at once, before anything runs; those that are not known after ``limit_s`` seconds are left out."""
    answers: queue.SimpleQueue[tuple[str, tuple[str, ...]]] = queue.SimpleQueue()

    def run(host: str) -> None:
        try:
            answers.put((host, addresses_of(host)))
        except (OSError, UnicodeError):
            answers.put((host, ()))

    wanted = set(hosts)
    found = {host: addresses_of(host) for host in wanted if is_numeric(host)}
    for host in wanted - found.keys():
        threading.Thread(target=run, args=(host,), name=f"lookup {host}", daemon=True).start()
    deadline = time.monotonic() + limit_s
    with contextlib.suppress(queue.Empty):
        while len(found) < len(wanted):
            host, addresses = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            found[host] = addresses
    return {host: addresses for host, addresses in found.items() if addresses}


def is_numeric(host: str) -> bool:
    """Whether a host is an address already, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _numeric(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """The host of a socket address with its scope ("fe80::1%eth0"), which ``connect`` needs."""
    return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


class Resolver:
    """Answers ``request``s through ``socket``: poll it, then read ``answers()``."""

    def __init__(self, context: sockets.Context, lookup: Lookup = addresses_of) -> None:
        self._context = context
        self._lookup = lookup
        self._address = f"inproc://zpala-resolver-{next(_numbers)}"
        self._waiting: deque[tuple[int, str, int]] = deque()
        self._running: set[int] = set()
        self._untold: deque[int] = deque()  # filled by the threads of lookups, whose answers are lost
        self.socket = sockets.inproc_pull(context, self._address)

    def request(self, line: int, host: str, port: int) -> Resolved | None:
        """The answer, when ``host`` is numeric; otherwise None, and the answer comes later. No line is looked up twice at a time."""
        if is_numeric(host):
            return Resolved(line, (sockets.endpoint(host, port),))
        while self._untold:
            self._running.discard(self._untold.popleft())
        if line not in self._running and all(line != waiting for waiting, _, _ in self._waiting):
            self._waiting.append((line, host, port))
            self._start_lookups()
        return None

    def answers(self) -> Iterator[Resolved]:
        """Every answer that has arrived."""
        while True:
            try:
                line, endpoints, error = msgpack.unpackb(self.socket.recv(zmq.DONTWAIT), use_list=False)
            except zmq.Again:
                return
            self._running.discard(line)
            self._start_lookups()
            yield Resolved(line, endpoints, error)

    def close(self) -> None:
        """Forgets what is being looked up: the threads end by themselves (they are daemons) and find nobody to tell."""
        self._waiting.clear()
        self.socket.close()

    def _start_lookups(self) -> None:
        while self._waiting and len(self._running) < LOOKUPS_MAX:
            line, host, port = self._waiting.popleft()
            self._running.add(line)
            threading.Thread(target=self._run, args=(line, host, port), name=f"lookup {host}", daemon=True).start()

    def _run(self, line: int, host: str, port: int) -> None:
        try:
            endpoints, error = tuple(sockets.endpoint(address, port) for address in self._lookup(host)), ""
        except (OSError, UnicodeError) as failure:  # UnicodeError: a label too long for IDNA
            endpoints, error = (), str(failure)
        try:
            with sockets.inproc_push(self._context, self._address) as push:
                push.send(msgpack.packb([line, endpoints, error]), zmq.DONTWAIT)
        except zmq.ZMQError:  # the proxy has ended meanwhile, or there is no file descriptor left: the next request looks it up again
            self._untold.append(line)
