"""All decisions of one node's proxy, and nothing else: events go in with the time, a list of actions comes out.

No sockets, no threads, no clock: the proxy (``node/proxy.py``) drives it with real ones, tests and the simulator with virtual ones, and
the same inputs give the same outputs. Owned here: who gets which message, the phases of the run, heartbeats, the choice of a partner,
what the learner is told. Left to the parts: the exchange itself (``exchange``), when one may start (``pacing``), sessions
(``sessions``), what is known of peers (``membership``), start (``barrier``), adoption (``adoption``), end (``drain``).
Long because it is the one switchboard of all events; each method is short.

How the proxy uses it::

    actions = protocol.start(now)                                   # carry them out in order; the same after every call below
    ROUTER frame:   on_up(routing_id, codec.decode_up(frame), now)
    DEALER frame:   message = codec.decode_down(header)
                    array = protocol.receive_buffer(line, message)  # None: discard the payload
                    nbytes = recv_into(array)                       # the true size of the last frame
                    on_down(line, message, nbytes, now)             # at once: no other call between the two
    ProtocolError:  on_bad_frame(...)      poll timeout: deadline() - now, at most 100 ms, then on_timer(now)
    SendDown with a payload: zero-copy; on_sent(payload, now) exactly once, when the tracker is done or the send failed
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zpala.gossip import barrier
from zpala.gossip.actions import Action, Hangup, Outbox, Payload, SendDown, SendUp
from zpala.gossip.adoption import Donor, Joiner
from zpala.gossip.budget import BudgetCounter
from zpala.gossip.buffers import BufferPool, Vector
from zpala.gossip.drain import Drain
from zpala.gossip.events import Drained, Fatal, Published, Start, StateCaptured, View
from zpala.gossip.exchange import Exchanges
from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.fields import clip
from zpala.gossip.hosts import HostList
from zpala.gossip.membership import ACTIVE, ENDED, FORMING, Liveness, Member, Membership, Phase
from zpala.gossip.messages import (
    Abort,
    Accept,
    Busy,
    Condition,
    Data,
    DownMessage,
    Fetch,
    Heartbeat,
    Hello,
    Leave,
    Nack,
    Offer,
    Ok,
    Reject,
    StateData,
    StateFetch,
    StateMeta,
    StateRequest,
    UpMessage,
    Welcome,
)
from zpala.gossip.mixing import Guard
from zpala.gossip.pacing import Pacing
from zpala.gossip.partners import choose
from zpala.gossip.run import Run, reached
from zpala.gossip.schema import Schema
from zpala.gossip.sessions import Sessions
from zpala.gossip.settings import GossipSettings
from zpala.gossip.shadow import Shadow
from zpala.gossip.topology import Topology

EXIT_NUMERICAL = 5

BUFFERS_MIN = 12
AVERAGED_WITHIN_S = 30.0  # "averaged with 3/3" looks back that far
TICK_S = 0.1  # housekeeping while sessions or the run are being made, and near the end of the budget
END_IS_NEAR_S = 2.0  # of work left at the cluster's rate: heartbeats come every TICK_S
STOP_S = 1.0  # a node that leaves alone finishes its exchange within that
NOT_NOW_S = 0.1  # a peer that said BUSY because its learner lags or has not started is left alone for that long
NO_NEWS_FIRST_S = 0.002  # urgent offers to a peer that had nothing new: back-off, doubled each time ...
NO_NEWS_MAX_S = 0.05  # ... up to this
AVOID_MAX_S = 30.0  # a peer that never answers offers
DISCOVER_S = 1.5  # whoever does not wait for all looks for a run under way for so long, at least
SETTLE_MAX = 8  # phases that one event can run through
COUNTERS = (
    "suspects",
    "dead",
    "left",
    "left_in_doubt",
    "no_session",
    "stale_session",
    "foreign_offers",
    "foreign_run",
    "bad_frames",
    "links_lost",
    "diverged",
)


class Protocol:
    """One node of the gossip. Not thread safe: one thread (the proxy) makes all calls.

    Args:
        line: my index in ``hosts``.
        hosts: everybody, in order.
        topology: who may average with whom.
        agreement: what every node must agree on at HELLO, field -> value as text (design D8). The caller puts everything in, the schema
            fingerprint, the digests of hosts and topology, mixing weight and target included.
        schema: layout of the flat vector.
        settings: numbers.
        node: my name, for texts.
        incarnation: grows with every restart of this line (wall-clock nanoseconds at start); at most 2**63 - 1.
        nonce: 8 random bytes; becomes the run's if I lead the start.
        shadow: f32[numel], storage for the shadow; only the protocol touches it.
        buffers: at least 12 arrays f32[numel]; frozen snapshots, received data, deltas. Lent by ``Payload`` and ``DeltaQueued``.
        state_parts: name -> f32[numel], "parameters" first, then the optimiser's vectors: the same names in the same order on every node.
        budget: env_steps of the whole cluster at which the run is finished.
        rng: the only source of chance.
        now: monotonic seconds.
        target_return: the run finishes when every live node's mean return over 100 games reaches it; None: no such end.
    """

    def __init__(
        self,
        *,
        line: int,
        hosts: HostList,
        topology: Topology,
        agreement: Mapping[str, str],
        schema: Schema,
        settings: GossipSettings,
        node: str,
        incarnation: int,
        nonce: bytes,
        shadow: Vector,
        buffers: Sequence[Vector],
        state_parts: Mapping[str, Vector],
        budget: int,
        rng: random.Random,
        now: float,
        target_return: float | None = None,
    ) -> None:
        if len(buffers) < BUFFERS_MIN:
            raise ValueError(f"{len(buffers)} buffers are too few: {BUFFERS_MIN} are needed")
        vectors = {"shadow": shadow, **{f"buffer {i}": buffer for i, buffer in enumerate(buffers)}, **state_parts}
        for name, vector in vectors.items():
            if name not in state_parts and vector.nbytes != schema.nbytes:
                raise ValueError(f"{name} has {vector.nbytes} bytes, the schema {schema.nbytes}")
        if topology.size != len(hosts):
            raise ValueError(f"the topology is for {topology.size} nodes, hosts.txt has {len(hosts)}")
        self._line = line
        self._hosts = hosts
        self._settings = settings
        self._own_nonce = nonce
        self._rng = rng
        self._target_return = target_return
        self._out = Outbox()
        self._run = Run(since=now)
        self._membership = Membership(line, len(hosts), settings, now)
        self._neighbours = [member for member in self._membership if member.line in topology.neighbours(line)]
        self._sessions = Sessions(
            line=line,
            hosts=hosts,
            agreement=agreement,
            settings=settings,
            node=node,
            incarnation=incarnation,
            rng=rng,
            membership=self._membership,
            run=self._run,
            outbox=self._out,
            renewed=self._on_renewed,
            fatal=self._fatal,
        )
        self._pool = BufferPool(buffers)
        self._shadow = Shadow(shadow, self._pool)
        self._exchanges = Exchanges(
            line=line,
            nbytes=schema.nbytes,
            pool=self._pool,
            shadow=self._shadow,
            guard=Guard(settings.max_norm_ratio, settings.max_distance),
            settings=settings,
            outbox=self._out,
            ended=self._on_ended,
        )
        self._joiner = Joiner(state_parts, settings, rng, self._out)
        self._donor = Donor(state_parts, settings, self._out)
        self._budget = BudgetCounter(budget)
        self._drain = Drain(settings.drain_s, settings.drain_distance)
        self._pacing = Pacing(settings.max_share, rng, now)
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._leading = False
        self._gate_closed = False
        self._diverged: set[int] = set()  # lines that were too far off, since the last exchange that was not
        self._halted = False
        self._stop_at = math.inf
        self._beat_at = now
        self._offer_at = math.inf
        self._look = True  # something may have changed who is eligible or how the run ends
        self._eligible: tuple[int, ...] = ()
        self._spent = (now, 0.0)  # when the load was computed last, and the CPU seconds by then
        self._own_env_steps = 0
        self._now = now

    # ---- time -------------------------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """First call: dials everybody. Alone in the list: starts the run at once."""
        self._run.enter(Phase.WAITING, now)
        self._sessions.start(now)
        self._beat_at = now + self._settings.heartbeat_s
        return self._settle(now)

    def on_timer(self, now: float) -> list[Action]:
        """Whatever is due. May be called at any time, also early."""
        if self._begin(now):
            self._exchanges.on_timer(now)
            if now >= self._beat_at:
                self._beat(now)
            self._sessions.on_timer(now)
        return self._settle(now)

    def deadline(self) -> float:
        """When ``on_timer`` must be called at the latest, absolute, in the clock of ``now``; inf after the end."""
        if self._halted or self._run.phase is Phase.LEAVING:
            return math.inf
        due = min(self._beat_at, self._sessions.deadline(), self._exchanges.deadline(), self._offer_at, self._stop_at)
        if self._run.phase in (Phase.WAITING, Phase.STARTING, Phase.READY, Phase.JOINING):
            for limit_s in (DISCOVER_S, self._settings.start_timeout_s):
                if self._run.since + limit_s > self._now:
                    due = min(due, self._run.since + limit_s)
            due = min(due, self._joiner.deadline())
        if self._drain.until is not None:
            due = min(due, self._drain.until)
        return due

    def _begin(self, now: float) -> bool:
        """Every event passes here first; False: this node is out of the game."""
        self._now = now
        if self._halted:
            return False
        if self._membership.observe(now):
            self._out.log("warning", "this process was paused or very slow; nobody is blamed for the silence")
            self._look = True
        return True

    def _settle(self, now: float) -> list[Action]:
        """Every event passes here last: act on what it changed, and hand over the actions."""
        self._now = now
        if not self._halted and self._run.phase is not Phase.LEAVING:
            for _ in range(SETTLE_MAX):
                before = self._run.phase
                self._form(now)
                if self._run.phase is before:
                    break
            if self._run.active:
                self._check_end()
                self._offer(now)
                self._check_drained(now)
            self._check_stop(now)
            if self._run.announce:
                self._beat(now)
            elif self._look:
                self._look = False
                if self._eligible_now(now) != self._eligible:
                    self._send_view(now)
        return self._out.take()

    def _beat(self, now: float) -> None:
        """Heartbeats to everybody, judgement of their silence, and a view to the learner."""
        for change in self._membership.judge(now):
            self._on_transition(change.member, change.after, now)
        near_end = self._run.active and self._budget.remaining() < END_IS_NEAR_S * self._budget.rate(now)
        self._beat_at = now + (min(TICK_S, self._settings.heartbeat_s) if near_end else self._settings.heartbeat_s)
        self._run.announce = False
        since, spent_s = self._spent
        if now > since:
            self._run.load = max(0.0, (self._pacing.spent_s - spent_s) / (now - since))
            self._spent = (now, self._pacing.spent_s)
        condition, counters = self._run.condition(), self._budget.entries()
        for member in self._membership:
            if member.session_out is not None:
                heartbeat = Heartbeat(session=member.session_out, nonce=self._run.nonce, condition=condition, counters=counters)
                self._out.add(SendUp(member.line, heartbeat))
        self._send_view(now)

    def _on_transition(self, member: Member, after: Liveness, now: float) -> None:
        self._look = True
        name = self._hosts[member.line].name
        if after is Liveness.DEAD:
            self._counters["dead"] += 1
            self._out.log("warning", f"{name} is dead: nothing heard for {self._settings.dead_s:g} s")
            self._sessions.died(member, now)
        else:
            self._counters["suspects"] += 1
            self._out.log("info", f"{name} is silent")
            self._exchanges.silent(member, now)

    # ---- from the network -------------------------------------------------------------------------------------------------------------

    def on_up(self, link: bytes, message: UpMessage, now: float) -> list[Action]:
        """A message arrived on my ROUTER from the DEALER with routing id ``link``."""
        if self._begin(now):
            if isinstance(message, Hello):
                member = self._sessions.on_hello(link, message, now)
                if member is not None:
                    self._hear(member, now)
                    self._learn(member, message.condition, message.nonce, now)
            else:
                member = self._membership.of_link(link)
                if member is None or member.session_in != message.session:
                    self._counters["no_session"] += 1
                    self._out.add(SendDown(link, Nack(code="no_session")))
                else:
                    self._hear(member, now)
                    self._on_session_message(member, message, now)
        return self._settle(now)

    def _on_session_message(self, member: Member, message: UpMessage, now: float) -> None:
        if isinstance(message, Heartbeat):
            self._on_heartbeat(member, message, now)
        elif isinstance(message, Offer):
            if (message.xid.line, message.xid.incarnation) != (member.line, member.incarnation):
                self._counters["foreign_offers"] += 1
                return
            final = self._run.phase in ENDED and member.condition.phase in ENDED
            self._exchanges.on_offer(member, message, self._refusal(member, now), final, now)
        elif isinstance(message, Fetch):
            self._exchanges.on_fetch(member, message, now)
        elif isinstance(message, Ok):
            self._exchanges.on_ok(member, message, now)
        elif isinstance(message, Abort):
            self._exchanges.on_abort(member, message, now)
        elif isinstance(message, StateRequest):
            if self._run.active or self._run.phase is Phase.READY or self._leading:
                self._donor.on_request(member, self._run.nonce, self._budget.entries(), now)
        elif isinstance(message, StateFetch):
            self._donor.on_fetch(member, message, self._run.nonce, self._budget.entries(), now)
        elif isinstance(message, Leave) and message.incarnation == member.incarnation:
            self._on_leave(member, message.reason, now)

    def _on_heartbeat(self, member: Member, message: Heartbeat, now: float) -> None:
        if self._run.active and message.condition.phase in ACTIVE and message.nonce != self._run.nonce:
            self._membership.unbind(member)  # its next HELLO is refused by name
            self._counters["foreign_run"] += 1
            return
        if self._budget.merge(message.counters):
            self._look = True
        self._learn(member, message.condition, message.nonce, now)

    def _on_leave(self, member: Member, reason: str, now: float) -> None:
        self._counters["left"] += 1
        self._out.log("info", f"{self._hosts[member.line].name} leaves ({reason})")
        self._exchanges.let_go(member, now)
        self._membership.left(member)
        self._out.add(Hangup(member.line))
        self._look = True

    def receive_buffer(self, line: int, message: DownMessage) -> Vector | None:
        """Where the payload of ``message`` (DATA, STATE_DATA) belongs, f32[numel]; None: read it away and report its size all the same."""
        member = self._membership.get(line)
        if member is None or self._halted:
            return None
        if isinstance(message, Data) and message.session == member.session_out:
            return self._exchanges.receive_buffer(member, message)
        if isinstance(message, StateData) and message.session == member.session_out:
            return self._joiner.receive_buffer(member, message)
        return None

    def on_down(self, line: int, message: DownMessage, payload_nbytes: int | None, now: float) -> list[Action]:
        """A message arrived on my DEALER to ``line``; ``payload_nbytes`` is the true size of its payload frame, None without one."""
        member = self._membership.get(line)
        if self._begin(now) and member is not None:
            if isinstance(message, Welcome):
                if self._sessions.on_welcome(member, message, now):
                    self._hear(member, now)
                    self._learn(member, message.condition, message.nonce, now)
            elif isinstance(message, Nack):
                self._sessions.on_nack(member, message, now)
            elif isinstance(message, Reject):
                self._sessions.on_reject(member, message, now)
            elif message.session != member.session_out:
                self._counters["stale_session"] += 1
            else:
                self._hear(member, now)
                self._on_answer(member, message, payload_nbytes, now)
        return self._settle(now)

    def _on_answer(
        self, member: Member, message: Accept | Busy | Data | StateMeta | StateData, payload_nbytes: int | None, now: float
    ) -> None:
        if isinstance(message, Accept):
            self._exchanges.on_accept(member, message, now)
        elif isinstance(message, Busy):
            self._exchanges.on_busy(member, message, now)
        elif isinstance(message, Data):
            self._exchanges.on_data(member, message, payload_nbytes, now)
        elif isinstance(message, StateMeta):
            self._joiner.on_meta(member, message, self._run.nonce, now)
        else:
            self._joiner.on_data(member, message, payload_nbytes, now)

    def on_bad_frame(self, line: int | None, link: bytes | None, error: Exception, now: float) -> list[Action]:
        """The codec refused a frame from my DEALER to ``line``, or from ``link`` on my ROUTER."""
        if self._begin(now):
            self._counters["bad_frames"] += 1
            if self._counters["bad_frames"] in (1, 10, 100) or self._counters["bad_frames"] % 1000 == 0:
                source = "a stranger" if line is None else self._hosts[line].name
                self._out.log("warning", f"bad frame number {self._counters['bad_frames']}, from {source}: {clip(str(error))}")
            if link is not None:
                self._out.add(SendDown(link, Nack(code="bad_message", detail=clip(str(error)))))
        return self._settle(now)

    def on_link_lost(self, link: bytes | None, line: int | None, now: float) -> list[Action]:
        """A send failed because nobody is connected (or will not read): a SendDown to ``link``, or a SendUp to ``line``."""
        if self._begin(now):
            inbound = self._membership.of_link(link) if link is not None else None
            outbound = self._membership.get(line) if line is not None else None
            if inbound is not None:
                self._counters["links_lost"] += 1
                self._membership.unbind(inbound)
            if outbound is not None:
                self._counters["links_lost"] += outbound.session_out is not None
                self._sessions.lost(outbound, now)
                self._exchanges.unreachable(outbound, now)
            self._look = True
        return self._settle(now)

    def on_sent(self, payload: Payload, now: float) -> list[Action]:
        """A zero-copy send is over (done or failed): exactly once per SendDown with a payload."""
        if payload.kind == "buffer":
            self._pool.sent(payload.index)
        else:
            self._donor.on_sent(payload.index)
        self._begin(now)
        return self._settle(now)

    def on_cost(self, seconds: float, now: float) -> list[Action]:
        """The proxy spent ``seconds`` of CPU time on gossip since it last said so; own offers pause above ``max_share``."""
        self._pacing.cost(seconds, now)
        return []

    def _hear(self, member: Member, now: float) -> None:
        before = self._membership.heard(member, now)
        if before is Liveness.SUSPECT or before is Liveness.DEAD or before is Liveness.UNKNOWN:
            self._look = True
            if before is not Liveness.SUSPECT:
                self._out.log("info", f"{self._hosts[member.line].name} is there")

    def _learn(self, member: Member, condition: Condition, nonce: bytes, now: float) -> None:
        self._membership.learn(member, condition, nonce, now)
        self._look = True

    def _on_renewed(self, member: Member, now: float) -> None:
        self._out.log("info", f"{self._hosts[member.line].name} has restarted")
        self._exchanges.fence(member, now)
        self._drain.forget(member.line)
        self._diverged.discard(member.line)
        self._look = True

    # ---- from the learner -------------------------------------------------------------------------------------------------------------

    def on_published(self, published: Published, snapshot: Vector, now: float) -> list[Action]:
        """A new snapshot, f32[numel]; it is copied, the array is the learner's again when this returns."""
        if self._begin(now):
            self._shadow.publish(snapshot, published.version, published.applied_through)
            self._run.published = published
            self._run.version = published.version
            self._budget.set_own(self._line, self._sessions.incarnation, published.env_steps)
            self._own_env_steps = max(self._own_env_steps, published.env_steps)
            self._pacing.published()
            self._look = True
        return self._settle(now)

    def on_gate(self, closed: bool, now: float) -> list[Action]:
        """The learner waits in the gate (True), or no longer (False). While it waits, offers are urgent."""
        self._gate_closed = closed
        self._begin(now)
        return self._settle(now)

    def on_finished(self, reason: str, now: float) -> list[Action]:
        """The learner has stopped learning for good ("budget", "target", "stop") and has published its last parameters before saying so.

        It goes on applying deltas and publishing until ``Drained``. Peers of the run finish too.
        """
        if self._begin(now) and self._run.phase is Phase.RUNNING:
            self._run.finish_reason = self._run.finish_reason or reason
            self._gate_closed = False
            self._run.enter(Phase.FINISHED, now)
            self._drain.begin(now)
        elif not self._halted and not self._run.active and self._run.phase is not Phase.LEAVING:
            self._leave(reason, now)  # there was no run yet
        return self._settle(now)

    def on_state_captured(self, captured: StateCaptured, now: float) -> list[Action]:
        """The state parts hold the state asked for by CaptureState."""
        wanted = self._begin(now) and self._donor.on_captured(captured, self._run.nonce, self._budget.entries(), now)
        if wanted and self._leading and self._run.phase is Phase.STARTING:
            self._run.version = captured.version
            self._run.enter(Phase.READY, now)
        return self._settle(now)

    def on_adopted(self, now: float) -> list[Action]:
        """The learner has installed the adopted state."""
        if self._begin(now):
            meta = self._joiner.finish()
            self._budget.merge(meta.counters)
            self._run.version = meta.version
            if self._run.phase is Phase.JOINING:
                self._start_learning(now)
            elif self._run.phase is Phase.STARTING:
                self._run.enter(Phase.READY, now)
        return self._settle(now)

    def on_stop(self, now: float) -> list[Action]:
        """Leave alone and soon (a signal): the run of the others goes on. Ends with ``Drained("leave")`` within about a second."""
        if self._begin(now):
            self._stop_at = min(self._stop_at, now + STOP_S)
        return self._settle(now)

    # ---- the run: start, end ----------------------------------------------------------------------------------------------------------

    def _form(self, now: float) -> None:
        """One step of the start barrier or of joining."""
        run = self._run
        if run.phase not in (Phase.WAITING, Phase.STARTING, Phase.READY, Phase.JOINING) or self._joiner.installing or self._donor.capturing:
            return
        present = [member for member in self._membership if member.live and member.established]
        if run.phase is Phase.JOINING or (run.phase is Phase.STARTING and not self._leading):
            of_run = [member for member in present if member.nonce == run.nonce]
            if not any(member.condition.phase in (ACTIVE if run.phase is Phase.JOINING else ACTIVE | FORMING) for member in of_run):
                self._out.log("warning", "nobody of the run is left: waiting again")
                self._joiner.cancel()
                run.nonce = b""
                run.enter(Phase.WAITING, now)
                return
            givers = ACTIVE if run.phase is Phase.JOINING else ACTIVE | {Phase.READY}
            self._joiner.on_timer([member for member in of_run if member.condition.phase in givers], now)
            if run.phase is Phase.JOINING:
                return
        size = len(self._hosts)
        needed = size if self._settings.wait_for == "all" else min(int(self._settings.wait_for), size)
        seen = [barrier.Seen(member.line, member.condition.phase, member.nonce) for member in present]
        patience_over = now >= run.since + self._settings.start_timeout_s
        if run.phase is Phase.WAITING and now < run.since + DISCOVER_S:  # a run may be under way
            needed, patience_over = size, False
        orphaned = not self._leading and now >= run.since + self._settings.dead_s
        step = barrier.next_step(self._line, run.phase, run.nonce, seen, needed, patience_over, orphaned)
        if isinstance(step, barrier.Lead):
            missing = [host.name for host in self._hosts if host.line not in {self._line, *(member.line for member in present)}]
            self._out.log("info", f"leading the start of run {self._own_nonce.hex()}" + (f" without {missing}" if missing else ""))
            self._take_run(self._own_nonce, Phase.STARTING, now, lead=True)
        elif isinstance(step, barrier.TakeOver):
            self._out.log("warning", f"the leader of run {run.nonce.hex()} is gone: leading it on")
            self._take_run(run.nonce, Phase.STARTING, now, lead=True)
        elif isinstance(step, barrier.Follow):
            self._take_run(step.nonce, Phase.STARTING, now)
        elif isinstance(step, barrier.Join):
            self._out.log("info", f"joining run {step.nonce.hex()}, which is under way")
            self._take_run(step.nonce, Phase.JOINING, now)
        elif isinstance(step, barrier.Run):
            self._start_learning(now)

    def _take_run(self, nonce: bytes, phase: Phase, now: float, lead: bool = False) -> None:
        """Belong to the run ``nonce`` and get its parameters (a leader: give them), unless everybody keeps its own."""
        self._leading = lead
        self._run.nonce = nonce
        self._joiner.cancel()
        if self._settings.initial == "adopt":
            self._run.enter(phase, now)
            if lead:
                self._donor.capture()
            else:
                self._joiner.begin()
        elif phase is Phase.JOINING:
            self._start_learning(now)
        else:
            self._run.enter(Phase.READY, now)

    def _start_learning(self, now: float) -> None:
        self._leading = False
        self._look = True
        self._donor.outdate()
        self._run.enter(Phase.RUNNING, now)
        self._out.learner(Start(version=self._run.version))

    def _of_run(self) -> list[Member]:
        """Live peers of this run that learn or drain."""
        return [m for m in self._membership if m.live and m.nonce == self._run.nonce and m.condition.phase in ACTIVE]

    def _check_end(self) -> None:
        """Has the run a reason to end? A peer's reason is mine too."""
        run = self._run
        if run.finish_reason or not self._look:
            return
        reasons = [member.condition.finish_reason for member in self._of_run() if member.condition.finish_reason]
        if self._budget.total() >= self._budget.budget:
            reasons.append("budget")
        elif self._all_reached():
            reasons.append("target")
        if reasons:
            run.finish_reason = reasons[0]
            run.announce = True

    def _all_reached(self) -> bool:
        conditions = [self._run.condition(), *(member.condition for member in self._of_run())]
        return all(reached(condition, self._target_return) for condition in conditions)

    def _check_drained(self, now: float) -> None:
        """Equal to the neighbours: say so, and leave when they are, too.

        A node that left on its own closeness would be left behind by a neighbour that still moves towards others.
        """
        if self._run.phase not in ENDED:
            return
        if self._drain.over(now):
            self._leave("timeout", now)
            return
        close = self._neighbours_close()
        if self._run.phase is Phase.DRAINED and not close:
            self._run.enter(Phase.FINISHED, now)
        elif self._run.phase is Phase.FINISHED and close and self._settled:
            self._run.enter(Phase.DRAINED, now)
        if self._run.phase is Phase.DRAINED and self._settled and self._neighbours_drained():
            self._leave("drained", now)

    @property
    def _settled(self) -> bool:
        """No exchange is open, and the last snapshot contains every delta."""
        return self._exchanges.current is None and not self._exchanges.doubts and not self._shadow.queued

    def _neighbours_close(self) -> bool:
        if not self._settings.enabled:
            return True
        live = self._live_neighbours()
        return all(member.condition.phase in ENDED for member in live) and not self._drain.far({m.line for m in live})

    def _neighbours_drained(self) -> bool:
        return not self._settings.enabled or all(member.condition.phase == Phase.DRAINED for member in self._live_neighbours())

    def _live_neighbours(self) -> list[Member]:
        return [member for member in self._of_run() if member in self._neighbours]

    def _check_stop(self, now: float) -> None:
        if self._stop_at < math.inf and self._run.phase is not Phase.LEAVING:
            idle = self._exchanges.current is None and not self._exchanges.doubts
            if idle or now >= self._stop_at:
                self._leave("leave", now)

    def _leave(self, reason: str, now: float) -> None:
        """LEAVE to everybody; what is still in doubt stays so and is counted."""
        self._exchanges.withdraw("leaving", now)
        self._counters["left_in_doubt"] += len(self._exchanges.doubts) + (self._exchanges.current is not None)
        self._run.enter(Phase.LEAVING, now)
        self._run.announce = False
        self._say_leave(reason)
        self._out.learner(Drained(reason=reason))

    def _say_leave(self, reason: str) -> None:
        for member in self._membership:
            if member.session_out is not None:
                self._out.add(SendUp(member.line, Leave(session=member.session_out, incarnation=self._sessions.incarnation, reason=reason)))

    def _fatal(self, exit_code: int, text: str) -> None:
        """This node must stop: it says so to its learner and its peers, and does nothing more."""
        if not self._halted:
            self._halted = True
            self._say_leave("fatal")
            self._out.learner(Fatal(exit_code=exit_code, text=text))

    # ---- own exchanges ----------------------------------------------------------------------------------------------------------------

    def _refusal(self, member: Member, now: float) -> str | None:
        """Why an offer of ``member`` is not even looked at."""
        if self._run.phase is Phase.LEAVING or self._stop_at < math.inf:
            return "leaving"
        same_run = self._run.active and member.nonce == self._run.nonce and self._settings.enabled
        if not same_run or now < member.quarantined_until or member not in self._neighbours:
            return "not_running"
        return None

    def _offer(self, now: float) -> None:
        """Start an exchange if it is time for one; else remember when it may be (``_offer_at``)."""
        self._offer_at = math.inf
        if not self._settings.enabled or self._stop_at < math.inf or not self._exchanges.can_start:
            return
        draining = self._run.phase in ENDED
        if not draining and not self._gate_closed and not self._pacing.allows(False, now):
            self._offer_at = max(now, self._pacing.wake_at(False))
            return
        if draining and self._neighbours_close():
            return  # another exchange could only put off the moment at which nothing is open any more
        of_run = [m for m in self._neighbours if m.nonce == self._run.nonce and not self._exchanges.in_doubt(m)]
        possible = [member for member in of_run if self._membership.partner(member, now)]
        urgent: list[Member] = []
        if draining:
            far = self._drain.far({member.line for member in possible})
            urgent = [member for member in possible if member.line in far and member.condition.phase in ENDED]
        elif self._gate_closed:
            urgent = [member for member in possible if member.condition.version > member.mixed_version] or possible
        candidates = urgent or possible
        if not candidates:
            self._offer_at = min((m.avoid_until for m in of_run if m.avoid_until > now), default=math.inf)
            return
        if not self._pacing.allows(bool(urgent), now):
            self._offer_at = max(now, self._pacing.wake_at(bool(urgent)))
            return
        by_line = {member.line: member for member in candidates}
        member = by_line[choose(self._rng, by_line)]
        final = draining and member.condition.phase in ENDED
        self._pacing.offered()
        self._exchanges.offer(member, self._sessions.incarnation, final, now)

    def _on_ended(self, ending: Ending, now: float) -> None:
        """An exchange of mine or theirs is over."""
        exchange, member = ending.exchange, ending.exchange.peer
        own = exchange.xid.line == self._line
        if ending.step is Step.COMPLETED:
            self._on_averaged(ending, own, now)
        elif ending.step is Step.REFUSED:
            self._pacing.not_taken()
            self._pacing.busy(self._exchanges.median_s(), now)
            if ending.code in ("not_running", "leaving", "deltas"):
                member.avoid_until = now + NOT_NOW_S
        elif ending.step is Step.BAD_DATA and ending.code != "diverged":
            self._out.log("warning", f"a snapshot of {self._hosts[member.line].name} was refused: {ending.code}")
            if self._membership.strike(member, now):
                self._out.log("error", f"{self._hosts[member.line].name} sent bad snapshots again and again: quarantined")
        elif ending.code == "diverged":
            self._on_diverged(ending, now)
        elif ending.step is Step.EXPIRED:
            self._out.log("warning", f"an exchange with {self._hosts[member.line].name} stayed in doubt and was given up: one defect")
        elif own:
            self._pacing.not_taken()
            if ending.step is Step.GAVE_UP:
                member.unanswered += 1
                limit_s = min(AVOID_MAX_S, self._settings.offer_timeout_s * 2**member.unanswered)
                member.avoid_until = now + limit_s
                self._look = True

    def _on_averaged(self, ending: Ending, own: bool, now: float) -> None:
        exchange, member = ending.exchange, ending.exchange.peer
        member.averaged_at = now
        member.strikes = 0
        self._diverged.clear()
        if exchange.final and not ending.late:
            self._drain.exchanged(member.line, exchange.distance)
        if ending.late:
            return
        if exchange.peer_version > member.mixed_version:
            member.mixed_version = exchange.peer_version
            member.no_news_wait_s = 0.0
        elif own and self._gate_closed:
            member.no_news_wait_s = min(max(2 * member.no_news_wait_s, NO_NEWS_FIRST_S), NO_NEWS_MAX_S)
            member.avoid_until = now + member.no_news_wait_s

    def _on_diverged(self, ending: Ending, now: float) -> None:
        """Too far from a peer. Whoever is too far from most of its neighbours has diverged; of two alone, the one with fewer updates."""
        exchange, member = ending.exchange, ending.exchange.peer
        self._counters["diverged"] += 1
        self._diverged.add(member.line)
        member.avoid_until = now + self._settings.offer_timeout_s
        live = {peer.line for peer in self._live_neighbours()}
        mine, theirs = (exchange.mine.version, self._line), (exchange.peer_version, member.line)
        alone_with_it = len(live) <= 1
        if mine < theirs if alone_with_it else 2 * len(self._diverged & live) > len(live):
            names = ", ".join(self._hosts[line].name for line in sorted(self._diverged))
            self._fatal(
                EXIT_NUMERICAL,
                f"this node's parameters are further than gossip.max_distance = {self._settings.max_distance:g} from those of {names}: "
                "this node has diverged",
            )
        else:
            self._out.log("warning", f"{self._hosts[member.line].name} is further away than gossip.max_distance")

    # ---- looking at it ----------------------------------------------------------------------------------------------------------------

    def _eligible_now(self, now: float) -> tuple[int, ...]:
        if not self._settings.enabled or self._run.phase is not Phase.RUNNING:
            return ()
        nonce = self._run.nonce
        return tuple(member.line for member in self._neighbours if member.nonce == nonce and self._membership.holds_gate(member, now))

    def _send_view(self, now: float) -> None:
        self._eligible = self._eligible_now(now)
        members = {member.line: member for member in self._neighbours}
        of_run = self._of_run()
        near = self._live_neighbours()
        counters = self._exchanges.counters
        total = self._budget.total()
        self._out.learner(
            View(
                eligible=tuple((line, max(members[line].condition.version, members[line].mixed_version, 0)) for line in self._eligible),
                live=len(of_run),
                neighbours_live=len(near),
                averaged=sum(now - member.averaged_at <= AVERAGED_WITHIN_S for member in near),
                cluster_env_steps=total,
                other_env_steps=total - self._own_env_steps,
                cluster_rate=self._budget.rate(now),
                progress=self._budget.progress(),
                phase=str(self._run.phase),
                exchanges=counters["applied"] + counters["applied_late"],
                aborted=counters["aborted"],
                busy=counters["busy_received"],
                doubts=counters["doubts"],
                defects=counters["defects"],
                rejected=sum(count for name, count in counters.items() if name.startswith("rejected_")),
                distance=self._exchanges.last_distance,
                exchange_p50_s=self._exchanges.median_s(),
                bytes_sent=counters["bytes_sent"] + self._donor.bytes_sent,
                bytes_received=counters["bytes_received"],
                all_reached_target=self._run.active and self._all_reached(),
                finish_reason=self._run.finish_reason,
            )
        )

    @property
    def phase(self) -> Phase:
        return self._run.phase

    @property
    def nonce(self) -> bytes:
        """Of the run; empty while waiting."""
        return self._run.nonce

    def payload_array(self, payload: Payload) -> Vector:
        """The array that ``payload`` names."""
        return self._pool[payload.index] if payload.kind == "buffer" else self._donor.array(payload.index)

    def metrics(self) -> dict[str, float | int]:
        """Counters and gauges, by name; every abnormal path has one."""
        return {
            **self._exchanges.counters,
            **self._sessions.counters,
            **self._counters,
            "pauses": self._membership.pauses,
            "adoption_failures": self._joiner.failures,
            "adoption_rejected": self._joiner.rejected,
            "counters_refused": self._budget.refused,
            "doubts_open": len(self._exchanges.doubts),
            "deltas_queued": self._shadow.queued,
            "buffers_free": self._pool.free,
            "sends_in_flight": self._pool.in_flight + self._donor.in_flight,
            "gossip_cpu_s": self._pacing.spent_s,
            "exchange_p50_s": self._exchanges.median_s(),
            "distance": self._exchanges.last_distance,
        }

    def describe(self) -> dict[str, Any]:
        """The state for a person: phase, nonce, peers."""
        return {
            "line": self._line,
            "phase": str(self._run.phase),
            "nonce": self._run.nonce.hex(),
            "finish_reason": self._run.finish_reason,
            "eligible": list(self._eligible),
            "peers": [
                {
                    "line": member.line,
                    "liveness": str(member.liveness),
                    "established": member.established,
                    "phase": str(member.condition.phase),
                    "incarnation": member.incarnation,
                    "version": member.condition.version,
                    "updates": member.condition.updates,
                }
                for member in self._membership
            ],
        }
