"""The start: the pure decision as a table, and whole clusters that start in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from zpala.gossip.barrier import Follow, Join, Lead, Run, Seen, Step, TakeOver, Wait, next_step
from zpala.gossip.membership import Phase
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster, ring
from zpala.sim.node import SimulatedNode

A, B = b"aaaaaaaa", b"bbbbbbbb"
WAITING, STARTING, READY, RUNNING, FINISHED = Phase.WAITING, Phase.STARTING, Phase.READY, Phase.RUNNING, Phase.FINISHED


def seen(*peers: tuple[int, Phase, bytes]) -> list[Seen]:
    return [Seen(*peer) for peer in peers]


@pytest.mark.parametrize(
    ("line", "phase", "nonce", "peers", "needed", "patience_over", "expected"),
    [
        (0, WAITING, b"", [], 1, False, Lead()),
        (0, WAITING, b"", [], 2, False, Wait()),
        (0, WAITING, b"", [], 2, True, Lead()),
        (0, WAITING, b"", [(1, WAITING, b"")], 2, False, Lead()),
        (1, WAITING, b"", [(0, WAITING, b"")], 2, False, Wait()),
        (1, WAITING, b"", [(0, WAITING, b"")], 2, True, Wait()),  # the lower one leads, its patience ends too
        (1, WAITING, b"", [(2, WAITING, b"")], 3, True, Lead()),
        (2, WAITING, b"", [(0, STARTING, A)], 3, False, Follow(A)),
        (0, WAITING, b"", [(1, READY, A)], 3, False, Follow(A)),  # somebody led already
        (1, WAITING, b"", [(0, READY, B), (2, READY, A)], 3, False, Follow(A)),
        (0, WAITING, b"", [(1, RUNNING, A), (2, WAITING, b"")], 3, False, Join(A)),
        (0, WAITING, b"", [(1, FINISHED, A)], 2, False, Join(A)),
        (0, WAITING, b"", [(1, RUNNING, B), (2, RUNNING, A), (3, RUNNING, B)], 4, False, Join(B)),
        (1, STARTING, A, [(0, READY, A)], 2, False, Wait()),
        (1, STARTING, B, [(0, READY, A)], 2, False, Follow(A)),
        (1, STARTING, A, [(0, READY, B)], 2, False, Wait()),
        (1, STARTING, A, [(0, RUNNING, B)], 2, False, Join(B)),
        (1, STARTING, A, [(0, RUNNING, A)], 2, False, Wait()),  # not before it has the parameters
        (1, READY, A, [(0, READY, A)], 2, False, Wait()),
        (0, READY, A, [(1, READY, A)], 2, False, Run()),
        (0, READY, A, [(1, STARTING, A)], 2, False, Wait()),
        (0, READY, A, [(1, STARTING, A)], 2, True, Run()),
        (0, READY, A, [(1, WAITING, b"")], 2, False, Wait()),
        (1, READY, A, [(0, RUNNING, A), (2, STARTING, A)], 3, False, Run()),
        (1, READY, B, [(0, RUNNING, A)], 2, False, Join(A)),
        (1, READY, A, [(2, READY, A)], 3, False, Run()),  # line 0 led and is gone
        (1, READY, B, [(0, RUNNING, A), (2, RUNNING, B)], 3, False, Run()),
    ],
)
def test_next_step(
    line: int, phase: Phase, nonce: bytes, peers: list[tuple[int, Phase, bytes]], needed: int, patience_over: bool, expected: Step
) -> None:
    assert next_step(line, phase, nonce, seen(*peers), needed, patience_over) == expected


@pytest.mark.parametrize(
    ("line", "peers", "expected"),
    [
        (1, [(2, STARTING, A)], TakeOver()),
        (2, [(1, STARTING, A)], Wait()),
        (1, [(2, READY, A)], Wait()),
        (1, [(2, WAITING, b"")], TakeOver()),
        (1, [(0, RUNNING, B)], Join(B)),
    ],
)
def test_orphans_are_led_by_their_lowest_line(line: int, peers: list[tuple[int, Phase, bytes]], expected: Step) -> None:
    assert next_step(line, STARTING, A, seen(*peers), 3, False, orphaned=True) == expected


# ---- in a cluster ----------------------------------------------------------------------------------------------------------------------


def when_running(node: SimulatedNode) -> float:
    return next(at for phase, at in node.protocol._run.history if phase is RUNNING)


def one_run(cluster: VirtualCluster) -> None:
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    assert {node.protocol.phase for node in cluster.nodes} == {RUNNING}


@pytest.mark.parametrize("order", list(itertools.permutations([0.0, 1.0, 2.5]))[:4])
def test_everybody_starts_together_with_the_lowest_lines_parameters(order: tuple[float, ...]) -> None:
    cluster = VirtualCluster(3, 1, start_times=order, periods=10.0, drift=0.0)
    first = cluster.nodes[0].learner.vector.copy()
    cluster.run(2.4)
    assert {node.learner.state for node in cluster.nodes} == {"waiting"}
    assert cluster.run(5.0, cluster.all_started)
    assert cluster.now < 1000.0 + 2.5 + 1.5
    cluster.run(0.3)
    one_run(cluster)
    assert cluster.nodes[0].protocol.nonce[0] == 0  # the first byte is the leader's line
    assert max(map(when_running, cluster.nodes)) - min(map(when_running, cluster.nodes)) < 0.1
    assert sorted(line for _, line in cluster.adoptions) == [1, 2]
    for node in cluster.nodes:
        np.testing.assert_array_equal(node.learner.vector, first)


def test_with_their_own_parameters_only_the_nonce_is_agreed_on() -> None:
    cluster = VirtualCluster(3, 2, settings=GossipSettings(initial="own"), periods=10.0, drift=0.0)
    before = [node.learner.vector.copy() for node in cluster.nodes]
    assert cluster.run(5.0, cluster.all_started)
    one_run(cluster)
    assert cluster.adoptions == []
    for node, vector in zip(cluster.nodes, before, strict=True):
        np.testing.assert_array_equal(node.learner.vector, vector)


def test_after_the_timeout_it_starts_with_whom_is_there_and_says_so() -> None:
    cluster = VirtualCluster(3, 3, settings=GossipSettings(start_timeout_s=4.0), start_times=[1e6, 0.0, 1.0])
    cluster.run(3.9)
    assert {node.learner.state for node in cluster.nodes} == {"waiting"}
    cluster.run(2.5)
    assert [node.learner.state for node in cluster.nodes] == ["waiting", "learning", "learning"]
    assert any("without ['n0']" in log.text for log in cluster.nodes[1].logs)


def test_wait_for_a_number() -> None:
    cluster = VirtualCluster(4, 4, settings=GossipSettings(wait_for=2), start_times=[1e6, 0.0, 1e6, 2.0])
    cluster.run(1.9)
    assert cluster.nodes[1].learner.state == "waiting"
    cluster.run(1.0)
    assert cluster.nodes[1].learner.state == "learning"
    assert cluster.nodes[3].learner.state == "learning"


def test_alone_in_the_list_starts_at_once() -> None:
    cluster = VirtualCluster(1, 5, topology=ring(1), start_times=[0.0])
    cluster.run(0.01)
    assert cluster.nodes[0].learner.state == "learning"


@pytest.mark.parametrize("seed", range(4))
def test_resets_only_delay_the_start(seed: int) -> None:
    cluster = VirtualCluster(5, seed, reset=0.05)
    assert cluster.run(30.0, cluster.all_started)
    cluster.run(1.0)
    one_run(cluster)


@pytest.mark.parametrize("dies_at", [0.30, 0.31, 0.32, 0.33, 0.35])
def test_a_leader_that_dies_during_the_start_is_replaced(dies_at: float) -> None:
    cluster = VirtualCluster(3, 6, settings=GossipSettings(start_timeout_s=3.0), start_times=[0.3, 0.0, 0.0], latency_s=(0.005, 0.01))
    cluster.run(dies_at)
    cluster.kill(0)
    assert cluster.run(20.0, lambda: all(node.learner.state == "learning" for node in cluster.nodes[1:]))
    assert cluster.nodes[1].protocol.nonce == cluster.nodes[2].protocol.nonce != b""
    np.testing.assert_allclose(cluster.nodes[1].learner.vector, cluster.nodes[2].learner.vector, atol=0.2)


def test_a_cluster_of_sixteen_starts_within_a_second() -> None:
    cluster = VirtualCluster(16, 7, start_times=[0.0] * 16, periods=0.5)
    assert cluster.run(1.0, cluster.all_started)
    cluster.run(0.2)
    one_run(cluster)


# ---- who does not belong -----------------------------------------------------------------------------------------------------------------


def test_two_waiting_nodes_that_disagree_both_stop_and_name_field_and_values() -> None:
    cluster = VirtualCluster(2, 8)
    cluster.nodes[1].protocol._sessions._agreement["seed"] = "2"
    cluster.run(2.0)
    for node, mine, theirs in ((cluster.nodes[0], "1", "2"), (cluster.nodes[1], "2", "1")):
        assert node.fatal is not None
        assert node.fatal.exit_code == 2
        assert '"seed"' in node.fatal.text
        assert f"here it is {mine}, there {theirs}" in node.fatal.text


def test_a_running_node_only_mentions_a_newcomer_that_disagrees() -> None:
    cluster = VirtualCluster(3, 9, settings=GossipSettings(wait_for=2), start_times=[0.0, 0.0, 3.0])
    cluster.nodes[2].protocol._sessions._agreement["topology"] = "other"
    cluster.run(5.0)
    assert cluster.nodes[2].fatal is not None
    assert cluster.nodes[2].fatal.exit_code == 2
    for node in cluster.nodes[:2]:
        assert node.fatal is None
        assert node.learner.state == "learning"
        assert sum("do not agree" in log.text for log in node.logs) == 1


def two_runs(left: int, right: int) -> VirtualCluster:
    """Two clusters that cannot see each other start; then they meet."""
    size = left + right
    cluster = VirtualCluster(size, 10, settings=GossipSettings(start_timeout_s=1.0), periods=0.1)
    cluster.network.partition(range(left), range(left, size))
    cluster.run(5.0)
    assert {node.protocol.phase for node in cluster.nodes} == {RUNNING}
    assert cluster.nodes[0].protocol.nonce != cluster.nodes[-1].protocol.nonce
    cluster.network.heal()
    cluster.run(8.0)
    return cluster


def test_a_lone_straggler_of_another_run_stops_and_names_both() -> None:
    cluster = two_runs(3, 1)
    straggler = cluster.nodes[3].fatal
    assert straggler is not None
    assert straggler.exit_code == 3
    assert cluster.nodes[0].protocol.nonce.hex() in straggler.text
    assert cluster.nodes[3].protocol._run.nonce.hex() in straggler.text
    assert [node.learner.state for node in cluster.nodes[:3]] == ["learning"] * 3


def test_two_runs_in_company_refuse_each_other_and_go_on() -> None:
    cluster = two_runs(2, 2)
    assert [node.fatal for node in cluster.nodes] == [None] * 4
    for node in cluster.nodes:
        assert any("another run" in log.text for log in node.logs)
    for ending in cluster.nodes[0].endings:
        assert ending.exchange.peer.line == 1


def test_of_two_lone_nodes_the_older_start_stops() -> None:
    cluster = two_runs(1, 1)
    assert cluster.nodes[0].fatal is not None  # incarnation 1 against 2
    assert cluster.nodes[0].fatal.exit_code == 3
    assert cluster.nodes[1].fatal is None


def test_without_gossip_nodes_form_the_run_and_never_average() -> None:
    cluster = VirtualCluster(3, 11, settings=GossipSettings(enabled=False, max_staleness=1), periods=0.1, budget=3 * 80 * 30)
    first = cluster.nodes[0].learner.vector.copy()
    assert cluster.run(5.0, cluster.all_started)
    for node in cluster.nodes:
        assert np.abs(node.learner.vector - first).max() < 0.1
    assert cluster.run(20.0, lambda: all(node.drained for node in cluster.nodes))
    assert cluster.network.sent["Offer"] == 0
    assert cluster.forced == []
    assert [node.learner.gate.waits for node in cluster.nodes] == [0, 0, 0]
    assert sum(node.learner.updates for node in cluster.nodes) * 80 < cluster.budget * 1.3
