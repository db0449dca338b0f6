"""All decisions of one node's proxy, and nothing else: events go in with the time, a list of actions comes out.

No sockets, no threads, no clock: the proxy (``node/proxy.py``) drives it with real ones, tests and the simulator with virtual ones, and
the same inputs give the same outputs. Owned here: which part gets which event, in what order the parts act on it, and when nothing happens
any more. Left to the parts, each unaware of the others but for what it is handed:

    sessions, membership     who is there                 exchange                the lock between two nodes
    contacts, hearsay        the same in a long hosts.txt digest, budget          what the cluster has done, passed on
    formation (barrier)      the start of the run         offering (pacing)       when to start one, and with whom
    adoption                 states given and taken       aftermath, divergence   what follows from how one ended
    finish, leaving (drain)  the end of the run           heartbeats, outlook     what peers and the learner are told
    slowness                 who is not waited for        load                    how busy this node is
    limits                   how much a link may say

``run`` and ``membership`` are the records that they share; ``neighbourhood`` answers who of the members counts. Long because it is the one
switchboard of all events; each method is short.

How the proxy uses it::

    actions = protocol.start(now)                                   # carry them out in order; the same after every call below
    ROUTER frame:   admits(routing_id, codec.claimed_type(frame), now)        # False: on_unread(routing_id, now), and nothing else
                    on_up(routing_id, codec.decode_up(frame), now, key)       # key: whose the connection was authenticated to be
    DEALER frame:   on_down(line, codec.decode_down(header), payload, now)    # payload: the bytes of the last frame, read at once
    ProtocolError:  on_bad_frame(...)      poll timeout: deadline() - now, at most 100 ms, then on_timer(now)
    SendDown with a payload: zero-copy; on_sent(payload, now) exactly once, when the tracker is done or the send failed
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zpala.gossip.actions import Action, Hangup, Outbox, Payload, SendDown
from zpala.gossip.adoption import Donor, Joiner
from zpala.gossip.aftermath import Aftermath
from zpala.gossip.budget import BudgetCounter
from zpala.gossip.buffers import BufferPool, Vector
from zpala.gossip.contacts import Contacts
from zpala.gossip.digest import Digest
from zpala.gossip.divergence import Divergence
from zpala.gossip.drain import Drain
from zpala.gossip.events import Fatal, Published, SnapshotLent, StateCaptured
from zpala.gossip.exchange import Exchanges
from zpala.gossip.exchange_state import Ending
from zpala.gossip.fields import clip
from zpala.gossip.finish import Finish
from zpala.gossip.formation import Formation
from zpala.gossip.hearsay import Hearsay
from zpala.gossip.heartbeats import Heartbeats
from zpala.gossip.hosts import Host, HostList
from zpala.gossip.leaving import Leaving
from zpala.gossip.limits import LinkLimits
from zpala.gossip.load import Load
from zpala.gossip.membership import ACTIVE, ENDED, Liveness, Member, Membership, Phase
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
    Part,
    Reject,
    StateData,
    StateFetch,
    StateMeta,
    StateRequest,
    UpMessage,
    Welcome,
)
from zpala.gossip.mixing import Guard
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.offering import Offering
from zpala.gossip.outlook import Outlook
from zpala.gossip.pacing import Pacing
from zpala.gossip.run import Run
from zpala.gossip.schema import Schema
from zpala.gossip.sessions import Sessions
from zpala.gossip.settings import GossipSettings
from zpala.gossip.shadow import Shadow
from zpala.gossip.slowness import Slowness
from zpala.gossip.topology import Topology

LENT = 2  # buffers that the learner has for its snapshots: one that it writes, one for the next
BUFFERS_MIN = LENT + 13  # the shadow's, one exchange (2), four queued deltas, and six for doubts (2 each) and for what is still being sent
DENIED_S = 75.0  # longer than the longest pause between two dials of node/links.py
SETTLE_MAX = 8  # phases that one event can run through
COUNTERS = (
    "suspects",
    "dead",
    "left",
    "no_session",
    "stale_session",
    "foreign_offers",
    "foreign_run",
    "bad_frames",
    "rate_limited",
    "links_lost",
)


class Protocol:
    """One node of the gossip. Not thread safe: one thread (the proxy) makes all calls.

    Args:
        line: my index in ``hosts``.
        hosts: everybody, in order.
        topology: who may average with whom.
        agreement: what every node must agree on at HELLO, field -> value as text (design D8). The caller puts everything in, the schema
            fingerprint, mixing weight and target included. The fields "hosts" (``HostList.agreed`` of all lines) and "topology
            graph" (its digest) follow when hosts.txt grows.
        schema: layout of the flat vector.
        settings: numbers.
        node: my name, for texts.
        incarnation: grows with every restart of this line (wall-clock nanoseconds at start); at most 2**63 - 1.
        nonce: 8 random bytes; becomes the run's if I lead the start.
        buffers: at least ``BUFFERS_MIN`` arrays f32[numel]; snapshots and deltas. Lent by ``Payload``, ``SnapshotLent``, ``DeltaQueued``.
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
        buffers: Sequence[Vector],
        state_parts: Mapping[str, Vector],
        budget: int,
        rng: random.Random,
        now: float,
        target_return: float | None = None,
    ) -> None:
        if len(buffers) < BUFFERS_MIN:
            raise ValueError(f"{len(buffers)} buffers are too few: {BUFFERS_MIN} are needed")
        vectors = {**{f"buffer {i}": buffer for i, buffer in enumerate(buffers)}, **state_parts}
        for name, vector in vectors.items():
            if name not in state_parts and vector.nbytes != schema.nbytes:
                raise ValueError(f"{name} has {vector.nbytes} bytes, the schema {schema.nbytes}")
        if topology.size != len(hosts):
            raise ValueError(f"the topology is for {topology.size} nodes, hosts.txt has {len(hosts)}")
        self._line = line
        self._host_list = hosts
        self._hosts: list[Host] = list(hosts)  # the parts hold this very list: it grows
        self._settings = settings
        self._out = Outbox()
        self._run = Run(since=now)
        self._membership = Membership(line, len(hosts), settings, now)
        self._neighbourhood = Neighbourhood(line, topology, self._membership, self._run)
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
            admit=lambda member, now: self._contacts.admit(member, now),
            turned_away=lambda member, now: self._contacts.turned_away(member, now),
            fatal=self._fatal,
        )
        self._pool = BufferPool(buffers)
        self._shadow = Shadow(self._pool)
        self._lent: set[int] = set()
        self._exchanges = Exchanges(
            line=line,
            schema=schema,
            pool=self._pool,
            shadow=self._shadow,
            guard=Guard(settings.max_norm_ratio, math.inf if settings.on_diverged == "average" else settings.max_distance),
            settings=settings,
            outbox=self._out,
            ended=self._on_ended,
        )
        self._hearsay = Hearsay(line)
        self._contacts = Contacts(
            line=line,
            topology=topology,
            settings=settings,
            run=self._run,
            membership=self._membership,
            hearsay=self._hearsay,
            sessions=self._sessions,
            exchanges=self._exchanges,
            rng=rng,
            outbox=self._out,
        )
        self._budget = BudgetCounter(budget, len(hosts))
        self._digest = Digest(
            line, lambda: self._sessions.incarnation, self._budget, self._hearsay, self._run, self._membership, target_return
        )
        self._joiner = Joiner(state_parts, settings, rng, self._out)
        self._donor = Donor(state_parts, settings, self._out)
        self._formation = Formation(
            line=line,
            hosts=self._hosts,
            settings=settings,
            nonce=nonce,
            run=self._run,
            membership=self._membership,
            hearsay=self._hearsay,
            joiner=self._joiner,
            donor=self._donor,
            outbox=self._out,
            now=now,
        )
        self._drain = Drain(settings.drain_s, settings.drain_distance)
        self._pacing = Pacing(settings.max_share, rng, now)
        self._load = Load(now)
        self._limits = LinkLimits()
        self._offering = Offering(
            run=self._run,
            membership=self._membership,
            neighbourhood=self._neighbourhood,
            exchanges=self._exchanges,
            pacing=self._pacing,
            drain=self._drain,
            partner=settings.partner,
            rng=rng,
        )
        self._divergence = Divergence(
            line=line,
            hosts=self._hosts,
            settings=settings,
            run=self._run,
            neighbourhood=self._neighbourhood,
            outbox=self._out,
            fatal=self._fatal,
            rejoin=self._rejoin,
        )
        self._aftermath = Aftermath(
            line=line,
            hosts=self._hosts,
            offer_timeout_s=settings.offer_timeout_s,
            run=self._run,
            membership=self._membership,
            pacing=self._pacing,
            drain=self._drain,
            divergence=self._divergence,
            outbox=self._out,
        )
        self._finish = Finish(self._run, self._neighbourhood, self._hearsay, self._budget, target_return)
        self._leaving = Leaving(
            enabled=settings.enabled,
            run=self._run,
            neighbourhood=self._neighbourhood,
            hearsay=self._hearsay,
            dead_s=settings.dead_s,
            drain=self._drain,
            exchanges=self._exchanges,
            shadow=self._shadow,
            sessions=self._sessions,
            outbox=self._out,
        )
        self._heartbeats = Heartbeats(
            settings.heartbeat_s, settings.max_lead, self._run, self._membership, self._budget, self._digest, self._load, self._out, now
        )
        slow_factor = settings.slow_factor if settings.max_lead else 0.0
        self._slowness = Slowness(slow_factor, self._hosts, self._run, self._neighbourhood, self._out)
        self._outlook = Outlook(
            enabled=settings.enabled,
            leads=settings.max_lead > 0,
            run=self._run,
            neighbourhood=self._neighbourhood,
            hearsay=self._hearsay,
            budget=self._budget,
            divergence=self._divergence,
            exchanges=self._exchanges,
            donor=self._donor,
            finish=self._finish,
            outbox=self._out,
        )
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._halted = False
        self._now = now

    @property
    def buffers(self) -> Sequence[Vector]:
        """All of them by their numbers in ``Payload``, ``SnapshotLent`` and ``DeltaQueued``."""
        return self._pool.buffers

    # ---- time -------------------------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """First call: dials everybody, or those that it draws. Alone in the list: starts the run at once."""
        for _ in range(LENT):
            self._lend()
        self._run.enter(Phase.WAITING, now)
        self._sessions.start(now)
        self._contacts.step(now)
        self._heartbeats.postpone(now)
        return self._settle(now)

    def on_timer(self, now: float) -> list[Action]:
        """Whatever is due. May be called at any time, also early."""
        if self._begin(now):
            self._exchanges.on_timer(now)
            if now >= self._heartbeats.due_at:
                self._beat(now)
            self._sessions.on_timer(now)
        return self._settle(now)

    def deadline(self) -> float:
        """When ``on_timer`` must be called at the latest, absolute, in the clock of ``now``; inf after the end."""
        if self._halted or self._run.phase is Phase.LEAVING:
            return math.inf
        return min(
            self._heartbeats.due_at,
            self._sessions.deadline(),
            self._exchanges.deadline(),
            self._offering.due_at,
            self._outlook.due_at,
            self._leaving.deadline(),
            self._formation.deadline(self._now),
        )

    def _begin(self, now: float) -> bool:
        """Every event passes here first; False: this node is out of the game."""
        self._now = now
        if self._halted:
            return False
        if self._membership.observe(now):
            self._out.log("warning", "this process was paused or very slow; nobody is blamed for the silence")
            self._run.changed = True
        return True

    def _settle(self, now: float) -> list[Action]:
        """Every event passes here last: act on what it changed, and hand over the actions."""
        self._now = now
        if not self._halted and self._run.phase is not Phase.LEAVING:
            for _ in range(SETTLE_MAX):
                before = self._run.phase
                self._formation.step(now)
                self._digest.follow_run()
                if self._run.phase is before:
                    break
            if self._run.active:
                self._finish.check(now)
                self._offer(now)
                self._leaving.check_drained(now)
            else:
                self._offering.rest()
            self._leaving.check_stop(now)
            if self._run.announce:
                self._beat(now)
            elif self._run.changed or now >= self._outlook.due_at:
                self._run.changed = False
                if self._outlook.changed(now):
                    self._outlook.send(now)
            self._load.observe(not self._exchanges.can_start, now)
        return self._out.take()

    def _beat(self, now: float) -> None:
        """Heartbeats to everybody, judgement of their silence, and a view to the learner."""
        for change in self._membership.judge(now):
            self._on_transition(change.member, change.after, now)
        self._slowness.judge(now)
        self._contacts.step(now)
        self._heartbeats.send(now)
        self._outlook.send(now)

    def _offer(self, now: float) -> None:
        if self._settings.enabled and not self._leaving.stopping:
            self._offering.offer(self._sessions.incarnation, now)
        else:
            self._offering.rest()

    def _on_transition(self, member: Member, after: Liveness, now: float) -> None:
        self._run.changed = True
        name = self._hosts[member.line].name
        if after is Liveness.DEAD:
            self._counters["dead"] += 1
            self._out.log("warning", f"{name} is dead: nothing heard for {self._settings.dead_s:g} s")
            self._sessions.died(member, now)
        else:
            self._counters["suspects"] += 1
            self._out.log("info", f"{name} is silent")
            self._exchanges.silent(member, now)

    def _fatal(self, exit_code: int, text: str) -> None:
        """This node must stop: it says so to its learner and its peers, and does nothing more."""
        if not self._halted:
            self._halted = True
            self._sessions.leave("fatal")
            self._out.learner(Fatal(exit_code=exit_code, text=text))

    # ---- from the network -------------------------------------------------------------------------------------------------------------

    def admits(self, link: bytes, kind: type | None, now: float) -> bool:
        """Whether a message of ``link`` on my ROUTER, which claims to be a ``kind``, is to be decoded; if not: ``on_unread``."""
        return self._limits.admits(link, kind, self._membership.of_link(link) is not None, now)

    def on_unread(self, link: bytes, now: float) -> list[Action]:
        """A message was dropped because ``link`` says too much. It is as good as lost, and costs as little as it can."""
        self._counters["rate_limited"] += 1
        count = self._counters["rate_limited"]
        if count in (1, 1000) or count % 1_000_000 == 0:
            member = self._membership.of_link(link)
            source = "a stranger" if member is None else self._hosts[member.line].name
            self._out.log("warning", f"{source} sends too much, or too much that is wrong: message number {count} is dropped unread")
        if self._limits.complains(link, now):
            self._out.add(SendDown(link, Nack(code="limit")))
        return self._out.take()

    def on_up(self, link: bytes, message: UpMessage, now: float, key: str | None = None) -> list[Action]:
        """A message arrived on my ROUTER from the DEALER with routing id ``link``.

        ``key`` is the public key, 64 hex digits, that the sender's connection was authenticated with; None: with none. Only a hosts.txt
        with keys makes it count, and then for every message: whatever a link is bound to, its messages are its own key's.
        """
        if self._begin(now):
            if isinstance(message, Hello):
                member = self._sessions.on_hello(link, message, key, now)
                if member is not None:
                    self._hear(member, now)
                    self._learn(member, message.condition, message.nonce, now)
            else:
                member = self._membership.of_link(link)
                if member is None or member.session_in != message.session or not self._sessions.speaks_for(key, member.line):
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
            if self._formation.gives_state:
                self._donor.on_request(member, self._run.nonce, self._digest.entries(now), now)
        elif isinstance(message, StateFetch):
            self._donor.on_fetch(member, message, self._run.nonce, self._digest.entries(now), now)
        elif isinstance(message, Part):
            self._contacts.on_part(member, now)
        elif isinstance(message, Leave) and message.incarnation == member.incarnation:
            self._on_leave(member, message.reason, now)

    def _on_heartbeat(self, member: Member, message: Heartbeat, now: float) -> None:
        if self._run.committed and message.condition.phase in ACTIVE and message.nonce != self._run.nonce:
            self._membership.unbind(member)  # its next HELLO is refused by name
            self._counters["foreign_run"] += 1
            return
        if self._digest.hear(message.digest, message.nonce, now):
            self._run.changed = True
        self._learn(member, message.condition, message.nonce, now)

    def _on_leave(self, member: Member, reason: str, now: float) -> None:
        self._counters["left"] += 1
        self._out.log("info", f"{self._hosts[member.line].name} leaves ({reason})")
        self._exchanges.let_go(member, now)
        self._membership.left(member)
        self._digest.left(member, now)
        self._out.add(Hangup(member.line))
        self._run.changed = True

    def _refusal(self, member: Member, now: float) -> str | None:
        """Why an offer of ``member`` is not even looked at."""
        if self._run.phase is Phase.LEAVING or self._leaving.stopping:
            return "leaving"
        same_run = self._run.active and member.nonce == self._run.nonce and self._settings.enabled
        if member.parting:
            return "parting"
        if not same_run or now < member.quarantined_until or member not in self._neighbourhood:
            return "not_running"
        return None

    def on_down(self, line: int, message: DownMessage, payload: memoryview | None, now: float) -> list[Action]:
        """A message arrived on my DEALER to ``line``; ``payload``: the bytes of its payload frame, the caller's again when this returns,
        None without one.
        """
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
                self._on_answer(member, message, payload, now)
        return self._settle(now)

    def _on_answer(
        self, member: Member, message: Accept | Busy | Data | StateMeta | StateData, payload: memoryview | None, now: float
    ) -> None:
        if isinstance(message, Accept):
            self._exchanges.on_accept(member, message, now)
        elif isinstance(message, Busy):
            self._exchanges.on_busy(member, message, now)
        elif isinstance(message, Data):
            self._exchanges.on_data(member, message, payload, now)
        elif isinstance(message, StateMeta):
            self._joiner.on_meta(member, message, self._run.nonce, now)
        else:
            self._joiner.on_data(member, message, payload, now)

    def on_bad_frame(self, line: int | None, link: bytes | None, error: Exception, now: float) -> list[Action]:
        """The codec refused a frame from my DEALER to ``line``, or from ``link`` on my ROUTER."""
        if self._begin(now):
            self._counters["bad_frames"] += 1
            if self._counters["bad_frames"] in (1, 10, 100) or self._counters["bad_frames"] % 1000 == 0:
                source = "a stranger" if line is None else self._hosts[line].name
                self._out.log("warning", f"bad frame number {self._counters['bad_frames']}, from {source}: {clip(str(error))}")
            if link is not None:
                self._limits.strike(link, now)
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
            self._run.changed = True
        return self._settle(now)

    def on_sent(self, payload: Payload, now: float) -> list[Action]:
        """A zero-copy send is over (done or failed): exactly once per SendDown with a payload."""
        if payload.kind == "buffer":
            self._exchanges.sent(payload.index)
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
            self._run.changed = True
            if before is not Liveness.SUSPECT:
                self._out.log("info", f"{self._hosts[member.line].name} is there")

    def _learn(self, member: Member, condition: Condition, nonce: bytes, now: float) -> None:
        self._membership.learn(member, condition, nonce, now)
        self._digest.meet(member, now)
        self._run.changed = True

    def _on_renewed(self, member: Member, now: float) -> None:
        self._out.log("info", f"{self._hosts[member.line].name} has restarted")
        self._exchanges.fence(member, now)
        self._drain.forget(member.line)
        self._divergence.forget(member.line)
        self._run.changed = True

    def _rejoin(self, member: Member, now: float) -> None:
        if not self._leaving.stopping:
            self._exchanges.give_up_doubts(now)
            self._formation.rejoin(member, now)

    def _on_ended(self, ending: Ending, now: float) -> None:
        self._aftermath.on_ended(ending, self._exchanges.median_s(), now)

    # ---- from hosts.txt ---------------------------------------------------------------------------------------------------------------

    def on_hosts(self, hosts: HostList, topology: Topology, now: float) -> list[Action]:
        """hosts.txt has changed, and the graph with it. The caller has checked that ``hosts`` can follow: see ``HostList.discontinued``.

        Every session stays. New lines are dialled; a line whose address is another is dialled there when it has no session that works.
        """
        if topology.size != len(hosts):
            raise ValueError(f"the topology is for {topology.size} nodes, hosts.txt has {len(hosts)}")
        if self._host_list.discontinued(hosts, "hosts.txt") is not None:
            raise ValueError("these hosts do not follow on those so far")
        if self._begin(now) and self._run.phase is not Phase.LEAVING:
            self._host_list, self._hosts[:] = hosts, hosts
            self._membership.grow(len(hosts))
            self._neighbourhood.grow(topology)
            self._budget.grow(len(hosts))
            self._sessions.grow(hosts, topology.digest(), now)
            self._contacts.grow(topology, now)
            self._run.changed = True
        return self._settle(now)

    def on_denied(self, now: float) -> list[Action]:
        """A peer does not let this node's key in: its hosts.txt does not have it, or not yet."""
        self._run.unknown_until = max(self._run.unknown_until, now + DENIED_S)
        return []

    # ---- from the learner -------------------------------------------------------------------------------------------------------------

    def on_published(self, published: Published, buffer: int, now: float) -> list[Action]:
        """A new snapshot lies in ``buffer``, which was lent by ``SnapshotLent`` and is the learner's no longer; it is lent another one.

        Raises:
            ValueError: it was not lent.
        """
        if buffer not in self._lent:
            raise ValueError(f"the learner has published from buffer {buffer}, which was not lent to it")
        self._lent.remove(buffer)
        if self._begin(now):
            # A learner that waits publishes what it has mixed in: no reason to ask somebody, or two that wait would do so without end.
            mixed_only = published.waiting and published.version <= self._run.version and self._run.phase is Phase.RUNNING
            self._shadow.publish(buffer, published.version, published.applied_through)
            self._run.published = published
            self._run.version = published.version
            self._budget.set_own(self._line, self._sessions.incarnation, published.env_steps)
            self._outlook.published(published.env_steps)
            if not mixed_only:
                self._pacing.published()
            self._heartbeats.published(published.version)
            self._run.changed = True
        else:
            self._pool.release(buffer)
        self._lend()
        return self._settle(now)

    def _lend(self) -> None:
        """One more buffer to the learner: the last snapshot's, or the one that who froze it has left."""
        buffer = self._pool.take()
        if buffer is None:
            raise ValueError("no buffer is left for the learner's next snapshot")
        self._lent.add(buffer)
        self._out.learner(SnapshotLent(buffer=buffer))

    def on_gate(self, closed: bool, now: float) -> list[Action]:
        """The learner waits in the gate for fresh news (True), or no longer (False). While it does, offers are urgent."""
        self._run.gate_closed = closed
        self._begin(now)
        return self._settle(now)

    def on_finished(self, reason: str, now: float) -> list[Action]:
        """The learner has stopped learning for good ("budget", "target", "stop") and has published its last parameters before saying so.

        It goes on applying deltas and publishing until ``Drained``. Peers of the run finish too.
        """
        begun = self._begin(now)
        if begun:
            self._formation.stay(now)
        if begun and self._run.phase is Phase.RUNNING:
            self._run.finish_reason = self._run.finish_reason or reason
            self._run.gate_closed = False
            self._leaving.finish(now)
        elif not self._halted and not self._run.active and self._run.phase is not Phase.LEAVING:
            self._leaving.leave(reason, now)  # there was no run yet
        return self._settle(now)

    def on_state_captured(self, captured: StateCaptured, now: float) -> list[Action]:
        """The state parts hold the state asked for by CaptureState."""
        if self._begin(now) and self._donor.on_captured(captured, self._run.nonce, self._digest.entries(now), now):
            self._formation.captured(captured.version, now)
        return self._settle(now)

    def on_adopted(self, now: float) -> list[Action]:
        """The learner has installed the adopted state. (Late: it finished in between, and nobody waits for that any more.)"""
        if self._begin(now) and self._joiner.installing:
            self._shadow.retire()
            meta = self._joiner.finish()
            self._digest.hear(meta.digest, meta.nonce, now)
            self._formation.adopted(meta.version, now)
        return self._settle(now)

    def on_stop(self, now: float) -> list[Action]:
        """Leave alone and soon (a signal): the run of the others goes on. Ends with ``Drained("leave")`` within about a second."""
        if self._begin(now):
            self._leaving.stop(now)
        return self._settle(now)

    # ---- looking at it ----------------------------------------------------------------------------------------------------------------

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
            **self._contacts.counters,
            **self._counters,
            "left_in_doubt": self._leaving.in_doubt,
            "diverged": self._divergence.found,
            "rejoins": self._divergence.rejoins,
            "slow": self._slowness.found,
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
            "eligible": list(self._outlook.eligible),
            "peers": [
                {
                    "line": member.line,
                    "liveness": str(member.liveness),
                    "established": member.established,
                    "phase": str(member.condition.phase),
                    "incarnation": member.incarnation,
                    "version": member.condition.version,
                    "updates": member.condition.updates,
                    "slow": member.slow,
                }
                for member in self._membership
            ],
        }
