"""BufferPool: a buffer is free when nobody holds it and nothing of it is in flight."""

from __future__ import annotations

import numpy as np
import pytest

from zpala.gossip.buffers import BufferPool


def pool(count: int = 3) -> BufferPool:
    return BufferPool([np.zeros(16, np.float32) for _ in range(count)])


def test_hands_out_every_buffer_once() -> None:
    buffers = pool(3)
    assert {buffers.take() for _ in range(3)} == {0, 1, 2}
    assert buffers.take() is None


def test_a_released_buffer_waits_for_its_sends() -> None:
    buffers = pool(1)
    index = buffers.take()
    assert index is not None
    buffers.send(index)
    buffers.send(index)
    buffers.release(index)
    assert buffers.free == 0
    buffers.sent(index)
    assert buffers.free == 0
    assert buffers.in_flight == 1
    buffers.sent(index)
    assert buffers.free == 1


def test_a_sent_buffer_waits_for_its_holder() -> None:
    buffers = pool(1)
    index = buffers.take()
    assert index is not None
    buffers.send(index)
    buffers.sent(index)
    assert buffers.free == 0
    buffers.release(index)
    assert buffers.free == 1


def test_a_buffer_with_two_holders_waits_for_both() -> None:
    buffers = pool(1)
    index = buffers.take()
    assert index is not None
    assert buffers.is_exclusive(index)
    buffers.share(index)
    assert not buffers.is_exclusive(index)
    buffers.release(index)
    assert buffers.is_exclusive(index)
    buffers.send(index)
    assert not buffers.is_exclusive(index)
    buffers.sent(index)
    assert buffers.free == 0
    buffers.release(index)
    assert buffers.free == 1


def test_refuses_what_would_count_wrongly() -> None:
    buffers = pool(1)
    index = buffers.take()
    assert index is not None
    with pytest.raises(ValueError, match="in flight"):
        buffers.sent(index)
    buffers.release(index)
    with pytest.raises(ValueError, match="twice"):
        buffers.release(index)
    with pytest.raises(ValueError, match="nobody holds"):
        buffers.send(index)
    with pytest.raises(ValueError, match="nobody holds"):
        buffers.share(index)


def test_refuses_buffers_of_different_kinds() -> None:
    with pytest.raises(ValueError, match="float32"):
        BufferPool([np.zeros(16, np.float32), np.zeros(32, np.float32)])
    with pytest.raises(ValueError, match="float32"):
        BufferPool([np.zeros(16)])  # type: ignore[list-item]
