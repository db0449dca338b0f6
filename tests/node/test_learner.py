"""The learner's loop with real actors, ports and proxies: what it tells the algorithm of what gossip did to its parameters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq

from tests.node.recording import Call, Recorder
from zpala.config import Config, load_config
from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.topology import load_topology
from zpala.node.build import build_actor_groups, build_parts, start_actor, stop_actors
from zpala.node.claim import claim_line
from zpala.node.connection import Connection
from zpala.node.learner import train
from zpala.node.port import GossipPort, Interrupted
from zpala.node.report import Report
from zpala.node.sockets import Context
from zpala.node.specification import specification
from zpala.node.worker import Supervisor
from zpala.rl.rollout import Rollout
from zpala.tools.launch import free_ports

LIMIT_S = 40.0
SMALL: dict[str, object] = {
    "algorithm.name": "tests.node.recording:Recorder",
    "environment.id": "tests.rl.scripted:GuessEnv",
    "environment.num_envs": 2,
    "network.hidden_sizes": [8],
    "run.total_env_steps": 10**9,
}


class Node:
    """One node of a run, a thread: all that ``zpala node`` has but its files. It trains until all nodes have had ``enough``."""

    def __init__(self, line: int, hosts: HostList, folder: Path, over: Sequence[threading.Event], **settings: object) -> None:
        given = {key.replace("__", "."): value for key, value in settings.items()}
        self.config: Config = load_config(None, {**SMALL, **given}, {})
        self.line, self.hosts, self.folder, self.over = line, hosts, folder, over
        self.enough: Callable[[Node], bool] = lambda node: False
        self.turned_at = 0
        self.algorithm: Recorder
        self.port: GossipPort
        self.initial: np.ndarray

    def run(self) -> None:
        torch.set_flush_denormal(True)
        device = torch.device("cpu")
        deadline = time.monotonic() + LIMIT_S
        spec = specification(self.config.environment)
        parts = build_parts(self.config, spec, self.line, device)
        self.initial = parts.flat.parameters.numpy().copy()
        assert isinstance(parts.algorithm, Recorder)
        self.algorithm = parts.algorithm
        self.algorithm.turned_at = self.turned_at
        rollout = Rollout(spec, self.config.algorithm.num_steps, self.config.environment.num_envs)
        context: Context = zmq.Context()
        supervisor = Supervisor(context)
        claim = claim_line(self.hosts, name=self.hosts.hosts[self.line].name)

        def interrupted() -> bool:
            return all(event.is_set() for event in self.over) or time.monotonic() > deadline

        groups = build_actor_groups(self.config, spec, context, supervisor, rollout, self.line, 1, device, interrupted)
        connection = Connection(
            context,
            supervisor,
            claim=claim,
            hosts=self.hosts,
            topology=load_topology("full", len(self.hosts)),
            agreement={},
            schema=parts.schema,
            settings=self.config.gossip.settings(),
            weights=parts.weights,
            budget=self.config.run.total_env_steps,
            interrupted=interrupted,
        )

        def log(row: object) -> None:
            if self.enough(self):
                self.over[self.line].set()

        try:
            for group in groups:
                for actor in group.actors:
                    start_actor(actor)
            with connection as self.port:
                self.port.join(30.0)
                with pytest.raises(Interrupted):
                    train(
                        algorithm=self.algorithm,
                        rollout=rollout,
                        groups=groups,
                        port=self.port,
                        report=Report(1, 0.0, time.monotonic()),
                        log=log,
                        total_env_steps=self.config.run.total_env_steps,
                        lr=1e-3,
                        anneal=False,
                        faults=self.folder,
                    )
        finally:
            stop_actors(groups)
            supervisor.close()
            context.destroy(linger=0)
            claim.close()
        assert time.monotonic() < deadline, f"node {self.line} never had enough"

    @property
    def calls(self) -> list[Call]:
        return self.algorithm.calls


def told(node: Node) -> int:
    """How often the algorithm was told of an adoption; every one lay between an update, or the start, and the beginning of a rollout."""
    names = [call.name for call in node.calls]
    for index, name in enumerate(names):
        if name == "adopted":
            assert index == 0 or names[index - 1] == "update"
            assert index + 1 == len(names) or names[index + 1] == "begin"
    return names.count("adopted")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Node]]:
    """Makes two nodes, the second from another seed, so that its own parameters are others."""

    def factory(**settings: object) -> list[Node]:
        hosts = parse_hosts("".join(f"n{i} 127.0.0.1:{port}\n" for i, port in enumerate(free_ports(2))), "hosts.txt")
        over = [threading.Event(), threading.Event()]
        return [Node(line, hosts, tmp_path, over, run__seed=line + 1, **settings) for line in range(2)]

    return factory


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="node") as executor:
        yield executor


def test_who_starts_from_another_s_parameters_is_told_once_and_averaging_tells_nobody(
    make: Callable[..., list[Node]], pool: ThreadPoolExecutor
) -> None:
    first, second = nodes = make()
    for node in nodes:
        node.enough = lambda node: node.port.deltas_applied >= 20
    list(pool.map(Node.run, nodes))
    assert all(node.port.deltas_applied >= 20 for node in nodes)
    assert (told(first), told(second)) == (0, 1) == (first.port.adoptions, second.port.adoptions)
    assert second.calls[0].name == "adopted"
    assert distance(second.initial, first.initial) > 0.1
    assert np.array_equal(second.calls[0].parameters, first.initial)


def test_who_comes_late_is_told_before_its_first_rollout(make: Callable[..., list[Node]], pool: ThreadPoolExecutor) -> None:
    early, late = make(gossip__wait_for=1)
    learned = threading.Event()

    def enough(node: Node) -> bool:
        if node.algorithm.optimizer.steps >= 30:
            learned.set()
        return node.port.deltas_applied >= 5

    early.enough = enough
    late.enough = lambda node: node.port.deltas_applied >= 5
    running = pool.submit(early.run)
    assert learned.wait(LIMIT_S), running.exception(0)
    pool.submit(late.run).result(LIMIT_S)
    running.result(LIMIT_S)
    assert (told(early), told(late)) == (0, 1)
    assert late.calls[0].name == "adopted"
    assert late.calls[0].optimizer_steps >= 30, "the optimiser's state is the other's already"
    assert distance(late.calls[0].parameters, early.initial) < distance(late.calls[0].parameters, late.initial)
    adopted_from = [call for call in early.calls if np.array_equal(call.parameters, late.calls[0].parameters)]
    assert adopted_from, "what it was told of are the other's parameters, whole"


def test_who_has_diverged_is_told_when_it_begins_anew(make: Callable[..., list[Node]], pool: ThreadPoolExecutor) -> None:
    nodes = make(gossip__on_diverged="bootstrap", gossip__max_staleness=4)
    nodes[1].turned_at = 40
    deltas_before = [0, 0]

    def enough(node: Node) -> bool:
        if sum(each.algorithm.count("adopted") for each in nodes) < 2:  # the start was one
            deltas_before[node.line] = node.port.deltas_applied
        return node.port.deltas_applied >= deltas_before[node.line] + 20  # averaged again

    for node in nodes:
        node.enough = lambda node: node.algorithm.count("update") > 40 and enough(node)
    list(pool.map(Node.run, nodes))
    assert nodes[1].algorithm.count("update") > 40, "it did diverge"
    again = [told(node) - start for node, start in zip(nodes, (0, 1), strict=True)]
    assert again == [node.port.view.rejoins for node in nodes]
    assert sum(again) >= 1
    for node, times in zip(nodes, again, strict=True):
        rejoined = [index for index, call in enumerate(node.calls) if call.name == "adopted" and index > 0]
        assert len(rejoined) == times
        for index in rejoined:
            before, after = node.calls[index - 1].parameters, node.calls[index].parameters
            assert distance(before, after) > 1.0, "turned round: no average of the two"
