"""A virtual clock: calls in the order of their time, and of their making where the times are equal."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from typing import Any, Protocol

EPOCH_S = 1000.0  # the clock does not start at 0: nobody may take 0 for "now"


class Owner(Protocol):
    """Whose call it is: calls of a dead process are dropped, those of a paused one wait in its backlog."""

    alive: bool
    paused: bool
    backlog: list[Callable[[], None]]


class Clock:
    """``now`` in seconds. Nothing sleeps."""

    def __init__(self) -> None:
        self.now = EPOCH_S
        self.events = 0  # calls made so far
        self._queue: list[tuple[float, int, Callable[..., Any], Owner | None, tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Callable[..., Any], owner: Owner | None, *arguments: Any) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what, owner, arguments))

    def later(self, delay_s: float, what: Callable[..., Any], owner: Owner | None, *arguments: Any) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), what, owner, arguments))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Advance the clock; True when ``until`` became true (asked after every call)."""
        end, queue = self.now + seconds, self._queue
        while queue and queue[0][0] <= end:
            self.now, _, what, owner, arguments = heapq.heappop(queue)
            self.events += 1
            if owner is None:
                what(*arguments)
            elif owner.alive:
                if owner.paused:
                    owner.backlog.append(functools.partial(what, *arguments))
                else:
                    what(*arguments)
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    def give(self, owner: Owner, what: Callable[..., Any], *arguments: Any) -> None:
        """Call now, or when the owner's pause ends."""
        if owner.paused:
            owner.backlog.append(functools.partial(what, *arguments))
        else:
            what(*arguments)
