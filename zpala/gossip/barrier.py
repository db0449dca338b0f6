"""The start of a run (design D4) as one pure function: given what this node sees, what is its next step? Owns no state and sends nothing.

Nodes wait until enough of them have sessions with each other. The lowest line present leads: it gives the run its nonce and (with
``initial="adopt"``) its parameters. A node that has both is READY; when all present are, the lowest READY one starts RUNNING, and whoever
sees a RUNNING node of its run follows. The nonce is the run, so it does no harm if two nodes think that they lead the same nonce.
Two nonces that form at the same time: the smaller wins. A run that is RUNNING already wins over any that forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zpala.gossip.membership import ACTIVE, FORMING, Phase


@dataclass(frozen=True, slots=True)
class Seen:
    """A live peer with a session each way."""

    line: int
    phase: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Stay."""


@dataclass(frozen=True, slots=True)
class Lead:
    """Give the run my nonce."""


@dataclass(frozen=True, slots=True)
class Follow:
    """A run forms under ``nonce``: get its initial parameters."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """The run ``nonce`` is under way: adopt a state of it."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Whoever led this nonce is gone before anybody had its parameters: give mine to it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Start learning."""


Step = Wait | Lead | Follow | Join | TakeOver | Run


def next_step(
    line: int, phase: Phase, nonce: bytes, peers: Sequence[Seen], needed: int, patience_over: bool, orphaned: bool = False
) -> Step:
    """What a node that is WAITING, STARTING or READY does next.

    Args:
        line, phase, nonce: my own; ``nonce`` is empty while WAITING.
        peers: everybody alive with a session each way.
        needed: nodes, this one included, that must be there.
        patience_over: this phase has lasted ``start_timeout_s``.
        orphaned: I follow, and have been STARTING for so long that a leader which is alive would have been READY.
    """
    running = [peer for peer in peers if peer.phase in ACTIVE]
    forming = [peer for peer in peers if peer.phase in FORMING and peer.nonce]
    if phase is Phase.WAITING:
        if running:
            return Join(_majority(running))
        if forming:
            return Follow(min(peer.nonce for peer in forming))
        if (len(peers) + 1 >= needed or patience_over) and all(line < peer.line for peer in peers):
            return Lead()
        return Wait()
    if running and nonce not in {peer.nonce for peer in running}:
        return Join(_majority(running))
    smaller = [peer.nonce for peer in forming if peer.nonce < nonce]
    if smaller and not running:
        return Follow(min(smaller))
    if phase is not Phase.READY:
        of_run = [peer for peer in peers if peer.nonce == nonce]
        lost = orphaned and all(peer.phase == Phase.STARTING and line < peer.line for peer in of_run)
        return TakeOver() if lost else Wait()
    if running:
        return Run()
    ready = [peer for peer in peers if peer.nonce == nonce and peer.phase == Phase.READY]
    first = all(line < peer.line for peer in ready)
    return Run() if first and (len(ready) == len(peers) or patience_over) else Wait()


def _majority(running: Sequence[Seen]) -> bytes:
    """The nonce that most of them have; among equals the smaller."""
    counts = Counter(peer.nonce for peer in running)
    return min(counts, key=lambda nonce: (-counts[nonce], nonce))
