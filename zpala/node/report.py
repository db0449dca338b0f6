"""What the learner tells a person: returns of finished games, speeds, where the time went. Learner's thread only; no files, no printing."""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from zpala.rl.algorithm import Statistics

GAMES = 100  # returns are means over the last 100 finished games (design D19)


class Report:
    """Collects between two rows; ``row`` turns it into one line of metrics and starts the next interval.

    Args:
        frame_skip: frames per env_step (4 in Atari, else 1).
        now: monotonic seconds.
    """

    def __init__(self, frame_skip: int, interval_s: float, now: float) -> None:
        self._frame_skip = frame_skip
        self._interval_s = interval_s
        self._started = self._last = now
        self._last_env_steps = 0
        self._last_updates = 0
        self._last_cpu_s = time.process_time()
        self._games: deque[tuple[float, int]] = deque(maxlen=GAMES)
        self.games_total = 0
        self._spent_s: dict[str, float] = {}
        self._staleness: list[int] = []
        self._statistics: Statistics | None = None
        self._learning_rate = 0.0

    def start(self, now: float) -> None:
        """The run starts now: the time spent waiting for the others counts in no speed."""
        self._started = self._last = now
        self._last_cpu_s = time.process_time()

    def elapsed_s(self, now: float) -> float:
        """Seconds since the run started for this node."""
        return now - self._started

    def games(self, ended: Iterable[tuple[float, int]]) -> None:
        """Adds games that ended: (raw return, length in env_steps)."""
        for game in ended:
            self._games.append(game)
            self.games_total += 1

    @property
    def return_count(self) -> int:
        return len(self._games)

    @property
    def return_mean(self) -> float:
        """Mean raw return of the last (at most 100) games; 0.0 before the first."""
        return sum(r for r, _ in self._games) / len(self._games) if self._games else 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent_s[stage] = self._spent_s.get(stage, 0.0) + time.perf_counter() - start

    def updated(self, statistics: Statistics, learning_rate: float, staleness: int) -> None:
        """One update was made with ``learning_rate``, ``staleness`` updates after the last fresh news from a neighbour."""
        self._statistics = statistics
        self._learning_rate = learning_rate
        self._staleness.append(staleness)

    def due(self, now: float) -> bool:
        return now - self._last >= self._interval_s

    def row(self, now: float, *, env_steps: int, updates: int) -> dict[str, float | int | str]:
        """The metrics of the interval that ends now; keys are TensorBoard tags where such a tag is customary."""
        elapsed_s = max(now - self._last, 1e-9)
        made = max(updates - self._last_updates, 1)
        row: dict[str, float | int | str] = {
            "time_s": round(now - self._started, 3),
            "env_steps": env_steps,
            "frames": env_steps * self._frame_skip,
            "updates": updates,
            "charts/SPS": round((env_steps - self._last_env_steps) / elapsed_s, 1),
            "charts/FPS": round((env_steps - self._last_env_steps) * self._frame_skip / elapsed_s, 1),
            "charts/episodic_return_count": len(self._games),
            "charts/learning_rate": self._learning_rate,
            "charts/games": self.games_total,
        }
        if self._games:
            row["charts/episodic_return"] = round(self.return_mean, 3)
            row["charts/episodic_return_median"] = median(r for r, _ in self._games)
            row["charts/episodic_length"] = round(sum(n for _, n in self._games) / len(self._games), 1)
        if self._statistics is not None:
            row.update({f"losses/{name}": value for name, value in self._statistics.named.items()})
        for stage, spent_s in sorted(self._spent_s.items()):
            row[f"time/{stage}_ms"] = round(1000 * spent_s / made, 4)
        if self._staleness:
            row["gossip/staleness_mean"] = round(sum(self._staleness) / len(self._staleness), 2)
            row["gossip/staleness_max"] = max(self._staleness)
        cpu_s = time.process_time()
        row["system/cpu_share"] = round((cpu_s - self._last_cpu_s) / elapsed_s, 3)
        row["system/rss_mb"] = round(_rss_bytes() / 1e6, 1)
        row["system/threads"] = threading.active_count()
        row["system/os_threads"] = _entries(Path("/proc/self/task"))
        row["system/fds"] = _entries(Path("/proc/self/fd"))
        self._last, self._last_env_steps, self._last_updates, self._last_cpu_s = now, env_steps, updates, cpu_s
        self._spent_s, self._staleness = {}, []
        return row


def _rss_bytes() -> int:
    """Resident memory of this process; its peak where /proc does not exist."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _entries(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
