"""What ZeroMQ over TCP gives, without either: one connection per DEALER, FIFO in each direction, lost as a whole or not at all.

A pair of nodes has two connections, which overtake each other. A reset loses everything in flight on both of them, and they come back with
new routing ids. A direction that is blocked holds its messages, as TCP does while it sends again; after ``TCP_LIMIT_S`` both connections
break. A payload is read when its send ends, as with a zero-copy send: whoever overwrites it before is found out.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zpala.gossip import codec
from zpala.gossip.actions import Payload, SendDown
from zpala.gossip.buffers import Vector
from zpala.gossip.messages import Data, DownMessage, StateData, UpMessage
from zpala.sim.clock import Clock

if TYPE_CHECKING:
    from zpala.sim.node import SimulatedNode

RECONNECT_S = 0.1
TCP_LIMIT_S = 10.0  # node/sockets.py gives a peer that acknowledges nothing as long
REMEMBERED = 64  # messages that a replay can choose from


@dataclass
class Connection:
    """A DEALER of ``source`` connected to the ROUTER of ``target``."""

    identity: bytes
    source: SimulatedNode
    target: SimulatedNode
    up: bool = False
    last: dict[str, float] = field(default_factory=dict)  # direction -> when its newest message arrives


class Network:
    """Args:
    nodes: the present process of every line; the network looks at it, the cluster changes it.
    latency_s: range of the one-way delay.
    bandwidth: payload bytes per second.
    send_s: range of the time that a zero-copy send holds its buffer.
    reset: probability that a message resets its pair.
    codec_every: every n-th message passes the codec; 0: none.
    """

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        nodes: list[SimulatedNode],
        violations: list[str],
        *,
        latency_s: tuple[float, float],
        bandwidth: float,
        send_s: tuple[float, float],
        reset: float,
        codec_every: int,
    ) -> None:
        self.latency_s = latency_s
        self.bandwidth = bandwidth
        self.reset = reset
        self.sent: Counter[str] = Counter()
        self.resets = 0
        self.held = 0  # messages that a blocked direction has held back
        self.replayed = 0
        self.coded = 0  # messages that passed the codec, and their bytes without payloads
        self.coded_bytes = 0
        self.cut: set[frozenset[int]] = set()
        self.blocked: dict[tuple[int, int], float] = {}  # (from, to) -> since when
        self.drop: Callable[[int, int, Any], bool] = lambda source, target, message: False  # lost with a reset
        self.corrupt: Callable[[int, int, Any, Vector], Vector] = lambda source, target, message, content: content
        self.further_s: Callable[[int, int], float] = lambda source, target: 0.0  # what the way between two lines takes beyond latency_s
        self.held_s: Callable[[int, int], float] = lambda source, target: 0.0  # how long a zero-copy send takes beyond send_s
        self.trace: Callable[[str], None] | None = None
        self._clock = clock
        self._rng = rng
        self._nodes = nodes
        self._violations = violations
        self._send_s = send_s
        self._codec_every = codec_every
        self._encoded = 0
        self._identities = itertools.count(1)
        self._routes: dict[bytes, Connection] = {}
        self._waiting: dict[tuple[int, int], list[tuple[Connection, str, int, Callable[..., None], tuple[Any, ...]]]] = {}
        self._heard: deque[tuple[bytes, int, UpMessage]] = deque(maxlen=REMEMBERED)

    # ---- connections ------------------------------------------------------------------------------------------------------------------

    def dial(self, node: SimulatedNode, line: int) -> None:
        if line not in node.dealers:
            node.dealers[line] = Connection(b"", node, self._nodes[line])
            self._connect(node, line)

    def _connect(self, node: SimulatedNode, line: int) -> None:
        connection = node.dealers.get(line)
        if connection is None or connection.up:
            return
        target = self._nodes[line]
        if target.alive and target.started and self._reaches(node.line, line):
            fresh = Connection(b"c%d" % next(self._identities), node, target, up=True)
            node.dealers[line] = fresh
            self._routes[fresh.identity] = fresh
        else:
            self._clock.later(RECONNECT_S, self._connect, node, node, line)

    def _reaches(self, a: int, b: int) -> bool:
        """Both ways: a handshake needs both."""
        if self.cut and frozenset({a, b}) in self.cut:
            return False
        return (a, b) not in self.blocked and (b, a) not in self.blocked

    def hangup(self, node: SimulatedNode, line: int) -> None:
        connection = node.dealers.pop(line, None)
        if connection is not None:
            self._break(connection)

    def _break(self, connection: Connection) -> None:
        connection.up = False
        self._routes.pop(connection.identity, None)

    def died(self, node: SimulatedNode) -> None:
        """Its connections close; who had dialled it tries again."""
        for connection in list(self._routes.values()):
            if connection.source is node or connection.target is node:
                self._break(connection)
                if connection.source is not node and connection.source.alive:
                    self._clock.later(RECONNECT_S, self._connect, connection.source, connection.source, node.line)

    def started(self, line: int) -> None:
        """A new process listens: whoever has a DEALER for it connects soon."""
        for other in self._nodes:
            if other.alive and line in other.dealers:
                self._clock.later(RECONNECT_S, self._connect, other, other, line)

    # ---- faults -----------------------------------------------------------------------------------------------------------------------

    def reset_pair(self, a: int, b: int) -> None:
        """Both connections of the pair lose what is in flight and come back after a while."""
        self.resets += 1
        for source, target in ((a, b), (b, a)):
            connection = self._nodes[source].dealers.get(target)
            if connection is not None and connection.up:
                self._break(connection)
                self._clock.later(RECONNECT_S / 2, self._connect, self._nodes[source], self._nodes[source], target)

    def partition(self, left: Iterable[int], right: Iterable[int]) -> None:
        """Nothing passes, and both sides notice at once."""
        for a, b in itertools.product(left, right):
            self.cut.add(frozenset({a, b}))
            self.reset_pair(a, b)

    def block(self, source: int, target: int) -> None:
        """Nothing passes in this one direction, and nobody is told."""
        self.blocked[source, target] = self._clock.now
        self._clock.later(TCP_LIMIT_S, self._give_up, None, source, target, self._clock.now)

    def _give_up(self, source: int, target: int, since: float) -> None:
        if self.blocked.get((source, target)) == since:
            self._waiting.pop((source, target), None)
            self.reset_pair(source, target)

    def unblock(self, source: int, target: int) -> None:
        """What was held arrives after all, unless its connection has broken meanwhile."""
        self.blocked.pop((source, target), None)
        for connection, direction, nbytes, deliver, arguments in self._waiting.pop((source, target), []):
            if connection.up:
                self._clock.at(self._arrival(connection, direction, nbytes), deliver, None, *arguments)

    def heal(self) -> None:
        self.cut.clear()
        for source, target in list(self.blocked):
            self.unblock(source, target)

    def replay(self) -> None:
        """A message arrives once more, late, on the link that it came by: that link and its session may be over, its process too."""
        if not self._heard:
            return
        identity, line, message = self._rng.choice(self._heard)
        target = self._nodes[line]
        if target.alive and target.started:
            self.replayed += 1
            self._clock.give(target, self._hand_up, target, identity, message)

    # ---- messages ---------------------------------------------------------------------------------------------------------------------

    def send_up(self, node: SimulatedNode, line: int, message: UpMessage) -> None:
        connection = node.dealers.get(line)
        if connection is None or not connection.up:
            node.do(node.protocol.on_link_lost(None, line, self._clock.now))
            return
        self.sent[type(message).__name__] += 1
        if not self._lost(node.line, line, message):
            message = self._coded(message, codec.decode_up)
            self._travel(connection, "up", 0, self._deliver_up, connection, message)

    def send_down(self, node: SimulatedNode, action: SendDown) -> None:
        connection = self._routes.get(action.link)
        payload = action.payload
        if connection is None or not connection.up or connection.target is not node:
            if payload is not None:
                self._clock.later(0.0, self._sent, node, node, payload)
            node.do(node.protocol.on_link_lost(action.link, None, self._clock.now))
            return
        self.sent[type(action.message).__name__] += 1
        lost = self._lost(node.line, connection.source.line, action.message)
        message = self._coded(action.message, codec.decode_down)
        if payload is None:
            if not lost:
                self._travel(connection, "down", 0, self._deliver_down, connection, message, None)
            return
        array = node.protocol.payload_array(payload)
        hold_s = self._rng.uniform(*self._send_s) + self.held_s(node.line, connection.source.line)
        connection.last["down"] = max(connection.last.get("down", 0.0), self._clock.now + hold_s)
        self._clock.at(connection.last["down"], self._transmit, None, node, connection, message, payload, array, array.tobytes(), lost)

    def _transmit(
        self, node: SimulatedNode, connection: Connection, message: DownMessage, payload: Payload, array: Vector, before: bytes, lost: bool
    ) -> None:
        if node.alive and array.tobytes() != before:
            self._violations.append(f"{payload} of node {node.line} was overwritten while it was being sent")
        content = self.corrupt(node.line, connection.source.line, message, array.copy())
        self._sent(node, payload)
        if not lost and connection.up:
            self._travel(connection, "down", array.nbytes, self._deliver_down, connection, message, content)

    def _sent(self, node: SimulatedNode, payload: Payload) -> None:
        if node.alive:
            self._clock.give(node, lambda: node.do(node.protocol.on_sent(payload, self._clock.now)))

    def _travel(self, connection: Connection, direction: str, nbytes: int, deliver: Callable[..., None], *arguments: Any) -> None:
        if self.blocked:
            ends = connection.source.line, connection.target.line
            way = ends if direction == "up" else ends[::-1]
            if way in self.blocked:
                self.held += 1
                self._waiting.setdefault(way, []).append((connection, direction, nbytes, deliver, arguments))
                return
        self._clock.at(self._arrival(connection, direction, nbytes), deliver, None, *arguments)

    def _arrival(self, connection: Connection, direction: str, nbytes: int) -> float:
        now, (least_s, most_s) = self._clock.now, self.latency_s
        way_s = least_s + (most_s - least_s) * self._rng.random() + self.further_s(connection.source.line, connection.target.line)
        arrival = max(now + way_s + nbytes / self.bandwidth, connection.last.get(direction, -math.inf))
        connection.last[direction] = arrival
        return arrival

    def _lost(self, source: int, target: int, message: Any) -> bool:
        if self.trace is not None:
            self.trace(f"{source} -> {target} {message}")
        if self.drop(source, target, message) or self._rng.random() < self.reset:
            self.reset_pair(source, target)
            return True
        return False

    def _coded(self, message: Any, decode: Callable[[bytes], Any]) -> Any:
        self._encoded += 1
        if self._codec_every and self._encoded % self._codec_every == 0:
            frame = codec.encode(message)
            self.coded += 1
            self.coded_bytes += len(frame)
            copy = decode(frame)
            if copy != message:
                self._violations.append(f"the codec changed {message} to {copy}")
            return copy
        return message

    def _deliver_up(self, connection: Connection, message: UpMessage) -> None:
        target = connection.target
        if connection.up and target.alive:
            self._heard.append((connection.identity, target.line, message))
            self._clock.give(target, self._hand_up, target, connection.identity, message)

    def _hand_up(self, node: SimulatedNode, identity: bytes, message: UpMessage) -> None:
        node.hear(identity, message)

    def _deliver_down(self, connection: Connection, message: DownMessage, content: Vector | None) -> None:
        source, line = connection.source, connection.target.line
        if connection.up and source.alive:
            self._clock.give(source, self._receive, source, line, message, content)

    def _receive(self, node: SimulatedNode, line: int, message: DownMessage, content: Vector | None) -> None:
        if content is not None and not isinstance(message, Data | StateData):
            self._violations.append(f"a payload with {message}")
        payload = None if content is None else content.data.cast("B")
        node.do(node.protocol.on_down(line, message, payload, self._clock.now))
