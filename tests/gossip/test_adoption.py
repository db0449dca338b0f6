"""Late and restarted nodes take over a live state, whole and verified, or the next donor's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zpala.gossip.messages import StateData, StateMeta, StatePart
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster


def running(size: int, late: int = 0, seed: int = 1, **options: Any) -> VirtualCluster:
    """``size`` nodes run for five seconds; ``late`` more lines of the list have not started."""
    settings = options.pop("settings", GossipSettings(wait_for=size))
    times = [0.0] * size + [1e6] * late
    cluster = VirtualCluster(size + late, seed, settings=settings, start_times=times, periods=options.pop("periods", 0.05), **options)
    for node in cluster.nodes[:size]:
        node.learner.slot[:] = 10.0 + node.line
    cluster.run(5.0)
    assert all(node.learner.state == "learning" for node in cluster.nodes[:size])
    return cluster


def joined(cluster: VirtualCluster, line: int, within_s: float = 10.0) -> float:
    """Start ``line``; returns how long it took until it learned."""
    node = cluster.nodes[line]
    began = cluster.now
    node.run()
    assert cluster.run(within_s, lambda: node.learner.state in ("learning", "gate"))
    return cluster.now - began


def test_a_late_node_takes_parameters_optimizer_version_counters_and_nonce() -> None:
    cluster = running(2, late=1, drift=0.02)
    late = cluster.nodes[2]
    own = late.learner.vector.copy()
    assert joined(cluster, 2) < 1.0
    donors = cluster.nodes[:2]
    assert late.learner.slot[0] == 10.0  # everybody adopted line 0's at the start
    versions = [node.learner.version for node in donors]
    assert min(versions) - 5 <= late.learner.version <= max(versions)
    assert late.learner.updates == 0
    distances = [np.abs(late.learner.vector - node.learner.vector).max() for node in donors]
    assert max(distances) < 0.5
    assert np.abs(own - donors[0].learner.vector).max() > 0.5
    assert late.protocol.nonce == donors[0].protocol.nonce
    cluster.run(1.0)
    assert late.learner.view is not None
    total = late.learner.view.cluster_env_steps
    assert abs(total - sum(node.learner.updates for node in cluster.nodes) * 80) < 0.5 / 0.05 * 3 * 80 * 1.5
    assert late.learner.view.other_env_steps == total - late.protocol._outlook.own_env_steps


def test_a_late_node_averages_soon_and_holds_nobody() -> None:
    cluster = running(3, late=1)
    joined(cluster, 3)
    cluster.run(2.0)
    late = cluster.nodes[3]
    assert late.protocol.metrics()["applied"] > 5
    assert late.learner.view is not None
    assert (late.learner.view.averaged, late.learner.view.neighbours_live) == (3, 3)
    assert cluster.forced == []
    assert cluster.problems() == []


def test_a_restarted_node_is_taken_in_at_once_and_its_past_is_fenced() -> None:
    cluster = running(4)
    cluster.kill(2)
    cluster.run(0.3)  # long before anybody can think it dead
    began = cluster.now
    node = cluster.restart(2)
    assert cluster.run(5.0, lambda: node.learner.state == "learning")
    assert cluster.now - began < 1.5
    assert cluster.counter("dead") == 0
    cluster.run(3.0)
    assert node.protocol.metrics()["applied"] > 5
    assert sum(other.protocol.metrics()["renewed"] for other in cluster.nodes if other is not node) == 3
    assert cluster.forced == []
    steps = {n.learner.view.cluster_env_steps for n in cluster.nodes if n.learner.view is not None}
    assert min(steps) > 4 * 80 * 60  # the dead process's steps stay counted


def test_several_join_at_the_same_time_from_one_donor() -> None:
    cluster = running(1, late=3, settings=GossipSettings(wait_for=1), bandwidth=1000.0)
    for line in (1, 2, 3):
        cluster.nodes[line].run()
    assert cluster.run(10.0, lambda: all(node.learner.state != "waiting" for node in cluster.nodes))
    assert cluster.counter("adoption_rejected") == 0
    assert [node.learner.slot[0] for node in cluster.nodes] == [10.0] * 4
    cluster.run(3.0)
    assert cluster.problems() == []


def test_one_after_the_other_the_donor_captures_anew() -> None:
    cluster = running(1, late=2, settings=GossipSettings(wait_for=1))
    joined(cluster, 1)
    cluster.run(8.0)
    joined(cluster, 2)
    assert cluster.nodes[2].learner.version >= min(node.learner.version for node in cluster.nodes[:2]) - 3
    assert cluster.counter("adoption_rejected") == 0


def test_who_comes_back_after_a_broken_transfer_gets_the_present_state() -> None:
    cluster = running(1, late=1, settings=GossipSettings(wait_for=1), drift=0.02)
    donor, late = cluster.nodes
    cluster.network.drop = lambda source, target, message: type(message).__name__ == "StateFetch"
    late.run()
    assert cluster.run(5.0, lambda: cluster.network.sent["StateMeta"] > 0 and cluster.network.resets > 0)
    cluster.kill(1)
    assert len(donor.protocol._donor._transfers) == 1  # it was broken off
    captured_at = cluster.now
    cluster.network.drop = lambda source, target, message: False
    cluster.run(100.0)
    late = cluster.restart(1)
    assert cluster.run(10.0, lambda: late.learner.state in ("learning", "gate"))
    age_s = (donor.learner.version - late.learner.version) * 0.05
    assert age_s < 2.0 < cluster.now - captured_at


def test_a_donor_that_dies_in_the_middle_is_replaced_by_the_next() -> None:
    cluster = running(3, late=1)
    cluster.network.bandwidth = 100.0  # a part of 64 bytes takes most of a second
    late = cluster.nodes[3]
    late.run()
    assert cluster.run(5.0, lambda: cluster.network.sent["StateFetch"] > 0 and late.protocol._joiner._donor is not None)
    donor = late.protocol._joiner._donor
    assert donor is not None
    cluster.kill(donor.line)
    assert cluster.run(20.0, lambda: late.learner.state == "learning")
    assert late.protocol.metrics()["adoption_failures"] >= 1
    assert len(cluster.adoptions) >= 1
    assert late.learner.slot[0] == 10.0


@pytest.mark.parametrize("part", [0, 1])
def test_a_damaged_part_is_refused_and_the_next_donor_asked(part: int) -> None:
    cluster = running(2, late=1)
    damaged = 0

    def corrupt(source: int, target: int, message: Any, content: Any) -> Any:
        nonlocal damaged
        if type(message).__name__ == "StateData" and message.part == part and not damaged:
            damaged += 1
            content.view(np.uint8)[3] ^= 0x40
        return content

    cluster.network.corrupt = corrupt
    joined(cluster, 2)
    late = cluster.nodes[2]
    assert damaged == 1
    assert late.protocol.metrics()["adoption_rejected"] == 1
    assert [line for _, line in cluster.adoptions].count(2) == 1
    assert late.learner.slot[0] == 10.0
    assert np.abs(late.learner.vector - cluster.nodes[0].learner.vector).max() < 0.5


@pytest.mark.parametrize("change", ["layout", "nonce"])
def test_a_state_of_another_kind_is_refused(change: str) -> None:
    cluster = running(1, late=1, settings=GossipSettings(wait_for=1))
    joiner = cluster.nodes[1].protocol._joiner
    accepted = []
    original = joiner.on_meta

    def on_meta(member: Any, meta: StateMeta, nonce: bytes, now: float) -> None:
        parts = (StatePart(name="parameters", nbytes=4, checksum=0),) if change == "layout" else meta.parts
        wrong = StateMeta(
            session=meta.session,
            state_id=meta.state_id,
            nonce=b"12345678" if change == "nonce" else meta.nonce,
            version=meta.version,
            optimizer_steps=0,
            parts=parts,
            digest=(),
        )
        accepted.append(meta)
        original(member, wrong, nonce, now)

    joiner.on_meta = on_meta  # type: ignore[method-assign]
    cluster.nodes[1].run()
    cluster.run(5.0)
    assert accepted
    assert cluster.nodes[1].learner.state == "waiting"
    assert cluster.nodes[1].protocol.metrics()["adoption_rejected"] >= 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reset", [0.02, 0.1])
def test_resets_only_delay_it(seed: int, reset: float) -> None:
    cluster = running(3, late=1, seed=seed, settings=GossipSettings(wait_for=3))
    cluster.network.reset = reset
    joined(cluster, 3, within_s=60.0)
    late = cluster.nodes[3]
    assert late.learner.slot[0] == 10.0
    assert late.protocol.metrics()["adoption_rejected"] == 0


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_is_lost_with_its_connection_is_fetched_again_from_the_same_donor(part: int) -> None:
    cluster = running(3, late=1)
    left = 3

    def drop(source: int, target: int, message: Any) -> bool:
        nonlocal left
        lost = left > 0 and isinstance(message, StateData) and message.part == part
        left -= lost
        return lost

    cluster.network.drop = drop
    late, asked = cluster.nodes[3], cluster.network.sent["StateRequest"]
    joined(cluster, 3, within_s=15.0)
    assert left == 0
    assert late.protocol.metrics()["adoption_failures"] == 0
    assert cluster.network.sent["StateRequest"] == asked + 1, "and what was already here is not fetched again"
    assert late.learner.slot[0] == 10.0


def test_a_description_that_is_lost_with_its_connection_is_sent_again() -> None:
    cluster = running(3, late=1)
    left = 5

    def drop(source: int, target: int, message: Any) -> bool:
        nonlocal left
        lost = left > 0 and isinstance(message, StateMeta)
        left -= lost
        return lost

    cluster.network.drop = drop
    joined(cluster, 3, within_s=10.0)
    assert left == 0
    assert cluster.nodes[3].protocol.metrics()["adoption_failures"] == 0
    assert cluster.nodes[3].learner.slot[0] == 10.0


def test_a_donor_whose_learner_hangs_is_given_up() -> None:
    cluster = running(2, late=1)
    cluster.nodes[0].learner.state = "hung"
    late = cluster.nodes[2]
    late.run()
    assert cluster.run(30.0, lambda: late.learner.state == "learning")


def test_when_all_donors_are_gone_it_waits_at_the_barrier_again() -> None:
    cluster = running(1, late=1, settings=GossipSettings(wait_for=1, start_timeout_s=3.0))
    cluster.nodes[0].learner.state = "hung"  # never gives its state
    late = cluster.nodes[1]
    late.run()
    cluster.run(2.0)
    assert late.protocol.phase == "joining"
    cluster.kill(0)
    cluster.run(7.0)
    assert any("waiting again" in log.text for log in late.logs)
    assert cluster.run(5.0, lambda: late.learner.state == "learning")  # alone, after its patience
    assert late.protocol.nonce[0] == 1


def test_with_own_parameters_a_late_node_keeps_them() -> None:
    cluster = running(2, late=1, settings=GossipSettings(wait_for=2, initial="own"), drift=0.0)
    own = cluster.nodes[2].learner.vector.copy()
    cluster.nodes[2].run()
    assert cluster.run(5.0, lambda: cluster.nodes[2].learner.state == "learning")
    np.testing.assert_array_equal(cluster.nodes[2].learner.vector, own)
    assert cluster.adoptions == []
