"""Three nodes as threads of one process, over TCP on loopback: real proxies, real ports, toy learners."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import zmq

from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.node.claim import claim_line
from zpala.node.connection import Connection
from zpala.node.errors import NodeError
from zpala.node.port import GossipPort, Interrupted, Progress
from zpala.node.sockets import Context
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor
from zpala.tools.launch import free_ports

NUMEL = 1024
SCHEMA = Schema((TensorEntry("x", (NUMEL,), 0, NUMEL),), NUMEL)


@dataclass
class Node:
    """A thread that joins the run and then does what ``learn`` says."""

    line: int
    hosts: HostList
    settings: GossipSettings
    learn: Callable[[Node, GossipPort], None]
    budget: int = 600
    agreement: dict[str, str] = field(default_factory=dict)
    start: float = 0.0
    interrupt: threading.Event = field(default_factory=threading.Event)
    vector: torch.Tensor = field(init=False)
    drift: np.ndarray = field(init=False)
    updates: int = 0

    def __post_init__(self) -> None:
        self.vector = torch.full((NUMEL,), float(self.start))
        self.drift = np.zeros(NUMEL, dtype=np.float64)

    def run(self) -> GossipPort:
        torch.set_flush_denormal(True)
        context: Context = zmq.Context()
        supervisor = Supervisor(context)
        claim = claim_line(self.hosts, name=self.hosts.hosts[self.line].name)
        connection = Connection(
            context,
            supervisor,
            claim=claim,
            hosts=self.hosts,
            topology=load_topology("full", len(self.hosts)),
            agreement={"seed": "1", **self.agreement},
            schema=SCHEMA,
            settings=self.settings,
            weights=Weights(self.vector),
            budget=self.budget,
            interrupted=self.interrupt.is_set,
        )
        try:
            with connection as port:
                port.join(30.0)
                self.learn(self, port)
        finally:
            supervisor.close()
            context.destroy(linger=0)
            claim.close()
        return port

    def step(self, port: GossipPort, size: float) -> int:
        """One update: a drift of ``size`` in a direction of this node's own, kept in a ledger."""
        staleness = port.boundary(Progress(updates=self.updates, env_steps=self.updates))
        drift = np.random.default_rng([self.line, self.updates]).normal(0, size, NUMEL).astype(np.float32)
        self.vector.add_(torch.from_numpy(drift))
        self.drift += drift
        self.updates += 1
        port.updated()
        return staleness


def until_the_budget(size: float) -> Callable[[Node, GossipPort], None]:
    """Updates until the cluster's budget is spent, then drains."""

    def learn(node: Node, port: GossipPort) -> None:
        while not port.view.finish_reason and port.view.other_env_steps + node.updates < node.budget:
            node.step(port, size)
        port.drain("budget", Progress(updates=node.updates, env_steps=node.updates), 15.0)

    return learn


def host_list(count: int) -> HostList:
    return parse_hosts("".join(f"n{i} 127.0.0.1:{port}\n" for i, port in enumerate(free_ports(count))), "hosts.txt")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8, thread_name_prefix="node") as executor:
        yield executor


def test_three_nodes_average_while_they_learn(pool: ThreadPoolExecutor) -> None:
    """All start from node 0's vector; in the end all have the same, and its mean is node 0's start plus everybody's drift / 3."""
    hosts = host_list(3)
    settings = GossipSettings(max_staleness=8, drain_distance=1e-5)
    nodes = [Node(i, hosts, settings, until_the_budget(1e-3), start=1.0 + i) for i in range(3)]
    ports = list(pool.map(Node.run, nodes))
    assert all(node.updates > 0 for node in nodes)
    assert all(port.drained is not None and port.deltas_applied > 0 for port in ports)
    assert all(port.view.defects == 0 and port.gate.forced == 0 for port in ports)
    expected = 1.0 + sum(node.drift for node in nodes) / 3
    mean = sum(node.vector.double().numpy() for node in nodes) / 3
    assert np.abs(mean - expected).max() < 1e-5
    assert max(float(np.linalg.norm(node.vector.numpy() - mean) / np.linalg.norm(mean)) for node in nodes) < 1e-4


def test_no_learner_runs_further_than_its_staleness_bound(pool: ThreadPoolExecutor) -> None:
    hosts = host_list(3)
    bound, wanted = 3, 200
    seen: list[list[int]] = [[], [], []]

    def learn(node: Node, port: GossipPort) -> None:
        while not port.view.finish_reason and len(seen[node.line]) < wanted:
            staleness = node.step(port, 1e-4)
            if port.view.eligible and not port.view.finish_reason:  # somebody could hold the gate when this update was let through
                seen[node.line].append(staleness)
        port.drain("target", Progress(updates=node.updates, env_steps=node.updates), 15.0)

    nodes = [Node(i, hosts, GossipSettings(max_staleness=bound), learn, budget=10**9, start=1.0) for i in range(3)]
    ports = list(pool.map(Node.run, nodes))
    assert max(len(s) for s in seen) == wanted
    assert sum(port.gate.waits for port in ports) > 0  # toy learners are faster than any exchange: they do meet the gate
    assert sum(port.gate.forced for port in ports) == 0
    assert max(max(s) for s in seen if s) < bound


def test_no_learner_gets_further_ahead_than_max_lead(pool: ThreadPoolExecutor) -> None:
    hosts = host_list(3)
    max_lead, wanted = 5, 150
    leads: list[list[int]] = [[], [], []]

    def learn(node: Node, port: GossipPort) -> None:
        for _ in range(10):  # until then nobody holds a gate
            node.step(port, 1e-4)
        while len(port.view.clocks) < 2:
            port.boundary(Progress(updates=node.updates, env_steps=node.updates))
        while not port.view.finish_reason and node.updates < wanted:
            node.step(port, 1e-4)
            if len(port.view.clocks) == 2 and not port.view.finish_reason:
                leads[node.line].append(port.gate.lead)  # when this update was let through
        port.drain("target", Progress(updates=node.updates, env_steps=node.updates), 15.0)

    nodes = [Node(i, hosts, GossipSettings(max_lead=max_lead, slow_factor=0.0), learn, budget=10**9, start=1.0) for i in range(3)]
    ports = list(pool.map(Node.run, nodes))
    assert max(node.updates for node in nodes) == wanted
    assert sum(port.gate.forced for port in ports) == 0
    assert sum(port.gate.waits for port in ports) > 0
    assert min(len(lead) for lead in leads) > 0
    assert max(max(lead) for lead in leads) == max_lead - 1


def test_a_node_that_has_diverged_adopts_the_state_of_another_while_it_runs(pool: ThreadPoolExecutor) -> None:
    """Node 1 is turned round in the middle of the run; then one of the two gives way, and both average again."""
    hosts = host_list(2)
    versions: list[int] = [0, 0]

    def learn(node: Node, port: GossipPort) -> None:
        enough = None
        while not port.view.finish_reason and (enough is None or port.view.exchanges < enough):
            node.step(port, 1e-4)
            assert port.version >= versions[node.line]
            versions[node.line] = port.version
            if node.line == 1 and node.updates == 100:
                node.vector.neg_()
            if enough is None and port.view.diverged:
                enough = port.view.exchanges + 30
        port.drain("target", Progress(updates=node.updates, env_steps=node.updates), 15.0)

    settings = GossipSettings(on_diverged="bootstrap", max_staleness=4)
    nodes = [Node(i, hosts, settings, learn, budget=10**9, start=1.0) for i in range(2)]
    ports = list(pool.map(Node.run, nodes))
    assert sum(port.view.rejoins for port in ports) >= 1
    assert [port.drained for port in ports] == ["drained", "drained"]
    own, peer = (node.vector.numpy() for node in nodes)
    assert np.linalg.norm(own - peer) / np.linalg.norm(own) < 1e-2
    assert all(port.version >= node.updates for port, node in zip(ports, nodes, strict=True))


def test_a_node_that_leaves_does_not_hold_the_others(pool: ThreadPoolExecutor) -> None:
    hosts = host_list(3)

    def leave_early(node: Node, port: GossipPort) -> None:
        for _ in range(40):
            node.step(port, 1e-4)

    rest = [Node(i, hosts, GossipSettings(), until_the_budget(1e-4), budget=500, start=1.0) for i in (0, 1)]
    leaver = Node(2, hosts, GossipSettings(), leave_early, start=1.0)
    ports = list(pool.map(Node.run, [*rest, leaver]))
    assert leaver.updates == 40
    assert sum(node.updates for node in rest) >= 500 - 40
    assert all(port.gate.waited_s < 5.0 for port in ports)


def test_nodes_that_disagree_are_told_the_field_and_both_values(pool: ThreadPoolExecutor) -> None:
    hosts = host_list(2)
    nodes = [Node(i, hosts, GossipSettings(), until_the_budget(0.0), agreement={"seed": str(i + 1)}) for i in range(2)]
    futures = [pool.submit(node.run) for node in nodes]
    errors = [future.exception(40) for future in futures]
    for error in errors:
        assert isinstance(error, NodeError)
        assert error.exit_code == 2
        assert "seed" in error.text
        assert {"1", "2"} <= set(re.findall(r"\b\d+\b", error.text))


def test_a_wait_at_the_barrier_can_be_interrupted(pool: ThreadPoolExecutor) -> None:
    node = Node(0, host_list(2), GossipSettings(), until_the_budget(0.0))
    future = pool.submit(node.run)
    node.interrupt.set()
    assert isinstance(future.exception(20), Interrupted)
