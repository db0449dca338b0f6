"""The lead rule of the gate: at most ``max_lead`` updates ahead of the slowest peer that counts. Owns the peers' clocks as last heard.

The clock of a node is its ``version`` and not its ``updates``. Both grow by one per update, but ``updates`` starts at 0 in every process:
whoever comes late or restarts would hold everybody until it had done all the updates of the run, or would count for nobody. ``version`` is
the donor's at adoption and never falls while a process lives. Exchanges do not touch it: work is what is bounded here, not parameters.

Who counts is the proxy's to say (``View.clocks``). A peer that comes to count while it is ``max_lead`` or more behind (after a partition, a
pause, slow first updates) must not freeze the others. Its *arrears* at that moment are forgiven: it holds the gate only when it has lost
``max_lead`` more. As it catches up the arrears shrink with the distance, and once it has been within ``max_lead`` they are gone for good.
To leave it out until it has caught up would mean for ever: at an equal pace nobody catches up.

``gate`` holds the argument why nobody waits for ever; it rests on these properties: arrears are never negative, and the lead over a peer
that counts never exceeds max_lead + arrears.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Lead:
    """``max_lead`` in updates, >= 0; 0 switches the rule off: nobody ever holds the gate."""

    def __init__(self, max_lead: int) -> None:
        if max_lead < 0:
            raise ValueError(f"max_lead {max_lead} must not be negative; 0 means no limit")
        self.max_lead = max_lead
        self._clocks: dict[int, int] = {}  # line -> version, last heard
        self._arrears: dict[int, int] = {}  # line -> versions forgiven

    def view(self, clocks: Mapping[int, int], version: int) -> None:
        """Who counts: line -> last known version. ``version``: my own."""
        before = self._arrears
        self._clocks = dict(clocks)
        self._arrears = {line: self._forgiven(version - clock, before.get(line)) for line, clock in clocks.items()}

    def _forgiven(self, behind: int, before: int | None) -> int:
        """Arrears of a peer that is ``behind`` me; ``before``: what they were, None when it did not count."""
        if behind < self.max_lead:
            return 0
        if before is None or behind > self.max_lead + before:  # it has come, or another process has, and the view between was lost
            return behind
        return min(before, behind)

    def heard(self, line: int, clock: int) -> None:
        """An exchange with ``line`` brought its version ``clock``, maybe before a heartbeat did."""
        if line in self._clocks:
            self._clocks[line] = max(self._clocks[line], clock)

    def ahead(self, version: int) -> int:
        """How far my ``version`` is ahead of the slowest peer that counts; 0 when nobody is behind me. Arrears are not taken off."""
        return max([0, *(version - clock for clock in self._clocks.values())])

    def holders(self, version: int) -> tuple[int, ...]:
        """The lines over which one more update would be too much of a lead; empty: the rule lets it start."""
        if self.max_lead == 0:
            return ()
        return tuple(sorted(line for line, clock in self._clocks.items() if version - clock >= self.max_lead + self._arrears[line]))

    def passed(self, holders: Collection[int]) -> None:
        """One update starts although ``holders`` hold the gate: they are that much further behind, and it is forgiven."""
        for line in holders:
            self._arrears[line] += 1
