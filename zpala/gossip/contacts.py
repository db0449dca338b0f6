"""With whom this node has sessions when hosts.txt is long: with at most ``max_sessions``, drawn anew over time. Runs in the proxy thread.

A node with more lines beside its own than that does not dial everybody. It draws some of its neighbours (all of them when they are few,
else a third of ``max_sessions``), takes in neighbours that dial it while there is room, and refuses the others as "full": they draw
somebody else. Every ``redraw_s`` or so it gives one of its own choice up and draws another, and, when it had to refuse somebody, one that
it took in. So sockets and control messages per node have a bound that does not depend on the length of hosts.txt, and over time everybody
averages with every neighbour.

Not counted among the ``max_sessions`` are neighbours that depend on this node: those with at most ``max_sessions`` neighbours of their own
dial all of them for as long as they live, and may have nobody else. The middle of a star has everybody in: refused, its nodes would each
learn alone, and would not hear that the run has ended. Such a bound is the graph's.
At the run's end the bound is twice as high: a neighbour that was between two sessions and has not heard of it is dialled and let in.

A session is given up in agreement (PART): neither makes new offers, each says PART when no exchange of theirs is open, and whoever has said
and heard it hangs up. Who does not answer is hung up on after ``keep_s``. A contact that dies, leaves or cannot be reached is replaced,
unless all neighbours are contacts anyway: then it is dialled again and again, as in a short list.

In a short list nothing of this happens: everybody has a session with everybody, for as long as both live. When a short list grows beyond
``max_sessions`` while the run lives, whoever had a session is a contact from then on, and redraws bring the new nodes in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Set
from dataclasses import dataclass

from zpala.gossip.actions import Hangup, Outbox, SendUp
from zpala.gossip.exchange import Exchanges
from zpala.gossip.hearsay import Hearsay
from zpala.gossip.membership import ENDED, Liveness, Member, Membership, Phase
from zpala.gossip.messages import Part
from zpala.gossip.run import Run
from zpala.gossip.sessions import Sessions
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology

OWN_SHARE = 3  # a third of the sessions are of the own choice: the others' choices then seldom find a node full
OWN_MIN = 2  # a graph in which everybody draws one other falls apart easily
BEFORE_START_S = 3.0  # so often until the run starts: two halves that do not know of each other would start two runs
FULL_S = (1.0, 4.0)  # a neighbour that is full is asked again after that long
PART_TRAVELS_S = 0.5  # to hang up sooner could lose it
PARTED_S = 5.0  # one that was given up is not drawn again at once
LOST_S = 10.0  # one that died or could not be reached; doubles every time
LOST_MAX_S = 60.0
COUNTERS = ("contacts", "redraws", "parts_received", "turned_away", "full_sent")


@dataclass(slots=True)
class _Contact:
    member: Member
    own: bool  # drawn by this node, not taken in
    since: float
    well_at: float  # when there last was a session each way
    parting_since: float | None = None
    said_at: float | None = None  # when I said PART
    heard: bool = False  # the other has said it


class Contacts:
    """``line``: my own, with the neighbours that ``topology`` allows; ``rng`` draws among them."""

    def __init__(
        self,
        *,
        line: int,
        topology: Topology,
        settings: GossipSettings,
        run: Run,
        membership: Membership,
        hearsay: Hearsay,
        sessions: Sessions,
        exchanges: Exchanges,
        rng: random.Random,
        outbox: Outbox,
    ) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._line = line
        self._settings = settings
        self._run = run
        self._membership = membership
        self._hearsay = hearsay
        self._sessions = sessions
        self._exchanges = exchanges
        self._rng = rng
        self._out = outbox
        self._contacts: dict[int, _Contact] = {}
        self._not_before: dict[int, float] = {}  # line -> when it may be drawn again
        self._lost: dict[int, int] = {}  # line -> times that it could not be reached, one after the other
        self._follow(topology)
        self._pressed = False  # somebody was refused since the last redraw
        self._redraw_at = math.inf

    @property
    def _few(self) -> bool:
        """All neighbours are contacts: there is nobody to replace one by."""
        return len(self._neighbours) <= self._settings.max_sessions

    def _follow(self, topology: Topology) -> None:
        limit = self._settings.max_sessions
        self._neighbours = topology.neighbours(self._line)
        self._own_max = len(self._neighbours) if self._few else max(OWN_MIN, limit // OWN_SHARE)
        self._dependents: Set[int] = frozenset()
        if not self._few:
            self._dependents = frozenset(line for line in self._neighbours if len(topology.neighbours(line)) <= limit)

    def grow(self, topology: Topology, now: float) -> None:
        """``topology`` holds from now on, and ``membership`` has grown."""
        self._follow(topology)
        if not self._membership.bounded:
            return
        present = [member for member in self._membership if member.line not in self._contacts]  # the list was short until now
        self._rng.shuffle(present)
        for number, member in enumerate(present):
            own = number < self._own_max and member.line not in self._dependents
            self._contacts[member.line] = _Contact(member, own, now, now)
        for contact in list(self._contacts.values()):
            if contact.member.line not in self._neighbours:
                self._part(contact, now)

    # ---- over time --------------------------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Replace who is gone, part, draw; to be called every heartbeat or so."""
        if not self._membership.bounded:
            return
        for contact in list(self._contacts.values()):
            self._look_after(contact, now)
        if now >= self._redraw_at:
            self._redraw(now)
            self._redraw_at = math.inf
        if self._redraw_at == math.inf:
            redraw_s = self._settings.redraw_s
            pause_s = redraw_s if self._run.phase is Phase.RUNNING else min(BEFORE_START_S, redraw_s)
            self._redraw_at = now + pause_s * self._rng.uniform(0.5, 1.5)
        self._draw(now)
        self.counters["contacts"] = len(self._contacts)

    def _look_after(self, contact: _Contact, now: float) -> None:
        member = contact.member
        if member.established:
            contact.well_at = now
            self._lost.pop(member.line, None)
        if self._exchanges.busy_with(member):  # what is open or in doubt needs the link
            return
        gone = member.liveness is Liveness.DEAD or now - contact.well_at > self._settings.dead_s
        if member.liveness is Liveness.LEFT or (gone and not self._few):
            self._replace_lost(contact, now)
        else:
            self._go_on_parting(contact, now)

    def _replace_lost(self, contact: _Contact, now: float) -> None:
        times = self._lost.get(contact.member.line, 0)
        self._lost[contact.member.line] = min(times + 1, 10)
        self._close(contact, now + min(LOST_MAX_S, LOST_S * 2**times))

    def _redraw(self, now: float) -> None:
        """Give up the contact that was drawn longest ago, if there is somebody else to draw; with others at the door one more."""
        if self._run.phase not in (Phase.WAITING, Phase.READY, Phase.RUNNING) or self._run.finish_reason:
            return
        others = len(self._neighbours) - len(self._dependents)
        if others > self._own_max and self._counted() < others:
            self._give_up_oldest(True, now)
        if self._pressed:
            self._pressed = False
            self._give_up_oldest(False, now)

    def _give_up_oldest(self, own: bool, now: float) -> None:
        settled = [contact for contact in self._contacts.values() if self._is_settled(contact)]
        oldest = min((contact for contact in settled if contact.own is own), key=lambda contact: contact.since, default=None)
        if oldest is not None and len(settled) > 1:  # with somebody a session goes on: news of the run's end come with it
            self.counters["redraws"] += 1
            self._part(oldest, now)

    def _is_settled(self, contact: _Contact) -> bool:
        """Not parting, not adopting a state, which may be mine, and not dependent on this node."""
        member = contact.member
        if member.line in self._dependents:
            return False
        return contact.parting_since is None and member.established and member.condition.phase not in (Phase.STARTING, Phase.JOINING)

    def _draw(self, now: float) -> None:
        unaware = self._unaware(now)
        own = sum(contact.own for contact in self._contacts.values())
        room = self._room() if unaware else min(self._own_max - own, self._room())
        if room <= 0:
            return
        others = unaware or (line for line in self._neighbours - self._dependents if now >= self._not_before.get(line, 0.0))
        free = sorted(line for line in others if line not in self._contacts)
        self._rng.shuffle(free)
        for line in free[:room]:
            member = self._membership.get(line)
            if member is not None and now >= member.quarantined_until:
                self._open(member, True, now)
                self._sessions.call(member, now)

    def _unaware(self, now: float) -> Set[int]:
        """At the run's end: neighbours that may not know of it."""
        if self._run.phase not in ENDED:
            return frozenset()
        return self._hearsay.unaware(now, self._settings.dead_s) & self._neighbours - self._contacts.keys()

    def _room(self) -> int:
        """For that many more; twice as many at the run's end."""
        return (2 if self._run.phase in ENDED else 1) * self._settings.max_sessions - self._counted()

    def _counted(self) -> int:
        """Contacts that ``max_sessions`` is about."""
        return len(self._contacts) - sum(line in self._dependents for line in self._contacts) if self._dependents else len(self._contacts)

    # ---- what peers do ----------------------------------------------------------------------------------------------------------------

    def admit(self, member: Member, now: float) -> str | None:
        """``member`` says HELLO: None when it is a contact now, else the code of the refusal."""
        if not self._membership.bounded or member.line in self._contacts:
            return None
        if member.line not in self._neighbours:
            return "no_neighbour"
        if member.line not in self._dependents and self._room() <= 0:
            self._pressed = True
            self.counters["full_sent"] += 1
            return "full"
        self._open(member, False, now)
        return None

    def turned_away(self, member: Member, now: float) -> None:
        """It is full: draw another one."""
        contact = self._contacts.get(member.line)
        if contact is not None and not self._exchanges.busy_with(member):
            self.counters["turned_away"] += 1
            self._close(contact, now + self._rng.uniform(*FULL_S))

    def on_part(self, member: Member, now: float) -> None:
        contact = self._contacts.get(member.line)
        if contact is not None:
            self.counters["parts_received"] += 1
            contact.heard = True
            self._part(contact, now)

    # ---- parting ----------------------------------------------------------------------------------------------------------------------

    def _part(self, contact: _Contact, now: float) -> None:
        if contact.parting_since is None:
            contact.parting_since = now
            contact.member.parting = True
            self._run.changed = True
        if not self._exchanges.busy_with(contact.member):
            self._go_on_parting(contact, now)

    def _go_on_parting(self, contact: _Contact, now: float) -> None:
        """Nothing of ours is open here."""
        if contact.parting_since is None:
            return
        member = contact.member
        if contact.said_at is None and member.session_out is not None:
            contact.said_at = now
            self._out.add(SendUp(member.line, Part(session=member.session_out)))
        agreed = contact.heard and contact.said_at is not None and now - contact.said_at >= PART_TRAVELS_S
        if agreed or now - contact.parting_since > self._settings.keep_s:
            self._close(contact, now + PARTED_S)

    # ---- the list ---------------------------------------------------------------------------------------------------------------------

    def _open(self, member: Member, own: bool, now: float) -> None:
        self._membership.take(member)
        self._contacts[member.line] = _Contact(member, own, now, now)

    def _close(self, contact: _Contact, not_before: float) -> None:
        line = contact.member.line
        del self._contacts[line]
        self._not_before[line] = not_before
        self._membership.drop(contact.member)
        self._out.add(Hangup(line))
        self._run.changed = True
