"""The end of a run: everybody stops together, mixes until equal, and leaves; nobody waits for ever."""

from __future__ import annotations

import pytest

from zpala.gossip.drain import Drain
from zpala.gossip.protocol import LENT
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology
from zpala.sim.cluster import VirtualCluster, full, ring

PER_UPDATE = 80


def test_far_until_an_exchange_was_close() -> None:
    drain = Drain(10.0, 1e-3)
    assert drain.far({1, 2}) == {1, 2}
    drain.exchanged(1, 5e-4)
    assert drain.far({1, 2}) == {2}
    drain.exchanged(2, 1e-3)  # not below: and these parameters have moved
    assert drain.far({1, 2}) == {1, 2}
    drain.exchanged(1, 0.0)
    drain.exchanged(2, 0.0)
    assert drain.far({1, 2}) == set()
    drain.forget(1)
    assert drain.far({1, 2}) == {1}


def test_ends_at_its_limit() -> None:
    drain = Drain(10.0, 1e-3)
    assert not drain.over(1e9)
    drain.begin(5.0)
    assert not drain.over(14.9)
    assert drain.over(15.0)


def drained(cluster: VirtualCluster, within_s: float = 60.0) -> float:
    """Run to the end; returns the seconds between the first FINISHED and the last leaving."""
    assert cluster.run(within_s, lambda: all(node.drained or node.fatal for node in cluster.nodes if node.alive or node.drained))
    finished = [at for node in cluster.nodes for phase, at in node.protocol._run.history if phase == "finished"]
    return cluster.now - min(finished)


def star(size: int) -> Topology:
    return Topology("star", "memory", size, (frozenset(range(1, size)), *(frozenset({0}) for _ in range(size - 1))))


@pytest.mark.parametrize("topology", [full(2), full(5), ring(6), star(5)], ids=lambda topology: f"{topology.name}{topology.size}")
@pytest.mark.parametrize("seed", [0, 1])
def test_all_end_close_together(topology: Topology, seed: int) -> None:
    size = topology.size
    cluster = VirtualCluster(size, seed, topology=topology, budget=size * 60 * PER_UPDATE, periods=0.05, drift=0.02)
    took_s = drained(cluster)
    assert [node.drained for node in cluster.nodes] == ["drained"] * size
    assert took_s < 3.0
    for i, node in enumerate(cluster.nodes):
        for j in topology.neighbours(i):
            own, peer = node.learner.vector, cluster.nodes[j].learner.vector
            assert float(((own - peer) ** 2).sum() ** 0.5 / (own**2).sum() ** 0.5) < 3e-3
    assert cluster.ledger.half_applied() == []
    assert cluster.problems() == []


def test_without_the_drain_they_would_not_be_close() -> None:
    cluster = VirtualCluster(5, 0, budget=5 * 60 * PER_UPDATE, periods=0.05, drift=0.02, settings=GossipSettings(drain_s=0.0))
    drained(cluster)
    assert cluster.distance() > 3e-3


def test_the_sum_is_conserved_to_the_very_end() -> None:
    cluster = VirtualCluster(4, 2, budget=4 * 60 * PER_UPDATE, periods=0.05, drift=0.02)
    cluster.linger_s = 1e9  # processes that have left stay to be counted
    assert cluster.run(20.0, cluster.all_started)
    drained(cluster)
    cluster.run(1.0)
    assert cluster.drift_error() < 1e-4
    assert [node.protocol.metrics()["deltas_queued"] for node in cluster.nodes] == [0] * 4
    assert [node.protocol.metrics()["buffers_free"] for node in cluster.nodes] == [cluster.buffers - LENT - 1] * 4  # and the shadow's


@pytest.mark.parametrize("seed", range(3))
def test_resets_during_the_drain(seed: int) -> None:
    cluster = VirtualCluster(5, seed, budget=5 * 60 * PER_UPDATE, periods=0.05, drift=0.02, reset=0.01)
    drained(cluster)
    assert cluster.distance() < 5e-3
    assert cluster.problems() == []


def test_the_budget_is_the_clusters_and_fast_nodes_do_more_of_it() -> None:
    cluster = VirtualCluster(3, 3, budget=300 * PER_UPDATE, periods=[0.02, 0.05, 0.2])
    drained(cluster)
    updates = [node.learner.updates for node in cluster.nodes]
    assert updates[0] > updates[1] > updates[2]
    assert 300 <= sum(updates) <= 300 + 1.5 * (50 + 20 + 5)  # overshoot <= 1.5 s of the cluster's rate
    for node in cluster.nodes:
        assert node.learner.view is not None
        assert node.learner.view.finish_reason == "budget"
        assert node.learner.view.progress == 1.0


def test_one_that_finishes_finishes_all() -> None:
    cluster = VirtualCluster(4, 4, periods=0.05)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(2.0)
    node = cluster.nodes[2]
    node.learner.leave_gate()
    node.learner.state = "finished"
    node.learner.apply_and_publish(waiting=True)
    node.do(node.protocol.on_finished("stop", cluster.now))
    drained(cluster, 12.0)
    assert [node.drained for node in cluster.nodes] == ["drained"] * 4
    assert {other.protocol._run.finish_reason for other in cluster.nodes} == {"stop"}


def test_the_target_is_reached_when_every_live_node_has_reached_it() -> None:
    cluster = VirtualCluster(3, 5, periods=0.05, target_return=475.0)
    assert cluster.run(20.0, cluster.all_started)
    cluster.nodes[0].return_mean = cluster.nodes[1].return_mean = 480.0
    cluster.run(3.0)
    assert {node.learner.state for node in cluster.nodes} == {"learning"}
    assert not any(node.learner.view.all_reached_target for node in cluster.nodes if node.learner.view)
    cluster.nodes[2].return_mean = 475.0
    drained(cluster, 5.0)
    assert {node.protocol._run.finish_reason for node in cluster.nodes} == {"target"}


def test_a_neighbour_that_never_finishes_is_waited_for_no_longer_than_the_limit() -> None:
    cluster = VirtualCluster(3, 6, periods=0.05, budget=3 * 60 * PER_UPDATE)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(1.0)
    cluster.nodes[0].learner.state = "hung"
    cluster.run(40.0, lambda: all(node.drained for node in cluster.nodes[1:]))
    assert [node.drained for node in cluster.nodes[1:]] == ["timeout"] * 2
    finished = min(at for node in cluster.nodes[1:] for phase, at in node.protocol._run.history if phase == "finished")
    assert cluster.now - finished < cluster.settings.drain_s + 1.0


def test_a_peer_that_dies_during_the_drain_is_not_waited_for() -> None:
    cluster = VirtualCluster(3, 7, periods=0.05, budget=3 * 60 * PER_UPDATE)
    assert cluster.run(60.0, lambda: cluster.nodes[0].protocol.phase == "finished")
    cluster.kill(2)
    cluster.run(20.0, lambda: all(node.drained for node in cluster.nodes[:2]))
    assert [node.drained for node in cluster.nodes[:2]] == ["drained"] * 2


def test_who_comes_during_the_last_seconds_ends_with_the_others() -> None:
    settings = GossipSettings(wait_for=2)
    cluster = VirtualCluster(3, 8, periods=0.05, budget=2 * 60 * PER_UPDATE, settings=settings, start_times=[0.0, 0.0, 2.8])
    drained(cluster, 30.0)
    assert [node.drained for node in cluster.nodes] == ["drained"] * 3


def test_leaving_alone_ends_one_node_and_not_the_run() -> None:
    cluster = VirtualCluster(3, 9, periods=0.05)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(2.0)
    leaver = cluster.nodes[1]
    left = cluster.now
    leaver.do(leaver.protocol.on_stop(cluster.now))
    assert cluster.run(3.0, lambda: leaver.drained is not None)
    assert leaver.drained == "leave"
    assert cluster.now - left < 1.2
    cluster.run(0.3)
    others = [cluster.nodes[0], cluster.nodes[2]]
    for node in others:
        assert node.protocol._run.finish_reason == ""
        assert 1 not in dict(node.learner.view.eligible if node.learner.view else ())
        assert node.protocol.metrics()["left"] == 1
    cluster.run(8.0)
    assert cluster.counter("dead") == 0  # it said so
    assert cluster.counter("redials") == 0
    assert cluster.ledger.half_applied() == []
    assert all(node.learner.longest_wait_s < 0.5 for node in others)


def test_stopping_before_the_run_has_begun() -> None:
    cluster = VirtualCluster(2, 10, start_times=[0.0, 1e6])
    cluster.run(1.0)
    node = cluster.nodes[0]
    node.do(node.protocol.on_stop(cluster.now))
    cluster.run(0.1)
    assert node.drained == "leave"


def test_finishing_before_the_run_has_begun() -> None:
    cluster = VirtualCluster(2, 11, start_times=[0.0, 1e6])
    cluster.run(1.0)
    node = cluster.nodes[0]
    node.do(node.protocol.on_finished("stop", cluster.now))
    cluster.run(0.1)
    assert node.drained == "stop"
