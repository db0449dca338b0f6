"""The gate: the freshness rule by hand, its liveness lemma against random schedules, and learners that it must not hold up."""

from __future__ import annotations

import random

import pytest

from zpala.gossip.gate import Closed, Forced, Gate, Open
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster, full, ring


def test_opens_for_max_staleness_updates() -> None:
    gate = Gate(4, 6.0)
    gate.view({1: 0})
    assert [isinstance(gate.ask(updates, 0, 0.0), Open) for updates in range(6)] == [True, True, True, True, False, False]


def test_news_opens_and_an_old_version_does_not() -> None:
    gate = Gate(4, 6.0)
    gate.view({1: 0})
    assert gate.mixed(1, 10, updates=2)
    assert isinstance(gate.ask(5, 0, 0.0), Open)
    assert not gate.mixed(1, 10, updates=5)
    assert not gate.mixed(1, 9, updates=5)
    assert gate.ask(6, 0, 0.0) == Closed((1,), 6.0, stale=True)
    assert gate.mixed(1, 11, updates=6)
    assert isinstance(gate.ask(6, 0, 0.0), Open)
    assert gate.staleness(9) == 3


def test_news_from_doubt_does_not_count_and_is_not_used_up() -> None:
    gate = Gate(1, 6.0)
    gate.view({1: 0})
    assert not gate.mixed(1, 5, updates=1, from_doubt=True)
    assert isinstance(gate.ask(1, 0, 0.0), Closed)
    assert gate.mixed(1, 5, updates=1)
    assert isinstance(gate.ask(1, 0, 0.0), Open)


def test_alone_runs_free() -> None:
    gate = Gate(1, 6.0)
    assert all(isinstance(gate.ask(updates, 0, 0.0), Open) for updates in range(100))
    gate.view({1: 0})
    assert isinstance(gate.ask(100, 0, 0.0), Closed)
    gate.view({})
    assert isinstance(gate.ask(100, 0, 0.0), Open)


def test_a_wait_ends_after_the_limit_and_opens_once() -> None:
    gate = Gate(2, 6.0)
    gate.view({3: 0, 1: 0})
    assert gate.ask(2, 0, 100.0) == Closed((1, 3), 106.0, stale=True)
    assert gate.ask(2, 0, 105.9) == Closed((1, 3), 106.0, stale=True)
    assert gate.ask(2, 0, 106.0) == Forced((1, 3))
    assert gate.ask(3, 0, 107.0) == Closed((1, 3), 113.0, stale=True)
    assert (gate.waits, gate.forced, gate.holders) == (2, 1, (1, 3))
    assert gate.waited_s == pytest.approx(6.0)


def test_a_line_that_is_no_longer_eligible_may_come_back_with_smaller_versions() -> None:
    gate = Gate(1, 6.0)
    gate.view({1: 100, 2: 0})
    assert gate.mixed(1, 100, updates=1)
    gate.view({2: 0})
    gate.view({1: 3, 2: 0})
    assert gate.mixed(1, 3, updates=2)


@pytest.mark.parametrize(("staleness", "limit_s"), [(0, 6.0), (1, 0.0)])
def test_refuses_limits_that_would_block(staleness: int, limit_s: float) -> None:
    with pytest.raises(ValueError, match="max_staleness"):
        Gate(staleness, limit_s)


@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_two_closed_nodes_always_have_news_for_each_other(staleness: int) -> None:
    """The lemma of the module: random updates and exchanges, some applied late, some from doubt, on a complete graph of five."""
    rng = random.Random(staleness)
    size = 5
    gates = [Gate(staleness, 1e9) for _ in range(size)]
    for i, gate in enumerate(gates):
        gate.view({j: 0 for j in range(size) if j != i})
    updates = [0] * size
    seen: dict[tuple[int, int], int] = {}
    open_exchange: dict[int, tuple[int, int, int, int]] = {}  # node -> (a, b, version of a, version of b): at most one per node
    pairs_closed = 0
    for _ in range(30_000):
        i = rng.randrange(size)
        if rng.random() < 0.6:
            if isinstance(gates[i].ask(updates[i], 0, 0.0), Open):
                updates[i] += 1
        elif i in open_exchange:
            a, b, version_a, version_b = open_exchange[i]
            for mine, theirs, version in ((a, b, version_b), (b, a, version_a)):
                from_doubt = rng.random() < 0.3
                gates[mine].mixed(theirs, version, updates[mine], from_doubt)
                if not from_doubt:
                    seen[mine, theirs] = max(seen.get((mine, theirs), -1), version)
            del open_exchange[a], open_exchange[b]
        else:
            j = rng.choice([j for j in range(size) if j != i])
            if j not in open_exchange:
                open_exchange[i] = open_exchange[j] = (i, j, updates[i], updates[j])
        closed = [k for k in range(size) if gates[k].staleness(updates[k]) >= staleness]
        for a in closed:
            for b in closed:
                if a < b and a not in open_exchange and b not in open_exchange:
                    pairs_closed += 1
                    assert updates[b] > seen.get((a, b), -1) or updates[a] > seen.get((b, a), -1)
    assert pairs_closed > 1000


# ---- in a cluster --------------------------------------------------------------------------------------------------------------------


def run(cluster: VirtualCluster, seconds: float) -> VirtualCluster:
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(seconds)
    assert cluster.problems() == []
    return cluster


def waited_share(cluster: VirtualCluster, line: int, seconds: float) -> float:
    return cluster.nodes[line].learner.gate.waited_s / seconds


@pytest.mark.parametrize(
    ("periods", "allowed"),
    [
        ([0.05, 0.05], 0.0),
        ([0.04, 0.05, 0.05, 0.06], 0.0),
        ([0.03, 0.03, 0.03, 0.3], 0.0),  # one 10 x slower holds nobody while others have news
        ([0.03, 0.3], 0.02),  # alone with one 10 x slower, max_staleness 16
    ],
)
def test_healthy_learners_hardly_wait(periods: list[float], allowed: float) -> None:
    seconds = 15.0
    cluster = run(VirtualCluster(len(periods), 3, periods=periods), seconds)
    assert cluster.forced == []
    assert max(waited_share(cluster, line, seconds) for line in range(len(periods))) <= allowed
    for node in cluster.nodes:
        assert node.learner.staleness_max <= 16
        assert node.learner.updates > 0.9 * seconds / node.learner.period_s


def test_four_busy_nodes_on_one_slow_machine_hardly_wait() -> None:
    # an exchange takes as long as an update
    cluster = run(VirtualCluster(4, 4, periods=0.03, latency_s=(0.003, 0.02)), 15.0)
    assert cluster.forced == []
    assert max(waited_share(cluster, line, 15.0) for line in range(4)) < 0.05


def test_a_gate_of_one_update_still_moves() -> None:
    settings = GossipSettings(max_staleness=1)
    cluster = run(VirtualCluster(4, 5, settings=settings, periods=0.03, topology=ring(4)), 1.0)
    for node in cluster.nodes:
        node.learner.staleness_max = 0  # nobody holds the gate during its first ten updates
    cluster.run(8.0)
    assert cluster.forced == []
    assert min(node.learner.updates for node in cluster.nodes) > 80
    assert max(node.learner.staleness_max for node in cluster.nodes) == 1


def test_one_far_slower_peer_alone_paces_the_fast_one() -> None:
    # ratio 50, max_staleness 16: the fast one may do 16 updates per news of the slow one, and is never forced open
    cluster = run(VirtualCluster(2, 6, periods=[0.02, 1.0]), 30.0)
    fast, slow = cluster.nodes
    assert cluster.forced == []
    assert slow.learner.updates >= 25
    assert 13 * slow.learner.updates <= fast.learner.updates <= 17 * slow.learner.updates + 11 * 50
    assert fast.learner.longest_wait_s < 1.5


@pytest.mark.parametrize("size", [2, 4])
def test_a_dead_peer_releases_the_others(size: int) -> None:
    cluster = run(VirtualCluster(size, 7, periods=0.05), 3.0)
    cluster.kill(size - 1)
    before = [node.learner.updates for node in cluster.live()]
    cluster.run(10.0)
    settings = cluster.settings
    bound_s = settings.suspect_s + settings.heartbeat_s + 0.3
    assert max(node.learner.longest_wait_s for node in cluster.live()) <= bound_s
    assert cluster.forced == []
    for node, updates in zip(cluster.live(), before, strict=True):
        assert node.learner.updates - updates > (10.0 - bound_s) / 0.05 * 0.85


@pytest.mark.parametrize("size", [2, 4])
def test_a_hung_learner_releases_the_others(size: int) -> None:
    cluster = run(VirtualCluster(size, 8, periods=0.05), 3.0)
    hung = cluster.nodes[0]
    hung.learner.state = "hung"  # its proxy goes on: heartbeats, answers
    cluster.run(30.0)
    settings = cluster.settings
    others = cluster.nodes[1:]
    assert max(node.learner.longest_wait_s for node in others) <= settings.gate_limit_s + 0.1
    assert all(holders == (0,) for _, _, holders in cluster.forced)
    before = [node.learner.updates for node in others]
    cluster.run(5.0)
    for node, updates in zip(others, before, strict=True):
        assert node.learner.updates - updates > 85  # free, or with the others' news
        assert 0 not in dict(node.learner.view.eligible if node.learner.view else ())
    if size > 2:
        assert cluster.forced == []


def test_a_peer_that_answers_busy_for_ever_is_waited_for_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = run(VirtualCluster(2, 9, periods=0.05), 3.0)
    monkeypatch.setattr(cluster.nodes[0].protocol, "_refusal", lambda member, now: "engaged")
    cluster.nodes[0].exchanges.__class__ = type("Silent", (type(cluster.nodes[0].exchanges),), {"can_start": False})
    cluster.run(20.0)
    assert 2 <= len(cluster.forced) <= 8
    assert cluster.nodes[1].learner.longest_wait_s <= cluster.settings.gate_limit_s + 0.01
    assert all(holders in ((0,), (1,)) for _, _, holders in cluster.forced)


def test_alone_in_the_list_runs_free() -> None:
    cluster = run(VirtualCluster(1, 10, periods=0.05, topology=full(1)), 5.0)
    assert cluster.nodes[0].learner.gate.waits == 0
    assert cluster.nodes[0].learner.updates > 90


def test_a_peer_whose_exchanges_never_end_in_time_releases_the_gate() -> None:
    cluster = run(VirtualCluster(2, 8, periods=0.05), 3.0)
    exchanges = cluster.counter("applied")
    cluster.network.bandwidth = cluster.numel * 4 / (2 * cluster.settings.exchange_timeout_s)  # every transfer takes twice the limit
    cluster.run(60.0)
    assert exchanges > 0
    before = [node.learner.updates for node in cluster.nodes]
    accepted, applied = cluster.counter("accepts"), cluster.counter("applied")
    cluster.run(120.0)
    assert cluster.counter("accepts") > accepted  # still tried
    assert cluster.counter("applied") == applied  # in vain
    for node, updates in zip(cluster.nodes, before, strict=True):
        assert node.learner.updates - updates > 0.7 * 120.0 / 0.05
