"""N simulated nodes on one clock and one network, what can be done to them, and what must hold for all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from zpala.gossip.buffers import Vector
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.protocol import BUFFERS_MIN, Protocol
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology
from zpala.sim.clock import Clock
from zpala.sim.ledger import Ledger
from zpala.sim.network import Network
from zpala.sim.node import SimulatedNode
from zpala.sim.patience import Patience

NUMEL = 16
EVERY_EXCHANGE = 64  # nodes: so many have their sums checked after every exchange, k times as many after every k-th
SLACK_S = 3.0  # beside the protocol's own limits: timers, travelling, messages that had to be repeated


def full(size: int) -> Topology:
    return Topology("full", "memory", size, tuple(frozenset(range(size)) - {i} for i in range(size)))


def ring(size: int) -> Topology:
    return Topology("ring", "memory", size, tuple(frozenset({(i - 1) % size, (i + 1) % size}) - {i} for i in range(size)))


def schema_of(numel: int) -> Schema:
    return Schema((TensorEntry("weight", (numel,), 0, numel),), numel)


class VirtualCluster:
    """Args:
    size: number of nodes.
    periods: mean time of an update, one per node or the same for all, seconds.
    drift: size of an update; ``spread``: standard deviation of the nodes' own first parameters around 2.
    latency_s, bandwidth, send_s, reset, codec_every: see ``Network``.
    budget, target_return: the run's end, see ``Protocol``.
    numel: length of the vector; ``buffers``: of a node's pool.
    protocol_class: what plays the protocol.
    start_times: when each process starts, seconds; None: within the first 0.2 s.
    longest_pause_s: of a process; exchanges may stay one-sided that much longer.
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
        buffers: int = BUFFERS_MIN + 4,
        codec_every: int = 10,
        protocol_class: type[Protocol] = Protocol,
        start_times: Iterable[float] | None = None,
        longest_pause_s: float = 20.0,
    ) -> None:
        self.size = size
        self.seed = seed
        self.rng = random.Random(f"cluster {seed}")
        self._noise = np.random.default_rng(seed)
        self.settings = settings or GossipSettings()
        self.topology = topology or full(size)
        self.periods = [periods] * size if isinstance(periods, float) else list(periods)
        self.drift = drift
        self.spread = spread
        self.budget = budget
        self.target_return = target_return
        self.numel = numel
        self.buffers = buffers
        self.protocol_class = protocol_class
        self.steps_per_update = 80
        self.mail_s = 0.0001  # between proxy and learner
        self.linger_s = 0.5  # from a node's end to that of its process
        self.hosts = parse_hosts("\n".join(f"n{i} 10.0.{i // 250}.{i % 250 + 1}:5000" for i in range(size)), "memory")
        self.schema = schema_of(numel)
        agreement = {"seed": "1", "hosts": self.hosts.agreed(size), "topology graph": self.topology.digest()}
        self.agreements = [agreement] * size
        self.violations: list[str] = []
        self.forced: list[tuple[float, int, tuple[int, ...]]] = []  # gates opened by their limit: when, whose, the holders
        self.adoptions: list[tuple[float, int]] = []
        self._exchanged = 0  # since the sums were checked
        self.nodes: list[SimulatedNode] = []
        self.clock = Clock()
        self.network = Network(
            self.clock,
            self.rng,
            self.nodes,
            self.violations,
            latency_s=latency_s,
            bandwidth=bandwidth,
            send_s=send_s,
            reset=reset,
            codec_every=codec_every,
        )
        half_s = self.settings.exchange_timeout_s + self.settings.keep_s + longest_pause_s + SLACK_S
        self.ledger = Ledger(numel, half_s, self.violations)
        self.patience = Patience(self.settings, self.violations)
        starts = [self._start_vector(spread) for _ in range(size)]
        self.nodes.extend(SimulatedNode(self, line, 1 + line, starts[line]) for line in range(size))
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

    # ---- time -------------------------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.now

    def at(self, when: float, what: Callable[..., Any], node: SimulatedNode | None, *arguments: Any) -> None:
        self.clock.at(when, what, node, *arguments)

    def later(self, delay_s: float, what: Callable[..., Any], node: SimulatedNode | None, *arguments: Any) -> None:
        self.clock.later(delay_s, what, node, *arguments)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Advance the clock; True when ``until`` became true."""
        return self.clock.run(seconds, until)

    # ---- faults -----------------------------------------------------------------------------------------------------------------------

    def kill(self, line: int) -> None:
        node = self.nodes[line]
        if not node.alive:
            return
        node.alive = False
        self.network.died(node)
        if node.learns:
            self.ledger.moved(-node.effective())
        self.ledger.ended(node.process)
        self.check_total()

    def restart(self, line: int) -> SimulatedNode:
        """A new process of this line: parameters far from everybody's, to be replaced by adoption, unless everybody keeps its own."""
        start = self._start_vector(5.0 if self.settings.initial == "adopt" else self.spread)
        node = SimulatedNode(self, line, self.nodes[line].incarnation + 100, start)
        self.nodes[line] = node
        node.run()
        return node

    def pause(self, line: int) -> None:
        self.nodes[line].paused = True

    def resume(self, line: int) -> None:
        node = self.nodes[line]
        node.paused = False
        self.patience.woke(node.process, self.now)
        backlog, node.backlog = node.backlog, []
        for call in backlog:
            if node.alive:
                call()

    # ---- who is there -----------------------------------------------------------------------------------------------------------------

    def live(self) -> list[SimulatedNode]:
        return [node for node in self.nodes if node.alive]

    def learning(self) -> list[SimulatedNode]:
        """Those whose parameters count."""
        return [node for node in self.nodes if node.alive and node.learns]

    def all_started(self) -> bool:
        return all(node.learner.state != "waiting" for node in self.live())

    # ---- what must hold ---------------------------------------------------------------------------------------------------------------

    def total(self) -> Any:
        """Sum over the learning nodes of the parameters with every delta that is queued for them, float64."""
        vectors = [vector for node in self.learning() for vector in node.parameters()]
        if not vectors:
            return np.zeros(self.numel)
        return np.add.reduce(np.concatenate(vectors).reshape(-1, self.numel), axis=0, dtype=np.float64)  # np.sum takes twice as long

    def drift_error(self) -> float:
        """Largest difference of a coordinate's sum from the ledger."""
        return self.ledger.error(self.total())

    def check_total(self) -> None:
        self.ledger.check(self.total(), self.now)

    def exchanged(self) -> None:
        """Somebody has applied a delta: check the sums. They cost more than the exchange when many have one, and are checked less often."""
        self._exchanged += 1
        if self._exchanged >= self.size // EVERY_EXCHANGE:
            self._exchanged = 0
            self.check_total()

    def check_waits(self) -> None:
        """No learner waits in the gate for longer than its limit, and none stands still for another reason."""
        for node in self.learning():
            learner = node.learner
            if learner.state in ("learning", "gate") and not node.paused and self.now > learner.due_at + SLACK_S:
                self.violations.append(f"{self.now:.3f}: node {node.line} ({learner.state}) should have gone on at {learner.due_at:.3f}")
                learner.due_at = math.inf

    def check_constant(self) -> None:
        for node in self.learning():
            if node.learner.vector[-1] != 1.0 or not np.isfinite(node.learner.vector).all():
                self.violations.append(f"{self.now:.3f}: node {node.line} holds {node.learner.vector}, and its last element must be 1")

    def problems(self) -> list[str]:
        """What did not hold so far; empty when all is well, whatever the network did."""
        self.check_constant()
        self.check_total()
        counters = {name: self.counter(name) for name in ("rejected_checksum", "abort_after_applied", "rejected_nonfinite")}
        return self.violations + [f"{name}: {count}" for name, count in counters.items() if count]

    def quiesce(self, seconds: float = 30.0) -> None:
        """No faults, no new exchanges, no updates: open exchanges must resolve, learners must apply what they have."""
        self.network.reset = 0.0
        self.network.heal()
        self.network.drop = lambda source, target, message: False
        for node in self.live():
            node.exchanges.__class__ = _no_new(node.exchanges.__class__)
            if node.learner.state in ("learning", "gate"):
                node.learner.state = "finished"
                node.learner.apply_and_publish(waiting=True)
        self.run(seconds)

    def distance(self) -> float:
        """max_i ||x_i - mean|| / ||mean|| over the last parameters of all nodes."""
        return distance([node.learner.vector for node in self.nodes])

    def counter(self, name: str) -> float:
        return sum(node.protocol.metrics()[name] for node in self.nodes)


def distance(vectors: Iterable[Vector]) -> float:
    """max_i ||x_i - mean|| / ||mean||"""
    stacked = np.array(list(vectors), np.float64)
    mean = stacked.mean(0)
    return float(np.linalg.norm(stacked - mean, axis=1).max() / np.linalg.norm(mean))


_QUIET: dict[type, type] = {}


def _no_new(cls: type) -> type:
    """The same exchanges, but never able to start one."""
    if cls not in _QUIET:
        _QUIET[cls] = type("Quiet" + cls.__name__, (cls,), {"can_start": property(lambda self: False)})
    return _QUIET[cls]
