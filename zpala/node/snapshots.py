"""Snapshot slots: how the learner's parameters get to the proxy without either of them waiting.

Runs in the learner's thread only. A slot is in exactly one of three states:

    FREE --capture--> COPYING --its event completed, ``completed`` hands it out--> PUBLISHED --release--> FREE

On CUDA the copy runs on a side stream into pinned memory and its event is polled, never waited for; on the CPU it is a memcpy whose
event has always completed. The proxy may read a slot only while it is PUBLISHED, and the learner may write it only while it is COPYING:
nobody needs a mutex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Stamp = TypeVar("Stamp")


class CopyEvent(Protocol):
    """What completes when a copy has completed; ``torch.cuda.Event`` is one."""

    def query(self) -> bool: ...


class Completed:
    """The event of a copy that was finished when the call returned: every copy between two CPU tensors."""

    def query(self) -> bool:
        return True


class Slot(Enum):
    FREE = "free"
    COPYING = "copying"
    PUBLISHED = "published"


Copy = Callable[[torch.Tensor, torch.Tensor], CopyEvent]


def copy_on_cpu(target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
    """Copies ``source`` into ``target`` (both f32[numel] on the CPU)."""
    target.copy_(source)
    return Completed()


class CopyFromCuda:
    """Copies device vectors into pinned slots on a side stream, so that learning goes on meanwhile.

    On the learner's stream the vector is only copied within the device, which takes microseconds; the way to the host, a hundred times
    longer, is the side stream's. A slot's copy on the device is written again with the next capture into that slot, whose last one has
    completed by then: the learner's stream never waits for the side stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staged: dict[int, torch.Tensor] = {}  # by the slot's address

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
        staged = self._staged.get(target.data_ptr())
        if staged is None:
            staged = self._staged[target.data_ptr()] = torch.empty_like(source)
        staged.copy_(source)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            target.copy_(staged, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._side)
        return event


def copier(device: torch.device) -> Copy:
    """The way to copy a vector that lies on ``device`` into a slot."""
    return CopyFromCuda(device) if device.type == "cuda" else copy_on_cpu


def host_vectors(count: int, numel: int, device: torch.device) -> list[torch.Tensor]:
    """``count`` zeroed f32[numel] vectors in host memory, pinned when ``device`` is a CUDA device."""
    return [torch.zeros(numel, dtype=torch.float32, pin_memory=device.type == "cuda") for _ in range(count)]


class SnapshotSlots(Generic[Stamp]):
    """The slots between one learner and its proxy, each f32[numel].

    Args:
        vectors: host memory of the slots, at least two so that one can be written while the other is read.
        copy: starts a copy and returns its event (``copier``; tests hand in one that completes late).
    """

    def __init__(self, vectors: Sequence[torch.Tensor], copy: Copy) -> None:
        self._vectors = list(vectors)
        self._copy = copy
        self._states = [Slot.FREE for _ in vectors]
        self._copies: list[tuple[int, CopyEvent, Stamp]] = []

    @property
    def arrays(self) -> list[NDArray[np.float32]]:
        """The slots' memory as NumPy views, for the proxy."""
        return [vector.numpy() for vector in self._vectors]

    def state(self, slot: int) -> Slot:
        return self._states[slot]

    def capture(self, vector: torch.Tensor, stamp: Stamp) -> bool:
        """Starts a copy of ``vector`` f32[numel] into a free slot; False, and nothing done, when there is none. Never waits."""
        try:
            slot = self._states.index(Slot.FREE)
        except ValueError:
            return False
        self._states[slot] = Slot.COPYING
        self._copies.append((slot, self._copy(self._vectors[slot], vector), stamp))
        return True

    def completed(self) -> list[tuple[int, Stamp]]:
        """The slots whose copy has completed since the last call, in the order of their captures; they belong to the proxy from now on."""
        finished: list[tuple[int, Stamp]] = []
        while self._copies and self._copies[0][1].query():
            slot, _, stamp = self._copies.pop(0)
            self._states[slot] = Slot.PUBLISHED
            finished.append((slot, stamp))
        return finished

    @property
    def copying(self) -> bool:
        """Whether a capture has not been handed out by ``completed`` yet."""
        return bool(self._copies)

    def release(self, slot: int) -> None:
        """The proxy gives ``slot`` back.

        Raises:
            ValueError: the slot was not the proxy's.
        """
        if self._states[slot] is not Slot.PUBLISHED:
            raise ValueError(f"snapshot slot {slot} is {self._states[slot].value}: only a published one can be released")
        self._states[slot] = Slot.FREE
