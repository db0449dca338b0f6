"""What a received snapshot is judged by: its parameters, and not the running statistics that lie before them in the vector."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from zpala.gossip.buffers import BufferPool, Vector
from zpala.gossip.exchange_snapshots import Snapshots
from zpala.gossip.exchange_state import Exchange, State
from zpala.gossip.messages import ExchangeId, SnapshotDescription
from zpala.gossip.mixing import Guard, checksum
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.shadow import Shadow

ENTRIES = (TensorEntry("inputs.normalizer.squares", (16,), 0, 16), TensorEntry("trunk.weight", (16,), 16, 16))


def judged(mine: Vector, theirs: Vector, learnt_from: int) -> tuple[str | None, Exchange, Vector]:
    """The refusal, the exchange, and the delta."""
    pool = BufferPool([np.zeros(32, dtype=np.float32) for _ in range(3)])
    shadow = Shadow(pool)
    published = pool.take()
    assert published is not None
    pool[published][:] = mine
    shadow.publish(published, 1, 0)
    snapshots = Snapshots(Schema(ENTRIES, 32, learnt_from), pool, shadow, Guard(), 0.5)
    own, described = snapshots.freeze()
    delta = pool.take()
    assert delta is not None
    assert described is not None
    exchange = Exchange(ExchangeId(0, 1, 1), cast(Any, None), State.ENGAGED, own, delta, described, False, 0.0, 1.0, 1.0)
    peer, payload = SnapshotDescription(version=3, nbytes=128, checksum=checksum(theirs), square_norm=1.0), bytes(theirs)
    refusal = snapshots.judge(exchange, peer, memoryview(payload))
    assert payload == bytes(theirs)  # it lies in libzmq's memory, which is not ours to write
    return refusal, exchange, pool[delta]


def vector(statistics: float, parameters: float) -> Vector:
    return np.repeat(np.array([statistics, parameters], dtype=np.float32), 16)


def test_statistics_of_any_size_are_averaged_and_judge_nothing() -> None:
    refusal, exchange, delta = judged(vector(0.0, 1.0), vector(90_000.0, 1.1), learnt_from=16)
    assert refusal is None
    assert delta == pytest.approx(np.repeat([45_000.0, 0.05], 16))
    assert exchange.distance == pytest.approx(0.1 / 1.1)
    assert exchange.mine.square_norm == pytest.approx(16.0)
    assert judged(vector(0.0, 1.0), vector(90_000.0, 1.1), learnt_from=0)[0] == "norm"


def test_they_do_not_hide_what_became_of_the_parameters() -> None:
    assert judged(vector(90_000.0, 1.0), vector(90_000.0, 1_000.0), learnt_from=16)[0] == "norm"
    assert judged(vector(90_000.0, 1.0), vector(90_000.0, -1.0), learnt_from=16)[0] == "diverged"
    assert judged(vector(90_000.0, 1.0), vector(90_000.0, -1.0), learnt_from=0)[0] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(bad: float) -> None:
    assert judged(vector(0.0, 1.0), vector(bad, 1.0), learnt_from=16)[0] == "nonfinite"
    with pytest.raises(AssertionError):  # and nobody offers them
        judged(vector(bad, 1.0), vector(0.0, 1.0), learnt_from=16)
