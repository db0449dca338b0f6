"""How buffers are used again, with copies that complete when the test says so: the CPU's stand-in for a side stream."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from zpala.node.snapshots import Copy, Owner, SnapshotBuffers, copier, host_vectors

NUMEL = 32


class LateEvent:
    """Completes when told to; until then the buffer holds garbage, as pinned memory does while the device still writes to it."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._target, self._value = target, source.clone()
        target.fill_(float("nan"))
        self._done = False

    def complete(self) -> None:
        self._target.copy_(self._value)
        self._done = True

    def query(self) -> bool:
        return self._done


class LateCopies:
    def __init__(self) -> None:
        self.events: list[LateEvent] = []

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> LateEvent:
        self.events.append(LateEvent(target, source))
        return self.events[-1]


@pytest.fixture
def late() -> LateCopies:
    return LateCopies()


class Lender:
    """Plays the proxy: buffers of a pool, two of them lent at first; what it gets back it lends when it is told to."""

    def __init__(self, numel: int = NUMEL, device: str = "cpu", *, copy: Copy | None = None, pool: int = 4) -> None:
        self.vectors = host_vectors(pool, numel, torch.device(device))
        self.buffers: SnapshotBuffers[int] = SnapshotBuffers(self.vectors, copy or copier(torch.device(device), 2))
        self.proxys = deque(range(pool))
        for _ in range(2):
            self.lend()

    def lend(self) -> int:
        buffer = self.proxys.popleft()
        self.buffers.lend(buffer)
        return buffer

    def published(self) -> list[tuple[int, int, float]]:
        """(buffer, stamp, the one value that is in all of it) of what has completed."""
        found = []
        for buffer, stamp in self.buffers.completed():
            self.proxys.append(buffer)
            assert float(self.vectors[buffer].min()) == float(self.vectors[buffer].max())
            found.append((buffer, stamp, float(self.vectors[buffer][0])))
        return found


@pytest.fixture
def lender(late: LateCopies) -> Lender:
    return Lender(copy=late)


def full(value: float) -> torch.Tensor:
    return torch.full((NUMEL,), value)


def test_a_copy_on_the_cpu_is_handed_out_at_once() -> None:
    lender = Lender()
    vector = torch.arange(NUMEL, dtype=torch.float32)
    assert lender.buffers.capture(vector, 7)
    vector.add_(1)
    [(buffer, stamp)] = lender.buffers.completed()
    assert stamp == 7
    assert lender.vectors[buffer].tolist() == list(range(NUMEL))
    assert lender.buffers.completed() == []


def test_a_buffer_is_not_handed_out_before_its_copy_has_completed(lender: Lender, late: LateCopies) -> None:
    assert lender.buffers.capture(full(1.0), 1)
    assert lender.published() == []
    assert lender.buffers.copying
    late.events[0].complete()
    assert lender.published() == [(0, 1, 1.0)]
    assert not lender.buffers.copying


def test_without_a_free_buffer_nothing_is_captured(lender: Lender, late: LateCopies) -> None:
    assert lender.buffers.capture(full(1.0), 1)
    assert lender.buffers.capture(full(2.0), 2)
    assert not lender.buffers.capture(full(3.0), 3)  # skipped, never waited for
    assert len(late.events) == 2
    for event in late.events:
        event.complete()
    assert lender.published() == [(0, 1, 1.0), (1, 2, 2.0)]


def test_only_what_is_lent_is_written(lender: Lender, late: LateCopies) -> None:
    lender.buffers.capture(full(1.0), 1)
    late.events[0].complete()
    assert lender.published() == [(0, 1, 1.0)]
    lender.buffers.capture(full(2.0), 2)
    late.events[1].complete()
    assert lender.published() == [(1, 2, 2.0)]
    assert not lender.buffers.capture(full(3.0), 3)
    assert lender.lend() == 2  # another one than those that were handed out: the shadow keeps these
    assert lender.buffers.capture(full(4.0), 4)
    assert [lender.buffers.owner(buffer) for buffer in range(4)] == [Owner.PROXYS, Owner.PROXYS, Owner.COPYING, Owner.PROXYS]
    assert [float(vector[0]) for vector in lender.vectors[:2]] == [1.0, 2.0]
    late.events[2].complete()
    assert lender.published() == [(2, 4, 4.0)]


def test_buffers_are_handed_out_in_the_order_of_their_captures(lender: Lender, late: LateCopies) -> None:
    lender.buffers.capture(full(1.0), 1)
    lender.buffers.capture(full(2.0), 2)
    late.events[1].complete()  # the younger copy completes first: the older version must not arrive behind the newer one
    assert lender.published() == []
    late.events[0].complete()
    assert [stamp for _, stamp, _ in lender.published()] == [1, 2]


def test_what_the_learner_has_is_not_lent_again(lender: Lender) -> None:
    with pytest.raises(ValueError, match="buffer 0 is free"):
        lender.buffers.lend(0)
    lender.buffers.capture(full(1.0), 1)
    with pytest.raises(ValueError, match="buffer 0 is being copied to"):
        lender.buffers.lend(0)


@pytest.mark.cuda
def test_a_side_stream_copy_holds_the_value_of_its_capture() -> None:
    lender = Lender(1 << 22, "cuda")
    vector = torch.zeros(1 << 22, device="cuda")
    for stamp in range(1, 20):
        vector.fill_(stamp)
        assert lender.buffers.capture(vector, stamp)
        vector.fill_(-1.0)  # the learner goes on at once
        torch.cuda.synchronize()
        [(_, seen, value)] = lender.published()
        assert seen == value == stamp
        lender.lend()


@pytest.mark.cuda
def test_a_buffer_is_written_again_while_the_device_is_busy() -> None:
    """No synchronisation but the copies' own events: every buffer has the value of its capture, in order."""
    lender = Lender(1 << 20, "cuda")
    vector, busy = torch.zeros(1 << 20, device="cuda"), torch.ones((1024, 1024), device="cuda")
    seen: list[int] = []
    for stamp in range(2000):
        busy = busy @ busy / 1024.0
        vector.fill_(stamp)
        lender.buffers.capture(vector, stamp)
        vector.fill_(-1.0)
        for _, of, value in lender.published():
            assert value == of
            lender.lend()
            seen.append(of)
    assert seen == sorted(seen)
    assert len(seen) > 10
