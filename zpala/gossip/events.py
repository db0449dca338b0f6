"""What the proxy and the learner tell each other. Fields are int, float, str, bool or tuples of them, so that msgpack can mail them.

Vectors never travel in events: a delta lies in the buffer pool at index ``buffer``, a state in the state parts, and the event passes
their *ownership* to the other thread:

* ``SnapshotLent`` lends buffer ``buffer`` to the learner for writing its next snapshot, until it is published;
* ``DeltaQueued`` lends buffer ``buffer`` to the learner for reading, until a ``Published`` whose ``applied_through`` reaches ``sequence``;
* ``CaptureState`` lends the state parts to the learner for writing, until ``StateCaptured`` with the same ``state_id``;
* ``AdoptState`` lends the state parts to the learner for reading, until it reports "adopted".
"""

from __future__ import annotations

from dataclasses import dataclass

# ---- to the learner -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The run has started: publish the parameters with ``version``, then learn."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptState:
    """The state parts named ``parts`` hold a valid state of another node: install it, take its version, and report "adopted".

    A learner that is learning already does so at an update boundary: it drops the deltas that it has not applied (they belong to the
    parameters that it gives up), keeps its own version when that is higher, and publishes. One that has finished does nothing.
    """

    version: int
    optimizer_steps: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLent:
    """Pool buffer ``buffer`` (f32[numel]) is the learner's: it holds nothing of value, and one snapshot is to be written to it."""

    buffer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaQueued:
    """Add pool buffer ``buffer`` (f32[numel]) to the parameters at the next update boundary, in the order of ``sequence`` (1, 2, ...)."""

    sequence: int
    buffer: int
    line: int
    peer_version: int
    from_doubt: bool
    distance: float  # relative distance between the two snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the learner must know of the cluster; sent on every change of ``eligible`` or of the end, and at least every
    heartbeat. The defaults are what holds before the first."""

    eligible: tuple[tuple[int, int], ...] = ()  # (line, last known version) of those who may hold the gate
    clocks: tuple[tuple[int, int], ...] = ()  # those of them that the lead counts over; none without max_lead
    slow: tuple[int, ...] = ()  # lines that it does not count over because they are far slower than the others
    live: int = 0  # live nodes of this run beside this one
    neighbours_live: int = 0  # those of them that the topology lets me average with
    averaged: int = 0  # those of them whose delta was queued within the last 30 s
    cluster_env_steps: int = 0
    other_env_steps: int = 0  # of it, everybody's but this process's: what the learner adds its own exact count to
    cluster_rate: float = 0.0  # env_steps per second, all live nodes
    progress: float = 0.0  # 0..1 of the budget, never falling
    phase: str = ""
    exchanges: int = 0  # applied
    aborted: int = 0
    busy: int = 0
    doubts: int = 0
    defects: int = 0
    rejected: int = 0
    diverged: int = 0  # exchanges whose two snapshots were too far from each other, refused or not
    rejoins: int = 0  # times that this node gave up its diverged state for a peer's
    distance: float = 0.0  # relative distance at the last exchange
    exchange_p50_s: float = 0.0  # from freezing to queueing the delta, last 64 exchanges
    load: float = 0.0  # share of recent time in which this node could not take part in another exchange
    bytes_sent: int = 0  # payload bytes
    bytes_received: int = 0
    unknown: bool = False  # a peer does not know this node's line yet; its run, if it has one, is waited for
    all_reached_target: bool = False
    finish_reason: str = ""  # "" while the run goes on; else stop learning, publish, and report "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureState:
    """Copy parameters and optimiser state into the state parts at the next update boundary and answer StateCaptured."""

    state_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """The proxy has said LEAVE to everybody; the run is over for this node. All deltas are applied unless the drain ran out of time."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """This node must exit with ``exit_code``; ``text`` is one paragraph for a person."""

    exit_code: int
    text: str


# ---- from the learner ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A snapshot of the parameters, taken after the deltas up to ``applied_through`` had been added."""

    version: int
    updates: int
    applied_through: int
    env_steps: int = 0  # of this node, since it started
    rate: float = 0.0  # env_steps per second
    return_mean: float = 0.0
    return_count: int = 0
    update_s: float = 0.0  # mean seconds of an update without its wait in the gate; 0.0 until known
    waiting: bool = False  # published from inside the gate (no update since the last one)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCaptured:
    state_id: int
    version: int
    optimizer_steps: int


ToLearnerEvent = Start | AdoptState | SnapshotLent | DeltaQueued | View | CaptureState | Drained | Fatal
FromLearnerEvent = Published | StateCaptured
