"""Where this node stands in its run: phase, nonce, how far, how it ends. A record that the protocol's parts share; it decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from zpala.gossip.events import Published
from zpala.gossip.membership import ACTIVE, Phase
from zpala.gossip.messages import Condition

RETURNS = 100  # games that a mean return is taken over


@dataclass(slots=True)
class Run:
    """``announce``: peers and learner are to be told at once, not at the next heartbeat.

    ``changed``: something may have changed who is eligible or how the run ends; looked at after the event.
    """

    phase: Phase = Phase.WAITING
    nonce: bytes = b""  # of the run; empty while WAITING
    since: float = 0.0  # when this phase began
    version: int = 0
    published: Published | None = None
    load: float = 0.0
    finish_reason: str = ""
    gate_closed: bool = False  # the learner waits in the gate for fresh news
    unknown_until: float = float("-inf")  # a peer has said that it does not know this node yet: no run is started before
    full_until: float = float("-inf")  # a peer has said that it has no room for this node: alone it starts no run before
    rejoining: bool = False  # JOINING again, to replace diverged parameters, while the learner goes on
    announce: bool = False
    changed: bool = True
    history: list[tuple[Phase, float]] = field(default_factory=list)

    def enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.since = now
        self.announce = True
        self.history.append((phase, now))

    @property
    def active(self) -> bool:
        return self.phase in ACTIVE

    @property
    def committed(self) -> bool:
        """This node has learned in the run ``nonce`` and belongs to no other."""
        return self.active or self.rejoining

    def condition(self) -> Condition:
        """My account for HELLO, WELCOME and HEARTBEAT."""
        published = self.published
        if published is None:
            return Condition(phase=self.phase.value, version=self.version, load=self.load, finish_reason=self.finish_reason)
        return Condition(
            phase=self.phase.value,
            updates=published.updates,
            version=published.version,
            env_steps=published.env_steps,
            rate=published.rate,
            load=self.load,
            return_mean=published.return_mean,
            return_count=published.return_count,
            finish_reason=self.finish_reason,
            update_s=published.update_s,
        )


def reached(condition: Condition, target_return: float | None) -> bool:
    """Has a node in this condition a mean return over 100 games of at least the target?"""
    return target_return is not None and condition.return_count >= RETURNS and condition.return_mean >= target_return
