"""The learner's end of gossip: what a thread that owns a model calls to take part, and nothing that knows how it is done.

Runs in the thread that owns the model (a node's learner, or a program of one's own as ``examples/average_consensus.py``). Owns: that
end of the mailbox, the queue of deltas to apply, the snapshots being written, the gate. The order of an update boundary stands in
``boundary`` and nowhere else: read the mailbox, apply the queued deltas in order, publish, pass the gate (design D2). No call waits
without a limit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zmq
from numpy.typing import NDArray

from zpala.gossip import events
from zpala.gossip.gate import Closed, Gate, Verdict
from zpala.gossip.shadow import DeltaQueue
from zpala.node.errors import NodeError
from zpala.node.mailbox import GateChanged, LeaveRun, Mailbox, ProxyCounters, RunFinished, SnapshotReady, StateAdopted
from zpala.node.snapshots import SnapshotBuffers
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor

PUBLISH_SHARE = 0.05  # at most this share of the learner's time goes into copying snapshots
ALONE_S = 0.1  # between two snapshots of a node without live peers, which nobody is going to ask for
WAIT_SLICE_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far this learner is; rides along with every snapshot it publishes. ``rate``: env_steps per second."""

    updates: int = 0
    env_steps: int = 0
    rate: float = 0.0
    return_mean: float = 0.0
    return_count: int = 0


class Interrupted(Exception):
    """The person or the system asked this process to end while the node was waiting."""


class GossipPort:
    """A model's connection to the proxy of its node.

    Args:
        weights: the live model.
        snapshots: of the same memory as ``buffers``.
        buffers, state_parts: the arrays that the protocol was built with: deltas lie in the former, an adopted state in the latter.
        interrupted: polled in every wait; true ends the wait with ``Interrupted``.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        supervisor: Supervisor,
        weights: Weights,
        snapshots: SnapshotBuffers[events.Published],
        gate: Gate,
        *,
        buffers: Sequence[NDArray[np.float32]],
        state_parts: Mapping[str, NDArray[np.float32]],
        interrupted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view = events.View()
        self.counters = ProxyCounters()
        self.gate = gate
        self.version = 0
        self.optimizer_steps = 0
        self.adoptions = 0  # how often the state of another node was taken over
        self.deltas_applied = 0
        self.deltas_dropped = 0  # of parameters that were given up
        self.drained: str | None = None
        self.progress = Progress()
        self._mailbox = mailbox
        self._supervisor = supervisor
        self._weights = weights
        self._snapshots = snapshots
        self._buffers = buffers
        self._state_parts = state_parts
        self._interrupted = interrupted
        self._clock = clock
        self._deltas = DeltaQueue()
        self._started = False
        self._state_wanted: int | None = None
        self._adoption: events.AdoptState | None = None
        self._finished = False  # the proxy has been told so
        self._news_wanted = False
        self._changed = True  # since the last snapshot
        self._published_at = float("-inf")
        self._published_through = self._deltas.applied_through
        self._copy_s = 0.0
        self._poller = zmq.Poller()
        self._poller.register(mailbox.socket, zmq.POLLIN)
        self._poller.register(supervisor.socket, zmq.POLLIN)

    # -- before the first update ---------------------------------------------------------------------------------------------------

    def join(self, limit_s: float) -> None:
        """Waits for the start of the run; on return the model is the run's (adopted, unless the run starts from own parameters).

        While a peer does not know this node's line of hosts.txt yet, the limit begins anew.

        Raises:
            NodeError: refused by the others, or nothing started within ``limit_s`` seconds (exit status 3).
        """
        deadline = self._clock() + limit_s
        while not self._started:
            if self._clock() > deadline:
                raise NodeError(f"the run did not start within {limit_s:g} s: see above which peers were missing", 3)
            self._wait(WAIT_SLICE_S)
            self._install()
            self._serve_state()
            if self.view.unknown:
                deadline = self._clock() + limit_s

    # -- at every update boundary -----------------------------------------------------------------------------------------------------

    def boundary(self, progress: Progress) -> int:
        """Applies what came, publishes, and returns once the next update may start.

        Returns: updates since fresh news from a neighbour (the staleness of the update that may start now); 0 when nobody could have news.
        Raises: ``Interrupted``, ``NodeError``, ``WorkerFailed``.
        """
        self.progress = progress
        self._receive()
        self._mix(progress)
        self._serve_state()
        self._publish(progress, urgent=False)
        decision = self._ask(progress)
        while isinstance(decision, Closed) and self.drained is None and not self.view.finish_reason:
            self._publish(progress, urgent=True)
            self._wait(min(max(decision.until - self._clock(), 0.0), WAIT_SLICE_S))
            self._mix(progress)
            self._serve_state()
            decision = self._ask(progress)
        self._want_news(False)
        return self.gate.staleness(progress.updates) if self.view.eligible else 0

    def updated(self, optimizer_steps: int = 0) -> None:
        """One more update has been made: the version grows by one, the optimiser (if any) has stepped ``optimizer_steps`` times in all."""
        self.version += 1
        self.optimizer_steps = optimizer_steps
        self._changed = True

    # -- the end ------------------------------------------------------------------------------------------------------------------------

    def drain(self, reason: str, progress: Progress, limit_s: float) -> None:
        """Publishes the last parameters, says FINISHED, goes on exchanging until the neighbours are close; the proxy has then said LEAVE.

        Returns at the latest after ``limit_s`` seconds, whatever the proxy does; the protocol's own limit is shorter.
        """
        deadline = self._clock() + limit_s
        while self.drained is None and self._clock() < deadline:
            self._mix(progress)
            self._serve_state()
            self._publish(progress, urgent=True)
            if not self._finished and not self._changed and not self._snapshots.copying:
                self._finished = self._mailbox.send(RunFinished(reason))
            self._wait(0.02)
        self._mix(progress)

    def leave(self, limit_s: float = 2.0) -> None:
        """Leaves the run without a drain, and waits for at most ``limit_s`` seconds until the peers have been told. Raises nothing."""
        deadline = self._clock() + limit_s
        self._mailbox.send(LeaveRun(), limit_s=0.0)
        while self.drained is None and self._clock() < deadline and self._supervisor.first is None:
            self._mailbox.socket.poll(round(1000 * WAIT_SLICE_S))
            for message in self._mailbox.receive():
                if isinstance(message, events.Drained):
                    self.drained = message.reason

    # -- pieces -------------------------------------------------------------------------------------------------------------------------

    def _ask(self, progress: Progress) -> Verdict:
        decision = self.gate.ask(progress.updates, self.version, self._clock())
        self._want_news(isinstance(decision, Closed) and decision.stale)
        return decision

    def _want_news(self, wanted: bool) -> None:
        """Tells the proxy when exchanges become urgent, and when they no longer are."""
        if wanted is not self._news_wanted:
            self._news_wanted = wanted
            self._mailbox.send(GateChanged(wanted))

    def _wait(self, limit_s: float) -> None:
        """Waits for a message of the proxy, at most ``limit_s`` seconds, and takes in all that came."""
        if self._interrupted():
            raise Interrupted
        slice_s = min(limit_s, 0.001) if self._snapshots.copying else limit_s  # a copy's event is polled
        self._poller.poll(math.ceil(1000 * slice_s))
        self._receive()

    def _receive(self) -> None:
        self._supervisor.raise_if_failed()
        if self._interrupted():
            raise Interrupted
        for message in self._mailbox.receive():
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case events.DeltaQueued():
                self._deltas.receive(message)
            case events.SnapshotLent():
                self._snapshots.lend(message.buffer)
            case events.View():
                self.view = message
                self.gate.view(dict(message.eligible), dict(message.clocks), self.version)
            case ProxyCounters():
                self.counters = message
            case events.CaptureState():
                self._state_wanted = message.state_id
            case events.AdoptState():
                self._adoption = message
            case events.Start():
                self._started = True
            case events.Drained():
                self.drained = message.reason
            case events.Fatal():
                raise NodeError(message.text, message.exit_code)
            case _:
                raise TypeError(f"the proxy sent {message!r}, which no learner expects")

    def _install(self) -> None:
        """Takes over the state of another node, once no snapshot of the old one is being copied: the proxy must not get it later."""
        self._hand_over()
        adoption = self._adoption
        if adoption is None or self._snapshots.copying or self._finished:
            return
        self._adoption = None
        self.deltas_dropped += len(self._deltas.take())
        self._weights.install({name: self._state_parts[name] for name in adoption.parts})
        self.version = max(self.version, adoption.version) if self._started else adoption.version
        self.optimizer_steps = adoption.optimizer_steps
        self.adoptions += 1
        self._changed = True
        _log.info("adopted %s of version %d", ", ".join(adoption.parts), adoption.version)
        self._mailbox.send(StateAdopted())

    def _mix(self, progress: Progress) -> None:
        self._install()
        for delta in self._deltas.take():
            self._weights.add(self._buffers[delta.buffer])
            self.gate.mixed(delta.line, delta.peer_version, progress.updates, delta.from_doubt)
            self.deltas_applied += 1
            self._changed = True

    def _publish(self, progress: Progress, *, urgent: bool) -> None:
        now = self._clock()
        # A queued delta's buffer becomes free only when a snapshot holds it: such a snapshot does not wait for its turn.
        rest_s = max(self._copy_s / PUBLISH_SHARE, 0.0 if self.view.live else ALONE_S)
        due = urgent or self._deltas.applied_through > self._published_through or now - self._published_at >= rest_s
        if self._changed and due:
            stamp = events.Published(
                version=self.version,
                updates=progress.updates,
                applied_through=self._deltas.applied_through,
                env_steps=progress.env_steps,
                rate=progress.rate,
                return_mean=progress.return_mean,
                return_count=progress.return_count,
                update_s=self.gate.update_s,
                waiting=urgent,
            )
            if self._snapshots.capture(self._weights.parameters, stamp):
                self._changed = False
                self._published_at, self._published_through = now, self._deltas.applied_through
                self._copy_s = self._clock() - now
        self._hand_over()

    def _hand_over(self) -> None:
        """Snapshots whose copies are complete go to the proxy."""
        for buffer, stamp in self._snapshots.completed():
            self._mailbox.send(SnapshotReady(buffer, stamp))

    def _serve_state(self) -> None:
        if self._state_wanted is None:
            return
        self._weights.capture(self._state_parts)
        self._mailbox.send(events.StateCaptured(state_id=self._state_wanted, version=self.version, optimizer_steps=self.optimizer_steps))
        self._state_wanted = None
