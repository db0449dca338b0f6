"""N protocols with toy learners, joined by a network in memory on a virtual clock. Deterministic per seed; nothing sleeps.

The network is what ZeroMQ gives: one connection per DEALER, FIFO in each direction, so a pair has two connections that overtake each
other; a reset loses everything in flight on both connections of a pair and they come back with new routing ids. A payload is read
when its send ends, as with a zero-copy send: whoever overwrites it before is caught by the checksum.

A toy learner drifts: every update adds noise to its vector, booked in the ledger. The last coordinate is 1 on every node and never
drifts, so it must stay exactly 1. Learners apply deltas at update boundaries, obey the gate, and drain at the end.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zpala.gossip import codec
from zpala.gossip.actions import Action, Dial, Hangup, Log, Payload, SendDown, SendUp, ToLearner
from zpala.gossip.buffers import Vector
from zpala.gossip.events import AdoptState, CaptureState, DeltaQueued, Drained, Fatal, Published, Start, StateCaptured, View
from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.gate import Closed, Forced, Gate
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.messages import Data, DownMessage, StateData, UpMessage
from zpala.gossip.protocol import Protocol
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.shadow import DeltaQueue
from zpala.gossip.topology import Topology

NUMEL = 16
EPOCH_S = 1000.0  # the virtual clock does not start at 0


def full(size: int) -> Topology:
    return Topology("full", "memory", size, tuple(frozenset(range(size)) - {i} for i in range(size)))


def ring(size: int) -> Topology:
    return Topology("ring", "memory", size, tuple(frozenset({(i - 1) % size, (i + 1) % size}) - {i} for i in range(size)))


def schema_of(numel: int) -> Schema:
    return Schema((TensorEntry("weight", (numel,), 0, numel),), numel)


@dataclass
class Connection:
    """A DEALER of ``source`` connected to the ROUTER of ``target``."""

    identity: bytes
    source: Node
    target: Node
    up: bool = False
    last: dict[str, float] = field(default_factory=dict)  # direction -> when its newest message arrives


class Learner:
    """``period_s``: mean time of an update; ``drift``: its size."""

    def __init__(self, node: Node, start: Vector, period_s: float, drift: float) -> None:
        settings = node.cluster.settings
        self.node = node
        self.vector = start.copy()
        self.slot = np.full_like(start, 0.5)  # stands for optimiser state; never averaged
        self.period_s = period_s
        self.drift = drift
        self.gate = Gate(settings.max_staleness, settings.gate_limit_s, settings.max_lead)
        self.deltas = DeltaQueue()
        self.updates = 0
        self.version = 0
        self.state = "waiting"  # waiting, learning, gate, finished, drained, hung
        self.view: View | None = None
        self.longest_wait_s = 0.0
        self.staleness_max = 0
        self.news_wanted = False
        self.applied: list[DeltaQueued] = []
        self.dropped = 0
        self._wait_began = 0.0

    # ---- mails from the proxy ---------------------------------------------------------------------------------------------------------

    def receive(self, event: Any) -> None:
        node = self.node
        if isinstance(event, Start):
            self.version = event.version
            self.state = "learning"
            self.publish()
            self.next_update()
        elif isinstance(event, AdoptState):
            if self.state in ("finished", "drained"):
                return
            self.dropped += len(self.deltas.take())
            self.vector[:] = node.parts["parameters"]
            self.slot[:] = node.parts["slot"]
            self.version = max(self.version, event.version)
            node.cluster.adopted(node)
            node.do(node.protocol.on_adopted(node.cluster.now))
            if self.state != "waiting":
                self.publish(waiting=True)
        elif isinstance(event, CaptureState):
            if self.state == "hung":
                return
            node.parts["parameters"][:] = self.vector
            node.parts["slot"][:] = self.slot
            captured = StateCaptured(state_id=event.state_id, version=self.version, optimizer_steps=self.updates)
            node.do(node.protocol.on_state_captured(captured, node.cluster.now))
        elif isinstance(event, DeltaQueued):
            self.deltas.receive(event)
            if self.state in ("gate", "finished"):
                node.cluster.later(node.cluster.mail_s, self.when_idle, node)
        elif isinstance(event, View):
            self.view = event
            self.gate.view(dict(event.eligible), dict(event.clocks), self.version)
            if self.state == "gate":
                node.cluster.later(node.cluster.mail_s, self.when_idle, node)
        elif isinstance(event, Drained):
            self.state = "drained"
            node.drained = event.reason
            node.cluster.later(node.cluster.linger_s, node.close, node)
        elif isinstance(event, Fatal):
            node.fatal = event
            self.state = "drained"
            node.cluster.later(node.cluster.linger_s, node.close, node)

    # ---- the loop ---------------------------------------------------------------------------------------------------------------------

    def next_update(self) -> None:
        cluster = self.node.cluster
        cluster.later(self.period_s * cluster.rng.uniform(0.7, 1.3), self.update, self.node)

    def apply_and_publish(self, waiting: bool) -> None:
        for delta in self.deltas.take():
            self.vector += self.node.buffers[delta.buffer]
            self.gate.mixed(delta.line, delta.peer_version, self.updates, delta.from_doubt)
            self.applied.append(delta)
        self.publish(waiting)

    def publish(self, waiting: bool = False) -> None:
        node, cluster = self.node, self.node.cluster
        snapshot = self.vector.copy()
        published = Published(
            version=self.version,
            updates=self.updates,
            applied_through=self.deltas.applied_through,
            env_steps=self.updates * cluster.steps_per_update,
            rate=cluster.steps_per_update / self.period_s,
            return_mean=node.return_mean,
            return_count=100,
            update_s=self.gate.update_s,
            waiting=waiting,
        )
        node.do(node.protocol.on_published(published, snapshot, cluster.now))
        snapshot[:] = np.nan  # it was copied

    def update(self) -> None:
        """The end of a gradient step."""
        if self.state != "learning":
            return
        noise = self.node.cluster.noise(self.drift)
        self.vector += noise
        self.node.cluster.ledger += noise
        self.updates += 1
        self.version += 1
        self.staleness_max = max(self.staleness_max, self.gate.staleness(self.updates))
        self.apply_and_publish(waiting=False)
        self.proceed()

    def when_idle(self) -> None:
        if self.state == "gate":
            self.apply_and_publish(waiting=True)
            self.proceed()
        elif self.state == "finished" and len(self.deltas):
            self.apply_and_publish(waiting=True)

    def proceed(self) -> None:
        """At an update boundary: end, wait, or go on."""
        node, now = self.node, self.node.cluster.now
        if self.view is not None and self.view.finish_reason:
            self.leave_gate()
            self.state = "finished"
            self.apply_and_publish(waiting=True)
            node.do(node.protocol.on_finished(self.view.finish_reason, now))
            return
        verdict = self.gate.ask(self.updates, self.version, now)
        if isinstance(verdict, Closed):
            if self.state != "gate":
                self.state, self._wait_began = "gate", now
                node.cluster.at(verdict.until, self.when_idle, node)
            self.want_news(verdict.stale)
            return
        if isinstance(verdict, Forced):
            node.cluster.forced.append((now, node.line, verdict.holders))
        self.leave_gate()
        self.state = "learning"
        self.next_update()

    def leave_gate(self) -> None:
        if self.state == "gate":
            now = self.node.cluster.now
            self.longest_wait_s = max(self.longest_wait_s, now - self._wait_began)
            self.want_news(False)

    def want_news(self, wanted: bool) -> None:
        if wanted is not self.news_wanted:
            self.news_wanted = wanted
            self.node.do(self.node.protocol.on_gate(wanted, self.node.cluster.now))


class Node:
    """One process: a protocol (the proxy's place), a learner, and its dealers."""

    def __init__(self, cluster: MemoryCluster, line: int, incarnation: int, start: Vector) -> None:
        settings = cluster.settings
        self.cluster = cluster
        self.line = line
        self.alive = True
        self.paused = False
        self.backlog: list[Callable[[], None]] = []
        self.return_mean = 0.0
        self.drained: str | None = None
        self.fatal: Fatal | None = None
        self.logs: list[Log] = []
        self.dealers: dict[int, Connection] = {}
        self.timer_at = math.inf
        self.started = False
        self.endings: list[Ending] = []
        self.buffers = [np.full(cluster.numel, np.nan, np.float32) for _ in range(cluster.buffers)]
        self.parts = {name: np.full(cluster.numel, np.nan, np.float32) for name in ("parameters", "slot")}
        self.learner = Learner(self, start, cluster.periods[line], cluster.drift)
        self.protocol = cluster.protocol_class(
            line=line,
            hosts=cluster.hosts,
            topology=cluster.topology,
            agreement=cluster.agreements[line],
            schema=cluster.schema,
            settings=settings,
            node=f"n{line}",
            incarnation=incarnation,
            nonce=bytes([line, incarnation % 256]) + cluster.rng.randbytes(6),
            shadow=np.full(cluster.numel, np.nan, np.float32),
            buffers=self.buffers,
            state_parts=self.parts,
            budget=cluster.budget,
            rng=random.Random(f"{cluster.seed} {line} {incarnation}"),
            now=cluster.now,
            target_return=cluster.target_return,
        )
        exchanges = self.protocol._exchanges
        ended = exchanges._ended

        def watch(ending: Ending, now: float) -> None:
            cluster.watch(self, ending, now)
            ended(ending, now)

        exchanges._ended = watch

    @property
    def exchanges(self) -> Any:
        return self.protocol._exchanges

    def run(self) -> None:
        self.started = True
        self.do(self.protocol.start(self.cluster.now))

    def close(self) -> None:
        self.cluster.kill(self.line)

    # ---- what the proxy does ----------------------------------------------------------------------------------------------------------

    def do(self, actions: Iterable[Action]) -> None:
        cluster = self.cluster
        for action in actions:
            if isinstance(action, SendUp):
                cluster.send_up(self, action.line, action.message)
            elif isinstance(action, SendDown):
                cluster.send_down(self, action)
            elif isinstance(action, Dial):
                cluster.dial(self, action.line)
            elif isinstance(action, Hangup):
                cluster.hangup(self, action.line)
            elif isinstance(action, ToLearner):
                cluster.mail(self, action.event)
            else:
                self.logs.append(action)
        self.arm()

    def arm(self) -> None:
        due = max(self.protocol.deadline(), self.cluster.now)
        if due < self.timer_at and due < math.inf:
            self.timer_at = due
            self.cluster.at(due, self.tick, self, due)

    def tick(self, due: float) -> None:
        if due == self.timer_at:
            self.timer_at = math.inf
            self.do(self.protocol.on_timer(self.cluster.now))


class MemoryCluster:
    """``periods``: one mean update time per node. ``latency_s``: range of the one-way delay. ``bandwidth``: payload bytes per second.

    ``reset``: probability that a message resets its pair. ``codec_every``: every n-th message passes the codec (0: none).
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        *,
        settings: GossipSettings | None = None,
        topology: Topology | None = None,
        periods: Iterable[float] | float = 0.02,
        drift: float = 0.01,
        spread: float = 0.3,
        latency_s: tuple[float, float] = (0.0002, 0.002),
        bandwidth: float = math.inf,
        send_s: tuple[float, float] = (0.0, 0.001),
        reset: float = 0.0,
        budget: int = 10**9,
        target_return: float | None = None,
        numel: int = NUMEL,
        buffers: int = 16,
        codec_every: int = 10,
        protocol_class: type[Protocol] = Protocol,
        start_times: Iterable[float] | None = None,
    ) -> None:
        self.size = size
        self.seed = seed
        self.rng = random.Random(f"cluster {seed}")
        self._noise = np.random.default_rng(seed)
        self.settings = settings or GossipSettings()
        self.topology = topology or full(size)
        self.periods = [periods] * size if isinstance(periods, float) else list(periods)
        self.drift = drift
        self.latency_s = latency_s
        self.bandwidth = bandwidth
        self.send_s = send_s
        self.reset = reset
        self.budget = budget
        self.target_return = target_return
        self.numel = numel
        self.buffers = buffers
        self.codec_every = codec_every
        self.protocol_class = protocol_class
        self.steps_per_update = 80
        self.mail_s = 0.0001
        self.linger_s = 0.5
        self.hosts = parse_hosts("\n".join(f"n{i} 10.0.0.{i + 1}:5000" for i in range(size)), "memory")
        self.schema = schema_of(numel)
        self.agreements = [{"seed": "1", "topology": self.topology.digest()} for _ in range(size)]
        self.now = EPOCH_S
        self.ledger = np.zeros(numel, np.float64)
        self.forced: list[tuple[float, int, tuple[int, ...]]] = []
        self.sent: Counter[str] = Counter()
        self.applied: dict[Any, list[int]] = defaultdict(list)  # xid -> lines that applied it
        self.adoptions: list[tuple[float, int]] = []
        self.resets = 0
        self.violations: list[str] = []
        self.cut: set[frozenset[int]] = set()
        self.drop: Callable[[int, int, Any], bool] = lambda source, target, message: False  # lost with a reset
        self.corrupt: Callable[[int, int, Any, Vector], Vector] = lambda source, target, message, content: content
        self._queue: list[tuple[float, int, Callable[..., None], Node | None, tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._identities = itertools.count(1)
        self._routes: dict[bytes, Connection] = {}
        self._encoded = 0
        self._spans: dict[int, float] = {}
        starts = [self._start_vector(spread) for _ in range(size)]
        self.nodes = [Node(self, line, 1 + line, starts[line]) for line in range(size)]
        times = list(start_times) if start_times is not None else [self.rng.uniform(0, 0.2) for _ in range(size)]
        for node, delay_s in zip(self.nodes, times, strict=True):
            self.later(delay_s, node.run, node)

    def _start_vector(self, spread: float) -> Vector:
        vector = (2.0 + spread * self._noise.standard_normal(self.numel)).astype(np.float32)
        vector[-1] = 1.0
        return vector

    def noise(self, drift: float) -> Vector:
        noise = (drift * self._noise.standard_normal(self.numel)).astype(np.float32)
        noise[-1] = 0.0
        return noise

    # ---- the clock --------------------------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], node: Node | None, *arguments: Any) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what, node, arguments))

    def later(self, delay_s: float, what: Callable[..., None], node: Node | None, *arguments: Any) -> None:
        self.at(self.now + delay_s, what, node, *arguments)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Advance the clock; True when ``until`` became true (checked after every event)."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            when, _, what, node, arguments = heapq.heappop(self._queue)
            self.now = when
            if node is None or node.alive:
                if node is not None and node.paused:
                    node.backlog.append(functools.partial(what, *arguments))
                else:
                    what(*arguments)
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    # ---- the network ------------------------------------------------------------------------------------------------------------------

    def dial(self, node: Node, line: int) -> None:
        if line not in node.dealers:
            node.dealers[line] = Connection(b"", node, self.nodes[line])
            self._connect(node, line)

    def _connect(self, node: Node, line: int) -> None:
        connection = node.dealers.get(line)
        if connection is None or connection.up:
            return
        target = self.nodes[line]
        if target.alive and target.started and frozenset({node.line, line}) not in self.cut:
            fresh = Connection(b"c%d" % next(self._identities), node, target, up=True)
            node.dealers[line] = fresh
            self._routes[fresh.identity] = fresh
        else:
            self.later(0.1, self._connect, node, node, line)

    def hangup(self, node: Node, line: int) -> None:
        connection = node.dealers.pop(line, None)
        if connection is not None:
            self._break(connection)

    def _break(self, connection: Connection) -> None:
        connection.up = False
        self._routes.pop(connection.identity, None)

    def reset_pair(self, a: int, b: int) -> None:
        """Both connections of the pair lose what is in flight and come back after a while."""
        self.resets += 1
        for source, target in ((a, b), (b, a)):
            connection = self.nodes[source].dealers.get(target)
            if connection is not None and connection.up:
                self._break(connection)
                self.later(0.05, self._connect, self.nodes[source], self.nodes[source], target)

    def partition(self, left: Iterable[int], right: Iterable[int]) -> None:
        for a, b in itertools.product(left, right):
            self.cut.add(frozenset({a, b}))
            self.reset_pair(a, b)

    def heal(self) -> None:
        self.cut.clear()

    def _coded(self, message: Any, decode: Callable[[bytes], Any]) -> Any:
        self._encoded += 1
        if self.codec_every and self._encoded % self.codec_every == 0:
            copy = decode(codec.encode(message))
            if copy != message:
                self.violations.append(f"the codec changed {message} to {copy}")
            return copy
        return message

    def _lost(self, source: int, target: int, message: Any) -> bool:
        if self.drop(source, target, message) or self.rng.random() < self.reset:
            self.reset_pair(source, target)
            return True
        return False

    def _arrival(self, connection: Connection, direction: str, nbytes: int) -> float:
        arrival = max(self.now + self.rng.uniform(*self.latency_s) + nbytes / self.bandwidth, connection.last.get(direction, 0.0))
        connection.last[direction] = arrival
        return arrival

    def send_up(self, node: Node, line: int, message: UpMessage) -> None:
        connection = node.dealers.get(line)
        if connection is None or not connection.up:
            node.do(node.protocol.on_link_lost(None, line, self.now))
            return
        self.sent[type(message).__name__] += 1
        if not self._lost(node.line, line, message):
            message = self._coded(message, codec.decode_up)
            self.at(self._arrival(connection, "up", 0), self._deliver_up, None, connection, message)

    def _deliver_up(self, connection: Connection, message: UpMessage) -> None:
        target = connection.target
        if connection.up and target.alive:
            self._give(target, lambda: target.do(target.protocol.on_up(connection.identity, message, self.now)))

    def send_down(self, node: Node, action: SendDown) -> None:
        connection = self._routes.get(action.link)
        payload = action.payload
        if connection is None or not connection.up or connection.target is not node:
            if payload is not None:
                self.later(0.0, self._sent, node, node, payload)
            node.do(node.protocol.on_link_lost(action.link, None, self.now))
            return
        self.sent[type(action.message).__name__] += 1
        lost = self._lost(node.line, connection.source.line, action.message)
        message = self._coded(action.message, codec.decode_down)
        if payload is None:
            if not lost:
                self.at(self._arrival(connection, "down", 0), self._deliver_down, None, connection, message, None)
            return
        array = node.protocol.payload_array(payload)
        connection.last["down"] = max(connection.last.get("down", 0.0), self.now + self.rng.uniform(*self.send_s))
        self.at(connection.last["down"], self._transmit, None, node, connection, message, payload, array, array.copy(), lost)

    def _transmit(
        self, node: Node, connection: Connection, message: DownMessage, payload: Payload, array: Vector, before: Vector, lost: bool
    ) -> None:
        if node.alive and not np.array_equal(array, before, equal_nan=True):
            self.violations.append(f"{payload} of node {node.line} was overwritten while it was being sent")
        content = self.corrupt(node.line, connection.source.line, message, array.copy())
        self._sent(node, payload)
        if not lost and connection.up:
            self.at(self._arrival(connection, "down", array.nbytes), self._deliver_down, None, connection, message, content)

    def _sent(self, node: Node, payload: Payload) -> None:
        if node.alive:
            self._give(node, lambda: node.do(node.protocol.on_sent(payload, self.now)))

    def _deliver_down(self, connection: Connection, message: DownMessage, content: Vector | None) -> None:
        source, line = connection.source, connection.target.line
        if connection.up and source.alive:
            self._give(source, lambda: self._receive(source, line, message, content))

    def _receive(self, node: Node, line: int, message: DownMessage, content: Vector | None) -> None:
        nbytes = None
        if content is not None:
            if not isinstance(message, Data | StateData):
                self.violations.append(f"a payload with {message}")
            array = node.protocol.receive_buffer(line, message)
            if array is not None:
                array[:] = content
            nbytes = content.nbytes
        node.do(node.protocol.on_down(line, message, nbytes, self.now))

    def _give(self, node: Node, call: Callable[[], None]) -> None:
        if node.paused:
            node.backlog.append(call)
        else:
            call()

    def mail(self, node: Node, event: Any) -> None:
        self.later(self.mail_s, node.learner.receive, node, event)

    # ---- faults -----------------------------------------------------------------------------------------------------------------------

    def kill(self, line: int) -> None:
        node = self.nodes[line]
        node.alive = False
        for connection in list(self._routes.values()):
            if connection.source is node or connection.target is node:
                self._break(connection)
                if connection.source is not node and connection.source.alive:
                    self.later(0.1, self._connect, connection.source, connection.source, line)

    def restart(self, line: int) -> Node:
        """A new process of this line, with parameters of its own to be replaced by adoption."""
        incarnation = self.nodes[line].protocol._sessions.incarnation + 100
        node = Node(self, line, incarnation, self._start_vector(5.0))
        self.nodes[line] = node
        for other in self.nodes:
            connection = other.dealers.get(line)
            if connection is not None and other.alive:
                self.later(0.1, self._connect, other, other, line)
        node.run()
        return node

    def pause(self, line: int) -> None:
        self.nodes[line].paused = True

    def resume(self, line: int) -> None:
        node = self.nodes[line]
        node.paused = False
        backlog, node.backlog = node.backlog, []
        for call in backlog:
            if node.alive:
                call()

    # ---- oracles ----------------------------------------------------------------------------------------------------------------------

    def watch(self, node: Node, ending: Ending, now: float) -> None:
        """Every exchange that ends, on each side."""
        exchange = ending.exchange
        node.endings.append(ending)
        if not ending.late:
            if exchange.started_at < self._spans.get(node.line, -math.inf):
                self.violations.append(f"node {node.line} was in two exchanges at once at {exchange.started_at}")
            self._spans[node.line] = now
        if ending.step is Step.COMPLETED:
            if node.line in self.applied[exchange.xid]:
                self.violations.append(f"node {node.line} applied {exchange.xid} twice")
            self.applied[exchange.xid].append(node.line)

    def adopted(self, node: Node) -> None:
        self.adoptions.append((self.now, node.line))

    def live(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def all_started(self) -> bool:
        return all(node.learner.state not in ("waiting",) for node in self.live())

    def mark(self) -> None:
        """Start the ledger soon: what the nodes hold at the first instant at which no exchange is applied on one side only."""
        assert self.run(20.0, lambda: not self.half_applied())
        self.ledger = self.total()

    def total(self) -> Any:
        """Sum over live nodes of the parameters with every delta that the node has queued, float64."""
        total = np.zeros(self.numel, np.float64)
        for node in self.live():
            applied = node.learner.deltas.applied_through
            total += node.learner.vector
            for delta in node.protocol._shadow._queued:
                if delta.sequence > applied:
                    total += node.buffers[delta.buffer]
        return total

    def drift_error(self) -> float:
        """Largest difference of any coordinate's sum from the ledger."""
        return float(np.abs(self.total() - self.ledger).max())

    def half_applied(self) -> list[Any]:
        """Exchanges that one side applied and the other did not (not yet)."""
        return [xid for xid, lines in self.applied.items() if len(lines) != 2]

    def quiesce(self, seconds: float = 30.0) -> None:
        """No faults, no new exchanges, no updates: open exchanges must resolve, learners must apply what they have."""
        self.reset = 0.0
        self.cut.clear()
        self.drop = lambda source, target, message: False
        for node in self.live():
            node.exchanges.__class__ = _no_new(node.exchanges.__class__)
            if node.learner.state in ("learning", "gate"):
                node.learner.state = "finished"
                node.learner.apply_and_publish(waiting=True)
        self.run(seconds)

    def distance(self) -> float:
        """max_i ||x_i - mean|| / ||mean||"""
        vectors = np.array([node.learner.vector for node in self.nodes], np.float64)
        mean = vectors.mean(0)
        return float(np.linalg.norm(vectors - mean, axis=1).max() / np.linalg.norm(mean))

    def counter(self, name: str) -> float:
        return sum(node.protocol.metrics()[name] for node in self.nodes)

    def check(self) -> None:
        """What must hold whatever happened."""
        assert not self.violations, self.violations[:3]
        for node in self.nodes:
            assert node.learner.vector[-1] == 1.0
            assert np.isfinite(node.learner.vector).all()
        assert self.counter("rejected_checksum") == 0
        assert self.counter("abort_after_applied") == 0
        assert self.counter("rejected_nonfinite") == 0


_QUIET: dict[type, type] = {}


def _no_new(cls: type) -> type:
    """The same exchanges, but never able to start one."""
    if cls not in _QUIET:
        _QUIET[cls] = type("Quiet" + cls.__name__, (cls,), {"can_start": property(lambda self: False)})
    return _QUIET[cls]
