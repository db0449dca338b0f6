"""Sessions: HELLO and WELCOME both ways, refusals, dialling and dialling again. Pure; runs in the proxy thread.

A session says "this link is that process of that line, and we agree". Each side gives one to the other: a node counts as a partner only
when there is one in each direction. A HELLO that disagrees is refused with the field and both values (design D8); who is not RUNNING yet
stops with exit status 2, a RUNNING node only says so. Another run's nonce is refused by name (D5). When hosts.txt has keys, a link speaks
for the line of the key that it was authenticated with, and for no other.

hosts.txt may be longer at one end than at the other while its copies change. Whoever has the longer one compares the lines that both have;
the graph is compared between lists of one length, and again when a list has grown. A newcomer whose line a peer does not have yet waits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from zpala.gossip.actions import Dial, Hangup, Outbox, SendDown, SendUp
from zpala.gossip.fields import clip
from zpala.gossip.hosts import HostList, agreed_lines
from zpala.gossip.membership import ACTIVE, Liveness, Member, Membership
from zpala.gossip.messages import PROTOCOL_VERSION, Hello, Leave, Nack, Reject, Welcome
from zpala.gossip.run import Run
from zpala.gossip.settings import GossipSettings

EXIT_AGREEMENT = 2
EXIT_NETWORK = 3
EXIT_SECURITY = 4
EXIT_DUPLICATE = 8

HELLO_FIRST_S = 0.1
HELLO_MOST_OFTEN_S = 0.05
HELLO_SLOW_S = 1.0  # not above settings.hello_s
REDIAL_AFTER_S = 1.0  # a link that has not worked for so long is dialled anew when the peer is known to be up
REDIAL_MAX_S = 60.0
INCARNATION_MAX = 2**63 - 1
UNKNOWN_HELLOS = 3  # HELLOs that may be lost before a peer that did not know this node counts no more
SAID_MAX = 16  # different texts about one line: what they are is up to the peer, or to whoever passes for it
HOSTS = "hosts"  # field of the agreement: ``HostList.agreed``
GRAPH = "topology graph"  # field of the agreement: the topology's digest, which depends on the number of lines
REFUSED_FOR_ROOM = ("full", "no_neighbour")  # not the sender's fault
COUNTERS = ("hellos", "welcomes", "rejects_sent", "rejects_received", "nacks_received", "redials", "renewed", "forged")


class Sessions:
    """Args as for ``Protocol``; ``renewed`` is told when another process speaks for a line, before its first message is used.

    ``admit`` has the code of a refusal when there is no room for one more session, ``turned_away`` is told when a peer has none.
    """

    def __init__(
        self,
        *,
        line: int,
        hosts: HostList,
        agreement: Mapping[str, str],
        settings: GossipSettings,
        node: str,
        incarnation: int,
        rng: random.Random,
        membership: Membership,
        run: Run,
        outbox: Outbox,
        renewed: Callable[[Member, float], None],
        admit: Callable[[Member, float], str | None],
        turned_away: Callable[[Member, float], None],
        fatal: Callable[[int, str], None],
    ) -> None:
        self.incarnation = incarnation
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._line = line
        self._hosts = hosts
        self._lines = _by_key(hosts)
        self._agreement = dict(agreement)
        self._settings = settings
        self._node = node
        self._membership = membership
        self._run = run
        self._out = outbox
        self._renewed = renewed
        self._may_enter = admit
        self._turned_away = turned_away
        self._fatal = fatal
        self._session = rng.getrandbits(62)
        self._welcomed = False  # this process has had a session: it is no fresh start
        self._raised = False
        self._said: set[tuple[int, str]] = set()  # refusals already logged
        self._said_longer = False  # that a peer has more lines

    # ---- dialling ---------------------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        for member in self._membership:
            self.call(member, now)

    def call(self, member: Member, now: float) -> None:
        """Dial it and ask for a session."""
        self._out.add(Dial(member.line))
        member.dialled_at = now
        member.hello_wait_s = 0.0
        self.hello(member, now)

    def redial(self, member: Member, now: float) -> None:
        self.counters["redials"] += 1
        member.session_out = None
        member.dialled_at = now
        self._out.add(Hangup(member.line))
        self._out.add(Dial(member.line))
        member.hello_wait_s = 0.0
        member.hello_at = now + HELLO_FIRST_S

    def died(self, member: Member, now: float) -> None:
        """Silent for too long: dial anew now, and again with back-off."""
        self.redial(member, now)
        member.redial_wait_s = self._settings.dead_s
        member.redial_at = now + member.redial_wait_s

    def on_timer(self, now: float) -> None:
        for member in self._membership:
            if now >= member.redial_at:
                self.redial(member, now)
                member.redial_wait_s = min(2 * member.redial_wait_s, REDIAL_MAX_S)
                member.redial_at = now + member.redial_wait_s
            if member.session_out is None and member.liveness is not Liveness.LEFT and now >= member.hello_at:
                self.hello(member, now)

    def deadline(self) -> float:
        """When the next HELLO or dial is due."""
        due = math.inf
        for member in self._membership:
            if member.session_out is None and member.liveness is not Liveness.LEFT:
                due = min(due, member.hello_at, member.redial_at)
        return due

    def hello(self, member: Member, now: float) -> None:
        """Ask for a session, unless I just did."""
        if now < member.hello_sent_at + HELLO_MOST_OFTEN_S:
            member.hello_at = member.hello_sent_at + HELLO_MOST_OFTEN_S
            return
        self.counters["hellos"] += 1
        slow_s = min(HELLO_SLOW_S, self._settings.hello_s)
        member.hello_wait_s = min(max(HELLO_FIRST_S, 1.5 * member.hello_wait_s), slow_s)
        member.hello_sent_at = now
        member.hello_at = now + member.hello_wait_s
        hello = Hello(
            node=self._node,
            line=self._line,
            incarnation=self.incarnation,
            nonce=self._run.nonce,
            agreement=self._agreement,
            condition=self._run.condition(),
        )
        self._out.add(SendUp(member.line, hello))

    def lost(self, member: Member, now: float) -> None:
        """My DEALER to it is not connected."""
        member.session_out = None
        member.hello_at = max(member.hello_at, now + HELLO_FIRST_S)

    def leave(self, reason: str) -> None:
        """LEAVE to everybody with a session: they need not find out by silence."""
        for member in self._membership:
            if member.session_out is not None:
                self._out.add(SendUp(member.line, Leave(session=member.session_out, incarnation=self.incarnation, reason=reason)))

    def grow(self, hosts: HostList, graph: str, now: float) -> None:
        """``hosts`` follows on the list so far, the topology's digest is ``graph``, and ``membership`` has grown.

        Peers with a session are asked to agree once more, which tells them of the longer list; the session stays.
        """
        before, self._hosts = self._hosts, hosts
        self._lines = _by_key(hosts)
        self._said_longer = False
        news = {HOSTS: hosts.agreed(len(hosts)), GRAPH: graph}
        self._agreement.update({field: value for field, value in news.items() if field in self._agreement})
        for member in self._membership:
            if member.line >= len(before):
                self.call(member, now)
            elif member.session_out is not None:
                member.hello_sent_at = -math.inf
                self.hello(member, now)
            elif before[member.line].host_port != hosts[member.line].host_port and member.liveness is not Liveness.LEFT:
                self.redial(member, now)

    # ---- somebody says HELLO ----------------------------------------------------------------------------------------------------------

    def speaks_for(self, key: str | None, line: int) -> bool:
        """Whether who was authenticated by ``key`` (64 hex digits; None: not at all) may speak for ``line``, which may be any number."""
        return not self._hosts.keyed or (key is not None and self._lines.get(key) == line)

    def on_hello(self, link: bytes, hello: Hello, key: str | None, now: float) -> Member | None:
        """Give a session or refuse; returns the member whose news may be used."""
        if not self.speaks_for(key, hello.line):
            self._refuse_forgery(link, hello, key)
            return None
        member = self._membership.get(hello.line)
        if member is None:
            self._refuse_line(link, hello)
            return None
        if not hello.version_min <= PROTOCOL_VERSION <= hello.version_max:
            theirs = f"{hello.version_min}..{hello.version_max}"
            self._reject(link, "version", "protocol version", str(PROTOCOL_VERSION), theirs, fatal=True)
            return None
        if hello.incarnation < member.incarnation:
            self._reject(link, "stale_incarnation", "incarnation", "", "", fatal=False, known=member.incarnation)
            return None
        difference = self._first_difference(hello.agreement)
        if difference is not None:
            field, mine, theirs = difference
            self._reject(link, "agreement", field, mine, theirs, fatal=True)
            self._disagree(member, field, mine, theirs)
            if member.link == link:  # it has agreed before, when one of the lists was shorter
                self._membership.unbind(member)
            return None
        self._hear_of_longer(hello)
        if self._run.committed and hello.condition.phase in ACTIVE and hello.nonce != self._run.nonce:
            self._reject(link, "nonce", "run", self._run.nonce.hex(), hello.nonce.hex(), fatal=self._has_company(), known=self.incarnation)
            self._once(member, "nonce", f"{self._host(member.line)} belongs to another run ({hello.nonce.hex()}, mine is "
                       f"{self._run.nonce.hex()}) and was refused")  # fmt: skip
            return None
        refusal = self._may_enter(member, now)
        if refusal is not None:
            self._reject(link, refusal, "sessions", "", "", fatal=False)
            return None
        self._admit(member, hello.incarnation, now)
        self._session += 1
        session = self._membership.bind(member, link, self._session)
        welcome = Welcome(
            session=session,
            node=self._node,
            line=self._line,
            incarnation=self.incarnation,
            version=PROTOCOL_VERSION,
            nonce=self._run.nonce,
            condition=self._run.condition(),
        )
        self._out.add(SendDown(link, welcome))
        if member.session_out is None:
            if now - member.dialled_at > REDIAL_AFTER_S:
                self.redial(member, now)
            else:
                member.hello_wait_s = 0.0
                self.hello(member, now)
        return member

    def _refuse_line(self, link: bytes, hello: Hello) -> None:
        """My own line, or one that my list does not have: not yet, when the sender's list is longer."""
        theirs = hello.agreement.get(HOSTS, "")
        if hello.line == self._line:
            code = "self" if hello.incarnation == self.incarnation else "duplicate"
            self._reject(link, code, "line", str(self._line), str(hello.line), fatal=True)
        elif hello.line < agreed_lines(theirs):
            self._reject(link, "unknown_line", HOSTS, self._agreement.get(HOSTS, ""), theirs, fatal=False)
            self._hear_of_longer(hello)
        else:
            self._reject(link, "unknown_line", "line", str(self._line), str(hello.line), fatal=True)

    def _hear_of_longer(self, hello: Hello) -> None:
        theirs, mine = agreed_lines(hello.agreement.get(HOSTS, "")), len(self._hosts)
        if theirs > mine and not self._said_longer:
            self._said_longer = True
            text = f"{clip(hello.node)} has {theirs} nodes in its hosts.txt, this node {mine}: append the new lines to this copy, too"
            self._out.log("info", text)

    def _refuse_forgery(self, link: bytes, hello: Hello, key: str | None) -> None:
        """Somebody says HELLO for a line whose key is another: an attempt to pass for that node, or two different copies of hosts.txt."""
        self.counters["forged"] += 1
        claimed = self._hosts[hello.line] if 0 <= hello.line < len(self._hosts) else None
        self._reject(link, "key", "key", claimed.key or "" if claimed else "(no such line)", key or "(none)", fatal=True)
        sender = self._lines.get(key) if key is not None else None
        said = (claimed.line if claimed else -1, f"key {sender}")
        if said not in self._said:
            self._said.add(said)
            who = "somebody without a key" if sender is None else f"who holds the key of {self._host(sender)}"
            whom = self._host(claimed.line) if claimed else "on a line that hosts.txt has not"
            text = f"{who} claims to be {whom} and was refused: it is an impostor, or hosts.txt is not the same everywhere"
            self._out.log("warning", text)

    def _admit(self, member: Member, incarnation: int, now: float) -> None:
        """A process speaks for ``member``: a new one fences the old one."""
        if incarnation > member.incarnation:
            if member.incarnation:
                self.counters["renewed"] += 1
                self._renewed(member, now)
            self._membership.renew(member, incarnation, now)

    def _has_company(self) -> bool:
        return any(member.live and member.established for member in self._membership)

    def _first_difference(self, theirs: Mapping[str, str]) -> tuple[str, str, str] | None:
        """The first in my order: the caller puts what says most to a person before what follows from it. None: we agree.

        Of a longer list I cannot judge: its owner compares it with mine, when I say HELLO.
        """
        mine = dict(self._agreement)
        lines = agreed_lines(theirs.get(HOSTS, "")) if HOSTS in mine else 0
        if lines and lines != len(self._hosts):
            mine[HOSTS] = self._hosts.agreed(lines) if lines < len(self._hosts) else theirs[HOSTS]
            if GRAPH in mine and GRAPH in theirs:
                mine[GRAPH] = theirs[GRAPH]
        if mine == theirs:
            return None
        for field in [*mine, *sorted(theirs.keys() - mine.keys())]:
            own, their = mine.get(field, "(not given)"), theirs.get(field, "(not given)")
            if own != their:
                return field, own, their
        return None

    def _reject(self, link: bytes, code: str, field: str, mine: str, yours: str, *, fatal: bool, known: int = 0) -> None:
        self.counters["rejects_sent"] += 1
        reject = Reject(code=code, field=clip(field, 32), mine=clip(mine), yours=clip(yours), fatal=fatal, known_incarnation=known)
        self._out.add(SendDown(link, reject))

    # ---- answers to my HELLO ----------------------------------------------------------------------------------------------------------

    def on_welcome(self, member: Member, welcome: Welcome, now: float) -> bool:
        """True when its news may be used."""
        if welcome.line != member.line:
            text = f"{self._host(member.line)} answers as line {welcome.line} ({welcome.node}): is hosts.txt the same everywhere?"
            self._once(member, "line", text)
            member.hello_at = now + self._settings.hello_s
            return False
        if welcome.incarnation < member.incarnation:
            return False
        self.counters["welcomes"] += 1
        self._welcomed = True
        self._admit(member, welcome.incarnation, now)
        member.session_out, member.incarnation_out = welcome.session, welcome.incarnation
        member.hello_wait_s = 0.0
        return True

    def on_nack(self, member: Member, nack: Nack, now: float) -> None:
        self.counters["nacks_received"] += 1
        if nack.code == "no_session":
            member.session_out = None
            self.hello(member, now)
        else:
            self._once(member, nack.code, f"{self._host(member.line)} could not use a message of mine: {nack.code} {nack.detail}")

    def on_reject(self, member: Member, reject: Reject, now: float) -> None:
        """``mine`` and ``yours`` are said in the refuser's voice."""
        self.counters["rejects_received"] += 1
        member.session_out = None
        member.hello_at = now + self._settings.hello_s
        host = self._host(member.line)
        if reject.code == "stale_incarnation":
            self._raise_incarnation(member, reject.known_incarnation, now)
        elif reject.code in REFUSED_FOR_ROOM:
            self._run.full_until = now + UNKNOWN_HELLOS * self._settings.hello_s
            self._turned_away(member, now)
        elif reject.code == "duplicate":
            self._fatal(EXIT_DUPLICATE, f"{host} is running already and has my line of hosts.txt; give every node a line of its own")
        elif reject.code == "unknown_line" and not reject.fatal:
            self._not_known(member, reject, now)
        elif reject.code == "agreement":
            self._disagree(member, reject.field, reject.yours, reject.mine)
        elif reject.code == "nonce":
            self._foreign_run(member, reject)
        elif reject.code == "key":
            self._wrong_key(member, reject)
        elif self._run.committed or not reject.fatal:
            self._once(member, reject.code, f"{host} refuses me: {reject.code}, its {reject.field} is {reject.mine}, mine {reject.yours}")
        else:
            code = EXIT_AGREEMENT if reject.code == "version" else EXIT_NETWORK
            self._fatal(code, f"{host} refuses me: {reject.code}, its {reject.field} is {reject.mine}, mine is {reject.yours}")

    def _raise_incarnation(self, member: Member, known: int, now: float) -> None:
        """A restart with a clock that went back may take a higher number, once; a process that already had sessions has a twin."""
        if known < self.incarnation:  # refuses a HELLO from before I took a higher number
            member.hello_sent_at = -math.inf
            self.hello(member, now)
            return
        if known >= INCARNATION_MAX:  # nothing is above it; no clock says so, somebody who is not this line has
            text = f"{self._host(member.line)} knows this line by an incarnation that no process has: somebody has passed for this node"
            self._once(member, "incarnation", text)
            return
        if self._welcomed or self._raised:
            text = f"another process runs as line {self._hosts[self._line].source_line} of hosts.txt and started later: this one stops"
            self._fatal(EXIT_DUPLICATE, text)
            return
        self._raised = True
        self.incarnation = known + 1
        member.hello_sent_at = -math.inf
        self.hello(member, now)

    def _disagree(self, member: Member, field: str, mine: str, theirs: str) -> None:
        peer = f"{self._host(member.line)}, line {self._hosts[member.line].source_line} of hosts.txt,"
        text = f'{peer} and this node do not agree on "{field}": here it is {mine}, there {theirs}; start both with the same settings'
        if self._run.committed:
            self._once(member, f"agreement {field}", text)
        else:
            self._fatal(EXIT_AGREEMENT, text)

    def _not_known(self, member: Member, reject: Reject, now: float) -> None:
        """The peer's hosts.txt ends before my line. If it agrees with mine as far as it goes, the rest will come."""
        lines = agreed_lines(reject.mine)
        if not 0 < lines <= self._line or reject.mine != self._hosts.agreed(lines):
            self._disagree(member, HOSTS, self._hosts.agreed(lines) if 0 < lines <= len(self._hosts) else reject.yours, reject.mine)
            return
        self._run.unknown_until = max(self._run.unknown_until, now + UNKNOWN_HELLOS * self._settings.hello_s)
        line = self._hosts[self._line].source_line
        waits = "" if self._run.committed else "; waiting for that"
        text = (
            f"{self._host(member.line)} does not know this node yet: its hosts.txt has {lines} nodes; append line {line} there, too{waits}"
        )
        self._once(member, "unknown_line", text)

    def _wrong_key(self, member: Member, reject: Reject) -> None:
        """Let in by my key and refused for my line: the peer's copy of hosts.txt has my key on another line."""
        text = (
            f"{self._host(member.line)} refuses this node: in its hosts.txt the line of {self._node} has the key {reject.mine}, "
            f"and this node's key is {reject.yours}; use the same hosts.txt everywhere"
        )
        if self._run.committed:
            self._once(member, "key", text)
        else:
            self._fatal(EXIT_SECURITY, text)

    def _foreign_run(self, member: Member, reject: Reject) -> None:
        """Refused for my nonce. Who has company goes on: yesterday's straggler ends nobody's run. A lone one stops; of two the older start.

        ``fatal`` says that the refuser has company.
        """
        text = (
            f"{self._host(member.line)} runs another run ({reject.mine}) than this node ({reject.yours}); "
            "stop the one that is left over, or give the new run other ports"
        )
        older = self.incarnation <= reject.known_incarnation
        if self._run.committed and (self._has_company() or (not reject.fatal and not older)):
            self._once(member, "nonce", text)
        elif self._run.committed:
            self._fatal(EXIT_NETWORK, text)

    def _host(self, line: int) -> str:
        host = self._hosts[line]
        return host.name if host.name == host.host_port else f"{host.name} ({host.host_port})"

    def _once(self, member: Member, what: str, text: str) -> None:
        if (member.line, what) not in self._said and sum(line == member.line for line, _ in self._said) < SAID_MAX:
            self._said.add((member.line, what))
            self._out.log("warning", text)


def _by_key(hosts: HostList) -> dict[str | None, int]:
    """Line of each public key; empty without keys."""
    return {host.key: host.line for host in hosts} if hosts.keyed else {}
