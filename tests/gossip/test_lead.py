"""The lead rule of the gate: by hand, its liveness together with the freshness rule against random schedules, and clusters under faults."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zpala.gossip.gate import Closed, Forced, Gate, Open
from zpala.gossip.lead import Lead
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology
from zpala.sim.cluster import VirtualCluster, full, ring

FRESH = 10**6  # a max_staleness that never closes


def leading(max_lead: int, clocks: dict[int, int], version: int) -> Gate:
    gate = Gate(FRESH, 6.0, max_lead)
    gate.view(clocks, clocks, version)
    return gate


# ---- the rule by hand ----------------------------------------------------------------------------------------------------------------


def test_opens_until_the_slowest_is_max_lead_behind() -> None:
    gate = leading(4, {1: 10, 2: 12}, 10)
    assert [isinstance(gate.ask(0, version, 0.0), Open) for version in (10, 11, 12, 13)] == [True] * 4
    assert gate.ask(0, 14, 1.0) == Closed((1,), 7.0, stale=False)
    assert gate.lead == 4


def test_without_a_limit_nobody_is_waited_for() -> None:
    gate = leading(0, {1: 10}, 10)
    assert all(isinstance(gate.ask(0, version, 0.0), Open) for version in range(10, 1000))
    assert gate.lead == 989


def test_all_that_are_behind_are_named_and_each_must_move() -> None:
    gate = leading(3, {1: 5, 2: 5, 3: 9}, 5)
    assert gate.ask(0, 8, 0.0) == Closed((1, 2), 6.0, stale=False)
    gate.view({}, {1: 6, 2: 5, 3: 9}, 8)
    assert gate.ask(0, 8, 0.1) == Closed((2,), 6.0, stale=False)
    gate.view({}, {1: 6, 2: 6, 3: 9}, 8)
    assert isinstance(gate.ask(0, 8, 0.2), Open)


def test_an_exchange_tells_of_a_clock_too_and_old_news_change_nothing() -> None:
    gate = leading(3, {1: 5}, 5)
    assert isinstance(gate.ask(0, 8, 0.0), Closed)
    gate.mixed(1, 4, updates=0)
    assert isinstance(gate.ask(0, 8, 0.1), Closed)
    gate.mixed(1, 6, updates=0, from_doubt=True)
    assert isinstance(gate.ask(0, 8, 0.2), Open)
    gate.mixed(2, 0, updates=0)  # counts for nobody
    assert isinstance(gate.ask(0, 8, 0.3), Open)


def test_both_rules_must_be_open_and_share_one_limit() -> None:
    gate = Gate(2, 6.0, 3)
    gate.view({1: 0, 2: 0, 3: 0}, {1: 0, 2: 0}, 0)
    assert isinstance(gate.ask(1, 1, 0.0), Open)
    assert gate.ask(2, 2, 1.0) == Closed((1, 2, 3), 7.0, stale=True)
    gate.mixed(2, 9, updates=2)
    assert isinstance(gate.ask(2, 2, 2.0), Open)
    assert gate.ask(3, 3, 3.0) == Closed((1,), 9.0, stale=False)
    assert gate.ask(4, 3, 4.0) == Closed((1, 2, 3), 9.0, stale=True)  # the same wait goes on
    assert gate.ask(4, 3, 9.0) == Forced((1, 2, 3))
    assert (gate.waits, gate.forced, gate.holders) == (2, 1, (1, 2, 3))
    assert gate.waited_s == pytest.approx(1.0 + 6.0)


def test_who_comes_far_behind_holds_nobody_until_it_falls_back_further() -> None:
    gate = leading(4, {1: 100}, 1000)
    assert [isinstance(gate.ask(0, version, 0.0), Open) for version in range(1000, 1005)] == [True] * 4 + [False]


def test_arrears_shrink_as_it_catches_up_and_are_gone_once_it_has() -> None:
    lead = Lead(4)
    lead.view({1: 100}, 1000)
    lead.view({1: 990}, 1000)
    assert (lead.holders(1003), lead.holders(1004)) == ((), (1,))  # 10 forgiven
    lead.view({1: 997}, 1000)
    assert (lead.holders(1000), lead.holders(1001)) == ((), (1,))  # none: it has been within 4
    lead.view({1: 997}, 1001)
    assert lead.holders(1001) == (1,)


def test_who_comes_within_the_limit_has_no_arrears() -> None:
    lead = Lead(4)
    lead.view({1: 97, 2: 96}, 100)
    assert lead.holders(100) == ()
    assert lead.holders(101) == (1,)
    assert lead.holders(104) == (1, 2)


def test_who_is_gone_for_a_while_comes_anew() -> None:
    lead = Lead(4)
    lead.view({1: 100}, 100)
    lead.view({}, 104)
    assert lead.holders(10**6) == ()
    lead.view({1: 100}, 500)
    assert (lead.holders(503), lead.holders(504)) == ((), (1,))


def test_another_process_of_the_line_comes_anew_even_when_the_view_between_was_lost() -> None:
    lead = Lead(4)
    lead.view({1: 100}, 100)
    lead.view({1: 20}, 100)
    assert (lead.holders(103), lead.holders(104)) == ((), (1,))


def test_a_forced_update_leaves_the_gate_closed_and_one_update_of_the_holder_opens_it() -> None:
    gate = leading(2, {1: 0}, 0)
    assert isinstance(gate.ask(2, 2, 0.0), Closed)
    assert gate.ask(2, 2, 6.0) == Forced((1,))
    assert gate.ask(3, 3, 6.1) == Closed((1,), 12.1, stale=False)
    gate.view({1: 1}, {1: 1}, 3)
    assert isinstance(gate.ask(3, 3, 6.2), Open)


def test_the_time_of_an_update_leaves_the_wait_out() -> None:
    gate = leading(1, {1: 0}, 0)
    gate.ask(0, 0, 10.0)
    assert isinstance(gate.ask(1, 1, 10.5), Closed)
    assert gate.update_s == pytest.approx(0.5)
    gate.view({1: 1}, {1: 1}, 1)
    assert isinstance(gate.ask(1, 1, 13.5), Open)
    assert isinstance(gate.ask(2, 2, 14.5), Closed)
    assert gate.update_s == pytest.approx(0.5 + 0.2 * (1.0 - 0.5))


def test_refuses_a_negative_limit() -> None:
    with pytest.raises(ValueError, match="max_lead"):
        Gate(16, 6.0, -1)


# ---- nobody is closed for good: lemma 2 of the module ----------------------------------------------------------------------------------


def graph(size: int, rng: random.Random) -> list[set[int]]:
    """A random connected graph: a random tree and a few more edges."""
    rows: list[set[int]] = [set() for _ in range(size)]
    edges = [(i, rng.randrange(i)) for i in range(1, size)]
    edges += [(i, j) for i, j in (rng.sample(range(size), 2) for _ in range(rng.randrange(size)))]
    for i, j in edges:
        rows[i].add(j)
        rows[j].add(i)
    return rows


class Model:
    """Gates, true versions, what each has heard; exchanges take no time, news arrive when the schedule says so."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.size = rng.randint(2, 6)
        self.rows = graph(self.size, rng)
        self.max_lead = [rng.randint(1, 4) for _ in range(self.size)]
        self.gates = [Gate(rng.randint(1, 4), 1e9, self.max_lead[i]) for i in range(self.size)]
        self.updates = [0] * self.size
        self.versions = [rng.randrange(20) for _ in range(self.size)]  # as after joining, a pause, a partition
        self.heard = [{j: self.versions[j] for j in self.rows[i]} for i in range(self.size)]
        self.forced = 0
        for i in range(self.size):
            self.look(i)

    def look(self, i: int) -> None:
        self.gates[i].view(self.heard[i], self.heard[i], self.versions[i])

    def is_open(self, i: int) -> bool:
        return isinstance(self.gates[i].ask(self.updates[i], self.versions[i], 0.0), Open)

    def update(self, i: int) -> None:
        if self.is_open(i):
            self.updates[i] += 1
            self.versions[i] += 1

    def hear(self, i: int, j: int) -> None:
        self.heard[i][j] = self.rng.randint(self.heard[i][j], self.versions[j])
        self.look(i)

    def exchange(self, i: int, j: int) -> None:
        for mine, theirs in ((i, j), (j, i)):
            self.gates[mine].mixed(theirs, self.versions[theirs], self.updates[mine], self.rng.random() < 0.2)

    def force(self, i: int) -> None:
        """One more update of a closed gate."""
        if not self.is_open(i):
            assert isinstance(self.gates[i].ask(self.updates[i], self.versions[i], 2e9), Forced)
            self.updates[i] += 1
            self.versions[i] += 1
            self.forced += 1

    def step(self) -> None:
        i = self.rng.randrange(self.size)
        j = self.rng.choice(sorted(self.rows[i]))
        kind = self.rng.random()
        if kind < 0.6:
            for _ in range(self.rng.choice([1, 1, 10])):
                self.update(i)
        elif kind < 0.8:
            self.hear(i, j)
        elif kind < 0.99:
            self.exchange(i, j)
        else:
            self.force(i)

    def tell_all(self) -> None:
        """Every heartbeat arrives, and every pair exchanges."""
        for i in range(self.size):
            for j in self.rows[i]:
                self.heard[i][j] = self.versions[j]
                for mine, theirs in ((i, j), (j, i)):
                    self.gates[mine].mixed(theirs, self.versions[theirs], self.updates[mine])
            self.look(i)


@pytest.mark.parametrize("seed", range(40))
def test_when_all_news_are_told_somebody_may_go_on(seed: int) -> None:
    model = Model(random.Random(seed))
    all_closed = 0
    for _ in range(300):
        for _ in range(20):
            model.step()
        all_closed += not any(model.is_open(i) for i in range(model.size))
        for _ in range(200):  # nobody tells anything for a while
            model.update(model.rng.randrange(model.size))
        closed = not any(model.is_open(i) for i in range(model.size))
        all_closed += closed
        model.tell_all()
        assert any(model.is_open(i) for i in range(model.size)), f"seed {seed}: all are closed for good"
    assert all_closed > 30, f"seed {seed}: the schedule never closed everybody"
    assert model.forced > 0, f"seed {seed}"


@pytest.mark.parametrize("seed", range(10))
def test_nobody_gets_further_ahead_than_it_was_allowed(seed: int) -> None:
    """From equal versions, without force: the true lead over each neighbour never exceeds max_lead."""
    model = Model(random.Random(1000 + seed))
    model.versions = [7] * model.size
    model.heard = [dict.fromkeys(model.rows[i], 7) for i in range(model.size)]
    for i in range(model.size):
        model.gates[i] = Gate(FRESH, 1e9, model.max_lead[i])
        model.look(i)
    most = 0
    for _ in range(5000):
        i = model.rng.randrange(model.size)
        model.update(i) if model.rng.random() < 0.7 else model.hear(i, model.rng.choice(sorted(model.rows[i])))
        for a in range(model.size):
            for b in model.rows[a]:
                assert model.versions[a] - model.versions[b] <= model.max_lead[a], f"seed {seed}"
                most = max(most, model.versions[a] - model.versions[b])
    assert most == max(model.max_lead), f"seed {seed}: nobody was ever at the limit"


# ---- in a cluster --------------------------------------------------------------------------------------------------------------------


def lead_cluster(size: int, seed: int, max_lead: int, *, max_staleness: int = 16, **options: Any) -> VirtualCluster:
    """Started, and without anybody ever being SLOW."""
    settings = GossipSettings(max_lead=max_lead, slow_factor=0.0, max_staleness=max_staleness)
    cluster = VirtualCluster(size, seed, settings=settings, **options)
    assert cluster.run(20.0, cluster.all_started)
    return cluster


def updates(cluster: VirtualCluster) -> list[int]:
    return [node.learner.updates for node in cluster.nodes]


def gained(cluster: VirtualCluster, seconds: float) -> list[int]:
    """Updates of each node within the next ``seconds``."""
    before = updates(cluster)
    cluster.run(seconds)
    return [after - start for after, start in zip(updates(cluster), before, strict=True)]


@pytest.mark.parametrize(("max_lead", "seed"), [(1, 0), (4, 1), (4, 2), (16, 3)])
def test_the_slowest_paces_all(max_lead: int, seed: int) -> None:
    cluster = lead_cluster(4, seed, max_lead, periods=[0.02, 0.02, 0.03, 0.1])
    cluster.run(5.0)
    behind = max(node.learner.version for node in cluster.nodes) - cluster.nodes[3].learner.version
    more = gained(cluster, 10.0)
    assert more[3] > 0.9 * 10.0 / 0.1
    assert max(more) <= more[3] + max_lead
    assert max(node.learner.version for node in cluster.nodes) - cluster.nodes[3].learner.version <= behind + max_lead
    assert cluster.forced == []
    fast = cluster.nodes[0].learner.gate
    assert 3 in fast.holders
    assert fast.waited_s > 0.5 * 10.0
    assert cluster.problems() == []


def test_without_it_everybody_goes_its_own_pace() -> None:
    cluster = lead_cluster(4, 0, 0, periods=[0.02, 0.02, 0.03, 0.1])
    more = gained(cluster, 20.0)
    assert more[0] > 4 * more[3]
    assert max(node.learner.gate.waited_s for node in cluster.nodes) == 0.0


@pytest.mark.parametrize(("max_lead", "allowed"), [(32, 0.0), (8, 0.05)])
def test_equal_learners_hardly_wait(max_lead: int, allowed: float) -> None:
    cluster = lead_cluster(4, 1, max_lead, periods=0.05)
    cluster.run(20.0)
    assert max(node.learner.gate.waited_s for node in cluster.nodes) <= allowed * 20.0
    assert min(updates(cluster)) > 0.9 * 20.0 / 0.05
    assert cluster.forced == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("topology", [full(5), ring(5)], ids=lambda topology: topology.name)
def test_both_rules_as_tight_as_can_be_still_move_and_lose_little_to_resets(topology: Topology, seed: int) -> None:
    periods = [0.02, 0.03, 0.03, 0.04, 0.06]
    cluster = lead_cluster(5, seed, 1, max_staleness=1, topology=topology, periods=periods, reset=0.001)
    cluster.run(2.0)
    more = gained(cluster, 15.0)
    assert cluster.network.resets > 0
    assert min(more) > 0.3 * 15.0 / 0.06, f"seed {seed}: {more}"
    assert max(more) - min(more) <= 20, f"seed {seed}: {more}"  # the arrears of the first ten updates are caught up
    assert cluster.forced == []
    assert cluster.problems() == []


@pytest.mark.parametrize("size", [2, 4])
def test_a_dead_peer_releases_the_others(size: int) -> None:
    cluster = lead_cluster(size, 7, 4, periods=[0.05] * (size - 1) + [0.1])
    cluster.run(5.0)
    cluster.kill(size - 1)
    settings = cluster.settings
    bound_s = settings.suspect_s + settings.heartbeat_s + 0.3
    more = gained(cluster, 10.0)
    assert min(more[:-1]) > (10.0 - bound_s) / 0.05 * 0.85
    assert max(node.learner.longest_wait_s for node in cluster.live()) <= bound_s
    assert cluster.forced == []


def test_a_hung_learner_is_waited_for_no_longer_than_the_limit_and_soon_not_at_all() -> None:
    cluster = lead_cluster(4, 8, 4, periods=0.05)
    cluster.run(5.0)
    cluster.nodes[0].learner.state = "hung"  # its proxy goes on: heartbeats, answers
    cluster.run(20.0)
    settings = cluster.settings
    assert max(node.learner.longest_wait_s for node in cluster.nodes[1:]) <= settings.gate_limit_s + 0.01
    assert len(cluster.forced) == 3
    assert {holders for _, _, holders in cluster.forced} == {(0,)}
    assert min(gained(cluster, 5.0)[1:]) > 85


def test_after_a_partition_nobody_freezes_and_the_lead_counts_from_there() -> None:
    cluster = lead_cluster(4, 9, 8, periods=[0.02, 0.02, 0.06, 0.06])
    cluster.run(3.0)
    cluster.network.partition([0, 1], [2, 3])
    cluster.run(20.0)
    fast, slow = cluster.nodes[0].learner, cluster.nodes[2].learner
    apart = fast.version - slow.version
    assert apart > 400
    for node in cluster.nodes:
        node.learner.longest_wait_s = 0.0
    cluster.network.heal()
    assert cluster.run(5.0, lambda: fast.view is not None and 2 in dict(fast.view.clocks))
    cluster.run(0.5)
    at_heal = fast.version - slow.version
    more = gained(cluster, 15.0)
    assert max(node.learner.longest_wait_s for node in cluster.nodes) < 0.3
    assert min(more) > 0.85 * 15.0 / 0.06
    assert fast.version - slow.version <= at_heal + 8  # paced from where it was, not frozen until it is level
    assert cluster.forced == []


def test_a_peer_that_was_paused_freezes_nobody_and_catches_up() -> None:
    cluster = lead_cluster(3, 10, 16, periods=[0.06, 0.06, 0.04])
    cluster.run(3.0)
    cluster.pause(2)
    cluster.run(12.0)
    cluster.resume(2)
    behind = cluster.nodes[0].learner.version - cluster.nodes[2].learner.version
    assert behind > 100
    for node in cluster.nodes:
        node.learner.longest_wait_s = 0.0
    cluster.run(60.0)
    assert max(node.learner.longest_wait_s for node in cluster.nodes[:2]) < 0.3
    assert cluster.nodes[2].learner.version > cluster.nodes[0].learner.version
    assert cluster.nodes[0].learner.gate._lead._arrears[2] == 0  # it was within 16 once: now it counts in full


def test_a_late_node_has_its_donors_clock_and_soon_counts_like_the_others() -> None:
    settings = GossipSettings(max_lead=8, slow_factor=0.0, wait_for=2)
    cluster = VirtualCluster(3, 11, settings=settings, periods=[0.03, 0.03, 0.1], start_times=[0.0, 0.0, 15.0])
    cluster.run(14.0)
    for node in cluster.nodes[:2]:
        node.learner.longest_wait_s = 0.0
    late = cluster.nodes[2].learner
    assert cluster.run(5.0, lambda: late.state == "learning")
    assert late.updates < 3
    assert cluster.nodes[0].learner.version - late.version < 8
    assert late.version > 400
    cluster.run(5.0)
    more = gained(cluster, 10.0)
    assert max(more) <= more[2] + 8
    assert max(node.learner.longest_wait_s for node in cluster.nodes) < 0.5
    assert cluster.forced == []


def test_a_restarted_node_holds_nobody_up() -> None:
    cluster = lead_cluster(3, 12, 8, periods=0.05)
    cluster.run(5.0)
    cluster.kill(1)
    cluster.run(0.3)
    for node in cluster.live():
        node.learner.longest_wait_s = 0.0
    node = cluster.restart(1)
    assert cluster.run(5.0, lambda: node.learner.state == "learning")
    assert node.learner.version > 80
    cluster.run(10.0)
    assert max(other.learner.longest_wait_s for other in cluster.nodes) < 2.5  # until the dead process is known to be gone
    assert min(gained(cluster, 10.0)) > 0.9 * 10.0 / 0.05
    assert cluster.forced == []


def test_nobody_waits_for_whoever_has_finished() -> None:
    cluster = VirtualCluster(3, 13, settings=GossipSettings(max_lead=2), periods=[0.03, 0.05, 0.05], budget=3 * 60 * 80)
    assert cluster.run(60.0, lambda: all(node.drained for node in cluster.nodes))
    assert [node.drained for node in cluster.nodes] == ["drained"] * 3
    assert cluster.forced == []


def test_waiting_for_a_lead_makes_no_exchange_urgent() -> None:
    """The slow node would get slower still if everybody who waits for it pressed it to exchange."""
    cluster = lead_cluster(3, 14, 2, periods=[0.02, 0.02, 0.2])
    cluster.run(3.0)
    waits = cluster.nodes[0].learner.gate.waits
    offers = cluster.counter("offers")
    assert not cluster.run(10.0, lambda: any(node.protocol._run.gate_closed for node in cluster.nodes))
    assert cluster.nodes[0].learner.gate.waits > waits + 10
    made = cluster.counter("offers") - offers
    assert made < 2.0 * sum(gained(cluster, 10.0))  # about one per update, as without a wait


def test_clocks_travel_fast_enough_for_a_small_lead_and_never_too_often() -> None:
    cluster = lead_cluster(2, 15, 4, periods=[0.005, 0.005])
    cluster.run(2.0)
    before = cluster.network.sent["Heartbeat"]
    more = gained(cluster, 10.0)
    assert cluster.network.sent["Heartbeat"] - before <= 2 * 10.0 / 0.02 * 1.1
    assert min(more) > 10.0 / 0.005 * 0.5  # heartbeats of half a second would allow 8 updates per second
