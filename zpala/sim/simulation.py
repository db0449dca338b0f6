"""One seed: a cluster, faults drawn from the seed, the run's end, and what did not hold.

Of ``seconds`` virtual seconds the first 60 % bring faults; whatever is still broken is undone on its own soon after; at 85 % one node
reaches the run's end, everybody finishes, drains and leaves. Checks run all the time (``ledger``, ``node``, ``cluster``); at the end nobody
may be left, nothing may be open and not counted, every buffer must be back, and nodes that left as drained must be equal.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zpala.gossip.protocol import BUFFERS_MIN, LENT, Protocol
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.sim.cluster import VirtualCluster, distance
from zpala.sim.faults import FAULTS, LONGEST_PAUSE_S, NAMES, SKEWED_BOOT
from zpala.sim.node import SimulatedNode

FAULTS_UNTIL = 0.6  # of the run
END_AT = 0.85
FAULT_EVERY_S = 4.0  # on average
QUICK_SHARE = 0.25  # of the clusters with max_lead
QUICKER = 4.0  # times
LONGEST_UPDATE = 20  # periods: the slowest learner, slowed ten times
WATCH_EVERY_S = 0.5
BOOT_S = 15.0
NEAR = 0.01  # how far from the mean nodes may be that left on their own terms
TRACE_LINES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is played; the seed draws the rest.

    ``sizes``: fewest and most nodes; ``seconds``: virtual; ``topology``: None: drawn; ``faults``: of ``NAMES``.
    """

    seed: int
    seconds: float = 120.0
    sizes: tuple[int, int] = (6, 12)
    topology: str | None = None
    period_s: float = 1.5  # mean time of an update, so about one exchange per second and node; in one seed of eight it is a quarter of that
    faults: tuple[str, ...] = NAMES
    numel: int = 16


@dataclass(slots=True)
class Outcome:
    """What became of one seed. ``distances``: (virtual second, distance from the mean) about twice a second."""

    seed: int
    nodes: int
    topology: str
    seconds: float
    violations: list[str]
    faults: dict[str, int]
    counts: dict[str, int]
    events: int
    worst_error: float
    longest_wait_s: float
    distances: list[tuple[float, float]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For JSON: without the trace and the curve."""
        return {name: value for name, value in asdict(self).items() if name not in ("distances", "trace")}


class Simulation:
    """``protocol_class``: what plays the protocol. ``traced``: keep the last messages and faults, for a person."""

    def __init__(self, scenario: Scenario, protocol_class: type[Protocol] = Protocol, traced: bool = False) -> None:
        rng = random.Random(f"scenario {scenario.seed}")
        size = rng.randint(*scenario.sizes)
        topology = scenario.topology or rng.choice(("full", "ring", "exponential"))
        self.scenario = scenario
        self.rng = rng
        self.ended: list[SimulatedNode] = []
        self.distances: list[tuple[float, float]] = []
        self.faults: Counter[str] = Counter()
        self._lines: deque[str] = deque(maxlen=TRACE_LINES)
        late = SKEWED_BOOT in scenario.faults and rng.random() < 0.3
        settings = GossipSettings(
            topology=topology,
            max_staleness=rng.choice((1, 2, 4, 16)),
            max_lead=rng.choice((0, 0, 4, 16)),
            partner=rng.choice(("uniform", "load")),
            initial="adopt" if rng.random() < 0.8 else "own",
            heartbeat_s=1.0,
            suspect_s=3.0,
            max_sessions=random.Random(f"sessions {scenario.seed}").choice((16, 16, 4, 6)),
            redraw_s=5.0,
        )
        # A learner that hangs is waited for during 20 of its updates: only where they are quick does that end within a hang.
        quick = settings.max_lead > 0 and random.Random(f"pace {scenario.seed}").random() < QUICK_SHARE
        period_s = scenario.period_s / QUICKER if quick else scenario.period_s
        self.cluster = VirtualCluster(
            size,
            scenario.seed,
            settings=settings,
            topology=load_topology(topology, size),
            periods=[period_s * rng.uniform(0.5, 1.5) for _ in range(size)],
            drift=rng.choice((0.0, 0.01, 0.05)),
            spread=0.1,
            latency_s=(0.001, rng.choice((0.002, 0.02, 0.1))),
            bandwidth=rng.choice((1e3, 1e5, 1e9)),
            numel=scenario.numel,
            buffers=BUFFERS_MIN + rng.choice((0, 4)),
            protocol_class=protocol_class,
            start_times=[rng.uniform(0.0, BOOT_S if late else 0.5) for _ in range(size)],
            longest_pause_s=LONGEST_PAUSE_S,
        )
        self.faults[SKEWED_BOOT] += late
        if traced:
            self.cluster.network.trace = self._note
        self.started_at = self.cluster.now

    def play(self) -> Outcome:
        """The whole run."""
        cluster, scenario = self.cluster, self.scenario
        cluster.later(BOOT_S + 3.0, self._fault, None)
        cluster.later(WATCH_EVERY_S, self._watch, None)
        cluster.later(END_AT * scenario.seconds, self._end, None)
        limit_s = cluster.settings.drain_s + cluster.settings.dead_s + LONGEST_UPDATE * scenario.period_s + BOOT_S
        try:
            cluster.run(END_AT * scenario.seconds)
            cluster.run(limit_s, lambda: not cluster.live())
        except Exception as error:
            self._violation(f"{type(error).__name__}: {error}")
            self._lines.extend(traceback.format_exc().splitlines())
        else:
            self._check_end()
        return self._outcome()

    # ---- what happens -----------------------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        elapsed_s = self.cluster.now - self.started_at
        names = [name for name in self.scenario.faults if name in FAULTS]
        if not names or elapsed_s > FAULTS_UNTIL * self.scenario.seconds:
            return
        name = self.rng.choice(names)
        said = FAULTS[name](self.cluster, self.rng)
        if said is not None:
            self.faults[name] += 1
            self._note(f"*** {name}: {said}")
        self.cluster.later(self.rng.expovariate(1 / FAULT_EVERY_S), self._fault, None)

    def _watch(self) -> None:
        cluster = self.cluster
        cluster.check_total()
        cluster.ledger.check_halves(cluster.now)
        cluster.check_waits()
        cluster.check_constant()
        for node in cluster.nodes:
            if node.fatal is not None and node not in self.ended:
                self.ended.append(node)
                self._violation(f"node {node.line} stopped with exit status {node.fatal.exit_code}: {node.fatal.text}")
        learning = cluster.learning()
        if learning:
            self.distances.append((cluster.now - self.started_at, distance([node.learner.vector for node in learning])))
        if cluster.live():
            cluster.later(WATCH_EVERY_S, self._watch, None)

    def _end(self) -> None:
        """One node has reached the target; the others hear of it."""
        cluster = self.cluster
        for node in cluster.live():
            if not node.learns:
                self._violation(f"node {node.line} ({node.protocol.phase}) has not got into the run")
        first = self.rng.choice(cluster.learning() or cluster.nodes)
        self._note(f"*** {first.line} finishes")
        first.learner.finish_reason = "target"

    # ---- what must hold at the end ----------------------------------------------------------------------------------------------------

    def _check_end(self) -> None:
        for node in self.cluster.nodes:
            metrics = node.protocol.metrics()
            if metrics["abort_after_applied"]:
                self._violation(f"node {node.line} was told to abort what it had applied")
            if node.alive:
                self._violation(f"node {node.line} ({node.protocol.phase}, {node.learner.state}) has not come to its end")
            elif node.drained is not None:
                self._check_leaver(node, metrics)
        left = [node for node in self.cluster.nodes if node.drained is not None]
        bounded = self.cluster.size - 1 > self.cluster.settings.max_sessions  # then a node drains with those that it has sessions with
        if left and not bounded and all(node.drained == "drained" for node in left):
            apart = distance([node.learner.vector for node in left])
            if apart > NEAR:
                self._violation(f"the nodes left as drained, {apart:.3g} away from their mean")

    def _check_leaver(self, node: SimulatedNode, metrics: Mapping[str, float]) -> None:
        """Whoever left has given up nothing uncounted and holds no buffer but those in use."""
        open_exchanges = metrics["doubts_open"] + (node.exchanges.current is not None)
        if open_exchanges > metrics["left_in_doubt"]:
            self._violation(f"node {node.line} left with {open_exchanges} open exchanges and counted {metrics['left_in_doubt']}")
        # What is being sent when a process ends is never reported back, and the last deltas are never published.
        used = 2 * open_exchanges + metrics["deltas_queued"] + metrics["sends_in_flight"] + LENT + 1  # the shadow's own
        if metrics["buffers_free"] + used < self.cluster.buffers:
            self._violation(
                f"node {node.line}: {metrics['buffers_free']} of {self.cluster.buffers} buffers are free, and only {used} in use"
            )

    def _violation(self, text: str) -> None:
        self.cluster.violations.append(f"{self.cluster.now:.3f}: {text}")

    def _note(self, text: str) -> None:
        self._lines.append(f"{self.cluster.now:10.4f} {text}")

    def _outcome(self) -> Outcome:
        cluster = self.cluster
        names = ("applied", "applied_late", "aborted", "doubts", "defects", "crossings", "suspects", "dead", "renewed", "pauses")
        counts = {name: int(cluster.counter(name)) for name in names}
        counts |= {
            "adoptions": len(cluster.adoptions),
            "gate_forced": len(cluster.forced),
            "resets": cluster.network.resets,
            "held": cluster.network.held,
            "replayed": cluster.network.replayed,
            "settled_defects": cluster.ledger.defects,
            "settled_deaths": cluster.ledger.deaths,
            "messages": cluster.network.sent.total(),
        }
        return Outcome(
            seed=self.scenario.seed,
            nodes=cluster.size,
            topology=cluster.topology.name,
            seconds=cluster.now - self.started_at,
            violations=list(cluster.violations),
            faults=dict(self.faults),
            counts=counts,
            events=cluster.clock.events,
            worst_error=cluster.ledger.worst_error,
            longest_wait_s=max(node.learner.longest_wait_s for node in cluster.nodes),
            distances=self.distances,
            trace=list(self._lines),
        )


def simulate(scenario: Scenario, protocol_class: type[Protocol] = Protocol, traced: bool = False) -> Outcome:
    """Play ``scenario`` from its first message to its last."""
    return Simulation(scenario, protocol_class, traced).play()


def names_of(faults: Sequence[str]) -> tuple[str, ...]:
    """``faults`` in the order of ``NAMES``, each once; raises ValueError with the unknown name and the known ones."""
    for name in faults:
        if name not in NAMES:
            raise ValueError(f"there is no fault {name!r}; there are {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in faults)
