"""What the learner is told of the cluster: the ``View``. Owns what it was told last; runs in the proxy thread."""

from __future__ import annotations

import math

from zpala.gossip.actions import Outbox
from zpala.gossip.adoption import Donor
from zpala.gossip.budget import BudgetCounter
from zpala.gossip.divergence import Divergence
from zpala.gossip.events import View
from zpala.gossip.exchange import COUNTERS, Exchanges
from zpala.gossip.finish import Finish
from zpala.gossip.hearsay import Hearsay
from zpala.gossip.membership import Member
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run

AVERAGED_WITHIN_S = 30.0  # "averaged with 3/3" looks back that far
CLOCKS_S = 0.02  # views that differ in nothing but clocks come at most so often
REJECTED = tuple(name for name in COUNTERS if name.startswith("rejected_"))


class Outlook:
    """``enabled``: does this node average at all? Without, nobody holds its gate. ``leads``: has its gate the rule of ``lead``?"""

    def __init__(
        self,
        *,
        enabled: bool,
        leads: bool,
        run: Run,
        neighbourhood: Neighbourhood,
        hearsay: Hearsay,
        budget: BudgetCounter,
        divergence: Divergence,
        exchanges: Exchanges,
        donor: Donor,
        finish: Finish,
        outbox: Outbox,
    ) -> None:
        self.eligible: tuple[int, ...] = ()  # lines, as last told
        self.due_at = math.inf  # when changed clocks are to be told
        self.own_env_steps = 0
        self._enabled = enabled
        self._leads = leads
        self._run = run
        self._neighbourhood = neighbourhood
        self._hearsay = hearsay
        self._budget = budget
        self._divergence = divergence
        self._exchanges = exchanges
        self._donor = donor
        self._finish = finish
        self._out = outbox
        self._told: tuple[Member, ...] = ()  # who was eligible then
        self._clocks: tuple[tuple[int, int], ...] = ()  # as last told
        self._sent_at = -math.inf

    def published(self, env_steps: int) -> None:
        """The learner's own exact count, this process's share of the cluster's."""
        self.own_env_steps = max(self.own_env_steps, env_steps)

    def changed(self, now: float) -> bool:
        """Are others eligible than the learner was told, or have the clocks of its lead moved, and is it time to say so?"""
        eligible = self._eligible(now)
        if eligible != self._told:
            return True
        moved = self._clocks_of(eligible) != self._clocks
        self.due_at = self._sent_at + CLOCKS_S if moved else math.inf
        return now >= self.due_at

    def _eligible(self, now: float) -> tuple[Member, ...]:
        return self._neighbourhood.eligible(now) if self._enabled else ()

    def _clocks_of(self, eligible: tuple[Member, ...]) -> tuple[tuple[int, int], ...]:
        return tuple([(member.line, _version(member)) for member in eligible if not member.slow]) if self._leads else ()

    def send(self, now: float) -> None:
        eligible = self._eligible(now)
        self.eligible = tuple([member.line for member in eligible])
        self._told = eligible
        self._clocks = self._clocks_of(eligible)
        self._sent_at, self.due_at = now, math.inf
        near = self._neighbourhood.live()
        counters = self._exchanges.counters
        total = self._budget.total()
        self._out.learner(
            View(
                eligible=tuple((member.line, _version(member)) for member in eligible),
                clocks=self._clocks,
                slow=tuple(member.line for member in near if member.slow),
                live=max(len(self._neighbourhood.of_run()), self._hearsay.live(now)),
                neighbours_live=len(near),
                averaged=sum(now - member.averaged_at <= AVERAGED_WITHIN_S for member in near),
                cluster_env_steps=total,
                other_env_steps=total - self.own_env_steps,
                cluster_rate=self._budget.rate(now),
                progress=self._budget.progress(),
                phase=str(self._run.phase),
                exchanges=counters["applied"] + counters["applied_late"],
                aborted=counters["aborted"],
                busy=counters["busy_received"],
                doubts=counters["doubts"],
                defects=counters["defects"],
                rejected=sum([counters[name] for name in REJECTED]),
                diverged=self._divergence.found,
                rejoins=self._divergence.rejoins,
                distance=self._exchanges.last_distance,
                exchange_p50_s=self._exchanges.median_s(),
                load=self._run.load,
                bytes_sent=counters["bytes_sent"] + self._donor.bytes_sent,
                bytes_received=counters["bytes_received"],
                unknown=now < self._run.unknown_until,
                all_reached_target=self._run.active and self._finish.all_reached(now),
                finish_reason=self._run.finish_reason,
            )
        )


def _version(member: Member) -> int:
    """The newest that is known of it: from its heartbeats, or from an exchange."""
    return max(member.condition.version, member.mixed_version, 0)
