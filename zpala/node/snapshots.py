"""How the learner's parameters get to the proxy without either of them waiting: one copy, into a buffer of the proxy's own pool.

Runs in the learner's thread only. The proxy lends buffers one by one (``gossip.events.SnapshotLent``) and gets each back with a snapshot
in it. To the learner every buffer is in exactly one of three states:

    PROXYS --lend--> FREE --capture--> COPYING --its event completed, ``completed`` hands it out--> PROXYS

On CUDA the copy runs on a side stream into pinned memory and its event is polled, never waited for; on the CPU it is a memcpy whose
event has always completed. The learner may write a buffer only while it is COPYING, the proxy may touch it only while it is PROXYS:
nobody needs a mutex.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, Protocol, TypeVar

import torch

Stamp = TypeVar("Stamp")


class CopyEvent(Protocol):
    """What completes when a copy has completed; ``torch.cuda.Event`` is one."""

    def query(self) -> bool: ...


class Completed:
    """The event of a copy that was finished when the call returned: every copy between two CPU tensors."""

    def query(self) -> bool:
        return True


class Owner(Enum):
    """Whose a buffer is, and what it is doing."""

    PROXYS = "the proxy's"
    FREE = "free"
    COPYING = "being copied to"


Copy = Callable[[torch.Tensor, torch.Tensor], CopyEvent]


def copy_on_cpu(target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
    """Copies ``source`` into ``target`` (both f32[numel] on the CPU)."""
    target.copy_(source)
    return Completed()


class CopyFromCuda:
    """Copies device vectors into pinned buffers on a side stream, so that learning goes on meanwhile.

    On the learner's stream the vector is only copied within the device, which takes microseconds; the way to the host, a hundred times
    longer, is the side stream's. There are as many such copies on the device as captures may be under way, written in turn: the one that
    is written again belongs to a capture that has completed, and the learner's stream never waits for the side stream.

    Args:
        captures: how many may be under way.
    """

    def __init__(self, device: torch.device, captures: int) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._captures = captures
        self._staged: deque[torch.Tensor] = deque()  # the one that was written last is the last

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> CopyEvent:
        staged = self._staged.popleft() if len(self._staged) == self._captures else torch.empty_like(source)
        self._staged.append(staged)
        staged.copy_(source)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            target.copy_(staged, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._side)
        return event


def copier(device: torch.device, captures: int) -> Copy:
    """The way to copy a vector that lies on ``device`` into host memory, at most ``captures`` of them at a time."""
    return CopyFromCuda(device, captures) if device.type == "cuda" else copy_on_cpu


def host_vectors(count: int, numel: int, device: torch.device) -> list[torch.Tensor]:
    """``count`` zeroed f32[numel] vectors in host memory, pinned when ``device`` is a CUDA device."""
    return [torch.zeros(numel, dtype=torch.float32, pin_memory=device.type == "cuda") for _ in range(count)]


class SnapshotBuffers(Generic[Stamp]):
    """The pool's buffers as the learner sees them, each f32[numel]; all are the proxy's until it lends some.

    Args:
        vectors: all of the pool, by their numbers there.
        copy: starts a copy and returns its event (``copier``; tests hand in one that completes late).
    """

    def __init__(self, vectors: Sequence[torch.Tensor], copy: Copy) -> None:
        self._vectors = list(vectors)
        self._copy = copy
        self._owners = [Owner.PROXYS for _ in vectors]
        self._free: deque[int] = deque()  # in the order in which they were lent
        self._copies: deque[tuple[int, CopyEvent, Stamp]] = deque()

    def owner(self, buffer: int) -> Owner:
        return self._owners[buffer]

    def lend(self, buffer: int) -> None:
        """The proxy lends ``buffer`` for a snapshot.

        Raises:
            ValueError: it is the learner's already.
        """
        if self._owners[buffer] is not Owner.PROXYS:
            raise ValueError(f"buffer {buffer} is {self._owners[buffer].value}: only one of the proxy's can be lent")
        self._owners[buffer] = Owner.FREE
        self._free.append(buffer)

    def capture(self, vector: torch.Tensor, stamp: Stamp) -> bool:
        """Starts a copy of ``vector`` f32[numel] into a free buffer; False, and nothing done, when there is none. Never waits."""
        if not self._free:
            return False
        buffer = self._free.popleft()
        self._owners[buffer] = Owner.COPYING
        self._copies.append((buffer, self._copy(self._vectors[buffer], vector), stamp))
        return True

    def completed(self) -> list[tuple[int, Stamp]]:
        """The buffers whose copy has completed since the last call, in the order of their captures; they are the proxy's from now on."""
        finished: list[tuple[int, Stamp]] = []
        while self._copies and self._copies[0][1].query():
            buffer, _, stamp = self._copies.popleft()
            self._owners[buffer] = Owner.PROXYS
            finished.append((buffer, stamp))
        return finished

    @property
    def copying(self) -> bool:
        """Whether a capture has not been handed out by ``completed`` yet."""
        return bool(self._copies)
