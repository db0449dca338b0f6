"""The data proxy: the one thread that owns every network socket of a node and drives ``gossip.protocol.Protocol``.

Frames, timers and mail from the learner become the protocol's events; its actions become sends, dials and mail (``proxy_loop``). Owned by
the thread: the ROUTER, the DEALERs (``links``), who is let in (``security``), its end of the mailbox. It never imports torch,
never waits for the learner, never waits for a peer. A peer can do no more than be refused: whatever bytes arrive end in a message, in
``on_bad_frame``, or in libzmq's refusal.
A tensor is sent without a copy from the protocol's buffer, which stays untouched until ``on_sent``, and read where libzmq has received it.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import zmq

from zpala.node import sockets
from zpala.node.door import Door
from zpala.node.hosts_file import Growth
from zpala.node.keys import Keyring
from zpala.node.links import Address, Links
from zpala.node.mailbox import Mailbox
from zpala.node.proxy_loop import ProxyLoop
from zpala.node.security import Admission
from zpala.node.worker import Supervisor, Worker, WorkerControl

if TYPE_CHECKING:
    from zpala.gossip.protocol import Protocol

_numbers = itertools.count()


class Proxy:
    """The proxy thread of one node, as the thread that starts it sees it.

    Args:
        context: the node's zmq context.
        supervisor: where a failure of the thread is reported.
        protocol: this node's protocol. It belongs to the proxy thread from ``start()`` on: nobody else may touch it, its
            buffers or its state parts, except as mailbox messages lend them.
        listener: the listening TCP socket of the node's claim; the ROUTER takes it over and closes it in the end.
        addresses: (host, port) of every line of hosts.txt by line index; read whenever a line is dialled.
        dead_link_s: a connection that gives no sign of life for so long is dropped; longer than the longest exchange.
        growths: new lists of hosts, put there by another thread; they replace addresses and public keys.
        keyring: this node's key pair and everybody's public keys: every connection is encrypted and authenticated. None: none is.
        prepare: run first in the new thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        context: sockets.Context,
        supervisor: Supervisor,
        protocol: Protocol,
        *,
        listener: socket.socket,
        addresses: Mapping[int, Address],
        dead_link_s: float = sockets.DEAD_LINK_S,
        growths: deque[Growth] | None = None,
        keyring: Keyring | None = None,
        prepare: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port: int = listener.getsockname()[1]
        self.mailbox: Mailbox  # the learner's end: exists from start() on, belongs to the thread that called it
        self._context = context
        self._protocol = protocol
        self._listener = listener
        self._addresses = addresses
        self._dead_link_s = dead_link_s
        self._growths: deque[Growth] = deque() if growths is None else growths
        self._keyring = keyring
        self._clock = clock
        self._mailbox_address = f"inproc://zpala-mailbox-{next(_numbers)}"
        self._worker = Worker(context, "proxy", self._run, supervisor, prepare=prepare)

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def start(self, limit_s: float = 10.0) -> None:
        """Starts the thread; returns once its ROUTER serves the port and the peers are being dialled. Raises as ``Worker.start``."""
        self.mailbox = Mailbox(sockets.inproc_pair_bound(self._context, self._mailbox_address))
        try:
            self._worker.start(limit_s)
        except BaseException:
            self.mailbox.close()
            raise

    def request_stop(self) -> None:
        """Sends the stop message: the thread says LEAVE unless it has, closes its sockets and ends."""
        self._worker.request_stop()

    def join(self, limit_s: float = 10.0) -> None:
        """Waits for the end of the thread and closes the mailbox. Raises ``WorkerFailed`` after ``limit_s`` seconds."""
        try:
            self._worker.join(limit_s)
        finally:
            self.mailbox.close()

    def stop(self, limit_s: float = 10.0) -> None:
        self.request_stop()
        self.join(limit_s)

    def _run(self, control: WorkerControl) -> None:
        """Makes the sockets, runs the loop, closes the sockets in reverse order."""
        with ExitStack() as stack:
            mailbox = Mailbox(sockets.inproc_pair_connected(self._context, self._mailbox_address))
            stack.callback(mailbox.close)
            poller = zmq.Poller()
            keyring = self._keyring
            allowed = None if keyring is None else frozenset(keyring.public.values())
            admission = Admission(self._context, poller, allowed)  # before anybody can ask
            stack.callback(admission.close)
            own_key = None if keyring is None else keyring.own
            door = Door(self._listener)
            stack.callback(door.close)
            router, _ = sockets.router_socket(self._context, self._listener, self._dead_link_s, own_key, admission.monitor)
            stack.callback(router.close, linger=sockets.LEAVE_LINGER_MS)
            stack.callback(router.disable_monitor)
            door.belongs_to(router)
            links = Links(self._context, poller, self._addresses, self._protocol.buffers[0].nbytes, self._dead_link_s, keyring)
            stack.callback(links.close)
            loop = ProxyLoop(self._protocol, router, links, mailbox, poller, self._clock, admission, door, self._growths)
            loop.run(control)
