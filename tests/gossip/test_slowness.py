"""Who is SLOW: the judgement against hand-worked paces, and a cluster that stops waiting for one of its nodes and starts again."""

from __future__ import annotations

import random

import pytest

from zpala.gossip.actions import Log, Outbox
from zpala.gossip.events import Published
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.membership import Liveness, Member, Membership, Phase
from zpala.gossip.messages import Condition
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run
from zpala.gossip.settings import GossipSettings
from zpala.gossip.slowness import Slowness
from zpala.sim.cluster import VirtualCluster, full


class Scene:
    """A node that runs with ``own_s`` per update, and live peers whose paces are set by hand; line 0 is the node itself."""

    def __init__(self, own_s: float, *peers_s: float, slow_factor: float = 4.0) -> None:
        size = 1 + len(peers_s)
        self.run = Run(phase=Phase.RUNNING, published=Published(version=1, updates=1, applied_through=0, update_s=own_s))
        self.membership = Membership(0, size, GossipSettings(), 0.0)
        self.out = Outbox()
        hosts = parse_hosts("\n".join(f"n{i} 10.0.0.{i + 1}:5000" for i in range(size)), "memory")
        self.neighbourhood = Neighbourhood(0, full(size), self.membership, self.run)
        self.slowness = Slowness(slow_factor, hosts.hosts, self.run, self.neighbourhood, self.out)
        for line, seconds in enumerate(peers_s, start=1):
            self.member(line).liveness = Liveness.ALIVE
            self.set(line, seconds)

    def member(self, line: int) -> Member:
        member = self.membership.get(line)
        assert member is not None
        return member

    def set(self, line: int, seconds: float, phase: Phase = Phase.RUNNING) -> None:
        self.member(line).condition = Condition(phase=phase, updates=20, update_s=seconds)

    def judge(self, start: float, end: float) -> list[tuple[float, tuple[int, ...]]]:
        """Every half second; returns (when, who is slow from then on) for every change."""
        changes = []
        slow = tuple(member.line for member in self.membership if member.slow)
        now = start
        while now <= end:
            self.slowness.judge(now)
            after = tuple(member.line for member in self.membership if member.slow)
            if after != slow:
                slow = after
                changes.append((now, slow))
            now += 0.5
        return changes

    def texts(self) -> list[str]:
        return [action.text for action in self.out.take() if isinstance(action, Log)]


@pytest.mark.parametrize(
    ("own_s", "peers_s", "slow"),
    [
        (0.1, (0.1, 0.1, 0.41), (3,)),  # median 0.1, limit 0.4
        (0.1, (0.1, 0.1, 0.4), ()),  # at the limit is not beyond it
        (1.0, (0.1, 0.1, 0.1), ()),  # nobody but me: that is for the others to say
        (0.1, (1.0, 1.0, 0.1), (1, 2)),  # 0.1 0.1 1 1: the smaller middle one
        (0.1, (0.5,), (1,)),  # of two the faster is the median
        (0.5, (0.1,), ()),
        (1.0, (1.0, 1.0, 0.1), ()),  # the slow are the many
        (0.1, (0.1, 0.2, 0.3, 5.0, 0.0), (4,)),  # 0.1 0.1 0.2 0.3 5: median 0.2; of one nothing is known
        (0.0, (0.1, 0.1, 1.0), (3,)),  # my own is not known yet
        (0.0, (0.0,), ()),
    ],
)
def test_who_is_beyond_the_limit_for_half_a_minute(own_s: float, peers_s: tuple[float, ...], slow: tuple[int, ...]) -> None:
    scene = Scene(own_s, *peers_s)
    changes = scene.judge(0.0, 60.0)
    assert changes == ([(30.0, slow)] if slow else [])
    assert len(scene.texts()) == scene.slowness.found == len(slow)


def test_one_update_in_time_starts_the_half_minute_again() -> None:
    scene = Scene(0.1, 0.1, 1.0)
    assert scene.judge(0.0, 29.5) == []
    scene.set(2, 0.39)
    assert scene.judge(30.0, 30.0) == []
    scene.set(2, 1.0)
    assert scene.judge(30.5, 90.0) == [(60.5, (2,))]


def test_comes_back_only_when_it_is_well_below_the_limit_for_a_while() -> None:
    scene = Scene(0.1, 0.1, 1.0)
    scene.judge(0.0, 30.0)
    scene.set(2, 0.35)  # below 0.4, not below 0.3
    assert scene.judge(30.5, 100.0) == []
    scene.set(2, 0.29)
    assert scene.judge(100.5, 105.0) == []
    scene.set(2, 0.31)
    assert scene.judge(105.5, 106.0) == []
    scene.set(2, 0.29)
    assert scene.judge(106.5, 200.0) == [(116.5, ())]
    texts = scene.texts()
    assert len(texts) == 2
    assert "n2 is slow (1 s per update, the limit is 0.4 s)" in texts[0]
    assert "n2 keeps up again" in texts[1]


def test_who_does_not_run_is_neither_judged_nor_part_of_the_median() -> None:
    scene = Scene(1.0, 0.1, 0.1, 5.0)
    scene.set(1, 0.1, Phase.FINISHED)
    scene.member(2).liveness = Liveness.DEAD
    assert scene.judge(0.0, 60.0) == [(30.0, (3,))]  # 1.0 and 5.0 are left
    scene.run.phase = Phase.FINISHED
    scene.set(3, 0.1)
    assert scene.judge(60.5, 100.0) == []


def test_the_time_before_a_peer_died_does_not_count_when_it_is_back() -> None:
    scene = Scene(0.1, 0.1, 1.0)
    scene.judge(0.0, 20.0)
    scene.member(2).liveness = Liveness.DEAD
    scene.judge(20.5, 25.0)
    scene.member(2).liveness = Liveness.ALIVE
    assert scene.judge(25.5, 100.0) == [(55.5, (2,))]


def test_a_peer_that_does_not_tell_its_time_is_judged_by_the_interval_of_its_updates() -> None:
    scene = Scene(0.1, 0.1, 0.0)
    scene.member(2).update_period_s = 0.9
    assert scene.judge(0.0, 60.0) == [(30.0, (2,))]


def test_nobody_is_slow_when_it_is_switched_off() -> None:
    assert Scene(0.1, 0.1, 50.0, slow_factor=0.0).judge(0.0, 100.0) == []


def test_another_process_of_the_line_begins_anew() -> None:
    scene = Scene(0.1, 0.1, 1.0)
    scene.judge(0.0, 30.0)
    assert scene.member(2).slow
    scene.membership.renew(scene.member(2), 9, 31.0)
    assert not scene.member(2).slow


# ---- in a cluster --------------------------------------------------------------------------------------------------------------------


def said(cluster: VirtualCluster, line: int, words: str) -> int:
    return sum(words in log.text for log in cluster.nodes[line].logs)


def gained(cluster: VirtualCluster, seconds: float) -> list[int]:
    before = [node.learner.updates for node in cluster.nodes]
    cluster.run(seconds)
    return [node.learner.updates - start for node, start in zip(cluster.nodes, before, strict=True)]


def slowed(seed: int, slow_factor: float, slow_s: float, size: int = 4, max_lead: int = 8) -> VirtualCluster:
    settings = GossipSettings(max_lead=max_lead, slow_factor=slow_factor)
    cluster = VirtualCluster(size, seed, settings=settings, periods=[0.1] * (size - 1) + [slow_s])
    assert cluster.run(20.0, cluster.all_started)
    return cluster


@pytest.mark.parametrize("size", [2, 4])
def test_a_slow_node_is_waited_for_half_a_minute_and_averaged_with_all_along(size: int) -> None:
    cluster = slowed(1, 4.0, 1.0, size)
    slow = size - 1
    cluster.run(15.0)
    assert max(gained(cluster, 8.0)[:slow]) <= 8.0 / 0.1 * 0.25  # at its pace
    cluster.run(15.0)
    for line in range(slow):
        view = cluster.nodes[line].learner.view
        assert view is not None
        assert view.slow == (slow,)
        assert said(cluster, line, f"n{slow} is slow") == 1
    assert said(cluster, slow, "is slow") == 0
    applied = cluster.nodes[slow].protocol.metrics()["applied"]
    assert min(gained(cluster, 10.0)[:slow]) > 0.9 * 10.0 / 0.1
    assert cluster.nodes[slow].protocol.metrics()["applied"] > applied + 5
    assert cluster.forced == []


def test_a_node_that_keeps_up_again_is_waited_for_again() -> None:
    cluster = slowed(2, 4.0, 1.0)
    cluster.run(45.0)
    assert cluster.nodes[0].learner.view is not None
    assert cluster.nodes[0].learner.view.slow == (3,)
    cluster.nodes[3].learner.period_s = 0.2
    cluster.run(20.0)
    for line in range(3):
        assert said(cluster, line, "n3 keeps up again") == 1
        assert said(cluster, line, "n3 is slow") == 1
    more = gained(cluster, 10.0)
    assert max(more) <= more[3] + 8
    assert max(node.learner.longest_wait_s for node in cluster.nodes) < 2.0


@pytest.mark.parametrize(("slow_factor", "slow_s", "max_lead"), [(0.0, 1.0, 8), (4.0, 0.3, 8), (4.0, 1.0, 0)])
def test_nobody_is_slow_without_factor_within_it_or_without_a_lead(slow_factor: float, slow_s: float, max_lead: int) -> None:
    cluster = slowed(3, slow_factor, slow_s, max_lead=max_lead)
    cluster.run(45.0)
    assert cluster.counter("slow") == 0
    assert not any(said(cluster, line, "is slow") for line in range(4))


@pytest.mark.parametrize("seed", range(3))
def test_the_gates_wait_makes_nobody_slow(seed: int) -> None:
    """Everybody waits for the slowest, within the factor: the intervals are equal, the times of work are not."""
    rng = random.Random(seed)
    periods = [0.08 * rng.uniform(1.0, 2.0) for _ in range(4)] + [0.25]
    cluster = VirtualCluster(5, seed, settings=GossipSettings(max_lead=2), periods=periods)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(40.0)
    assert cluster.counter("slow") == 0, f"seed {seed}"
    for node in cluster.nodes:
        assert node.learner.gate.update_s == pytest.approx(node.learner.period_s, rel=0.3), f"seed {seed}"
