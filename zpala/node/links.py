"""The DEALERs of a proxy, one per dialled line of hosts.txt: when they are made, what waits for them, when they are made anew.

Belongs to the proxy's thread, as do all its sockets. ``immediate`` is set on every DEALER, so a send fails at once while nobody is
connected, and what fails is lost: the protocol retransmits. Only a HELLO is kept, the last one, and sent as soon as there is a connection;
otherwise each start would lose a whole ``hello_s`` to a connection that takes a millisecond.

libzmq reconnects by itself, but neither asks for the address again nor comes back after a peer has sent it an oversize frame (the session
ends with a protocol error), nor after a peer has refused its key. So a link whose sends fail for ``REDIAL_S`` is closed and made anew, its
name looked up again, with back-off; so is one that was dropped. With keys, a monitor per DEALER tells why handshakes fail.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import zmq

from zpala.node import frames, sockets
from zpala.node.keys import Keyring
from zpala.node.resolver import Resolved, Resolver
from zpala.node.security import Refusals, failed_handshakes

REDIAL_S: Final = 5.0
REDIAL_MAX_S: Final = 60.0
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE)

Address = tuple[str, int]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Link:
    line: int
    dealer: sockets.Socket | None = None  # None while the name is being looked up
    monitor: sockets.Socket | None = None  # of the dealer; None without keys
    hello: bytes | None = None  # waits for the connection
    failing_since: float | None = None
    redial_after_s: float = REDIAL_S
    dials: int = 0
    error: str = ""


class Links:
    """The outgoing connections of one node. ``poller`` polls every DEALER here, their monitors, and the resolver."""

    def __init__(
        self,
        context: sockets.Context,
        poller: zmq.Poller,
        addresses: Mapping[int, Address],
        payload_bytes: int,
        dead_link_s: float = sockets.DEAD_LINK_S,
        keyring: Keyring | None = None,
    ) -> None:
        self._context = context
        self._poller = poller
        self._addresses = addresses
        self._payload_bytes = payload_bytes
        self._dead_link_s = dead_link_s
        self._keyring = keyring
        self.refusals = Refusals("" if keyring is None else keyring.own.public)
        self._no_room = False  # has been said
        self._links: dict[int, _Link] = {}
        self._lines: dict[sockets.Socket, int] = {}
        self.resolver = Resolver(context)
        self.redials = 0
        self.messages_sent = 0
        self.bytes_sent = 0
        poller.register(self.resolver.socket, zmq.POLLIN)

    def know(self, addresses: Mapping[int, Address], public: Mapping[int, str]) -> None:
        """Everybody's addresses and, with keys, public keys from now on; what is dialled already stays so."""
        self._addresses = addresses
        if self._keyring is not None:
            self._keyring = Keyring(self._keyring.own, public)

    def dial(self, line: int) -> None:
        """Opens a DEALER to ``line``; nothing when there is one."""
        if line not in self._links:
            self._links[line] = _Link(line)
            self._connect(self._links[line])

    def hangup(self, line: int) -> None:
        """Closes the DEALER to ``line`` once what was sent is out, or after half a second; nothing when there is none."""
        link = self._links.pop(line, None)
        if link is not None:
            self._disconnect(link)

    def drop(self, line: int, now: float) -> None:
        """Closes the DEALER to ``line``; it is made anew as one whose sends have failed since ``now``. Nothing when there is none."""
        link = self._links.get(line)
        if link is not None:
            self._disconnect(link)
            link.failing_since = now

    def send(self, line: int, frame: bytes, now: float, *, keep: bool) -> bool:
        """Sends one frame, or, with ``keep``, keeps it until there is a connection. False: it is lost."""
        link = self._links.get(line)
        if link is None:
            return False
        if not keep:
            self.on_writable(line)  # a HELLO that waits goes first; a new one replaces it
        if link.dealer is not None and frames.send_up(link.dealer, frame):
            self._sent(link, frame)
            return True
        link.failing_since = now if link.failing_since is None else link.failing_since
        if keep:
            link.hello = frame
            self._poll(link)
        return keep

    def dealers(self) -> Iterator[tuple[int, sockets.Socket]]:
        """Line and DEALER of every open link."""
        return ((line, dealer) for dealer, line in list(self._lines.items()))

    def on_writable(self, line: int) -> None:
        """The DEALER to ``line`` has a connection: sends the HELLO that waited for it."""
        link = self._links.get(line)
        if link is not None and link.dealer is not None and link.hello is not None and frames.send_up(link.dealer, link.hello):
            self._sent(link, link.hello)

    def on_resolved(self) -> None:
        """Connects every link whose name has been looked up."""
        for answer in self.resolver.answers():
            link = self._links.get(answer.line)
            if link is not None and link.dealer is None:
                self._open(link, answer)

    def read_monitors(self, ready: Mapping[object, int]) -> bool:
        """Notes which handshakes have failed; True when one of them failed because the peer does not know this node's key."""
        denied = False
        if self._keyring is not None:
            for link in self._links.values():
                if link.monitor is not None and link.monitor in ready:
                    for event, value in failed_handshakes(link.monitor):
                        denied = denied or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                        self.refusals.note(self._peer(link), event, value)
        return denied

    def redial(self, now: float) -> None:
        """Makes every link anew that has failed for long enough."""
        for link in self._links.values():
            if link.failing_since is not None and now - link.failing_since >= link.redial_after_s:
                link.failing_since = now
                link.redial_after_s = min(2 * link.redial_after_s, REDIAL_MAX_S)
                self.redials += 1
                self._disconnect(link)
                self._connect(link)

    def close(self) -> None:
        for link in self._links.values():
            self._disconnect(link)
        self._links.clear()
        self.resolver.close()

    def _connect(self, link: _Link) -> None:
        answer = self.resolver.request(link.line, *self._addresses[link.line])
        if answer is not None:
            self._open(link, answer)

    def _open(self, link: _Link, answer: Resolved) -> None:
        if answer.error != link.error:  # said once per change, not once per attempt
            link.error = answer.error
            host, port = self._addresses[link.line]
            if answer.error:
                _log.warning("%s:%d cannot be dialled: the name is not known here (%s); asking again", host, port, answer.error)
        if not answer.endpoints:
            return
        address = answer.endpoints[link.dials % len(answer.endpoints)]  # a name may have several: the next dial tries the next one
        link.dials += 1
        try:
            link.dealer, link.monitor = self._sockets(link.line, address)
        except zmq.ZMQError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._tell_no_room(error)  # strangers may have taken it: what is sent fails, and the link is made anew
            return
        if link.monitor is not None:
            self._poller.register(link.monitor, zmq.POLLIN)
        self._lines[link.dealer] = link.line
        self._poll(link)

    def _sockets(self, line: int, address: str) -> tuple[sockets.Socket, sockets.Socket | None]:
        """A DEALER to ``address`` and, with keys, the end of its monitor."""
        if self._keyring is None:
            return sockets.dealer_socket(self._context, address, self._payload_bytes, self._dead_link_s), None
        place, peer_key = sockets.monitor_address(), self._keyring.public_bytes(line)
        dealer = sockets.dealer_socket(self._context, address, self._payload_bytes, self._dead_link_s, self._keyring.own, peer_key, place)
        try:
            return dealer, sockets.monitor_socket(self._context, place)
        except BaseException:
            dealer.disable_monitor()
            dealer.close()
            raise

    def _tell_no_room(self, error: zmq.ZMQError) -> None:
        if not self._no_room:
            self._no_room = True
            _log.warning("a peer cannot be dialled for now: %s (limit -n of the shell); trying again", error)

    def _disconnect(self, link: _Link) -> None:
        dealer, link.dealer = link.dealer, None
        monitor, link.monitor = link.monitor, None
        if dealer is not None and monitor is not None:
            dealer.disable_monitor()
            self._poller.unregister(monitor)
            monitor.close()
        if dealer is not None:
            self._poller.unregister(dealer)
            del self._lines[dealer]
            dealer.close(linger=sockets.LEAVE_LINGER_MS)

    def _peer(self, link: _Link) -> str:
        host, port = self._addresses[link.line]
        return f"{host}:{port}"

    def _poll(self, link: _Link) -> None:
        if link.dealer is not None:
            self._poller.register(link.dealer, zmq.POLLIN | zmq.POLLOUT if link.hello is not None else zmq.POLLIN)

    def _sent(self, link: _Link, frame: bytes) -> None:
        self.messages_sent += 1
        self.bytes_sent += len(frame)
        if link.failing_since is not None:
            self.refusals.succeeded(self._peer(link))
        link.failing_since = None
        link.redial_after_s = REDIAL_S
        if link.hello is not None:
            link.hello = None
            self._poll(link)
