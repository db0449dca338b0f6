"""What must hold whatever happens, kept beside the simulation and never asked by the protocol.

The ledger adds up where every change of the sum over all nodes came from: parameters that a node brought along, the drift of the learners,
what a dead or departed node took with it, and the exact delta of every exchange that one side applied and the other has counted as a
defect, or could not apply because a process died. At every instant

    sum over the live nodes of (parameters + queued deltas)  =  the ledger + deltas of exchanges applied on one side so far,

and an exchange may be applied on one side only for so long.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zpala.gossip.buffers import Vector
from zpala.gossip.exchange_state import Exchange
from zpala.gossip.messages import ExchangeId

ROUNDING = 5e-4  # float32 sums of thousands of deltas; one lost delta is usually more than ten times that

Process = tuple[int, int]  # line, incarnation


class Ledger:
    """``half_s``: how long an exchange may be applied by one of two live processes only."""

    def __init__(self, numel: int, half_s: float, violations: list[str]) -> None:
        self.expected = np.zeros(numel, np.float64)
        self.applied: dict[ExchangeId, list[int]] = defaultdict(list)  # lines
        self.defects = 0  # settled: applied by one side, counted by the other
        self.deaths = 0  # settled: applied by one side, the other process ended
        self.worst_error = 0.0
        self._half_s = half_s
        self._violations = violations
        self._half: dict[ExchangeId, tuple[Process, Process, Vector, float]] = {}  # who applied, the other, the delta, when
        self._given_up: dict[ExchangeId, Process] = {}
        self._gone: set[Process] = set()
        self._in_slot: dict[Process, float] = {}

    # ---- what changes the sum ---------------------------------------------------------------------------------------------------------

    def moved(self, change: Vector | NDArray[np.float64]) -> None:
        """A learner's drift, or parameters that came in (+) or went (-) with a process."""
        self.expected += change

    def completed(self, me: Process, exchange: Exchange, delta: Vector, now: float) -> None:
        """``me`` applies its delta: the other side has to apply the same with the sign turned."""
        peer, xid = (exchange.peer.line, exchange.peer.incarnation), exchange.xid
        if me[0] in self.applied[xid]:
            self._violations.append(f"node {me[0]} applied {xid} twice")
        self.applied[xid].append(me[0])
        if xid in self._half:
            theirs = self._half.pop(xid)[2]
            if not np.array_equal(theirs, -delta):
                self._violations.append(f"{xid}: the deltas of its two sides do not cancel")
        elif self._given_up.get(xid) == peer:
            self._settle(delta, defect=True)
        elif peer in self._gone:
            self._settle(delta, defect=False)
        else:
            self._half[xid] = me, peer, delta, now

    def expired(self, me: Process, exchange: Exchange) -> None:
        """``me`` has given up an exchange in doubt and counted a defect."""
        half = self._half.pop(exchange.xid, None)
        if half is not None:
            self._settle(half[2], defect=True)
        else:
            self._given_up[exchange.xid] = me

    def ended(self, process: Process) -> None:
        """It died or left: what it was in the middle of stays one-sided."""
        self._gone.add(process)
        for xid, (me, peer, delta, _) in list(self._half.items()):
            if process in (me, peer):
                del self._half[xid]
                self._settle(delta, defect=False)

    def _settle(self, delta: Vector, defect: bool) -> None:
        self.expected += delta
        self.defects += defect
        self.deaths += not defect

    # ---- what must hold ---------------------------------------------------------------------------------------------------------------

    def slot(self, me: Process, exchange: Exchange, now: float) -> None:
        """``exchange`` left the slot of ``me`` at ``now``: it must have entered after the one before had left."""
        if exchange.started_at < self._in_slot.get(me, -math.inf):
            self._violations.append(f"node {me[0]} was in two exchanges at once at {exchange.started_at:.3f}")
        self._in_slot[me] = now

    def error(self, total: NDArray[np.float64]) -> float:
        """How far the equation above is from holding; ``total`` is its left side."""
        difference = total - self.expected
        for _, _, delta, _ in self._half.values():
            difference -= delta
        return float(np.maximum.reduce(np.abs(difference)))

    def check(self, total: NDArray[np.float64], now: float) -> None:
        error = self.error(total)
        self.worst_error = max(self.worst_error, error)
        if error > ROUNDING:
            self._violations.append(f"{now:.3f}: the sum over the nodes is {error:.3g} away from the ledger")

    def check_halves(self, now: float) -> None:
        """Nobody may have applied what the other side, alive, neither applies nor counts."""
        for xid, (me, peer, _, since) in list(self._half.items()):
            if now - since > self._half_s:
                self._violations.append(f"{now:.3f}: {xid} was applied by node {me[0]} at {since:.3f} and never by node {peer[0]}")
                del self._half[xid]

    def half_applied(self) -> list[Any]:
        """Exchanges that one side applied and the other did not (not yet), whatever the reason."""
        return [xid for xid, lines in self.applied.items() if len(lines) != 2]
