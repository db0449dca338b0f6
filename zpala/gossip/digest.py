"""What heartbeats say of the whole cluster: at most 64 entries each, the own one first, the others in turn. Runs in the proxy thread.

An entry has two halves: env_steps of one process (``budget``, design D7), and, in a long hosts.txt where not everybody has a session with
everybody, its last sign of life (``hearsay``). This module keeps the two together; it owns nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpala.gossip.budget import BudgetCounter
from zpala.gossip.hearsay import Hearsay, of_no_run, state_of
from zpala.gossip.membership import Member, Membership, Phase
from zpala.gossip.messages import Condition, DigestEntry
from zpala.gossip.run import Run

DIGEST_MAX = 64  # entries of one heartbeat


class Digest:
    """``line``: my own; ``incarnation`` tells it, for it may be raised; ``target_return`` as for ``Protocol``."""

    def __init__(
        self,
        line: int,
        incarnation: Callable[[], int],
        budget: BudgetCounter,
        hearsay: Hearsay,
        run: Run,
        membership: Membership,
        target_return: float | None,
    ) -> None:
        self._line = line
        self._incarnation = incarnation
        self._budget = budget
        self._hearsay = hearsay
        self._run = run
        self._membership = membership
        self._target_return = target_return
        self._nonce = run.nonce  # of the run that budget and hearsay are about

    def entries(self, now: float) -> tuple[DigestEntry, ...]:
        """What to tell."""
        if not self._membership.bounded:
            return tuple(self._budget.entries(DIGEST_MAX))
        self._budget.set_own(self._line, self._incarnation(), 0)  # if nothing is known of it yet
        own, *others = self._budget.entries(DIGEST_MAX)
        mine = own._replace(age=0, state=state_of(self._run.condition(), self._target_return))
        return (mine, *(self._hearsay.entry(line, incarnation, env_steps, now) for line, incarnation, env_steps, _, _ in others))

    def hear(self, digest: Sequence[DigestEntry], nonce: bytes, now: float) -> bool:
        """A peer of the run ``nonce`` (empty: it waits for one) tells; True when the known env_steps have grown.

        No entry says of which run it is. So how far others are is taken only from peers of my run: two runs that form at the same time
        would each take the other's nodes for its own, and start.
        """
        mine = self._run.nonce
        if self._membership.bounded and (nonce == mine or not nonce or not mine):
            of_my_run = bool(mine) and nonce == mine
            self._hearsay.hear(digest if of_my_run else [entry for entry in digest if of_no_run(entry.state)], now)
            if not mine or not nonce:  # there are no counts yet, or none of this run
                for entry in digest:
                    self._budget.know(entry.line, entry.incarnation)
        return bool(nonce) and nonce == mine and self._budget.merge(digest)

    def meet(self, member: Member, now: float) -> None:
        """``member`` has said itself how far it is."""
        if self._membership.bounded:
            state = state_of(member.condition, self._target_return)
            if of_no_run(state) or member.nonce == self._run.nonce:
                self._hearsay.hear([DigestEntry(member.line, member.incarnation, 0, 0, state)], now)
            self._budget.know(member.line, member.incarnation)

    def left(self, member: Member, now: float) -> None:
        """``member`` has said LEAVE: that is to be passed on."""
        if self._membership.bounded:
            state = state_of(Condition(phase=Phase.LEAVING), None)
            self._hearsay.hear([DigestEntry(member.line, member.incarnation, 0, 0, state)], now)

    def follow_run(self) -> None:
        """When this node has come to another run: its count starts at 0; who waited with me is still there."""
        if self._run.nonce == self._nonce:
            return
        if self._nonce:
            self._hearsay.clear()
        self._nonce = self._run.nonce
        self._budget.clear()
        for rumour in self._hearsay:
            self._budget.know(rumour.line, rumour.incarnation)
