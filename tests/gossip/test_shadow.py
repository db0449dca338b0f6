"""Shadow and DeltaQueue: sums against hand-worked arrays, and the contraction that makes the shadow necessary."""

from __future__ import annotations

import random

import numpy as np
import pytest

from zpala.gossip.buffers import BufferPool, Vector
from zpala.gossip.events import DeltaQueued
from zpala.gossip.mixing import delta_into
from zpala.gossip.shadow import DeltaQueue, Shadow

NUMEL = 16


def make(buffers: int = 8) -> tuple[Shadow, BufferPool]:
    """``buffers``: beside the one that the shadow lies in."""
    pool = BufferPool([np.zeros(NUMEL, np.float32) for _ in range(buffers + 1)])
    return Shadow(pool), pool


def publish(shadow: Shadow, snapshot: Vector, version: int, applied_through: int) -> tuple[int, ...]:
    """Through a buffer that is free, as the one that the learner was lent."""
    pool = shadow._pool
    buffer = pool.take()
    assert buffer is not None
    pool[buffer][:] = snapshot
    return shadow.publish(buffer, version, applied_through)


def constant(value: float) -> Vector:
    return np.full(NUMEL, value, np.float32)


def frozen(shadow: Shadow) -> float:
    pool = shadow._pool
    buffer = shadow.freeze()
    out = pool[buffer].copy()
    pool.release(buffer)
    assert (out == out[0]).all()
    return float(out[0])


def queue(shadow: Shadow, pool: BufferPool, value: float) -> int:
    index = pool.take()
    assert index is not None
    pool[index][:] = value
    return shadow.queue(index)


def event(sequence: int) -> DeltaQueued:
    return DeltaQueued(sequence=sequence, buffer=0, line=1, peer_version=3, from_doubt=False, distance=0.1)


def test_not_ready_before_the_first_snapshot() -> None:
    shadow, _ = make()
    assert not shadow.ready
    publish(shadow, constant(1.0), 0, 0)
    assert shadow.ready


def test_is_the_snapshot_plus_what_it_does_not_contain() -> None:
    shadow, pool = make()
    publish(shadow, constant(1.0), 0, 0)
    assert queue(shadow, pool, 0.5) == 1
    assert queue(shadow, pool, 0.25) == 2
    assert frozen(shadow) == 1.75
    assert publish(shadow, constant(3.5), 1, 1) == (1,)  # 3 + the first delta
    assert frozen(shadow) == 3.75
    assert queue(shadow, pool, 8.0) == 3
    assert publish(shadow, constant(20.0), 2, 3) == (2, 3)
    assert frozen(shadow) == 20.0
    assert pool.free == 8


def test_four_deltas_are_full() -> None:
    shadow, pool = make()
    publish(shadow, constant(0.0), 0, 0)
    for _ in range(4):
        assert not shadow.full
        queue(shadow, pool, 1.0)
    assert shadow.full
    publish(shadow, constant(1.0), 1, 1)
    assert not shadow.full


def test_refuses_a_snapshot_with_deltas_that_do_not_exist() -> None:
    shadow, pool = make()
    queue(shadow, pool, 1.0)
    with pytest.raises(ValueError, match="applied delta 2, but only 1"):
        publish(shadow, constant(0.0), 0, 2)


def test_what_is_frozen_is_the_very_buffer_that_was_published() -> None:
    shadow, pool = make()
    for version in range(3):
        buffer = pool.take()
        assert buffer is not None
        shadow.publish(buffer, version, 0)
        assert shadow.freeze() == buffer
        pool.release(buffer)
        assert pool.free == 8  # the last one has been given back


def test_what_is_frozen_is_not_written_while_it_is_held() -> None:
    shadow, pool = make()
    publish(shadow, constant(1.0), 0, 0)
    first = shadow.freeze()
    queue(shadow, pool, 0.5)
    assert shadow.moves
    second = shadow.freeze()
    assert (pool[first] == 1.0).all()
    assert (pool[second] == 1.5).all()
    publish(shadow, constant(7.0), 1, 1)
    assert (pool[first] == 1.0).all()
    assert (pool[second] == 1.5).all()
    pool.release(first)
    pool.release(second)
    assert frozen(shadow) == 7.0
    assert pool.free == 8


def test_what_is_still_being_sent_is_not_written() -> None:
    shadow, pool = make()
    publish(shadow, constant(1.0), 0, 0)
    buffer = shadow.freeze()
    pool.send(buffer)
    pool.release(buffer)
    publish(shadow, constant(2.0), 1, 0)
    assert (pool[buffer] == 1.0).all()
    assert pool.free == 7
    pool.sent(buffer)
    assert pool.free == 8


def test_a_delta_that_was_published_is_never_added() -> None:
    shadow, pool = make()
    publish(shadow, constant(1.0), 0, 0)
    queue(shadow, pool, np.nan)
    publish(shadow, constant(3.0), 1, 1)
    assert frozen(shadow) == 3.0


def test_freezing_twice_without_a_change_freezes_the_same_buffer() -> None:
    shadow, pool = make()
    publish(shadow, constant(1.0), 0, 0)
    assert not shadow.moves
    assert shadow.freeze() == shadow.freeze()
    assert pool.free == 8


def test_delta_queue_gives_all_in_order_and_counts_them() -> None:
    deltas = DeltaQueue()
    assert deltas.applied_through == 0
    deltas.receive(event(1))
    deltas.receive(event(2))
    assert deltas.applied_through == 0
    assert [delta.sequence for delta in deltas.take()] == [1, 2]
    assert deltas.applied_through == 2
    assert deltas.take() == []
    assert deltas.applied_through == 2


@pytest.mark.parametrize("sequence", [1, 3])
def test_delta_queue_refuses_gaps_and_repetitions(sequence: int) -> None:
    deltas = DeltaQueue()
    deltas.receive(event(1))
    with pytest.raises(ValueError, match=f"delta {sequence} arrived after delta 1"):
        deltas.receive(event(sequence))


def factor_per_round(exchanges: int, *, shadow: bool, nodes: int = 64, rounds: int = 12) -> float:
    """By how much one publish with so many random matchings multiplies the variance between nodes, geometric mean.

    ``shadow=False`` freezes the last snapshot alone: the mutant.
    """
    rng = random.Random(7)
    noise = np.random.default_rng(7)
    nodes_state = []
    for _ in range(nodes):
        state, pool = make()
        x = noise.standard_normal(NUMEL).astype(np.float32)
        publish(state, x, 0, 0)
        nodes_state.append((x, state, pool, DeltaQueue()))
    first = np.var([x for x, *_ in nodes_state], axis=0).mean()
    for version in range(1, rounds + 1):
        for _ in range(exchanges):
            order = list(range(nodes))
            rng.shuffle(order)
            for a, b in zip(order[::2], order[1::2], strict=True):
                snapshots = []
                for node in (a, b):
                    x, state, pool, _ = nodes_state[node]
                    buffer = state.freeze()
                    snapshots.append(pool[buffer].copy() if shadow else x.copy())
                    pool.release(buffer)
                for node, own, peer in ((a, 0, 1), (b, 1, 0)):
                    _, state, pool, deltas = nodes_state[node]
                    index = pool.take()
                    assert index is not None
                    delta_into(snapshots[peer], snapshots[own], 0.5, pool[index])
                    sequence = state.queue(index)
                    deltas.receive(DeltaQueued(sequence=sequence, buffer=index, line=0, peer_version=0, from_doubt=False, distance=0.0))
        for x, state, pool, deltas in nodes_state:
            for delta in deltas.take():
                x += pool[delta.buffer]
            publish(state, x, version, deltas.applied_through)
    last = np.var([x for x, *_ in nodes_state], axis=0).mean()
    return float((last / first) ** (1 / rounds))


@pytest.mark.parametrize("exchanges", [1, 2, 3, 4])
def test_every_exchange_halves_the_variance(exchanges: int) -> None:
    # a random matching averages pairs: E factor 1/2 for many nodes, and m of them 2^-m
    assert factor_per_round(exchanges, shadow=True, rounds=6) == pytest.approx(2.0**-exchanges, rel=0.25)


@pytest.mark.parametrize(("exchanges", "expands"), [(1, False), (2, False), (4, True)])
def test_freezing_the_snapshot_alone_expands_at_four(exchanges: int, expands: bool) -> None:
    # m deltas from one snapshot: self-weight 1 - m/2, each peer's 1/2: factor (1 - m/2)^2 + m/4
    factor = factor_per_round(exchanges, shadow=False)
    assert factor == pytest.approx((1 - exchanges / 2) ** 2 + exchanges / 4, rel=0.25)
    assert (factor > 1.0) == expands
