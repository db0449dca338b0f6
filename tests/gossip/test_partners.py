"""Whom a node asks: draws against probabilities, the load against an integral, and a cluster with one node that is hard to get."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from zpala.gossip.exchange_state import Step
from zpala.gossip.load import MEMORY_S, Load
from zpala.gossip.partners import choose, choose_less_busy
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster, full


def test_partners_are_drawn_uniformly_and_repeatably() -> None:
    draws = [choose(random.Random(i), {3, 1, 2}) for i in range(3000)]
    assert [round(draws.count(line) / 3000, 1) for line in (1, 2, 3)] == [0.3, 0.3, 0.3]
    assert draws[:50] == [choose(random.Random(i), [2, 3, 1]) for i in range(50)]


def test_the_less_busy_of_two_draws() -> None:
    """All nine pairs of draws, counted by hand: the idle one wins 5 of 9, the middle one 3, the busiest only against itself."""
    loads = {7: 0.5, 2: 0.0, 5: 0.9}
    wins = dict.fromkeys(loads, 0)
    for first, second in itertools.product(loads, repeat=2):
        wins[min(first, second, key=loads.__getitem__)] += 1
    assert wins == {2: 5, 7: 3, 5: 1}
    rng = random.Random(1)
    draws = [choose_less_busy(rng, loads) for _ in range(9000)]
    for line, won in wins.items():
        assert draws.count(line) == pytest.approx(1000 * won, abs=120)


def test_equally_busy_ones_are_drawn_uniformly() -> None:
    rng = random.Random(2)
    draws = [choose_less_busy(rng, {1: 0.3, 2: 0.3, 3: 0.3}) for _ in range(3000)]
    assert [draws.count(line) for line in (1, 2, 3)] == pytest.approx([1000] * 3, abs=100)


def test_one_candidate_is_chosen() -> None:
    assert choose_less_busy(random.Random(3), {4: 1.0}) == 4


def test_the_load_is_an_exponential_average_over_time() -> None:
    rng = random.Random(4)
    load = Load(0.0)
    now, spans = 0.0, []
    for i in range(300):
        length, busy = rng.expovariate(20.0), rng.random() < 0.3 + 0.4 * (i > 150)
        load.observe(busy, now)
        spans.append((now, now + length, busy))
        now += length
    expected = sum(math.exp((end - now) / MEMORY_S) - math.exp((start - now) / MEMORY_S) for start, end, busy in spans if busy)
    assert load.share(now) == pytest.approx(expected, abs=1e-9)
    assert 0.0 <= load.share(now + 100.0) <= 1.0


def test_the_load_stays_between_idle_and_busy() -> None:
    load = Load(5.0)
    assert load.share(5.0) == 0.0
    load.observe(True, 5.0)
    assert load.share(5.0 + 20 * MEMORY_S) == pytest.approx(1.0)
    assert load.share(1e9) <= 1.0
    load.observe(False, 6.0)
    assert load.share(1e9) == 0.0


# ---- in a cluster --------------------------------------------------------------------------------------------------------------------

FAR, FAR_S = 0, 0.04  # the node that is hard to get, and what every message to or from it takes longer


def one_far_node(*arguments: Any, **options: Any) -> VirtualCluster:
    """Exchanges with line ``FAR`` last about a hundred times as long as the others."""
    cluster = VirtualCluster(*arguments, **options)
    cluster.network.further_s = lambda source, target: FAR_S if FAR in (source, target) else 0.0
    return cluster


def busy_per_applied(partner: str, seed: int) -> tuple[float, float, VirtualCluster]:
    """(BUSY answers of the far node, of all) per applied exchange of the cluster, within 30 s."""
    cluster = one_far_node(6, seed, settings=GossipSettings(partner=partner), periods=0.05)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(5.0)
    before = [cluster.nodes[FAR].protocol.metrics()["busy_sent"], cluster.counter("busy_sent"), cluster.counter("applied")]
    cluster.run(30.0)
    after = [cluster.nodes[FAR].protocol.metrics()["busy_sent"], cluster.counter("busy_sent"), cluster.counter("applied")]
    far, everybody, applied = (end - start for start, end in zip(before, after, strict=True))
    return far / applied, everybody / applied, cluster


@pytest.mark.parametrize("seed", range(2))
def test_fewer_offers_are_made_in_vain_and_every_neighbour_is_still_met(seed: int) -> None:
    far_uniform, uniform, _ = busy_per_applied("uniform", seed)
    far_load, load, cluster = busy_per_applied("load", seed)
    assert far_uniform > 0.05, f"seed {seed}: nobody was refused"
    assert far_load < 0.6 * far_uniform, f"seed {seed}: {far_load} against {far_uniform}"
    assert load < 0.8 * uniform, f"seed {seed}: {load} against {uniform}"
    for node in cluster.nodes:
        met = {ending.exchange.peer.line for ending in node.endings if ending.step is Step.COMPLETED}
        assert met == set(range(6)) - {node.line}, f"seed {seed}"
    assert cluster.problems() == []


def test_heartbeats_tell_who_is_busy() -> None:
    cluster = one_far_node(6, 7, periods=0.05)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(10.0)
    for node in cluster.nodes[1:]:
        loads = {member.line: member.condition.load for member in node.protocol._membership}
        assert all(0.0 <= load <= 1.0 for load in loads.values())
        assert loads[FAR] == max(loads.values())
        assert loads[FAR] > 0.6


@pytest.mark.parametrize("size", [2, 5])
def test_equals_are_met_alike(size: int) -> None:
    cluster = VirtualCluster(size, 8, settings=GossipSettings(partner="load"), periods=0.05, topology=full(size))
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(60.0)
    for node in cluster.nodes:
        peers = [ending.exchange.peer.line for ending in node.endings if ending.step is Step.COMPLETED]
        expected = len(peers) / (size - 1)
        for line in set(range(size)) - {node.line}:
            assert 0.75 * expected < peers.count(line) < 1.25 * expected
