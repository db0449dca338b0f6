"""Who is let in, and what is said of those who are not: the ZAP handler of a node, its counts and its log lines.

Owned: with keys the ZAP socket, which libzmq asks about the key of everybody who wants to connect; with or without them the end of the
monitor that tells of handshakes that failed before or without that question. Belongs to the proxy's thread and is polled with its sockets,
so there is no thread of its own that could die unseen (pyzmq's ends with the first exception of a callback). What goes wrong while a key is
judged refuses that one connection and nobody else's: a door that is broken stays shut.

The reply names the holder of the connection: the public key in hex becomes the ``User-Id`` of all its messages, out of the sender's reach.
A flood of refusals costs counts, not log lines: each kind of refusal of each source is said once, and of ``SOURCES_MAX`` sources.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from zpala.gossip.fields import clip
from zpala.node import sockets
from zpala.node.keys import KEY_BYTES

REQUESTS_PER_TURN: Final = 32
EVENTS_PER_TURN: Final = 500  # of a monitor, whose queue has no bound: strangers must not fill it faster than it is read
KEYS_PER_SOURCE: Final = 4  # unknown keys of one address that are named
SOURCES_MAX: Final = 64
BROKEN_OFF_MAX: Final = 5  # handshakes that one peer breaks off in a row before somebody is told: a node that starts breaks off some

_GRANTED: Final = b"200"
_DENIED: Final = b"400"
_FAILED: Final = b"500"
_PROTOCOL_ERRORS: Final[Mapping[int, str]] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it uses no keys: does its hosts.txt have none, or an older copy?",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it expects another key here: is this node's public key on this node's line everywhere?",
}
_KEYS_ELSEWHERE: Final = "it uses keys, and this node's hosts.txt has none: give every node the same hosts.txt"

_log = logging.getLogger(__name__)


class Admission:
    """Lets in the holders of ``allowed``, public keys in lower-case hex, and counts and names the others; None: there are no keys.

    To be made before the ROUTER of the same context, which is given ``monitor`` as the place for its failed handshakes, and to be closed
    after it. ``poller`` polls both sockets here.
    """

    def __init__(self, context: sockets.Context, poller: zmq.Poller, allowed: Collection[str] | None) -> None:
        self.denied = 0  # keys that were refused, or could not be judged
        self.failed = 0  # handshakes that ended before there was a key
        self.monitor = sockets.monitor_address()
        self.keyed = allowed is not None
        self._allowed: Collection[str] = () if allowed is None else allowed
        self._zap = sockets.zap_socket(context) if self.keyed else None
        self._failures = sockets.monitor_socket(context, self.monitor)
        self._said: dict[str, set[str]] = {"error": set(), "protocol": set()}  # these two have a place however many addresses there are
        if self._zap is not None:
            poller.register(self._zap, zmq.POLLIN)
        poller.register(self._failures, zmq.POLLIN)

    def allow(self, allowed: Collection[str]) -> None:
        """These are let in from now on; whoever is in stays. Nothing without keys."""
        if self.keyed:
            self._allowed = allowed

    def serve(self, ready: Mapping[object, int]) -> None:
        """Answers what libzmq has asked, and notes what the monitor has told."""
        if self._zap is not None and self._zap in ready:
            for _ in range(REQUESTS_PER_TURN):
                try:
                    request = self._zap.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                self._answer(request)
        if self._failures in ready:
            for event, value in failed_handshakes(self._failures):
                if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # that one is an answer of ``_answer``, counted there
                    self._note_failure(event, value)

    def close(self) -> None:
        self._failures.close()
        if self._zap is not None:
            self._zap.unbind(sockets.ZAP_ADDRESS)  # closing alone frees the address a moment later, in libzmq's own time
            self._zap.close()

    def _answer(self, request: list[bytes]) -> None:
        """One request: [link, "", version, request id, domain, address, identity, mechanism, credentials ...]."""
        try:
            status, text, user = self._judge(request)
        except Exception as error:
            status, text, user = _FAILED, b"the key could not be judged", b""
            self._once("error", str(error), f"a connection was refused because its key could not be judged: {clip(repr(error))}")
        self.denied += status != _GRANTED
        if len(request) > 3 and self._zap is not None:  # else there is nobody to answer: the handshake runs into its limit
            self._zap.send_multipart([request[0], b"", b"1.0", request[3], status, text, user, b""], zmq.DONTWAIT)

    def _judge(self, request: list[bytes]) -> tuple[bytes, bytes, bytes]:
        _, _, version, _, domain, address, _, mechanism, key = request
        if (version, domain, mechanism, len(key)) != (b"1.0", sockets.ZAP_DOMAIN, b"CURVE", KEY_BYTES):
            raise ValueError(f"ZAP {version!r}, domain {domain!r}, mechanism {mechanism!r}, {len(key)} bytes of key")
        public = key.hex()
        if public in self._allowed:
            return _GRANTED, b"OK", public.encode()
        source = address.decode(errors="replace")
        text = f"somebody at {source} was refused: the key {public} stands on no line of hosts.txt; if it is a node's, add it to every copy"
        self._once(source, public, text)
        return _DENIED, b"unknown key", b""

    def _note_failure(self, event: int, value: int) -> None:
        self.failed += 1
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # gone, or silent: a port scan, a check of the port, a node that is stopped
            _log.debug("a connection to this node's port ended before it had said who it is")
            return
        mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
        why = _KEYS_ELSEWHERE if mismatch and not self.keyed else _PROTOCOL_ERRORS.get(value, "it does not speak this protocol")
        self._once("protocol", why, f"a connection to this node's port was refused: {why}")

    def _once(self, source: str, what: str, text: str) -> None:
        """A warning per ``what`` of ``source``, within the limits."""
        if source not in self._said and len(self._said) >= SOURCES_MAX:
            return
        said = self._said.setdefault(source, set())
        if what not in said and len(said) < KEYS_PER_SOURCE:
            said.add(what)
            _log.warning("%s%s", text, "; further ones from there are only counted" if len(said) == KEYS_PER_SOURCE else "")


def failed_handshakes(monitor: sockets.Socket) -> Iterator[tuple[int, int]]:
    """(event, its value) of everything that a monitor has told so far, at most ``EVENTS_PER_TURN``: status, errno or protocol error."""
    for _ in range(EVENTS_PER_TURN):
        try:
            told = parse_monitor_message(monitor.recv_multipart(zmq.DONTWAIT))
        except zmq.Again:
            return
        yield int(told["event"]), int(told["value"])


class Refusals:
    """What the peers that this node dials make of it: says once, by name, which of them do not let it in or cannot prove who they are."""

    def __init__(self, own_public: str) -> None:
        self.count = 0
        self._own_public = own_public
        self._broken_off: Counter[str] = Counter()
        self._said: set[tuple[str, str]] = set()

    def note(self, peer: str, event: int, value: int) -> None:
        """A handshake with ``peer`` (host:port) has failed."""
        self.count += 1
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._once(
                peer, "auth", f"{peer} does not let this node in: this node's key {self._own_public} stands on no line of its hosts.txt"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
            why = "it uses no keys; give every node the same hosts.txt" if mismatch else "it does not speak this protocol"
            self._once(peer, why, f"{peer} was refused: {why}")
        elif value != errno.EAGAIN:  # that one ran out of time: a node that starts listens before it answers
            self._broken_off[peer] += 1
            if self._broken_off[peer] == BROKEN_OFF_MAX:
                self._once(peer, "broken off", f"{peer} breaks off every handshake: is the key on its line of hosts.txt really its own?")

    def succeeded(self, peer: str) -> None:
        """``peer`` has let this node in: what comes later is news again."""
        self._broken_off.pop(peer, None)
        self._said = {(other, what) for other, what in self._said if other != peer}

    def _once(self, peer: str, what: str, text: str) -> None:
        if (peer, what) not in self._said:
            self._said.add((peer, what))
            _log.warning("%s", text)
