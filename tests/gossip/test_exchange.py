"""The exchange between whole nodes: what is conserved, whatever the network does; and that the checks can fail."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zpala.gossip import exchange as module
from zpala.gossip.actions import SendDown
from zpala.gossip.exchange_snapshots import Snapshots
from zpala.gossip.exchange_state import TRANSITIONS, State, Step
from zpala.gossip.membership import Member
from zpala.gossip.messages import Accept, Busy, ExchangeId, Offer, SnapshotDescription
from zpala.gossip.mixing import checksum
from zpala.gossip.protocol import BUFFERS_MIN, LENT
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster, ring

ROUNDING = 2e-4  # float32 sums of thousands of deltas; one lost delta is more than ten times that


def started(cluster: VirtualCluster) -> VirtualCluster:
    assert cluster.run(20.0, cluster.all_started)
    return cluster


def conserved(cluster: VirtualCluster) -> None:
    """Both or neither applied, so nothing is lost; nothing stays open; every buffer is back."""
    assert cluster.problems() == []
    assert cluster.ledger.half_applied() == []
    assert cluster.drift_error() < ROUNDING
    for node in cluster.live():
        metrics = node.protocol.metrics()
        assert node.exchanges.current is None
        assert (metrics["doubts_open"], metrics["deltas_queued"], metrics["sends_in_flight"]) == (0, 0, 0)
        assert metrics["buffers_free"] == cluster.buffers - LENT - 1  # the shadow's


# ---- one exchange ---------------------------------------------------------------------------------------------------------------------


def pair(numel: int = 16, **options: Any) -> VirtualCluster:
    """Two started nodes whose learners stand still; the first update of node 0 leads to one exchange."""
    cluster = started(VirtualCluster(2, 1, periods=1e6, drift=0.0, numel=numel, **options))
    cluster.run(3.0)  # the first snapshots have been averaged
    for node in cluster.nodes:
        pacing = node.protocol._pacing
        pacing.busy(1e9, cluster.now)
        node.learner.apply_and_publish(waiting=False)
        pacing.offered()
        pacing.busy(0.0, cluster.now)
        assert node.exchanges.current is None
        assert node.protocol.metrics()["deltas_queued"] == 0
    cluster.run(0.1)
    cluster.network.sent.clear()
    cluster.ledger.applied.clear()
    for node in cluster.nodes:
        node.learner.applied.clear()
    return cluster


def trigger(cluster: VirtualCluster, line: int = 0) -> None:
    """A learner moves and publishes: its node offers."""
    learner = cluster.nodes[line].learner
    moved = np.ones_like(learner.vector)
    moved[-1] = 0.0
    learner.vector += moved
    cluster.ledger.moved(moved)
    learner.version += 1
    learner.apply_and_publish(waiting=False)


def finish(cluster: VirtualCluster) -> None:
    cluster.quiesce(30.0)
    conserved(cluster)


def test_a_small_exchange_takes_five_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = pair()
    trigger(cluster)
    cluster.run(0.1)
    heartbeats = {"Heartbeat"}
    assert {name: count for name, count in cluster.network.sent.items() if name not in heartbeats} == {
        "Offer": 1,
        "Accept": 1,
        "Data": 2,
        "Ok": 1,
    }
    assert list(map(sorted, cluster.ledger.applied.values())) == [[0, 1]]
    finish(cluster)


def test_a_big_exchange_does_not_wait_for_data_before_it_sends_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    numel = module.SMALL_BYTES // 4 + 16
    cluster = pair(numel, bandwidth=1e7, codec_every=1)
    trigger(cluster)
    transfer_s = 4 * numel / 1e7
    assert not cluster.run(transfer_s, lambda: bool(cluster.ledger.applied))
    assert cluster.run(0.03, lambda: sorted(itertools.chain(*cluster.ledger.applied.values())) == [0, 1])  # both directions at once
    assert cluster.network.sent["Ok"] == 2
    finish(cluster)


def test_both_sides_end_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = pair()
    expected = (cluster.nodes[0].learner.vector.astype(np.float64) + cluster.nodes[1].learner.vector) / 2
    expected[:-1] += 0.5
    trigger(cluster)
    cluster.run(0.1)
    finish(cluster)
    for node in cluster.nodes:
        np.testing.assert_allclose(node.learner.vector, expected, rtol=1e-6)


@pytest.mark.parametrize("offers", [2, 6])
def test_progress_made_during_an_exchange_is_kept(monkeypatch: pytest.MonkeyPatch, offers: int) -> None:
    cluster = pair(latency_s=(0.05, 0.1))
    for _ in range(offers):
        trigger(cluster, 0)
        trigger(cluster, 1)
        cluster.run(0.07)
    finish(cluster)


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("kind", ["Offer", "Accept", "Data", "Ok"])
@pytest.mark.parametrize("numel", [16, module.SMALL_BYTES // 4 + 16])
def test_any_message_may_be_lost(monkeypatch: pytest.MonkeyPatch, kind: str, nth: int, numel: int) -> None:
    """The n-th message of a kind is lost with everything in flight, and the pair reconnects."""
    cluster = pair(numel)
    count = 0

    def drop(source: int, target: int, message: Any) -> bool:
        nonlocal count
        count += type(message).__name__ == kind
        return type(message).__name__ == kind and count == nth

    cluster.network.drop = drop
    trigger(cluster)
    cluster.run(3.0)
    if count < nth:  # a small exchange has one OK only, and nothing is repeated when nothing is lost
        trigger(cluster)
        cluster.run(3.0)
    assert cluster.network.resets == 1
    cluster.run(3.0)
    trigger(cluster)  # whatever became of it, the next exchange works
    cluster.run(3.0)
    assert sorted(list(cluster.ledger.applied.values())[-1]) == [0, 1]
    finish(cluster)


def test_the_last_ok_lost_for_long_is_a_doubt_that_is_resolved_late(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GossipSettings(exchange_timeout_s=2.0)
    cluster = pair(settings=settings)
    cluster.network.drop = lambda source, target, message: type(message).__name__ == "Ok"
    trigger(cluster)
    cluster.run(6.0)
    assert cluster.counter("doubts") == 1
    assert cluster.counter("doubts_open") == 1
    cluster.network.drop = lambda source, target, message: False
    cluster.run(3.0)
    assert cluster.counter("applied_late") == 1
    late = [delta for node in cluster.nodes for delta in node.exchanges._shadow._queued]
    assert late == [] or len(late) <= 2
    finish(cluster)
    assert sum(delta.from_doubt for node in cluster.nodes for delta in node.learner.applied) == 1
    assert cluster.counter("defects") == 0


def test_a_doubt_that_nobody_resolves_is_one_counted_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = pair(settings=GossipSettings(exchange_timeout_s=2.0))
    cluster.network.drop = lambda source, target, message: type(message).__name__ == "Ok"
    trigger(cluster)
    cluster.run(20.0)
    cluster.network.drop = lambda source, target, message: False
    cluster.run(5.0)
    assert cluster.counter("defects") == 1
    assert len(cluster.ledger.half_applied()) == 1
    assert all(node.exchanges.current is None and not node.exchanges.doubts for node in cluster.nodes)


def hold_oks(cluster: VirtualCluster, *sources: int) -> None:
    """From its first OK on nothing passes from any of ``sources`` to the other node, and nobody is told."""

    def hold(source: int, target: int, message: Any) -> bool:
        if type(message).__name__ == "Ok" and source in sources and (source, target) not in cluster.network.blocked:
            cluster.network.block(source, target)
        return False

    cluster.network.drop = hold


def heal(cluster: VirtualCluster) -> None:
    cluster.network.drop = lambda source, target, message: False
    cluster.network.heal()
    assert cluster.run(3.0, lambda: all(member.established for node in cluster.nodes for member in node.membership))


def late_ok() -> VirtualCluster:
    """OFFER, ACCEPT, DATA, DATA(ok): node 1 applies, and its OK to node 0 is held until the connections break.

    Healed before node 0 gives up, but slow: what it asks is answered, and the answer is under way when this ends, with the doubt given up.
    """
    cluster = pair()
    asker, applier = (node.protocol for node in cluster.nodes)
    hold_oks(cluster, 1)
    trigger(cluster)
    assert cluster.run(6.0, lambda: asker.metrics()["doubts_open"] == 1)
    assert list(cluster.ledger.applied.values()) == [[1]]
    (doubt,) = cluster.nodes[0].exchanges.doubts.values()
    assert cluster.run(cluster.settings.keep_s, lambda: cluster.network.resets == 1)
    cluster.network.sent.clear()
    heal(cluster)
    cluster.network.further_s = lambda source, target: 3.0 if source == 1 else 0.0
    assert cluster.now < doubt.deadline - cluster.settings.retransmit_s, "healed in time for a question"
    assert cluster.run(3.0, lambda: not cluster.nodes[0].exchanges.doubts)
    assert cluster.network.sent["Ok"] > 1, "it asked, and was answered"
    assert [ending.step for ending in cluster.nodes[0].endings if ending.exchange is doubt] == [Step.EXPIRED]
    assert (asker.metrics()["defects"], applier.metrics()["defects"]) == (1, 0)
    return cluster


def test_an_ok_that_comes_after_the_doubt_was_given_up_is_the_same_one_defect() -> None:
    cluster = late_ok()
    cluster.run(3.0)
    assert cluster.counter("abort_after_applied") == 0
    assert cluster.nodes[1].protocol.metrics()["abort_after_expiry"] > 0
    assert cluster.counter("defects") == cluster.ledger.defects == 1
    cluster.network.further_s = lambda source, target: 0.0
    trigger(cluster)
    assert cluster.run(10.0, lambda: sorted(list(cluster.ledger.applied.values())[-1]) == [0, 1]), "the next exchange works"
    cluster.quiesce()
    assert cluster.problems() == []
    assert len(cluster.ledger.half_applied()) == 1
    assert cluster.drift_error() < ROUNDING


def test_who_forgets_what_it_gave_up_is_found_out() -> None:
    cluster = late_ok()
    cluster.nodes[0].exchanges._outcomes._outcomes.clear()
    cluster.run(3.0)
    assert cluster.nodes[1].protocol.metrics()["abort_after_applied"] > 0
    assert cluster.counter("abort_after_expiry") == 0
    assert any("abort_after_applied" in problem for problem in cluster.problems())


def test_who_is_in_doubt_when_the_other_gives_up_drops_its_half() -> None:
    """With big vectors each says OK before it has the other's."""
    cluster = pair(module.SMALL_BYTES // 4 + 16, bandwidth=1e7)
    hold_oks(cluster, 0, 1)
    trigger(cluster)
    assert cluster.run(6.0, lambda: all(node.exchanges.doubts for node in cluster.nodes))
    (doubt,) = cluster.nodes[1].exchanges.doubts.values()
    doubt.deadline += 10.0
    assert cluster.run(12.0, lambda: not cluster.nodes[0].exchanges.doubts)
    assert doubt.state is State.DOUBT
    heal(cluster)
    cluster.run(1.0)
    assert [ending.code for ending in cluster.nodes[1].endings if ending.exchange is doubt] == [module.EXPIRED]
    assert [node.protocol.metrics()["defects"] for node in cluster.nodes] == [1, 0]
    assert doubt.xid not in cluster.ledger.applied
    assert cluster.counter("abort_after_expiry") == 0
    cluster.quiesce()
    assert cluster.problems() == []
    assert cluster.ledger.half_applied() == []


def test_a_peer_in_doubt_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = started(VirtualCluster(3, 2, periods=0.05, settings=GossipSettings(exchange_timeout_s=2.0)))
    cluster.network.drop = lambda source, target, message: type(message).__name__ == "Ok" and {source, target} == {0, 1}
    cluster.run(4.0, lambda: cluster.counter("doubts_open") > 0)
    cluster.run(4.0)
    mine = [doubt for node in cluster.nodes for doubt in node.exchanges.doubts.values()]
    assert mine
    assert all(len([d for d in node.exchanges.doubts.values() if d.peer.line == line]) <= 1 for node in cluster.nodes for line in range(3))
    recent = [ending for ending in cluster.nodes[2].endings if ending.step is Step.COMPLETED][-5:]
    assert recent[-1].exchange.started_at > cluster.now - 1.0
    cluster.quiesce()
    conserved(cluster)


def test_so_many_doubts_and_no_more() -> None:
    """A node with one less than the limit offers and accepts; with the limit it does neither, whoever asks."""
    cluster = started(VirtualCluster(2 + module.MAX_DOUBTS, 2, periods=1e6, drift=0.0))
    cluster.run(3.0)
    protocol, exchanges = cluster.nodes[0].protocol, cluster.nodes[0].exchanges
    last, *others = protocol._membership

    def offer(member: Member) -> list[Any]:
        """What is answered."""
        assert member.link is not None
        snapshot = SnapshotDescription(version=1, nbytes=64, checksum=0, square_norm=1.0)
        message = Offer(session=member.session_in, xid=ExchangeId(member.line, member.incarnation, 10**6), snapshot=snapshot)
        answers = [action.message for action in protocol.on_up(member.link, message, cluster.now) if isinstance(action, SendDown)]
        return [answer for answer in answers if isinstance(answer, Accept | Busy)]

    for member in others:
        assert exchanges.can_start
        assert isinstance(offer(member)[0], Accept)
        current = exchanges.current
        exchanges._move(current, Step.PARKED)
        exchanges.doubts[current.xid], exchanges.current = current, None
    assert len(exchanges.doubts) == len(others) == module.MAX_DOUBTS
    assert not exchanges.can_start
    assert [busy.reason for busy in offer(last)] == ["doubt"]


# ---- many exchanges under faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "reset", "latency_s", "send_s"),
    [
        (2, 0.0, (0.0, 0.05), (0.0, 0.03)),
        (5, 0.002, (0.0002, 0.01), (0.0, 0.005)),
        (5, 0.02, (0.0002, 0.03), (0.0, 0.02)),
        (6, 0.1, (0.0, 0.1), (0.0, 0.05)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_conserved(size: int, reset: float, latency_s: tuple[float, float], send_s: tuple[float, float], seed: int) -> None:
    periods = [0.05 * (1 + i % 3) for i in range(size)]
    cluster = started(VirtualCluster(size, seed, periods=periods, reset=reset, latency_s=latency_s, send_s=send_s))
    cluster.run(12.0)
    assert cluster.counter("applied") > 20
    assert (cluster.network.resets > 0) == (reset > 0)
    cluster.quiesce()
    conserved(cluster)
    assert cluster.counter("defects") == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_shorter_than_the_memory_loses_nothing(seed: int) -> None:
    cluster = started(VirtualCluster(6, seed, periods=0.1, reset=0.005, settings=GossipSettings(keep_s=30.0)))
    cluster.run(3.0)
    cluster.network.partition(range(3), range(3, 6))
    before = [node.learner.updates for node in cluster.nodes]
    cluster.run(12.0)
    assert min(node.learner.updates - updates for node, updates in zip(cluster.nodes, before, strict=True)) > 80
    cluster.network.heal()
    healed = cluster.now
    cluster.run(8.0)
    assert any(
        ending.step is Step.COMPLETED and ending.exchange.peer.line >= 3 and ending.exchange.started_at < healed + 5.0
        for node in cluster.nodes[:3]
        for ending in node.endings
        if ending.exchange.started_at > healed
    )
    cluster.quiesce(40.0)
    conserved(cluster)
    assert cluster.counter("defects") == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_paused_process_blames_nobody_and_loses_nothing(seed: int) -> None:
    cluster = started(VirtualCluster(5, seed, periods=0.1, settings=GossipSettings(keep_s=30.0)))
    cluster.run(3.0)
    cluster.pause(1)
    cluster.run(12.0)
    dead = cluster.nodes[1].protocol.metrics()["dead"]
    cluster.resume(1)
    cluster.run(1.0)
    metrics = cluster.nodes[1].protocol.metrics()
    assert metrics["pauses"] == 1
    assert metrics["dead"] == dead == 0
    applied = metrics["applied"]
    cluster.run(5.0)
    assert cluster.nodes[1].protocol.metrics()["applied"] > applied  # averages again
    cluster.quiesce(40.0)
    conserved(cluster)


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_peer_costs_at_most_one_delta(victim: int) -> None:
    cluster = started(VirtualCluster(5, 11, periods=0.05, spread=0.1))
    cluster.run(2.0)
    cluster.kill(victim)
    cluster.run(3.0)
    applied = cluster.counter("applied")
    cluster.run(3.0)
    assert cluster.counter("applied") - applied > 50
    cluster.quiesce(40.0)
    assert cluster.problems() == []
    one_sided = cluster.ledger.half_applied()
    assert len(one_sided) <= 1
    assert all(victim in (xid.line, *cluster.ledger.applied[xid]) or len(cluster.ledger.applied[xid]) == 1 for xid in one_sided)
    for node in cluster.live():
        assert node.exchanges.current is None
        assert not node.exchanges.doubts
        assert node.protocol.metrics()["buffers_free"] == cluster.buffers - LENT - 1  # the shadow's


def test_offers_in_a_circle_do_not_lock() -> None:
    cluster = started(VirtualCluster(5, 12, periods=0.1, topology=ring(5), drift=0.0, latency_s=(0.004, 0.005)))
    rng = cluster.rng
    cluster.rng = type("Same", (type(rng),), {"uniform": lambda self, low, high: (low + high) / 2})(0)  # everybody at the same instant
    before = cluster.counter("applied")
    cluster.run(10.0)
    assert cluster.counter("crossings") > 0
    assert cluster.counter("applied") - before > 2 * 100
    cluster.quiesce()
    conserved(cluster)


def test_models_come_together() -> None:
    cluster = started(VirtualCluster(8, 13, periods=0.1, drift=0.0, spread=0.3, settings=GossipSettings(initial="own")))
    mean = cluster.total() / 8
    first = cluster.distance()
    cluster.run(3.0)
    cluster.quiesce()
    assert first > 0.05
    assert cluster.distance() < first / 100
    for node in cluster.nodes:
        np.testing.assert_allclose(node.learner.vector, mean, rtol=0.01)


def test_the_same_seed_repeats_every_message_and_another_does_not() -> None:
    def trace(seed: int) -> tuple[dict[str, int], list[bytes]]:
        cluster = started(VirtualCluster(4, seed, periods=0.05, reset=0.01))
        cluster.run(5.0)
        return dict(cluster.network.sent), [node.learner.vector.tobytes() for node in cluster.nodes]

    assert trace(21) == trace(21)
    assert trace(21) != trace(22)


# ---- guards ---------------------------------------------------------------------------------------------------------------------------


def poisoned(change: Callable[[Any, Any], Any], message_change: Callable[[Any], Any] | None = None) -> VirtualCluster:
    """Node 2 of three sends what ``change`` makes of its snapshots."""
    cluster = started(VirtualCluster(3, 31, periods=0.1))
    cluster.run(2.0)

    def corrupt(source: int, target: int, message: Any, content: Any) -> Any:
        return change(message, content) if source == 2 and type(message).__name__ == "Data" else content

    cluster.network.corrupt = corrupt
    cluster.run(2.0)
    return cluster


def test_a_flipped_bit_is_refused_and_changes_nobody() -> None:
    def flip(message: Any, content: Any) -> Any:
        content.view(np.uint8)[5] ^= 1
        return content

    cluster = poisoned(flip)
    refused = cluster.counter("rejected_checksum")
    assert refused > 0
    assert cluster.nodes[2].protocol.metrics()["rejected_checksum"] == 0
    cluster.network.corrupt = lambda source, target, message, content: content
    cluster.quiesce()
    assert cluster.ledger.half_applied() == []
    assert cluster.drift_error() < ROUNDING


def test_a_peer_that_sends_rubbish_again_and_again_is_quarantined() -> None:
    def zero(message: Any, content: Any) -> Any:
        content[:] = 0
        return content

    cluster = poisoned(zero)
    for node in cluster.nodes[:2]:
        assert node.protocol.metrics()["rejected_checksum"] == 3
        assert any("quarantined" in log.text for log in node.logs)
        assert node.learner.view is not None
        assert 2 not in dict(node.learner.view.eligible)


@pytest.mark.parametrize(("what", "value", "counter"), [("nan", np.nan, "nonfinite"), ("huge", 1e18, "norm")])
def test_absurd_snapshots_are_refused(monkeypatch: pytest.MonkeyPatch, what: str, value: float, counter: str) -> None:
    """With a checksum that fits: a peer that is wrong, not a wire that is."""
    cluster = started(VirtualCluster(3, 32, periods=0.1))
    liar = cluster.nodes[2]
    before = [node.learner.vector.copy() for node in cluster.nodes]
    original = Snapshots._describe

    def describe(self: Snapshots, frozen: int) -> Any:
        described = original(self, frozen)
        if self is liar.exchanges._snapshots and described is not None:
            self._pool[frozen][:] = value
            return dataclasses.replace(described, checksum=checksum(self._pool[frozen]))
        return described

    monkeypatch.setattr(Snapshots, "_describe", describe)
    cluster.run(1.5)
    assert sum(node.protocol.metrics()[f"rejected_{counter}"] for node in cluster.nodes) > 0
    for node in cluster.nodes[:2]:
        assert node.protocol.metrics()["applied"] > 0
        assert np.isfinite(node.learner.vector).all()
        assert np.abs(node.learner.vector - before[0]).max() < 1.0


def test_a_node_whose_own_parameters_are_not_finite_offers_nothing() -> None:
    cluster = started(VirtualCluster(2, 33, periods=0.1))
    cluster.run(1.0)
    sick = cluster.nodes[0]
    sick.learner.vector[3] = np.inf
    cluster.run(1.0)
    healthy = cluster.nodes[1].learner.vector
    assert np.isfinite(healthy).all()
    assert sick.protocol.metrics()["own_nonfinite"] > 0
    assert cluster.nodes[1].protocol.metrics()["rejected_nonfinite"] == 0


@pytest.mark.parametrize("size", [2, 4])
def test_the_node_that_diverged_stops_and_the_others_go_on(size: int) -> None:
    cluster = started(VirtualCluster(size, 34, periods=[0.1] * (size - 1) + [0.11]))
    cluster.run(3.0)
    sick = cluster.nodes[-1]
    sick.learner.vector[:-1] *= -1.0
    cluster.run(5.0)
    assert sick.fatal is not None
    assert sick.fatal.exit_code == 5
    assert "diverged" in sick.fatal.text
    assert [node.fatal for node in cluster.nodes[:-1]] == [None] * (size - 1)
    before = [node.learner.updates for node in cluster.live()]
    cluster.run(3.0)
    assert min(node.learner.updates - updates for node, updates in zip(cluster.live(), before, strict=True)) > 20


def test_buffers_that_never_come_back_mean_busy_and_no_wait() -> None:
    cluster = started(VirtualCluster(3, 35, periods=0.1, buffers=BUFFERS_MIN))
    node = cluster.nodes[0]
    pool = node.exchanges._pool
    for _ in range(pool.free):
        index = pool.take()
        assert index is not None
        pool.send(index)
        pool.release(index)
    applied = cluster.counter("applied")
    busy = node.protocol.metrics()["busy_sent"]
    cluster.run(5.0)
    assert node.protocol.metrics()["busy_sent"] > busy
    assert cluster.counter("applied") > applied
    assert min(other.learner.updates for other in cluster.nodes[1:]) > 40
    cluster.run(8.0)
    assert node.learner.longest_wait_s <= cluster.settings.gate_limit_s + 0.01  # no news can reach it, and it says who has some
    assert cluster.forced
    assert {line for _, line, _ in cluster.forced} == {0}
    assert cluster.problems() == []


def with_few_buffers(left: int) -> tuple[VirtualCluster, list[int]]:
    """Node 0 has so many free ones; and those that it does not have."""
    cluster = started(VirtualCluster(3, 36, periods=0.02, buffers=BUFFERS_MIN))
    node = cluster.nodes[0]
    pool = node.exchanges._pool
    assert cluster.run(5.0, lambda: node.exchanges.idle and pool.free == BUFFERS_MIN - LENT - 1)
    taken = [pool.take() for _ in range(pool.free - left)]
    return cluster, [buffer for buffer in taken if buffer is not None]


def test_the_last_free_buffer_is_the_learners() -> None:
    """With two free ones there are exchanges; while one goes on the learner publishes all the same, from the one that is left."""
    cluster, taken = with_few_buffers(2)
    node = cluster.nodes[0]
    pool = node.exchanges._pool
    least, applied, updates = 2, node.protocol.metrics()["applied"], node.learner.updates
    for _ in range(20_000):
        cluster.run(0.0005)
        least = min(least, pool.free)
    assert least == 0
    assert node.protocol.metrics()["applied"] > applied + 50
    assert node.learner.updates > updates + 400
    assert cluster.problems() == []
    for buffer in taken:
        pool.release(buffer)
    cluster.quiesce()
    conserved(cluster)


def test_who_freezes_without_leaving_a_buffer_takes_the_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, _ = with_few_buffers(1)
    monkeypatch.setattr(module.Exchanges, "_has_buffers", property(lambda self: self._pool.free >= 1))
    with pytest.raises(ValueError, match=r"no buffer is left for the learner|no buffer to move to"):
        cluster.run(10.0)


def test_a_snapshot_that_takes_longer_than_the_patience_is_sent_once() -> None:
    """Of a slow link half would be lost if what is on its way were asked for again; what the first exchange takes is not known yet."""
    numel = module.SMALL_BYTES // 4 + 16
    settings = GossipSettings()
    transfer_s = 3 * settings.retransmit_s
    cluster = started(VirtualCluster(2, 3, periods=0.05, numel=numel, bandwidth=4 * numel / transfer_s, codec_every=0))
    assert cluster.run(30.0, lambda: cluster.counter("applied") >= 8)
    sent, applied = cluster.network.sent["Data"], cluster.counter("applied")
    cluster.run(60.0)
    more = cluster.counter("applied") - applied
    assert more >= 0.8 * 2 * 60.0 / transfer_s
    assert cluster.network.sent["Data"] - sent <= more + 2
    cluster.network.bandwidth = np.inf
    cluster.quiesce()
    conserved(cluster)


def test_a_peer_behind_a_link_that_stands_still_takes_one_buffer_and_no_more() -> None:
    """What was sent to it stays in the queue of its connection for longer than an exchange may take; its heartbeats come all the same."""

    def played(held_s: float) -> tuple[VirtualCluster, float, float]:
        """A minute; how many exchanges node 2 applied, and how many buffers node 0 had at least."""
        cluster = started(VirtualCluster(3, 5, periods=0.1, buffers=BUFFERS_MIN + 1))
        cluster.network.held_s = lambda source, target: held_s if {source, target} == {0, 1} else 0.0
        applied, least = cluster.nodes[2].protocol.metrics()["applied"], 13.0
        for _ in range(600):
            cluster.run(0.1)
            least = min(least, cluster.nodes[0].protocol.metrics()["buffers_free"])
        assert cluster.forced == []
        assert all(node.learner.updates > 0.9 * 600 for node in cluster.nodes)
        return cluster, cluster.nodes[2].protocol.metrics()["applied"] - applied, least

    _, usual, usual_least = played(0.0)
    cluster, applied, least = played(80.0)
    assert [member.clogged for member in cluster.nodes[0].protocol._membership if member.line == 1] == [1]
    assert applied > 0.9 * usual  # node 2 has everything from both
    assert least >= usual_least - 4  # the exchange given up, and until it is two more of its own
    cluster.network.held_s = lambda source, target: 0.0
    cluster.run(30.0)
    ended = len(cluster.nodes[0].endings)
    cluster.run(5.0)
    assert any(ending.exchange.peer.line == 1 and ending.step is Step.COMPLETED for ending in cluster.nodes[0].endings[ended:])
    cluster.quiesce()
    conserved(cluster)


# ---- the machine ------------------------------------------------------------------------------------------------------------------------


def test_nothing_leaves_a_final_state() -> None:
    assert {before for before, _ in TRANSITIONS} == {State.OFFERED, State.ENGAGED, State.DOUBT}
    assert set(TRANSITIONS.values()) == {State.ENGAGED, State.DOUBT, State.APPLIED, State.ABORTED, State.GIVEN_UP}


def test_only_data_and_ok_together_apply() -> None:
    assert {key for key, after in TRANSITIONS.items() if after is State.APPLIED} == {
        (State.ENGAGED, Step.COMPLETED),
        (State.DOUBT, Step.COMPLETED),
    }


def test_an_illegal_step_raises() -> None:
    cluster = started(VirtualCluster(2, 1, periods=0.1))
    cluster.run(3.0, lambda: cluster.nodes[0].exchanges.current is not None)
    exchange = cluster.nodes[0].exchanges.current
    exchange.state = State.APPLIED
    with pytest.raises(KeyError):
        cluster.nodes[0].exchanges._move(exchange, Step.ACCEPTED)


def test_abort_after_ok_is_impossible() -> None:
    cluster = started(VirtualCluster(2, 1, periods=0.1))
    cluster.run(3.0, lambda: any(node.exchanges.current is not None and node.exchanges.current.ok_sent for node in cluster.nodes))
    node = next(node for node in cluster.nodes if node.exchanges.current is not None and node.exchanges.current.ok_sent)
    with pytest.raises(ValueError, match="after OK"):
        node.exchanges._abort(node.exchanges.current, Step.GAVE_UP, "timeout", cluster.now)
