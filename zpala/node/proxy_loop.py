"""What runs in the proxy's thread: polls, lets the protocol decide, carries out its actions.

Owned by the thread: the order of things within a turn, the mail that waits for the learner, the zero-copy sends under way. The sockets are
made and closed by ``proxy``; frames are taken apart by ``frames``; nothing is decided here. Every send is DONTWAIT; one that fails is lost
and the protocol retransmits. No turn waits for anybody; the ROUTER has at most ``MESSAGES_PER_TURN`` messages of it, a DEALER at most
``frames.UNBROKEN_MAX`` frames: whoever has more to say at once is dialled anew.

What a link says too much is read away, not left lying: libzmq reads links in turn, and what is left lying would hold up everybody's
messages. But not as fast as it comes, or a flood would take a core. Once a link has been refused twice in a turn the ROUTER rests for
``REST_S``: so each link of a flood is read once or twice in that time, and an honest message comes that much later.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import zmq

from zpala.gossip import actions as act
from zpala.gossip import codec, events
from zpala.gossip import messages as m
from zpala.node import frames, sockets
from zpala.node.door import Door
from zpala.node.hosts_file import Growth
from zpala.node.links import Links
from zpala.node.mailbox import GateChanged, LeaveRun, Mailbox, ProxyCounters, RunFinished, SnapshotReady, StateAdopted
from zpala.node.security import Admission
from zpala.node.worker import WorkerControl

if TYPE_CHECKING:
    from zpala.gossip.protocol import Protocol

POLL_MAX_S: Final = 0.1
TRACKER_POLL_S: Final = 0.02  # how soon the end of a zero-copy send is noticed while nothing else happens
MESSAGES_PER_TURN: Final = 32  # of the ROUTER, before the others have their turn
REST_S: Final = 0.001
COUNTERS_INTERVAL_S: Final = 1.0
LEAVE_LIMIT_S: Final = 1.5  # a node that is told to leave says LEAVE within about a second

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_log = logging.getLogger(__name__)


class ProxyLoop:
    """One node's loop; its poller polls the links' sockets too."""

    def __init__(
        self,
        protocol: Protocol,
        router: sockets.Socket,
        links: Links,
        mailbox: Mailbox,
        poller: zmq.Poller,
        clock: Callable[[], float],
        admission: Admission,
        door: Door,
        growths: deque[Growth],
    ) -> None:
        self._protocol = protocol
        self._router = router
        self._links = links
        self._mailbox = mailbox
        self._poller = poller
        self._clock = clock
        self._admission = admission
        self._door = door
        self._growths = growths
        self._reader = frames.FrameReader(authenticated=admission.keyed)
        self._in_flight: list[tuple[zmq.MessageTracker, act.Payload]] = []
        self._outbox: deque[object] = deque()
        self._leaving = False  # the protocol has been told to leave
        self._has_left = False  # it has said so
        self._counters_due = clock()
        self._tally = _Tally()
        self._rests_until: float | None = None  # the ROUTER is not polled
        self._unread_s = 0.0  # CPU time of this turn for messages that were not admitted

    def run(self, control: WorkerControl) -> None:
        """Runs until the stop message, and then, unless the protocol has taken its leave, until it has or ``LEAVE_LIMIT_S`` is over."""
        for waited_for in (control.socket, self._router, self._mailbox.socket):
            self._poller.register(waited_for, zmq.POLLIN)
        self._perform(self._protocol.start(self._clock()))
        control.ready()
        while not control.stop_requested():
            self._poll_and_turn()
        self._poller.unregister(control.socket)
        if not self._leaving and not self._has_left:
            self._perform(self._protocol.on_stop(self._clock()))
        limit = self._clock() + LEAVE_LIMIT_S
        while not self._has_left and self._clock() < limit:
            self._poll_and_turn()

    def _poll_and_turn(self) -> None:
        if self._rests_until is not None and self._clock() >= self._rests_until:
            self._rests_until = None
            self._poller.register(self._router, zmq.POLLIN)
        ready = dict(self._poller.poll(self._poll_timeout_ms()))
        began, cpu_began_s = self._clock(), time.thread_time()
        self._turn(ready)
        spent_s = time.thread_time() - cpu_began_s
        now = self._clock()
        self._perform(self._protocol.on_cost(max(0.0, spent_s - self._unread_s), now))  # or a flood would stop this node's own offers
        self._unread_s = 0.0
        self._tally.cpu_s += spent_s
        self._tally.loop_gap_max_s = max(self._tally.loop_gap_max_s, now - began)
        self._post(now)

    def _poll_timeout_ms(self) -> int:
        now = self._clock()
        wait_s = min(self._protocol.deadline() - now, TRACKER_POLL_S if self._in_flight else POLL_MAX_S)
        if self._rests_until is not None:
            wait_s = min(wait_s, self._rests_until - now)
        return max(0, math.ceil(wait_s * 1000))

    def _turn(self, ready: Mapping[object, int]) -> None:
        """One round over everything that has something to say."""
        protocol = self._protocol
        self._admission.serve(ready)
        if self._links.read_monitors(ready):
            self._perform(protocol.on_denied(self._clock()))
        while self._growths:
            self._grow(self._growths.popleft())
        if self._mailbox.socket in ready:
            for message in self._mailbox.receive():
                self._on_mail(message)
        if self._links.resolver.socket in ready:
            self._links.on_resolved()
        if self._router in ready:
            self._read_router()
        for line, dealer in self._links.dealers():
            happened = ready.get(dealer, 0)
            if happened & zmq.POLLOUT:
                self._links.on_writable(line)
            if happened & zmq.POLLIN:
                self._read_dealer(line, dealer)
        self._finish_sends()
        now = self._clock()
        if now >= protocol.deadline():
            self._perform(protocol.on_timer(now))
        self._links.redial(now)
        self._door.watch(now)

    def _grow(self, growth: Growth) -> None:
        """hosts.txt has changed: whom to let in and where to dial first, then the protocol, which dials."""
        hosts = growth.hosts
        public = {host.line: host.key or "" for host in hosts}
        self._admission.allow(frozenset(public.values()))
        self._links.know({host.line: (host.address, host.port) for host in hosts}, public)
        self._perform(self._protocol.on_hosts(hosts, growth.topology, self._clock()))

    # ---- from the learner

    def _on_mail(self, message: object) -> None:
        protocol, now = self._protocol, self._clock()
        match message:
            case SnapshotReady(buffer, published):
                self._perform(protocol.on_published(published, buffer, now))
            case events.StateCaptured():
                self._perform(protocol.on_state_captured(message, now))
            case GateChanged(closed):
                self._perform(protocol.on_gate(closed, now))
            case RunFinished(reason):
                self._perform(protocol.on_finished(reason, now))
            case StateAdopted():
                self._perform(protocol.on_adopted(now))
            case LeaveRun():
                self._leaving = True
                self._perform(protocol.on_stop(now))
            case _:
                raise TypeError(f"the learner sent {message!r}, which is not for the proxy")

    # ---- from the network

    def _read_router(self) -> None:
        began_s, unread_before = time.thread_time(), self._tally.rate_limited
        read = self._read_ups()
        unread = self._tally.rate_limited - unread_before
        if unread:
            self._unread_s += (time.thread_time() - began_s) * unread / read

    def _read_ups(self) -> int:
        """How many it were."""
        refused: set[bytes] = set()
        for number in range(MESSAGES_PER_TURN):
            up = self._reader.read_up(self._router, self._admits)
            if up is None:
                return number
            self._tally.received(up.nbytes)
            if up.message is None:
                self._tally.rate_limited += 1
                self._perform(self._protocol.on_unread(up.link, self._clock()))
                if up.link in refused:
                    self._rests_until = self._clock() + REST_S
                    self._poller.unregister(self._router)
                    return number + 1
                refused.add(up.link)
            elif isinstance(up.message, codec.ProtocolError):
                self._refuse(None, up.link, up.message)
            else:
                self._perform(self._protocol.on_up(up.link, up.message, self._clock(), up.key))
        return MESSAGES_PER_TURN

    def _admits(self, link: bytes, kind: type | None) -> bool:
        return self._protocol.admits(link, kind, self._clock())

    def _read_dealer(self, line: int, dealer: sockets.Socket) -> None:
        """Reads it until it is empty. It must not be read for longer, so whoever says more at a time loses the link for a while."""
        left = frames.UNBROKEN_MAX
        while left >= 2:
            down = None if dealer.closed else self._reader.read_down(dealer, left)
            if down is None:  # empty, or an action has hung up
                return
            left -= down.frames
            self._tally.received(down.nbytes)
            if isinstance(down.message, codec.ProtocolError):
                self._refuse(line, None, down.message)
            else:
                self._perform(self._protocol.on_down(line, down.message, down.payload, self._clock()))
        if not dealer.closed:
            self._links.drop(line, self._clock())
            self._refuse(line, None, codec.ProtocolError("limit", f"{frames.UNBROKEN_MAX - left} frames at a time: it is dialled anew"))

    def _refuse(self, line: int | None, link: bytes | None, error: codec.ProtocolError) -> None:
        self._tally.bad_frames += 1
        self._perform(self._protocol.on_bad_frame(line, link, error, self._clock()))

    # ---- to the network and the learner

    def _perform(self, actions: Iterable[act.Action]) -> None:
        """Carries out actions in order; what they cause in turn comes after them."""
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case act.SendUp(line, message):
                    todo.extend(self._send_up(line, message))
                case act.SendDown(link, message, payload):
                    todo.extend(self._send_down(link, message, payload))
                case act.Dial(line):
                    self._links.dial(line)
                case act.Hangup(line):
                    self._links.hangup(line)
                case act.ToLearner(event):
                    self._outbox.append(event)
                    self._has_left = self._has_left or isinstance(event, events.Drained | events.Fatal)
                case act.Log(level, text):
                    _log.log(_LEVELS[level], text)

    def _send_up(self, line: int, message: m.UpMessage) -> Iterable[act.Action]:
        frame, now = codec.encode(message), self._clock()
        if not self._links.send(line, frame, now, keep=isinstance(message, m.Hello)):
            self._tally.sends_lost += 1
            return self._protocol.on_link_lost(None, line, now)
        return ()

    def _send_down(self, link: bytes, message: m.DownMessage, payload: act.Payload | None) -> Iterable[act.Action]:
        header = codec.encode(message)
        array = None if payload is None else self._protocol.payload_array(payload)
        sent = frames.send_down(self._router, link, header, array)
        now = self._clock()
        if sent is False:
            self._tally.sends_lost += 1
            lost = [] if payload is None else self._protocol.on_sent(payload, now)
            return [*lost, *self._protocol.on_link_lost(link, None, now)]
        self._tally.sent(len(header) + (0 if array is None else array.nbytes))
        if payload is None or isinstance(sent, bool):
            return ()
        if sent.done:
            return self._protocol.on_sent(payload, now)
        self._in_flight.append((sent, payload))
        return ()

    def _finish_sends(self) -> None:
        """Gives buffers back whose zero-copy sends are over: libzmq has handed the last byte to the kernel, or dropped the peer."""
        pending, self._in_flight = self._in_flight, []
        for tracker, payload in pending:
            if tracker.done:
                self._perform(self._protocol.on_sent(payload, self._clock()))
            else:
                self._in_flight.append((tracker, payload))

    def _post(self, now: float) -> None:
        """Mails what the learner is to know. A full mailbox (a learner that hangs) is tried again; of views only the newest waits."""
        if now >= self._counters_due:
            self._counters_due = now + COUNTERS_INTERVAL_S
            self._outbox.append(self._tally.message(self._links, self._admission))
        while self._outbox:
            if not self._mailbox.send(self._outbox[0], limit_s=0):
                self._outbox = _without_superseded(self._outbox)
                return
            self._outbox.popleft()


@dataclass(slots=True)
class _Tally:
    """What ``ProxyCounters`` reports, as it is counted; what went up is counted by ``Links``."""

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sends_lost: int = 0
    bad_frames: int = 0
    rate_limited: int = 0
    loop_gap_max_s: float = 0.0
    cpu_s: float = 0.0

    def received(self, nbytes: int) -> None:
        self.messages_received += 1
        self.bytes_received += nbytes

    def sent(self, nbytes: int) -> None:
        self.messages_sent += 1
        self.bytes_sent += nbytes

    def message(self, links: Links, admission: Admission) -> ProxyCounters:
        """The counters so far, and the longest turn since the last call."""
        gap_s, self.loop_gap_max_s = self.loop_gap_max_s, 0.0
        return ProxyCounters(
            messages_sent=self.messages_sent + links.messages_sent,
            messages_received=self.messages_received,
            bytes_sent=self.bytes_sent + links.bytes_sent,
            bytes_received=self.bytes_received,
            sends_lost=self.sends_lost,
            bad_frames=self.bad_frames,
            rate_limited=self.rate_limited,
            redials=links.redials,
            keys_denied=admission.denied,
            handshakes_failed=links.refusals.count + admission.failed,
            loop_gap_max_s=gap_s,
            cpu_s=self.cpu_s,
        )


def _without_superseded(outbox: Iterable[object]) -> deque[object]:
    """The same mail without the views and counters that a later one replaces; so what waits for a hung learner stays bounded."""
    seen: set[type] = set()
    kept: deque[object] = deque()
    for message in reversed(list(outbox)):
        if isinstance(message, events.View | ProxyCounters):
            if type(message) in seen:
                continue
            seen.add(type(message))
        kept.appendleft(message)
    return kept
