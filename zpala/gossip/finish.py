"""Why a run ends (design D6): the budget is spent, everybody has reached the target, or a peer has a reason. Runs in the proxy thread.

Only says so: the learner stops at its next update boundary, and how a finished node leaves is ``leaving``'s business.
"""

from __future__ import annotations

from zpala.gossip.budget import BudgetCounter
from zpala.gossip.hearsay import Hearsay
from zpala.gossip.neighbourhood import Neighbourhood
from zpala.gossip.run import Run, reached


class Finish:
    """``target_return``: of every live node's mean return; None: no such end."""

    def __init__(
        self, run: Run, neighbourhood: Neighbourhood, hearsay: Hearsay, budget: BudgetCounter, target_return: float | None
    ) -> None:
        self._run = run
        self._neighbourhood = neighbourhood
        self._hearsay = hearsay
        self._budget = budget
        self._target_return = target_return

    def check(self, now: float) -> None:
        """Has the run a reason to end? A peer's reason is mine too."""
        run = self._run
        if run.finish_reason or not run.changed:
            return
        reasons = self._neighbourhood.finish_reasons()
        if self._budget.total() >= self._budget.budget:
            reasons.append("budget")
        elif self.all_reached(now):
            reasons.append("target")
        if reasons:
            run.finish_reason = reasons[0]
            run.announce = True

    def all_reached(self, now: float) -> bool:
        """Have all live nodes of the run, this one included, reached the target?"""
        if not reached(self._run.condition(), self._target_return):
            return False
        met = self._neighbourhood.of_run()
        all_met = all(reached(member.condition, self._target_return) for member in met)
        return all_met and self._hearsay.all_reached(now, {member.line for member in met})
