"""Stands for a training loop: drifts, applies deltas at update boundaries, obeys the gate, adopts, drains. The vector has no meaning.

Every update adds noise to the vector, booked in the ledger. The last coordinate starts as 1 on every node and never drifts: averages of
ones are ones, so it must stay exactly 1 through any number of exchanges.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from zpala.gossip.buffers import Vector
from zpala.gossip.events import (
    AdoptState,
    CaptureState,
    DeltaQueued,
    Drained,
    Fatal,
    Published,
    SnapshotLent,
    Start,
    StateCaptured,
    View,
)
from zpala.gossip.gate import Closed, Forced, Gate
from zpala.gossip.shadow import DeltaQueue

if TYPE_CHECKING:
    from zpala.sim.node import SimulatedNode

IDLE = ("gate", "finished")  # states in which mail from the proxy is acted on at once


class Learner:
    """``period_s``: mean time of an update; ``drift``: its size."""

    def __init__(self, node: SimulatedNode, start: Vector, period_s: float, drift: float) -> None:
        settings = node.cluster.settings
        self.node = node
        self.vector = start.copy()
        self.slot = np.full_like(start, 0.5)  # stands for optimiser state; never averaged
        self.period_s = period_s
        self.drift = drift
        self.gate = Gate(settings.max_staleness, settings.gate_limit_s, settings.max_lead)
        self.deltas = DeltaQueue()
        self.updates = 0
        self.version = 0
        self.state = "waiting"  # waiting, learning, gate, finished, drained, hung
        self.view: View | None = None
        self.finish_reason = ""  # set from outside: the run's end as this node sees it
        self.longest_wait_s = 0.0
        self.staleness_max = 0
        self.due_at = math.inf  # when its next update ends, or its wait in the gate, at the latest
        self.news_wanted = False
        self.applied: list[DeltaQueued] = []
        self.dropped = 0  # deltas, with the parameters that they belonged to
        self._lent: deque[int] = deque()  # the proxy's buffers for the next snapshots
        self._changed = False  # since the last snapshot
        self._reason = ""  # why it has finished; told the proxy once everything is published
        self._wait_began = 0.0
        self._capture: CaptureState | None = None  # came while it hung: its mailbox keeps it

    # ---- mails from the proxy ---------------------------------------------------------------------------------------------------------

    def receive(self, event: Any) -> None:
        node = self.node
        if isinstance(event, Start):
            self.version = event.version
            self.state = "learning"
            node.joined()
            self.publish()
            self.next_update()
        elif isinstance(event, AdoptState):
            self.adopt(event)
        elif isinstance(event, CaptureState):
            if self.state == "hung":
                self._capture = event
                return
            node.parts["parameters"][:] = self.vector
            node.parts["slot"][:] = self.slot
            captured = StateCaptured(state_id=event.state_id, version=self.version, optimizer_steps=self.updates)
            node.do(node.protocol.on_state_captured(captured, node.cluster.now))
        elif isinstance(event, SnapshotLent):
            node.buffers[event.buffer][:] = np.nan  # a learner may write it from now on
            self._lent.append(event.buffer)
            if self._changed:
                self.look_soon()
        elif isinstance(event, DeltaQueued):
            self.deltas.receive(event)
            self.look_soon()
        elif isinstance(event, View):
            self.view = event
            self.gate.view(dict(event.eligible), dict(event.clocks), self.version)
            self.look_soon()
        elif isinstance(event, Drained | Fatal):
            self.state = "drained"
            node.ended(event)

    def adopt(self, event: AdoptState) -> None:
        """Before its first update, or when it has diverged and gives up what it had."""
        node = self.node
        if self.state in ("finished", "drained"):
            return
        before = node.effective()
        self.dropped += len(self.deltas.take())
        self.vector[:] = node.parts["parameters"]
        self.slot[:] = node.parts["slot"]
        self.version = max(self.version, event.version)
        if node.learns:
            node.cluster.ledger.moved(self.vector - before)
        node.cluster.adoptions.append((node.cluster.now, node.line))
        node.do(node.protocol.on_adopted(node.cluster.now))
        if node.learns:
            self.publish(waiting=True)

    def look_soon(self) -> None:
        if self.state in IDLE:
            self.node.cluster.later(self.node.cluster.mail_s, self.when_idle, self.node)

    # ---- the loop ---------------------------------------------------------------------------------------------------------------------

    def next_update(self) -> None:
        cluster = self.node.cluster
        self.due_at = cluster.now + self.period_s * cluster.rng.uniform(0.7, 1.3)
        cluster.at(self.due_at, self.update, self.node)

    def update(self) -> None:
        """The end of a gradient step."""
        if self.state != "learning":
            return
        cluster = self.node.cluster
        noise = cluster.noise(self.drift)
        self.vector += noise
        cluster.ledger.moved(noise)
        self.updates += 1
        self.version += 1
        self.staleness_max = max(self.staleness_max, self.gate.staleness(self.updates))
        self.apply_and_publish(waiting=False)
        self.proceed()

    def apply_and_publish(self, waiting: bool) -> None:
        for delta in self.deltas.take():
            self.vector += self.node.protocol.buffers[delta.buffer]
            self.gate.mixed(delta.line, delta.peer_version, self.updates, delta.from_doubt)
            self.applied.append(delta)
        self.publish(waiting)

    def publish(self, waiting: bool = False) -> None:
        """At once, or as soon as it is idle and has a buffer for it."""
        node, cluster = self.node, self.node.cluster
        self._changed = not self._lent
        if self._changed:
            return
        buffer = self._lent.popleft()
        node.buffers[buffer][:] = self.vector
        published = Published(
            version=self.version,
            updates=self.updates,
            applied_through=self.deltas.applied_through,
            env_steps=self.updates * cluster.steps_per_update,
            rate=cluster.steps_per_update / self.period_s,
            return_mean=node.return_mean,
            return_count=100,
            update_s=self.gate.update_s,
            waiting=waiting,
        )
        node.published(self.vector.copy(), published)
        node.do(node.protocol.on_published(published, buffer, cluster.now))

    def when_idle(self) -> None:
        if self.state == "gate":
            self.apply_and_publish(waiting=True)
            self.proceed()
        elif self.state == "finished":
            if len(self.deltas) or self._changed:
                self.apply_and_publish(waiting=True)
            self.say_finished()

    def proceed(self) -> None:
        """At an update boundary: end, wait, or go on."""
        node, now = self.node, self.node.cluster.now
        reason = self.finish_reason or (self.view.finish_reason if self.view is not None else "")
        if reason:
            self.finish(reason)
            return
        verdict = self.gate.ask(self.updates, self.version, now)
        if isinstance(verdict, Closed):
            self.check_patience(verdict)
            if self.state != "gate":
                self.state, self._wait_began, self.due_at = "gate", now, now + self.gate.gate_limit_s
                node.cluster.at(verdict.until, self.when_idle, node)
            self.want_news(verdict.stale)
            return
        if isinstance(verdict, Forced):
            node.cluster.forced.append((now, node.line, verdict.holders))
            self.check_patience(verdict)
        self.leave_gate()
        self.state = "learning"
        self.next_update()

    def check_patience(self, verdict: Closed | Forced) -> None:
        node = self.node
        periods = {line: node.period_of(line) for line in verdict.holders}
        node.cluster.patience.waits(node.process, periods, node.cluster.now, forced=isinstance(verdict, Forced))

    def finish(self, reason: str) -> None:
        self.leave_gate()
        self.state = "finished"
        self._reason = reason
        self.apply_and_publish(waiting=True)
        self.say_finished()

    def say_finished(self) -> None:
        """Once, when the proxy has the last parameters."""
        if self._reason and not self._changed:
            reason, self._reason = self._reason, ""
            self.node.do(self.node.protocol.on_finished(reason, self.node.cluster.now))

    def leave_gate(self) -> None:
        if self.state == "gate":
            now = self.node.cluster.now
            self.longest_wait_s = max(self.longest_wait_s, now - self._wait_began)
            self.want_news(False)

    def want_news(self, wanted: bool) -> None:
        """Tells the proxy whether the gate waits for fresh parameters."""
        if wanted is not self.news_wanted:
            self.news_wanted = wanted
            self.node.do(self.node.protocol.on_gate(wanted, self.node.cluster.now))

    # ---- faults -----------------------------------------------------------------------------------------------------------------------

    def hang(self) -> None:
        """Makes no updates, answers nothing; its proxy goes on."""
        if self.state in ("learning", "gate"):
            self.leave_gate()
            self.state = "hung"

    def wake(self) -> None:
        if self.state == "hung":
            self.state = "learning"
            self.next_update()
            if self._capture is not None:
                event, self._capture = self._capture, None
                self.receive(event)
