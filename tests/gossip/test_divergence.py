"""Two halves that have drifted apart meet again: whoever diverged stops, is averaged with, or adopts the other's state while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zpala.gossip.exchange_state import State
from zpala.gossip.membership import Phase
from zpala.gossip.messages import StateData
from zpala.gossip.protocol import LENT
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster

FAR = 1.0  # settings.max_distance


def distance(a: Any, b: Any) -> float:
    """||a - b|| / max(||a||, ||b||), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b)))


def apart(on_diverged: str, seed: int, *, size: int = 4, **options: Any) -> VirtualCluster:
    """A cluster whose two halves were separated until their drift had brought them too far from each other; not yet healed."""
    settings = GossipSettings(on_diverged=on_diverged)
    periods = options.pop("periods", 0.05)
    cluster = VirtualCluster(size, seed, settings=settings, periods=periods, **options)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(2.0)
    half = size // 2
    assert cluster.run(20.0, lambda: all(node.exchanges.idle for node in cluster.nodes))  # nothing is left in doubt
    cluster.network.partition(range(half), range(half, size))
    for node in cluster.nodes:
        node.learner.drift = 0.3
    left, right = cluster.nodes[0].learner, cluster.nodes[-1].learner
    assert cluster.run(300.0, lambda: distance(left.vector, right.vector) > 1.2 * FAR), f"seed {seed}"
    for node in cluster.nodes:
        node.learner.drift = 0.003
    cluster.run(6.0)  # the halves are close in themselves again, and dead to each other
    assert min(distance(a.learner.vector, b.learner.vector) for a in cluster.nodes[:half] for b in cluster.nodes[half:]) > FAR
    assert distance(cluster.nodes[0].learner.vector, cluster.nodes[half - 1].learner.vector) < 0.1
    return cluster


def progress(cluster: VirtualCluster, seconds: float) -> list[int]:
    before = {node.line: node.learner.updates for node in cluster.live()}
    cluster.run(seconds)
    return [node.learner.updates - before[node.line] for node in cluster.live()]


@pytest.mark.parametrize("seed", [0, 11, 14])
def test_exit_of_two_equal_halves_one_stops_and_the_other_goes_on(seed: int) -> None:
    """Each node is far from most of the others: without a rule for equal halves all would stop (seed 14), or chance would decide (11)."""
    cluster = apart("exit", seed)
    cluster.network.heal()
    cluster.run(20.0)
    stopped = [node for node in cluster.nodes if node.fatal is not None]
    rest = [node for node in cluster.nodes if node.fatal is None]
    assert 0 < len(stopped) < 4, f"seed {seed}"
    assert {node.fatal.exit_code for node in stopped if node.fatal} == {5}
    assert max(distance(rest[0].learner.vector, node.learner.vector) for node in rest) < 0.1
    assert min(progress(cluster, 5.0)) > 0.9 * 5.0 / 0.05, f"seed {seed}"
    assert cluster.counter("rejoins") == 0


@pytest.mark.parametrize("seed", range(2))
def test_average_mixes_all_the_same_and_keeps_the_mean(seed: int) -> None:
    cluster = apart("average", seed)
    cluster.network.heal()
    cluster.run(20.0)
    assert [node.fatal for node in cluster.nodes] == [None] * 4
    assert cluster.distance() < 0.05, f"seed {seed}"
    assert cluster.counter("diverged") >= 2, f"seed {seed}: nothing was far"
    assert cluster.counter("rejected_diverged") == cluster.counter("rejected_norm") == 0
    assert cluster.run(5.0, lambda: not cluster.ledger.half_applied())
    assert cluster.drift_error() < 1e-3, f"seed {seed}"
    assert min(progress(cluster, 5.0)) > 0.9 * 5.0 / 0.05
    assert any("averaged with" in log.text and "above gossip.max_distance" in log.text for node in cluster.nodes for log in node.logs)
    assert cluster.problems() == []


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_the_side_that_is_behind_adopts_the_others_state_while_it_runs(seed: int) -> None:
    cluster = apart("bootstrap", seed, periods=[0.04, 0.04, 0.06, 0.06])
    ahead = cluster.nodes[0].learner.vector.copy()
    versions = [node.learner.version for node in cluster.nodes]
    assert min(versions[:2]) > max(versions[2:]) + 20
    steps = [node.learner.updates for node in cluster.nodes]
    adopted = len(cluster.adoptions)
    for node in cluster.nodes:
        node.learner.longest_wait_s = 0.0
        node.learner.slot[:] = 7.0 if node.line < 2 else 8.0
    cluster.network.heal()
    behind = cluster.nodes[2:]
    assert cluster.run(20.0, lambda: len(cluster.adoptions) >= adopted + 2), f"seed {seed}"
    cluster.run(3.0)
    assert [node.fatal for node in cluster.nodes] == [None] * 4
    assert sorted({line for _, line in cluster.adoptions[adopted:]}) == [2, 3]
    assert [node.protocol.metrics()["rejoins"] for node in cluster.nodes] == [0, 0, 1, 1]
    assert [node.learner.slot[0] for node in cluster.nodes] == [7.0] * 4  # the optimiser's state came along
    for node in cluster.nodes:
        assert distance(ahead, node.learner.vector) < 0.3
        assert node.learner.version >= min(versions[:2])
        assert node.learner.updates >= steps[node.line] + 3.0 / 0.06 * 0.9  # it has learned all along, and counts what it did
        assert node.protocol.phase == Phase.RUNNING
    assert cluster.distance() < 0.05
    cluster.run(2.0)
    for node in cluster.nodes:
        assert node.learner.view is not None
        expected = sum(other.learner.updates for other in cluster.nodes) * cluster.steps_per_update
        assert abs(node.learner.view.cluster_env_steps - expected) < 4 / 0.04 * 80  # a second of everybody's work
    before = [node.protocol.metrics()["applied"] for node in behind]
    cluster.run(3.0)
    assert all(node.protocol.metrics()["applied"] > count + 5 for node, count in zip(behind, before, strict=True))
    assert max(node.learner.longest_wait_s for node in cluster.nodes) < 1.5, f"seed {seed}"
    assert cluster.forced == []
    assert cluster.problems() == []


@pytest.mark.parametrize(("size", "seed"), [(2, 0), (2, 1), (2, 2), (4, 3), (4, 4), (6, 5)])
def test_bootstrap_ends_in_one_state_whoever_is_ahead(size: int, seed: int) -> None:
    """The versions of the halves lie between each other, so that either may give way, and the links break all the time."""
    cluster = apart("bootstrap", seed, size=size)
    cluster.network.heal()
    cluster.network.reset = 0.01
    assert cluster.run(60.0, lambda: cluster.distance() < 0.05), f"seed {seed}"
    assert cluster.network.resets > 0
    cluster.network.reset = 0.0
    rejoins = cluster.counter("rejoins")
    assert rejoins >= size // 2, f"seed {seed}"
    cluster.run(5.0)
    assert min(progress(cluster, 5.0)) > 0.9 * 5.0 / 0.05, f"seed {seed}"
    assert cluster.counter("rejoins") == rejoins
    assert {node.protocol.phase for node in cluster.nodes} == {Phase.RUNNING}
    assert cluster.forced == []
    assert not cluster.violations


def test_of_equal_versions_the_higher_line_gives_way() -> None:
    cluster = VirtualCluster(2, 3, settings=GossipSettings(on_diverged="bootstrap"), periods=1e6)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(1.0)
    cluster.nodes[0].learner.vector[:-1] *= -1.0
    for node in cluster.nodes:
        node.learner.apply_and_publish(waiting=False)
    cluster.run(5.0)
    assert [node.protocol.metrics()["rejoins"] for node in cluster.nodes] == [0, 1]
    assert cluster.distance() < 1e-6
    assert cluster.nodes[0].learner.vector[0] < 0


def two_apart(seed: int, **options: Any) -> VirtualCluster:
    """Two nodes, the second of which is behind and has just been turned round; no exchange has noticed."""
    settings = GossipSettings(on_diverged="bootstrap")
    cluster = VirtualCluster(2, seed, settings=settings, periods=[0.04, 0.06], **options)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(3.0)
    cluster.nodes[1].learner.vector[:-1] *= -1.0
    return cluster


def test_deltas_that_wait_are_dropped_and_the_buffers_come_back() -> None:
    cluster = two_apart(4)
    node = cluster.nodes[1]
    kept = node.learner.receive
    deltas: list[int] = []

    def receive(event: Any) -> None:
        """The learner is in the middle of an update when the state comes: two deltas have been waiting since before."""
        if type(event).__name__ == "AdoptState":
            for _ in range(2):
                buffer = node.exchanges._pool.take()
                assert buffer is not None
                node.buffers[buffer][:] = 1e6
                sequence = node.protocol._shadow.queue(buffer)
                deltas.append(sequence)
                node.learner.deltas.receive(delta_of(sequence, buffer))
        kept(event)

    node.learner.receive = receive  # type: ignore[method-assign]
    assert cluster.run(5.0, lambda: bool(deltas))
    cluster.run(1.0)
    assert node.learner.dropped == 2
    assert np.abs(node.learner.vector).max() < 100.0
    assert node.protocol.metrics()["deltas_queued"] == 0
    cluster.quiesce()
    assert node.protocol.metrics()["buffers_free"] == cluster.buffers - LENT - 1  # the shadow's


def delta_of(sequence: int, buffer: int) -> Any:
    from zpala.gossip.events import DeltaQueued

    return DeltaQueued(sequence=sequence, buffer=buffer, line=0, peer_version=0, from_doubt=False, distance=0.0)


def test_a_peer_that_dies_while_it_gives_its_state_leaves_the_node_with_its_own() -> None:
    cluster = two_apart(5)
    cluster.network.bandwidth = 100.0  # a part of 64 bytes takes most of a second
    node = cluster.nodes[1]
    assert cluster.run(20.0, lambda: node.protocol.phase == Phase.JOINING)
    own = node.learner.vector.copy()
    began = node.learner.updates
    cluster.kill(0)
    assert cluster.run(20.0, lambda: node.protocol.phase == Phase.RUNNING)
    assert node.learner.updates > began
    assert distance(own, node.learner.vector) < 0.5
    assert any("going on with what this node has" in log.text for log in node.logs)
    cluster.run(5.0)
    assert node.learner.state == "learning"


def test_damaged_parts_are_never_installed_and_given_up_after_three() -> None:
    cluster = two_apart(6)
    damaged = 0

    def corrupt(source: int, target: int, message: Any, content: Any) -> Any:
        nonlocal damaged
        if isinstance(message, StateData) and damaged < 3:
            damaged += 1
            content.view(np.uint8)[3] ^= 0x40
        return content

    cluster.network.corrupt = corrupt
    node = cluster.nodes[1]
    assert cluster.run(20.0, lambda: any("going on with what this node has" in log.text for log in node.logs))
    assert damaged == 3
    assert node.protocol.phase == Phase.RUNNING
    assert cluster.run(20.0, lambda: cluster.distance() < 0.05)  # the next time it works
    assert node.protocol.metrics()["rejoins"] == 2
    assert node.protocol.metrics()["adoption_rejected"] == 3


def test_a_doubt_of_the_old_parameters_is_given_up_and_never_applied_to_the_new_ones() -> None:
    cluster = VirtualCluster(3, 7, settings=GossipSettings(on_diverged="bootstrap"), periods=[0.04, 0.04, 0.06])
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(3.0)
    node = cluster.nodes[2]
    lost = 0

    def drop(source: int, target: int, message: Any) -> bool:
        """Node 1 cannot say OK to node 2 any more, nor send it data with it: their next exchange stays in doubt at node 2."""
        nonlocal lost
        wanted = (source, target) == (1, 2) and (type(message).__name__ == "Ok" or getattr(message, "ok", False))
        lost += wanted
        return wanted

    cluster.network.drop = drop
    assert cluster.run(30.0, lambda: bool(node.exchanges.doubts))
    assert lost > 0
    doubts = list(node.exchanges.doubts.values())
    node.learner.vector[:-1] *= -1.0
    assert cluster.run(5.0, lambda: node.protocol.phase == Phase.JOINING)
    assert all(doubt.state is State.GIVEN_UP for doubt in doubts)
    assert not node.exchanges.doubts
    assert node.protocol.metrics()["defects"] == len(doubts)
    cluster.network.drop = lambda source, target, message: False
    cluster.run(10.0)
    assert cluster.distance() < 0.05


def test_the_run_may_end_while_a_state_is_adopted() -> None:
    cluster = two_apart(8)
    cluster.network.bandwidth = 100.0
    node = cluster.nodes[1]
    assert cluster.run(20.0, lambda: node.protocol.phase == Phase.JOINING)
    for other in cluster.nodes:
        other.learner.leave_gate()
        other.learner.state = "finished"
        other.learner.apply_and_publish(waiting=True)
        other.do(other.protocol.on_finished("stop", cluster.now))
    assert node.protocol.phase == Phase.FINISHED
    cluster.run(cluster.settings.drain_s + 1.0)
    assert {other.drained for other in cluster.nodes} <= {"drained", "timeout"}  # drained: nobody else was known to have finished
    assert [other.fatal for other in cluster.nodes] == [None, None]


@pytest.mark.parametrize("on_diverged", ["average", "bootstrap"])
def test_after_the_heal_the_run_ends_as_any_other(on_diverged: str) -> None:
    cluster = apart(on_diverged, 9)
    cluster.network.heal()
    cluster.run(20.0)
    for node in cluster.nodes:
        node.protocol._budget.budget = cluster.nodes[0].protocol._budget.total() + 1
    assert cluster.run(20.0, lambda: all(node.drained for node in cluster.nodes))
    assert [node.drained for node in cluster.nodes] == ["drained"] * 4
    assert cluster.distance() < 5e-3


def test_a_running_node_that_adopts_again_is_not_ended_by_a_newcomer_that_disagrees() -> None:
    cluster = VirtualCluster(
        3, 10, settings=GossipSettings(on_diverged="bootstrap", wait_for=2), periods=[0.04, 0.06, 0.06], start_times=[0.0, 0.0, 1e6]
    )
    assert cluster.run(20.0, lambda: all(node.learner.state == "learning" for node in cluster.nodes[:2]))
    cluster.run(3.0)
    node = cluster.nodes[1]
    node.learner.vector[:-1] *= -1.0
    cluster.network.bandwidth = 60.0
    assert cluster.run(20.0, lambda: node.protocol.phase == Phase.JOINING)
    cluster.nodes[2].protocol._sessions._agreement["seed"] = "2"
    cluster.nodes[2].run()
    assert cluster.run(3.0, lambda: cluster.nodes[2].fatal is not None and cluster.nodes[2].fatal.exit_code == 2)
    assert node.protocol.phase == Phase.JOINING
    cluster.network.bandwidth = float("inf")
    assert cluster.run(20.0, lambda: node.protocol.phase == Phase.RUNNING)
    assert [other.fatal for other in cluster.nodes[:2]] == [None, None]
