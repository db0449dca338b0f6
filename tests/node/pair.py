"""Two nodes as threads: real protocols, real proxies, real sockets; only the learners are played, by the test's own thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import zmq

from tests.node.conftest import LIMIT_S, terminate
from zpala.gossip import events
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.protocol import BUFFERS_MIN, Protocol
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.node import sockets
from zpala.node.frames import Vector
from zpala.node.keys import Keyring, SecretKey
from zpala.node.links import Address
from zpala.node.mailbox import ProxyCounters, SnapshotReady, StateAdopted
from zpala.node.proxy import Proxy
from zpala.node.sockets import Context
from zpala.node.worker import Supervisor

BUDGET = 10**9


class PlayedLearner:
    """Applies every delta at once and publishes after it, as a learner does at each update boundary.

    It learns nothing; with ``drift`` it adds as much noise to its model after every delta, and books it.
    """

    def __init__(self, proxy: Proxy, model: Vector, buffers: Sequence[Vector], state: Vector, drift: float = 0.0) -> None:
        self.proxy = proxy
        self.model = model
        self.view: events.View | None = None
        self.counters = ProxyCounters()
        self.drained = ""
        self.deltas = 0
        self.booked = np.zeros(model.size)
        self._drift = drift
        self._random = np.random.default_rng(model.size)
        self._buffers = buffers
        self._state = state
        self._lent: list[int] = []
        self._version = 0
        self._applied_through = 0
        self._running = False
        self._published_through = -1

    def turn(self) -> None:
        for message in self.proxy.mailbox.receive():
            match message:
                case events.Start(version=version):
                    self._version, self._running = version, True
                case events.DeltaQueued(sequence=sequence, buffer=buffer):
                    self.model += self._buffers[buffer]
                    self._applied_through = sequence
                    self._version += 1
                    self.deltas += 1
                    self._learn()
                case events.CaptureState(state_id=state_id):
                    self._state[:] = self.model
                    self.proxy.mailbox.send(events.StateCaptured(state_id=state_id, version=self._version, optimizer_steps=0))
                case events.AdoptState(version=version):
                    self.model[:] = self._state
                    self._version = version
                    self.proxy.mailbox.send(StateAdopted())
                case events.Drained(reason=reason):
                    self.drained = reason
                case events.Fatal(text=text):
                    pytest.fail(text)
                case events.View():
                    self.view = message
                case events.SnapshotLent(buffer=buffer):
                    self._lent.append(buffer)
                case ProxyCounters():
                    self.counters = message
        if self._running and self._lent and self._published_through < self._version:
            self._publish()

    def _learn(self) -> None:
        if self._drift:
            step = np.float32(self._drift) * self._random.standard_normal(self.model.size, dtype=np.float32)
            self.model += step
            self.booked += step

    def _publish(self) -> None:
        buffer = self._lent.pop()
        self._buffers[buffer][:] = self.model
        self._published_through = self._version
        published = events.Published(version=self._version, updates=self._version, applied_through=self._applied_through)
        self.proxy.mailbox.send(SnapshotReady(buffer, published))


class Pair:
    """Two nodes, each with a context of its own, as two processes would have.

    Args:
        others: further lines of hosts.txt, which the test plays.
        keys: of the two nodes and the others, in the order of the lines; none: no keys.
        through: (who dials, line, its address) -> the address that is dialled instead.
        dead_link_s: of the proxies.
        drift: of the learners.
        settings: of the gossip, instead of the default's.
    """

    def __init__(
        self,
        numel: int,
        initial: str = "own",
        *,
        others: Sequence[Address] = (),
        keys: Sequence[SecretKey] = (),
        through: Callable[[int, int, Address], Address] = lambda source, line, address: address,
        dead_link_s: float = sockets.DEAD_LINK_S,
        drift: float = 0.0,
        **settings: object,
    ) -> None:
        self.contexts: list[Context] = [sockets.node_context(encrypted=bool(keys)) for _ in range(2)]
        self.supervisors = [Supervisor(context) for context in self.contexts]
        listeners = [sockets.listening_socket("127.0.0.1", 0) for _ in range(2)]
        self.ports = [int(listener.getsockname()[1]) for listener in listeners]
        addresses = dict(enumerate([*(("127.0.0.1", port) for port in self.ports), *others]))
        public = [key.public for key in keys] or [""] * len(addresses)
        text = "\n".join(f"{host}:{port} {key}" for (host, port), key in zip(addresses.values(), public, strict=True))
        self.hosts = hosts = parse_hosts(text, "hosts.txt")
        schema = Schema((TensorEntry("x", (numel,), 0, numel),), numel)
        self.agreement = {"schema": schema.fingerprint}
        self.protocols: list[Protocol] = []
        self.learners: list[PlayedLearner] = []
        for line in range(2):
            state, *buffers = [np.zeros(numel, dtype=np.float32) for _ in range(1 + BUFFERS_MIN)]
            protocol = Protocol(
                line=line,
                hosts=hosts,
                topology=load_topology("full", len(hosts)),
                agreement=self.agreement,
                schema=schema,
                settings=GossipSettings(**{"initial": initial, "max_share": 1.0, "max_distance": 10.0, "wait_for": 2, **settings}),  # type: ignore[arg-type]
                node=hosts[line].name,
                incarnation=time.time_ns(),
                nonce=bytes([line + 1]) * 8,
                buffers=buffers,
                state_parts={"parameters": state},
                budget=BUDGET,
                rng=random.Random(line),
                now=time.monotonic(),
            )
            self.protocols.append(protocol)
            proxy = Proxy(
                self.contexts[line],
                self.supervisors[line],
                protocol,
                listener=listeners[line],
                addresses={other: through(line, other, address) for other, address in addresses.items()},
                dead_link_s=dead_link_s,
                keyring=Keyring(keys[line], dict(enumerate(public))) if keys else None,
            )
            model = np.random.default_rng(line).standard_normal(numel, dtype=np.float32)
            self.learners.append(PlayedLearner(proxy, model, protocol.buffers, state, drift))
            proxy.start()

    def run_until(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Plays both learners until ``condition()``; wakes when mail arrives."""
        poller = zmq.Poller()
        for learner in self.learners:
            poller.register(learner.proxy.mailbox.socket, zmq.POLLIN)
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {limit_s:g} s"
            poller.poll(100)
            for learner, supervisor in zip(self.learners, self.supervisors, strict=True):
                supervisor.raise_if_failed()
                learner.turn()

    def metric(self, name: str) -> list[float]:
        """A counter of both protocols; seen from here it may be a moment old."""
        return [protocol.metrics()[name] for protocol in self.protocols]

    def total(self) -> np.ndarray:
        """Sum of both models without their drift, float64: what gossip must not change."""
        first, second = (learner.model.astype(np.float64) - learner.booked for learner in self.learners)
        return np.asarray(first + second)

    def distance(self) -> float:
        a, b = (learner.model.astype(np.float64) for learner in self.learners)
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    def more(self, count: int, limit_s: float = 30.0) -> None:
        """Both add ``count`` deltas more."""
        goal = [learner.deltas + count for learner in self.learners]
        self.run_until(lambda: all(learner.deltas >= least for learner, least in zip(self.learners, goal, strict=True)), limit_s)

    def stop(self) -> None:
        for learner in self.learners:
            learner.proxy.request_stop()
        for learner in self.learners:
            learner.proxy.join()
        for supervisor, context in zip(self.supervisors, self.contexts, strict=True):
            supervisor.close()
            terminate(context)
