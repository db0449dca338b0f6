"""The shadow: what this node's parameters will be once its learner has applied every delta queued so far (design D2).

shadow = last published snapshot + sum of the queued deltas that it does not contain yet. It is the only thing that is frozen for an
exchange: freezing the last snapshot alone would use the same disagreement several times and stop contracting at three exchanges.

It lies in a buffer of the pool, the one that the learner wrote its snapshot to, and neither publishing nor freezing copies anything: the
exchange becomes a holder of that buffer, which nobody writes from then on. A queued delta is added when the shadow is next frozen, in
another buffer if this one is not its alone; mostly the learner has applied it by then and published what it made of it, so that it need
not be.
``Shadow`` runs in the proxy thread; ``DeltaQueue`` is its counterpart in the learner thread. They share no object, only events.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zpala.gossip.buffers import BufferPool
from zpala.gossip.events import DeltaQueued

Vector = npt.NDArray[np.float32]

MAX_QUEUED = 4  # deltas the learner has not applied; with as many, no new exchange starts


class QueuedDelta(NamedTuple):
    sequence: int
    buffer: int


class Shadow:
    """Holds one buffer of ``pool``, from the first snapshot on, and those of the deltas.

    While its buffer is not its alone one more has to be free, for the shadow to move to or to be lent to the learner once there is a
    newer snapshot: who freezes leaves it, see ``moves``.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffer = -1
        self._queued: deque[QueuedDelta] = deque()
        self._missing: deque[QueuedDelta] = deque()  # the last of them, which the buffer does not contain yet
        self._sequence = 0
        self.version = 0
        self.ready = False  # False until the first snapshot, and after ``retire``: nothing to freeze
        self.revision = 0  # changes whenever the shadow's content may have changed

    @property
    def full(self) -> bool:
        return len(self._queued) >= MAX_QUEUED

    @property
    def moves(self) -> bool:
        """Whether ``freeze`` would take a free buffer."""
        return self.ready and bool(self._missing) and not self._pool.is_exclusive(self._buffer)

    @property
    def queued(self) -> int:
        """Deltas that the last published snapshot does not contain."""
        return len(self._queued)

    @property
    def sequence(self) -> int:
        """Number of the newest delta, 0 before the first."""
        return self._sequence

    def publish(self, buffer: int, version: int, applied_through: int) -> tuple[int, ...]:
        """The snapshot in pool buffer ``buffer`` (held by the caller, the shadow's from now on) takes the place of the last one.

        It contains the deltas up to ``applied_through``; their buffers are released.

        Returns:
            The sequence numbers of the released deltas.

        Raises:
            ValueError: the learner claims deltas it was never given.
        """
        if applied_through > self._sequence:
            raise ValueError(f"the learner says it applied delta {applied_through}, but only {self._sequence} exist")
        released = []
        while self._queued and self._queued[0].sequence <= applied_through:
            delta = self._queued.popleft()
            self._pool.release(delta.buffer)
            released.append(delta.sequence)
        if self._buffer >= 0:
            self._pool.release(self._buffer)
        self._buffer = buffer
        self._missing = deque(self._queued)
        self.version = version
        self.ready = True
        self.revision += 1
        return tuple(released)

    def retire(self) -> None:
        """The learner has replaced its parameters: nothing is frozen until it has published the new ones."""
        self.ready = False

    def queue(self, buffer: int) -> int:
        """Add the delta in pool buffer ``buffer`` (held by the caller, the shadow's from now on); returns its sequence number."""
        self._sequence += 1
        delta = QueuedDelta(self._sequence, buffer)
        self._queued.append(delta)
        self._missing.append(delta)
        self.revision += 1
        return self._sequence

    def freeze(self) -> int:
        """The pool's buffer that holds the shadow as it is now; the caller is a holder of it, and nobody writes it while there are two."""
        while self._missing:
            delta = self._pool[self._missing.popleft().buffer]
            before = self._buffer
            if not self._pool.is_exclusive(before):
                moved = self._pool.take()
                if moved is None:
                    raise ValueError("the shadow has no buffer to move to: who froze it has left none")
                self._buffer = moved
                self._pool.release(before)
            np.add(self._pool[before], delta, out=self._pool[self._buffer])
        self._pool.share(self._buffer)
        return self._buffer


class DeltaQueue:
    """The learner's end: deltas in the order of their sequence, and how far it has applied them."""

    def __init__(self) -> None:
        self._pending: list[DeltaQueued] = []
        self._received = 0
        self.applied_through = 0  # goes into the next Published

    def __len__(self) -> int:
        return len(self._pending)

    def receive(self, event: DeltaQueued) -> None:
        """Raises ValueError when a delta is missing or repeated: mails between threads are never lost."""
        if event.sequence != self._received + 1:
            raise ValueError(f"delta {event.sequence} arrived after delta {self._received}")
        self._received = event.sequence
        self._pending.append(event)

    def take(self) -> list[DeltaQueued]:
        """All waiting deltas, in order; the caller adds every one of them to the parameters before it publishes again."""
        taken, self._pending = self._pending, []
        self.applied_through = self._received
        return taken
