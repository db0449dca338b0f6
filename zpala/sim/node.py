"""One simulated process: a ``Protocol`` where the proxy would be, a learner, its DEALERs, and the simulation's own record of its shadow."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from zpala.gossip.actions import Action, Dial, Hangup, Log, SendDown, SendUp, ToLearner
from zpala.gossip.buffers import Vector
from zpala.gossip.events import Drained, Fatal, Published
from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.membership import Member
from zpala.gossip.messages import Accept, Condition, ExchangeId, Offer, SnapshotDescription, UpMessage
from zpala.sim.learner import Learner

if TYPE_CHECKING:
    from zpala.sim.cluster import VirtualCluster
    from zpala.sim.network import Connection

NORM_TOLERANCE = 1e-4  # relative, of two float32 sums of squares in different orders


class SimulatedNode:
    """``alive`` until killed; while ``paused`` whatever would happen to it waits in ``backlog``."""

    def __init__(self, cluster: VirtualCluster, line: int, incarnation: int, start: Vector) -> None:
        self.cluster = cluster
        self.line = line
        self.incarnation = incarnation
        self.alive = True
        self.paused = False
        self.backlog: list[Callable[[], None]] = []
        self.return_mean = 0.0
        self.drained: str | None = None
        self.fatal: Fatal | None = None
        self.logs: list[Log] = []
        self.dealers: dict[int, Connection] = {}
        self.timer_at = math.inf
        self.started = False  # its ROUTER is bound
        self.learns = False  # it is part of the run, and of the sum that the ledger keeps
        self.endings: list[Ending] = []
        self.buffers = [np.full(cluster.numel, np.nan, np.float32) for _ in range(cluster.buffers)]
        self.parts = {name: np.full(cluster.numel, np.nan, np.float32) for name in ("parameters", "slot")}
        self.learner = Learner(self, start, cluster.periods[line], cluster.drift)
        self.protocol = cluster.protocol_class(
            line=line,
            hosts=cluster.hosts,
            topology=cluster.topology,
            agreement=cluster.agreements[line],
            schema=cluster.schema,
            settings=cluster.settings,
            node=f"n{line}",
            incarnation=incarnation,
            nonce=bytes([line % 256, incarnation % 256]) + cluster.rng.randbytes(6),
            buffers=self.buffers,
            state_parts=self.parts,
            budget=cluster.budget,
            rng=random.Random(f"{cluster.seed} {line} {incarnation}"),
            now=cluster.now,
            target_return=cluster.target_return,
        )
        self._watch_endings()
        self._watch_news()
        self._snapshot: Vector | None = None
        self._snapshot_version = -1
        self._through = 0
        self._deltas: dict[int, Vector] = {}  # sequence -> copy
        self._frozen: set[ExchangeId] = set()

    @property
    def process(self) -> tuple[int, int]:
        return self.line, self.incarnation

    @property
    def exchanges(self) -> Any:
        return self.protocol._exchanges

    @property
    def membership(self) -> Any:
        return self.protocol._membership

    def period_of(self, line: int) -> float:
        """Mean time of an update of that peer as this node sees it, 0.0 until it is known."""
        return float(self.membership.get(line).update_period_s)

    def run(self) -> None:
        self.started = True
        self.cluster.network.started(self.line)
        self.do(self.protocol.start(self.cluster.now))

    def joined(self) -> None:
        """Its learner starts: from now on its parameters count."""
        self.learns = True
        self.cluster.ledger.moved(self.learner.vector.astype(np.float64))

    def ended(self, event: Drained | Fatal) -> None:
        if isinstance(event, Fatal):
            self.fatal = event
        else:
            self.drained = event.reason
        self.cluster.later(self.cluster.linger_s, self.cluster.kill, self, self.line)

    # ---- what the proxy does ----------------------------------------------------------------------------------------------------------

    def do(self, actions: Iterable[Action]) -> None:
        network, clock = self.cluster.network, self.cluster.clock
        for action in actions:
            if isinstance(action, SendUp):
                if isinstance(action.message, Offer):
                    self._check_frozen(action.message.xid, action.message.snapshot)
                network.send_up(self, action.line, action.message)
            elif isinstance(action, ToLearner):
                clock.later(self.cluster.mail_s, self.learner.receive, self, action.event)
            elif isinstance(action, SendDown):
                if isinstance(action.message, Accept):
                    self._check_frozen(action.message.xid, action.message.snapshot)
                network.send_down(self, action)
            elif isinstance(action, Dial):
                network.dial(self, action.line)
            elif isinstance(action, Hangup):
                network.hangup(self, action.line)
            else:
                self.logs.append(action)
        due = self.protocol.deadline()
        if due < self.timer_at and clock.now < self.timer_at:
            self.timer_at = max(due, clock.now)
            clock.at(self.timer_at, self._tick, self, self.timer_at)

    def hear(self, link: bytes, message: UpMessage) -> None:
        """A message has come to its ROUTER."""
        protocol, now = self.protocol, self.cluster.now
        admitted = protocol.admits(link, type(message), now)
        self.do(protocol.on_up(link, message, now) if admitted else protocol.on_unread(link, now))

    def _tick(self, due: float) -> None:
        if due == self.timer_at:
            self.timer_at = math.inf
            self.do(self.protocol.on_timer(self.cluster.now))

    # ---- what the simulation keeps beside it ------------------------------------------------------------------------------------------

    def effective(self) -> Any:
        """Its parameters with every delta that is queued for them, float64."""
        return np.sum(self.parameters(), axis=0, dtype=np.float64)

    def parameters(self) -> list[Vector]:
        """Its parameters, and every delta that is queued for them."""
        through = self.learner.deltas.applied_through
        return [self.learner.vector, *[delta for sequence, delta in self._deltas.items() if sequence > through]]

    def published(self, snapshot: Vector, published: Published) -> None:
        self._snapshot, self._snapshot_version, self._through = snapshot, published.version, published.applied_through
        self._deltas = {sequence: delta for sequence, delta in self._deltas.items() if sequence > self._through}

    def _check_frozen(self, xid: ExchangeId, description: SnapshotDescription) -> None:
        """What is frozen for an exchange must be the last snapshot and all deltas queued since (design D2)."""
        if xid in self._frozen or self._snapshot is None:
            return
        self._frozen.add(xid)
        shadow = self._snapshot.astype(np.float64) + sum(self._deltas.values())
        expected = float(shadow @ shadow)
        if abs(description.square_norm - expected) > NORM_TOLERANCE * expected or description.version != self._snapshot_version:
            self.cluster.violations.append(
                f"{self.cluster.now:.3f}: for {xid} node {self.line} froze version {description.version} of norm^2 "
                f"{description.square_norm:.6g}, its shadow is version {self._snapshot_version} of norm^2 {expected:.6g}"
            )

    def _watch_endings(self) -> None:
        exchanges = self.exchanges
        told = exchanges._ended

        def watch(ending: Ending, now: float) -> None:
            self._on_ending(ending, now)
            told(ending, now)

        exchanges._ended = watch

    def _watch_news(self) -> None:
        membership, patience = self.membership, self.cluster.patience
        learn = membership.learn

        def watch(member: Member, condition: Condition, nonce: bytes, now: float) -> bool:
            changed: bool = learn(member, condition, nonce, now)
            patience.heard(self.process, member, now)
            return changed

        membership.learn = watch

    def _on_ending(self, ending: Ending, now: float) -> None:
        ledger, exchange = self.cluster.ledger, ending.exchange
        self.endings.append(ending)
        if not ending.late:
            ledger.slot(self.process, exchange, now)
        if ending.step is Step.COMPLETED:
            delta = self.protocol.buffers[exchange.theirs].copy()
            self._deltas[self.protocol._shadow.sequence] = delta
            ledger.completed(self.process, exchange, delta, now)
            self.cluster.exchanged()
        elif ending.step is Step.EXPIRED:
            ledger.expired(self.process, exchange)
