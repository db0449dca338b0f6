"""The numbers that steer one node's gossip: a plain frozen record, so that the protocol needs no configuration library.

``zpala.config`` builds it from the run file's ``[gossip]`` section; tests and the simulator build it directly. Nothing here runs.
"""

from __future__ import annotations

from dataclasses import dataclass

_POSITIVE = (
    "gate_limit_s",
    "redraw_s",
    "heartbeat_s",
    "suspect_s",
    "dead_s",
    "stall_s",
    "hello_s",
    "offer_timeout_s",
    "exchange_timeout_s",
    "retransmit_s",
    "keep_s",
    "max_share",
    "max_norm_ratio",
    "max_distance",
    "drain_distance",
)
_INITIAL = ("adopt", "own")
_PARTNER = ("uniform", "load")
_ON_DIVERGED = ("exit", "bootstrap", "average")


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSettings:
    """One field per line of the run file's ``[gossip]`` section; times in seconds."""

    enabled: bool = True  # False: form the run, share counters and the end, but never average
    topology: str = "full"  # a shipped name or a path; the protocol is handed the loaded graph
    max_staleness: int = 16  # updates without fresh news from a neighbour before the gate closes
    max_lead: int = 0  # updates ahead of the slowest live, progressing neighbour before the gate closes; 0: no such limit
    slow_factor: float = 4.0  # a peer whose updates take that many times the median's is not waited for by max_lead; 0: every peer is
    gate_limit_s: float = 6.0  # longest single wait in the gate
    max_sessions: int = 16  # a longer hosts.txt: sessions with at most so many at a time, drawn anew over time
    redraw_s: float = 10.0  # about how often one of them is given up for another
    partner: str = "uniform"  # "uniform": any neighbour alike; "load": of two drawn at random the less busy one
    mixing_weight: float = 0.5  # w in x += w (theirs - mine); both sides must agree
    initial: str = "adopt"  # "adopt": the leader's parameters everywhere; "own": keep different starts (pure averaging)
    wait_for: str | int = "all"  # nodes (this one included) that must be there before the run starts
    start_timeout_s: float = 60.0  # then the run starts with whoever is there
    heartbeat_s: float = 0.5
    suspect_s: float = 2.0  # silent that long: not chosen as a partner, does not hold the gate
    dead_s: float = 5.0  # silent that long: dead, dialled again with back-off
    stall_s: float = 10.0  # learner without an update that long: does not hold the gate
    hello_s: float = 3.0  # longest pause between two HELLOs to a peer that has not answered
    offer_timeout_s: float = 1.0
    exchange_timeout_s: float = 5.0
    retransmit_s: float = 0.4
    keep_s: float = 10.0  # an exchange in doubt is given up (a counted defect) after this
    drain_s: float = 10.0  # longest drain at the end of a run
    drain_distance: float = 1e-3  # relative distance at which a pair counts as equal in the drain
    max_share: float = 0.05  # of one core that gossip may take before own offers pause; a closed gate and the drain override it
    max_norm_ratio: float = 10.0  # a peer's norm above that many times mine is refused
    max_distance: float = 1.0  # relative distance above that is divergence
    on_diverged: str = "exit"  # "bootstrap": of two the one with fewer updates adopts the other's state; "average": mix all the same

    def __post_init__(self) -> None:
        """Refuse values that break an argument of the protocol, and say which argument."""
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"gossip.{name} must be positive, not {getattr(self, name)!r}")
        for name in ("start_timeout_s", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"gossip.{name} must not be negative, not {getattr(self, name)!r}")
        if self.max_staleness < 1:
            raise ValueError(f"gossip.max_staleness must be at least 1, not {self.max_staleness}: 0 would never let an update start")
        if self.max_sessions < 4:
            raise ValueError(f"gossip.max_sessions must be at least 4, not {self.max_sessions}: two of the own choice, two for who dials")
        if self.max_lead < 0:
            raise ValueError(f"gossip.max_lead must not be negative, not {self.max_lead}: 0 means no limit")
        if not (self.slow_factor == 0 or self.slow_factor > 1):
            raise ValueError(f"gossip.slow_factor must be 0 or more than 1, not {self.slow_factor}: the median itself is not slow")
        if not 0 < self.mixing_weight <= 0.5:
            raise ValueError(f"gossip.mixing_weight must lie in (0, 0.5], not {self.mixing_weight}: more than half swaps the models")
        if self.initial not in _INITIAL:
            raise ValueError(f"gossip.initial must be one of {_INITIAL}, not {self.initial!r}")
        if self.partner not in _PARTNER:
            raise ValueError(f"gossip.partner must be one of {_PARTNER}, not {self.partner!r}")
        if self.on_diverged not in _ON_DIVERGED:
            raise ValueError(f"gossip.on_diverged must be one of {_ON_DIVERGED}, not {self.on_diverged!r}")
        if self.wait_for != "all" and not (isinstance(self.wait_for, int) and self.wait_for >= 1):
            raise ValueError(f'gossip.wait_for must be "all" or a number of nodes of at least 1, not {self.wait_for!r}')
        ordered = (
            (3 * self.heartbeat_s <= self.suspect_s, "3 x heartbeat_s <= suspect_s: one lost heartbeat is no suspicion"),
            (self.suspect_s < self.dead_s, "suspect_s < dead_s"),
            (self.dead_s <= self.keep_s, "dead_s <= keep_s: a doubt must outlast the detection of its peer's death"),
            (self.dead_s <= self.stall_s, "dead_s <= stall_s"),
            (self.retransmit_s < self.offer_timeout_s, "retransmit_s < offer_timeout_s"),
            (self.offer_timeout_s < self.exchange_timeout_s, "offer_timeout_s < exchange_timeout_s"),
            (self.exchange_timeout_s < self.keep_s, "exchange_timeout_s < keep_s: the later side must outlast the earlier one"),
        )
        for holds, rule in ordered:
            if not holds:
                raise ValueError(f"gossip timers must satisfy {rule}")
