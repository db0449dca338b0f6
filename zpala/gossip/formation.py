"""The start of a run, carried out: ``barrier`` says what the next step is, this module takes it. Runs in the proxy thread.

Owns whether this node leads the start, and the phases from WAITING to RUNNING. The initial parameters travel by ``adoption``,
whose messages do not pass here; the end of the run is ``leaving``'s.

A node whose parameters have diverged goes from RUNNING back to JOINING (``rejoin``) to adopt the state of one certain peer. Its learner is
told nothing until that state is there: it goes on learning with the gate open, and counting env_steps, and installs the state at an update
boundary. When the peer cannot give it, the node goes on with what it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from zpala.gossip import barrier
from zpala.gossip.actions import Outbox
from zpala.gossip.adoption import Donor, Joiner
from zpala.gossip.events import Start
from zpala.gossip.hearsay import Hearsay, Rumour
from zpala.gossip.hosts import Host
from zpala.gossip.membership import ACTIVE, FORMING, Member, Membership, Phase
from zpala.gossip.run import Run
from zpala.gossip.settings import GossipSettings

DISCOVER_S = 1.5  # whoever does not wait for all looks for a run under way for so long, at least
LOOK_EVERY_S = 0.5  # in a long hosts.txt: going through everybody at every message would take all the time
MISSING_SHOWN = 10  # names in a line of the log
REJOIN_FAILURES = 3  # of the one donor, then a diverged node goes on with its own state
BEFORE_LEARNING = FORMING | {Phase.WAITING, Phase.JOINING}


class Formation:
    """``nonce`` becomes the run's if I lead the start; ``hosts`` may grow; the other args as for ``Protocol``."""

    def __init__(
        self,
        *,
        line: int,
        hosts: Sequence[Host],
        settings: GossipSettings,
        nonce: bytes,
        run: Run,
        membership: Membership,
        hearsay: Hearsay,
        joiner: Joiner,
        donor: Donor,
        outbox: Outbox,
        now: float,
    ) -> None:
        self._line = line
        self._hosts = hosts
        self._settings = settings
        self._own_nonce = nonce
        self._run = run
        self._membership = membership
        self._hearsay = hearsay
        self._joiner = joiner
        self._donor = donor
        self._out = outbox
        self._leading = False
        self._look_at = now  # when to look again who is there
        self._source: Member | None = None  # whose state replaces mine
        self._failures = 0  # of the joiner, when that began

    @property
    def gives_state(self) -> bool:
        """The state of this node is the run's (or will be, when it leads): whoever asks may have it."""
        return self._run.active or self._run.phase is Phase.READY or self._leading

    def deadline(self, now: float) -> float:
        """When patience runs out next, mine or the joiner's; inf once this node learns."""
        if self._run.phase not in BEFORE_LEARNING:
            return math.inf
        due = self._joiner.deadline()
        for limit_s in (DISCOVER_S, self._settings.start_timeout_s):
            if self._run.since + limit_s > now:
                due = min(due, self._run.since + limit_s)
        return due

    # ---- steps ------------------------------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """One step of the start barrier or of joining, unless the learner is busy with a state."""
        if self._run.phase not in BEFORE_LEARNING or self._joiner.installing or self._donor.capturing:
            return
        if self._source is not None:
            self._rejoin_from(self._source, now)
            return
        present = [member for member in self._membership if member.live and member.established]
        joining = self._run.phase is Phase.JOINING
        if (joining or (self._run.phase is Phase.STARTING and not self._leading)) and not self._adopt(present, now):
            return
        if not joining and now >= self._look_at and not self._is_kept_out(present, now):
            self._look_at = now + LOOK_EVERY_S if self._membership.bounded else now
            seen = self._seen(present, now)
            self._take(self._next_step(seen, now), seen, now)

    def _is_kept_out(self, present: Sequence[Member], now: float) -> bool:
        """Somebody is there and has no room for this node, which has nobody else: it waits for its turn, and starts nothing alone."""
        return not present and now < self._run.full_until and self._run.phase in (Phase.WAITING, Phase.READY)

    def _adopt(self, present: Iterable[Member], now: float) -> bool:
        """Drive the joiner; False and back to WAITING when nobody of the run is left."""
        run = self._run
        joining = run.phase is Phase.JOINING
        of_run = [member for member in present if member.nonce == run.nonce]
        if not any(member.condition.phase in (ACTIVE if joining else ACTIVE | FORMING) for member in of_run):
            self._out.log("warning", "nobody of the run is left: waiting again")
            self._joiner.cancel()
            run.nonce = b""
            run.enter(Phase.WAITING, now)
            return False
        if self._donor.in_flight:  # of the run that this node was in before: the state parts are still read
            return True
        givers = ACTIVE if joining else ACTIVE | {Phase.READY}
        self._joiner.on_timer([member for member in of_run if member.condition.phase in givers], now)
        return True

    def _seen(self, present: Sequence[Member], now: float) -> list[barrier.Seen]:
        """Who is there: everybody with a session each way and, in a long hosts.txt, whom others have heard of."""
        seen = [barrier.Seen(member.line, member.condition.phase, member.nonce) for member in present]
        if self._membership.bounded:
            met = {member.line for member in present}
            seen.extend(self._rumoured(rumour) for rumour in self._hearsay.fresh(now) if rumour.line not in met and self._counts(rumour))
        return seen

    def _counts(self, rumour: Rumour) -> bool:
        """Hearsay tells no nonce: it is about my run, or about nodes that wait for one."""
        return bool(self._run.nonce) or rumour.phase is Phase.WAITING

    def _rumoured(self, rumour: Rumour) -> barrier.Seen:
        return barrier.Seen(rumour.line, rumour.phase, b"" if rumour.phase is Phase.WAITING else self._run.nonce)

    def _next_step(self, seen: Sequence[barrier.Seen], now: float) -> barrier.Step:
        run, size = self._run, len(self._hosts)
        needed = size if self._settings.wait_for == "all" else min(int(self._settings.wait_for), size)
        patience_over = now >= run.since + self._settings.start_timeout_s
        if run.phase is Phase.WAITING and now < max(run.since + DISCOVER_S, run.unknown_until):  # a run may be under way
            needed, patience_over = size, False
        orphaned = not self._leading and now >= run.since + self._settings.dead_s
        return barrier.next_step(self._line, run.phase, run.nonce, seen, needed, patience_over, orphaned)

    def _take(self, step: barrier.Step, seen: Sequence[barrier.Seen], now: float) -> None:
        run = self._run
        if isinstance(step, barrier.Lead):
            there = {self._line, *(peer.line for peer in seen)}
            missing = [host.name for host in self._hosts if host.line not in there]
            without = f" without {missing[:MISSING_SHOWN]}" + (f" and {len(missing) - MISSING_SHOWN} more" * (len(missing) > MISSING_SHOWN))
            self._out.log("info", f"leading the start of run {self._own_nonce.hex()}" + (without if missing else ""))
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
        self._donor.withdraw()
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
        self._run.changed = True
        self._donor.outdate()
        self._run.enter(Phase.RUNNING, now)
        self._out.learner(Start(version=self._run.version))

    # ---- again ------------------------------------------------------------------------------------------------------------------------

    def rejoin(self, member: Member, now: float) -> None:
        """Replace the state of this node, which is RUNNING, by that of ``member``."""
        self._source = member
        self._failures = self._joiner.failures
        self._donor.withdraw()
        self._joiner.begin()
        self._run.rejoining = True
        self._run.enter(Phase.JOINING, now)

    def _rejoin_from(self, source: Member, now: float) -> None:
        if self._donor.in_flight:  # the state parts are still read
            return
        there = source.live and source.established and source.nonce == self._run.nonce and source.condition.phase in ACTIVE
        if not there or self._joiner.failures >= self._failures + REJOIN_FAILURES:
            self._out.log("warning", f"{self._hosts[source.line].name} cannot give its state: going on with what this node has")
            self.stay(now)
        else:
            self._joiner.on_timer([source], now)

    def stay(self, now: float) -> None:
        """RUNNING again with the own state, if another was to replace it."""
        if self._source is not None:
            self._joiner.cancel()
            self._run_on(now)

    def _run_on(self, now: float) -> None:
        self._source = None
        self._run.rejoining = False
        self._run.changed = True
        self._run.enter(Phase.RUNNING, now)

    # ---- from the learner -------------------------------------------------------------------------------------------------------------

    def captured(self, version: int, now: float) -> None:
        """The donor has the state that it asked for: a leader has what the run starts from."""
        if self._source is not None:
            self._donor.withdraw()  # it was asked before
        if self._leading and self._run.phase is Phase.STARTING:
            self._run.version = version
            self._run.enter(Phase.READY, now)

    def adopted(self, version: int, now: float) -> None:
        """The learner has installed the run's state."""
        if self._source is not None:
            self._run.version = max(self._run.version, version)  # a version never falls while a process learns
            self._run_on(now)
            return
        self._run.version = version
        if self._run.phase is Phase.JOINING:
            self._start_learning(now)
        elif self._run.phase is Phase.STARTING:
            self._run.enter(Phase.READY, now)
