"""The cluster's count of env_steps: a grow-only counter that every node holds a copy of (design D7).

Owns the entries, their sum and the rate at which they grow. An entry belongs to one incarnation of one line of hosts.txt and only ever
grows; copies are merged by maximum, so heartbeats may be lost, repeated or reordered. Entries of dead and departed nodes stay: their
steps were done. Runs in the proxy thread, takes the time as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from zpala.gossip.messages import DigestEntry

ENTRIES_MAX = 4096  # incarnations of all lines together, or twice the lines; more means that a node restarts in a loop, and is not counted
ENV_STEPS_MAX = 2**50  # of one process; more is no count, and the sum of ENTRIES_MAX such entries still fits 64 bits
RATE_WINDOW_S = 5.0
RATE_SAMPLE_S = 0.1


class BudgetCounter:
    """Counts env_steps of the whole cluster towards ``budget`` (>= 1). ``lines``: of hosts.txt."""

    def __init__(self, budget: int, lines: int = 1) -> None:
        if budget < 1:
            raise ValueError(f"the budget is {budget} env_steps; it must be at least 1")
        self.budget = budget
        self._entries_max = max(ENTRIES_MAX, 2 * lines)
        self.refused = 0  # entries not taken: too many of them, or one above ENV_STEPS_MAX
        self._steps: dict[tuple[int, int], int] = {}
        self._turn: list[tuple[int, int]] = []  # the same keys, in the order in which they are told
        self._own: tuple[int, int] | None = None
        self._total = 0
        self._grown = 0
        self._cursor = 0
        self._samples: deque[tuple[float, int]] = deque()

    def grow(self, lines: int) -> None:
        """hosts.txt has ``lines`` lines now."""
        self._entries_max = max(ENTRIES_MAX, 2 * lines)

    def clear(self) -> None:
        """Another run begins: its count starts at 0."""
        self._steps.clear()
        self._turn.clear()
        self._samples.clear()
        self._own, self._total, self._grown = None, 0, 0

    def set_own(self, line: int, incarnation: int, env_steps: int) -> None:
        """Say how many env_steps this process has done. A smaller number than before is ignored: the counter only grows."""
        self._own = (line, incarnation)
        self._raise_to((line, incarnation), env_steps, known_from=0)

    def know(self, line: int, incarnation: int) -> None:
        """This process exists: it is to be told of, even if it has done nothing yet."""
        self._raise_to((line, incarnation), 0, known_from=0)

    def merge(self, digest: Iterable[DigestEntry]) -> bool:
        """Take the maximum of each entry; True when anything grew."""
        before = self._total
        for line, incarnation, env_steps, _, _ in digest:
            if env_steps > ENV_STEPS_MAX:
                self.refused += 1
            elif (line, incarnation) != self._own:  # nobody knows my own count better
                self._raise_to((line, incarnation), env_steps, known_from=env_steps)
        return self._total != before

    def total(self) -> int:
        """Known env_steps of the cluster; never more than were really done."""
        return self._total

    def remaining(self) -> int:
        """Known env_steps left, >= 0."""
        return max(0, self.budget - self._total)

    def progress(self) -> float:
        """total / budget in [0, 1]. Never falls, because no entry does; drives every schedule."""
        return min(1.0, self._total / self.budget)

    def entries(self, limit: int = 64) -> list[DigestEntry]:
        """At most ``limit`` entries for one heartbeat: the own one first, then the others in turn from one call to the next."""
        keys, own = self._turn, self._own
        chosen = [own] if own is not None and limit > 0 else []
        for offset in range(min(limit, len(keys))):
            key = keys[(self._cursor + offset) % len(keys)]
            if key != own and len(chosen) < limit:
                chosen.append(key)
        self._cursor += limit - 1 if len(keys) > limit else 0
        return [DigestEntry(*key, self._steps[key]) for key in chosen]

    def rate(self, now: float) -> float:
        """The cluster's env_steps/s over the last 5 s up to ``now`` (monotonic seconds), 0.0 before there are two samples.

        What an entry already held when it was first heard of is not growth: adopting a million old steps is no speed.
        """
        if not self._samples or now - self._samples[-1][0] >= RATE_SAMPLE_S:
            self._samples.append((now, self._grown))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()
        since, grown = self._samples[0]
        return (self._grown - grown) / (now - since) if now > since else 0.0

    def _raise_to(self, key: tuple[int, int], env_steps: int, *, known_from: int) -> None:
        old = self._steps.get(key)
        if old is None and key != self._own and len(self._steps) >= self._entries_max:
            self.refused += 1
            return
        if old is None:
            self._turn.append(key)
        if old is None or env_steps > old:
            self._steps[key] = env_steps
            self._total += env_steps - (old or 0)
            self._grown += env_steps - (known_from if old is None else old)
