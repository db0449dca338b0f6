"""Slot reuse, with copies that complete when the test says so: the CPU's stand-in for a side stream."""

from __future__ import annotations

import pytest
import torch

from zpala.node.snapshots import Slot, SnapshotSlots, copier, host_vectors

NUMEL = 32


class LateEvent:
    """Completes when told to; until then the slot holds garbage, as pinned memory does while the device still writes to it."""

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


@pytest.fixture
def slots(late: LateCopies) -> SnapshotSlots[int]:
    return SnapshotSlots(host_vectors(2, NUMEL, torch.device("cpu")), late)


def test_a_copy_on_the_cpu_is_handed_out_at_once() -> None:
    slots: SnapshotSlots[int] = SnapshotSlots(host_vectors(2, NUMEL, torch.device("cpu")), copier(torch.device("cpu")))
    vector = torch.arange(NUMEL, dtype=torch.float32)
    assert slots.capture(vector, 7)
    vector.add_(1)
    [(slot, stamp)] = slots.completed()
    assert stamp == 7
    assert slots.arrays[slot].tolist() == list(range(NUMEL))
    assert slots.completed() == []


def test_a_slot_is_not_handed_out_before_its_copy_has_completed(slots: SnapshotSlots[int], late: LateCopies) -> None:
    assert slots.capture(torch.ones(NUMEL), 1)
    assert slots.completed() == []
    assert slots.copying
    late.events[0].complete()
    [(slot, _)] = slots.completed()
    assert slots.arrays[slot].tolist() == [1.0] * NUMEL
    assert not slots.copying


def test_a_slot_that_is_being_copied_is_not_written_again(slots: SnapshotSlots[int], late: LateCopies) -> None:
    assert slots.capture(torch.full((NUMEL,), 1.0), 1)
    assert slots.capture(torch.full((NUMEL,), 2.0), 2)
    assert not slots.capture(torch.full((NUMEL,), 3.0), 3)  # nothing is free: skipped, never waited for
    assert len(late.events) == 2
    for event in late.events:
        event.complete()
    assert [(float(slots.arrays[slot][0]), stamp) for slot, stamp in slots.completed()] == [(1.0, 1), (2.0, 2)]


def test_a_slot_of_the_proxy_is_not_written_until_it_comes_back(slots: SnapshotSlots[int], late: LateCopies) -> None:
    slots.capture(torch.full((NUMEL,), 1.0), 1)
    late.events[0].complete()
    [(first, _)] = slots.completed()
    slots.capture(torch.full((NUMEL,), 2.0), 2)
    late.events[1].complete()
    [(second, _)] = slots.completed()
    assert {first, second} == {0, 1}
    assert not slots.capture(torch.full((NUMEL,), 3.0), 3)
    assert float(slots.arrays[first][0]) == 1.0
    slots.release(first)
    assert slots.capture(torch.full((NUMEL,), 4.0), 4)
    assert slots.state(first) is Slot.COPYING
    assert float(slots.arrays[second][0]) == 2.0


def test_slots_are_handed_out_in_the_order_of_their_captures(slots: SnapshotSlots[int], late: LateCopies) -> None:
    slots.capture(torch.full((NUMEL,), 1.0), 1)
    slots.capture(torch.full((NUMEL,), 2.0), 2)
    late.events[1].complete()  # the younger copy completes first: the older version must not arrive behind the newer one
    assert slots.completed() == []
    late.events[0].complete()
    assert [stamp for _, stamp in slots.completed()] == [1, 2]


def test_only_the_proxy_can_give_a_slot_back(slots: SnapshotSlots[int]) -> None:
    slots.capture(torch.ones(NUMEL), 1)
    with pytest.raises(ValueError, match="only a published one"):
        slots.release(0)


@pytest.mark.cuda
def test_a_side_stream_copy_holds_the_value_of_its_capture() -> None:
    device = torch.device("cuda")
    slots: SnapshotSlots[int] = SnapshotSlots(host_vectors(2, 1 << 22, device), copier(device))
    vector = torch.zeros(1 << 22, device=device)
    for stamp in range(1, 20):
        vector.fill_(stamp)
        assert slots.capture(vector, stamp)
        vector.fill_(-1.0)  # the learner goes on at once
        torch.cuda.synchronize()
        [(slot, seen)] = slots.completed()
        assert seen == stamp
        assert float(slots.arrays[slot].min()) == float(slots.arrays[slot].max()) == stamp
        slots.release(slot)


@pytest.mark.cuda
def test_a_slot_is_written_again_while_the_device_is_busy() -> None:
    """No synchronisation but the slots' own events: every slot has the value of its capture, in order."""
    device = torch.device("cuda")
    slots: SnapshotSlots[int] = SnapshotSlots(host_vectors(2, 1 << 20, device), copier(device))
    vector, busy = torch.zeros(1 << 20, device=device), torch.ones((1024, 1024), device=device)
    seen: list[int] = []
    for stamp in range(2000):
        busy = busy @ busy / 1024.0
        vector.fill_(stamp)
        slots.capture(vector, stamp)
        vector.fill_(-1.0)
        for slot, of in slots.completed():
            assert float(slots.arrays[slot].min()) == float(slots.arrays[slot].max()) == of
            slots.release(slot)
            seen.append(of)
    assert seen == sorted(seen)
    assert len(seen) > 10
