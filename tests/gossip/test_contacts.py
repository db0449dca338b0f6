"""Clusters with more lines than sessions: nobody has more than the bound, all get into one run, and over time everybody meets everybody."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from tests.gossip.test_protocol import make
from zpala.gossip.exchange_state import Step
from zpala.gossip.hearsay import FRESH_S
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.membership import ENDED, Phase
from zpala.gossip.messages import Part, Reject
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology, load_topology
from zpala.sim.cluster import VirtualCluster

SIZE = 12
SESSIONS = 4
PERIOD_S = 0.4


def settings(**options: Any) -> GossipSettings:
    return GossipSettings(max_sessions=SESSIONS, redraw_s=options.pop("redraw_s", 2.0), **options)


def started(size: int = SIZE, seed: int = 1, **options: Any) -> VirtualCluster:
    """All nodes learn, with an update every 0.4 s."""
    options.setdefault("settings", settings())
    cluster = VirtualCluster(size, seed, periods=PERIOD_S, **options)
    watch(cluster)
    assert cluster.run(75.0, cluster.all_started)
    return cluster


def watch(cluster: VirtualCluster) -> dict[str, int]:
    """The most of everything that any node had while it learned, looked at every 50 ms; at the run's end it may be twice the bound."""
    most = {"dealers": 0, "links": 0, "members": 0}

    def look() -> None:
        for node in cluster.live():
            membership, ending = node.protocol._membership, node.protocol.phase in ENDED | {Phase.LEAVING}
            now = {"dealers": len(node.dealers), "links": len(membership._links), "members": len(membership)}
            assert max(now.values()) <= cluster.settings.max_sessions * (2 if ending else 1)
            if not ending:
                most.update({name: max(most[name], now[name]) for name in most})
        cluster.later(0.05, look, None)

    look()
    return most


def partners(cluster: VirtualCluster) -> dict[int, set[int]]:
    """With whom each node has averaged."""
    met: dict[int, set[int]] = defaultdict(set)
    for node in cluster.nodes:
        met[node.line] |= {ending.exchange.peer.line for ending in node.endings if ending.step is Step.COMPLETED}
    return met


@pytest.mark.parametrize("seed", range(2))
def test_nobody_has_more_sessions_than_the_bound_and_over_time_everybody_meets_everybody(seed: int) -> None:
    cluster = started(seed=seed)
    most = watch(cluster)
    cluster.run(5.0)
    early = partners(cluster)
    cluster.run(70.0)
    assert most == {"dealers": SESSIONS, "links": SESSIONS, "members": SESSIONS}, "the bound is used"
    assert max(len(met) for met in early.values()) < SIZE - 1
    met = partners(cluster)
    assert all(met[line] == set(range(SIZE)) - {line} for line in range(SIZE))
    assert cluster.counter("redraws") > 0
    assert cluster.counter("defects") == 0
    assert cluster.problems() == []


def test_a_short_list_is_dialled_as_a_whole() -> None:
    cluster = VirtualCluster(SESSIONS + 1, settings=settings(), periods=PERIOD_S)
    cluster.run(20.0)
    assert all(len(node.dealers) == SESSIONS for node in cluster.nodes)
    assert cluster.network.sent["Part"] == 0
    assert cluster.counter("full_sent") == cluster.counter("redraws") == 0


@pytest.mark.parametrize("seed", range(3))
def test_all_agree_on_one_run_with_one_start_although_nobody_knows_everybody(seed: int) -> None:
    cluster = started(seed=seed, start_times=[0.9 * line for line in range(SIZE)])
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    assert {node.protocol.nonce for node in cluster.nodes} == {cluster.nodes[0].protocol._formation._own_nonce}, "the lowest line led"
    assert len(cluster.adoptions) >= SIZE - 1, "and gave its parameters"


def test_two_runs_that_form_at_the_same_time_become_one() -> None:
    """With ``wait_for`` several nodes lead a start. Who waits hears of both runs and passes it on: neither is to take it for its own."""
    size, rng = 40, random.Random(5)
    starts = [rng.uniform(0.0, 4.0) for _ in range(size)]
    cluster = VirtualCluster(
        size, 5, settings=settings(redraw_s=10.0, wait_for=2), periods=3.0, start_times=starts, latency_s=(0.001, 0.02)
    )
    assert cluster.run(40.0, cluster.all_started)
    cluster.run(10.0)
    led = [node.line for node in cluster.nodes if any("leading the start" in log.text for log in node.logs)]
    assert len(led) > 1
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    assert [node.fatal for node in cluster.nodes] == [None] * size


def test_totals_are_known_to_all() -> None:
    cluster = started()
    cluster.run(20.0)
    done = sum(node.learner.updates for node in cluster.nodes) * cluster.steps_per_update
    per_second = SIZE / PERIOD_S * cluster.steps_per_update
    for node in cluster.nodes:
        view = node.learner.view
        assert view is not None
        assert view.live == SIZE - 1
        assert done - 5.0 * per_second < view.cluster_env_steps <= done
        assert view.cluster_rate == pytest.approx(per_second, rel=0.4)
        assert len(view.eligible) <= SESSIONS, "hearsay holds no gate"


def test_who_dies_without_a_word_is_counted_as_live_for_a_limited_time() -> None:
    cluster = started()
    cluster.run(5.0)
    cluster.kill(3)
    cluster.run(FRESH_S + 2.0)
    assert {node.learner.view.live for node in cluster.live() if node.learner.view is not None} == {SIZE - 2}
    assert cluster.counter("dead") >= 1
    before = cluster.counter("applied")
    cluster.run(10.0)
    assert cluster.counter("applied") > before + 10, "the others go on"
    assert cluster.problems() == []


def test_who_leaves_is_known_to_have_left_by_those_it_never_met() -> None:
    cluster = started()
    cluster.run(5.0)
    node = cluster.nodes[3]
    node.do(node.protocol.on_stop(cluster.now))
    cluster.run(FRESH_S / 3)
    assert node.drained == "leave"
    assert {other.learner.view.live for other in cluster.live() if other.learner.view is not None} == {SIZE - 2}


def test_a_restarted_node_is_taken_in_and_its_past_is_fenced() -> None:
    cluster = started(drift=0.02)
    cluster.run(5.0)
    cluster.kill(5)
    cluster.run(1.0)
    node = cluster.restart(5)
    assert cluster.run(15.0, lambda: node.learner.state in ("learning", "gate"))
    cluster.run(5.0)
    assert node.protocol.nonce == cluster.nodes[0].protocol.nonce
    assert partners(cluster)[5]
    apart = [np.abs(node.learner.vector - other.learner.vector).max() for other in cluster.nodes]
    assert max(apart) < 1.0, "it started far from everybody"
    assert cluster.problems() == []


def test_the_run_ends_when_all_have_reached_the_target_and_not_before() -> None:
    cluster = started(target_return=10.0)
    cluster.run(3.0)
    for node in cluster.nodes[:-1]:
        node.return_mean = 20.0
    cluster.run(20.0)
    assert all(node.drained is None for node in cluster.nodes), "one has not"
    cluster.nodes[-1].return_mean = 20.0
    assert cluster.run(30.0, lambda: not cluster.live())
    assert {node.drained for node in cluster.nodes} <= {"drained", "timeout"}


@pytest.mark.parametrize("first", [3, 5])
def test_who_is_between_two_sessions_at_the_end_ends_too(first: int) -> None:
    """Node 3 has none at that moment, and either a node that nobody of the others will meet again tells of the end, or node 3 does."""
    cluster = started(size=6)
    cluster.run(5.0)
    alone = cluster.nodes[3]
    for line in list(alone.protocol._contacts._contacts):
        for one, other in ((alone, cluster.nodes[line]), (cluster.nodes[line], alone)):
            contacts = one.protocol._contacts
            if other.line in contacts._contacts:
                contacts._close(contacts._contacts[other.line], cluster.now + 5.0)
    for node in cluster.nodes:
        for other in cluster.nodes:
            node.protocol._contacts._not_before.setdefault(other.line, cluster.now + 5.0)
        node.do(node.protocol.on_timer(cluster.now))
    assert len(alone.protocol._membership) == 0
    cluster.nodes[first].learner.finish_reason = "target"
    assert cluster.run(25.0, lambda: not cluster.live())
    assert {node.drained for node in cluster.nodes} == {"drained"}
    assert all(node.learner.finish_reason == "" or node.line == first for node in cluster.nodes)
    assert cluster.problems() == []


def star(size: int) -> Topology:
    return load_topology("star", size)


def wheel(size: int) -> Topology:
    """Node 0 is everybody's neighbour; the others have the two nearest on each side as well, so each has more than SESSIONS."""
    rim = {line: {(line - 1 + step) % (size - 1) + 1 for step in (-2, -1, 1, 2)} for line in range(1, size)}
    return Topology("wheel", "memory", size, (frozenset(rim), *(frozenset(near | {0}) for near in rim.values())))


def test_everybody_gets_a_turn_at_a_node_that_everybody_wants() -> None:
    """The hub of a wheel has room for four of eleven, and gives a contact up when somebody was refused."""
    cluster = started(topology=wheel(SIZE), settings=settings(topology="wheel"))
    cluster.run(90.0)
    assert cluster.nodes[0].protocol.metrics()["full_sent"] > 0
    assert partners(cluster)[0] == set(range(1, SIZE))
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    assert cluster.counter("defects") == 0
    assert cluster.problems() == []


def test_who_has_nobody_else_is_always_let_in() -> None:
    """The middle of a star is the one neighbour of all: they start together, know the totals all along, and end together."""
    budget = 80 * SIZE * 60
    cluster = VirtualCluster(SIZE, topology=star(SIZE), settings=settings(topology="star"), periods=PERIOD_S, budget=budget)
    assert cluster.run(5.0, cluster.all_started)
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    cluster.run(5.0)
    assert {line: len(node.protocol._membership) for line, node in enumerate(cluster.nodes)} == {
        0: SIZE - 1,
        **dict.fromkeys(range(1, SIZE), 1),
    }
    assert cluster.counter("full_sent") == cluster.counter("redraws") == 0
    assert cluster.run(60.0, lambda: not cluster.live())
    assert {node.drained for node in cluster.nodes} == {"drained"}
    done = sum(node.learner.updates for node in cluster.nodes) * cluster.steps_per_update
    assert budget <= done < 1.1 * budget


def test_who_is_refused_for_want_of_room_starts_no_run_of_its_own() -> None:
    """Somebody is there, so a run may be under way: patience ends when nobody has refused it for a while."""
    hosts = "\n".join(f"n{line} 10.0.0.{line + 1}:5000" for line in range(SIZE))
    rule = settings(start_timeout_s=2.0)
    protocol = make(SIZE, hosts=parse_hosts(hosts, "memory"), settings=rule)
    refused = 0
    for tick in range(1, 120):
        for line in list(protocol._contacts._contacts):
            refused += 1
            protocol.on_down(line, Reject(code="full", field="sessions", mine="", yours="", fatal=False), None, tick * 0.5)
        protocol.on_timer(tick * 0.5)
    assert refused > 10
    assert protocol.phase is Phase.WAITING
    for tick in range(120, 180):
        protocol.on_timer(tick * 0.5)
    assert protocol.phase is not Phase.WAITING, "nobody has refused it for a while"


def test_only_neighbours_are_dialled_and_let_in() -> None:
    topology = load_topology("ring", SIZE)
    cluster = started(topology=topology, settings=settings(topology="ring"))
    cluster.run(10.0)
    for node in cluster.nodes:
        assert set(node.dealers) == topology.neighbours(node.line)
        assert node.learner.view is not None
        assert node.learner.view.live == SIZE - 1, "by hearsay"
    stranger, node = cluster.nodes[7], cluster.nodes[0]
    member = stranger.protocol._membership.get(0)
    assert member is not None
    stranger.protocol._sessions.call(member, cluster.now)
    stranger.do(stranger.protocol._settle(cluster.now))
    cluster.run(1.0)
    assert stranger.protocol.metrics()["rejects_received"] == 1
    assert node.protocol._membership.of_link(b"") is None
    assert {m.line for m in node.protocol._membership} == topology.neighbours(0)


@pytest.mark.parametrize("seed", range(2))
def test_parting_leaves_no_exchange_behind(seed: int) -> None:
    """Sessions are given up all the time, and at first every PART is lost: what is in doubt is resolved over the link, not given up."""
    cluster = started(seed=seed, settings=settings(redraw_s=0.5), latency_s=(0.05, 0.2))
    cluster.network.drop = lambda source, target, message: isinstance(message, Part)
    parts = cluster.network.sent["Part"]
    cluster.run(20.0)
    assert cluster.network.sent["Part"] > parts
    cluster.network.drop = lambda source, target, message: False
    cluster.run(20.0)
    assert cluster.counter("parts_received") > 0
    assert cluster.problems() == []
    cluster.quiesce()
    assert cluster.counter("doubts_open") == 0
    assert cluster.drift_error() < 1e-3
