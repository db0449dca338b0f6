"""The end of a run (design D6): exchange until every live neighbour has finished and is close, then leave. Owns who is close."""

from __future__ import annotations

from collections.abc import Collection

from zpala.gossip.membership import ENDED, Member


class Drain:
    """``limit_s``: longest drain; ``close_distance``: relative distance below which a pair counts as equal."""

    def __init__(self, limit_s: float, close_distance: float) -> None:
        self._limit_s = limit_s
        self._close_distance = close_distance
        self._close: set[int] = set()
        self.until: float | None = None  # None: not draining

    def begin(self, now: float) -> None:
        self.until = now + self._limit_s

    def exchanged(self, line: int, distance: float) -> None:
        """An exchange between two finished nodes showed this relative distance: the last one counts.

        One that was not close moved these parameters by about as much, so that everybody is to be looked at again.
        """
        if distance < self._close_distance:
            self._close.add(line)
        else:
            self._close.clear()

    def forget(self, line: int) -> None:
        """``line`` is another process now, or not finished after all."""
        self._close.discard(line)

    def far(self, neighbours: Collection[int]) -> set[int]:
        """Those of the live neighbours that are not known to be close."""
        return set(neighbours) - self._close

    def close(self, neighbours: Collection[Member]) -> bool:
        """All live neighbours have finished, and are known to be close."""
        return all(member.condition.phase in ENDED for member in neighbours) and not self.far({member.line for member in neighbours})

    def over(self, now: float) -> bool:
        """The limit has passed."""
        return self.until is not None and now >= self.until
