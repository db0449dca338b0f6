"""Real nodes train while others are killed, stopped and restarted at random: a long test, played by hand; a short one is in cluster/.

    python -m tests.soak.murder --minutes 15 --faults 200

Every node is a ``zpala node`` of its own, on localhost. At most ``--down`` of them are dead, stopped or not yet back at the same time. What
must hold is checked as it happens, and printed as one JSON document; exit status 1 if anything did not:

* nobody who lives stands still: env_steps grow in every second, except for gaps of at most twice the time that it takes to notice a death;
* who comes back adopts a peer's parameters, and averages within 10 s of that and within 25 s of its start;
* nobody ends that was not killed; every file that is left can be read; memory does not grow;
* afterwards the run still learns: every node reaches a mean return of 475.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.cluster.processes import Process, Processes
from tests.soak.new_rows import NewRows
from zpala.metrics import read_rows
from zpala.run_directory import load_checkpoint

POLL_S = 0.2
NOTICED_S = 5.5  # gossip.dead_s and a heartbeat
STILL_S = 2 * NOTICED_S
ADOPTED_TO_AVERAGING_S = 10.0
START_TO_AVERAGING_S = 25.0
RSS_SLOPE = 1.0  # MB/min
RSS_AFTER_S, RSS_SPAN_S = 60.0, 120.0  # memory is looked at from the first on, for at least the second
TARGET = 475.0
KINDS, WEIGHTS = ("stop", "kill", "terminate"), (6, 2, 2)  # a start takes its time on a busy machine: with more of them fewer faults fit in


@dataclass
class Life:
    """One process of one node."""

    name: str
    number: int
    process: Process
    directory: Path
    started_at: float
    first: bool  # it was there at the start, and adopted nothing
    adopted_at: float | None = None
    averaging_at: float | None = None
    stopped: bool = False
    moved_at: float = 0.0  # when its env_steps last grew; 0: not yet
    longest_still_s: float = 0.0
    env_steps: int = 0
    mean_return: float = 0.0
    games: int = 0
    rss: list[tuple[float, float]] = field(default_factory=list)
    lines_read: int = 0
    rows: NewRows = field(init=False)

    def __post_init__(self) -> None:
        self.rows = NewRows(self.directory)

    def learns(self) -> bool:
        return self.moved_at > 0 and not self.stopped


class Soak:
    """``folder``: where hosts.txt and the run directories go."""

    def __init__(self, folder: Path, nodes: int, down: int, seed: int) -> None:
        self.processes = Processes(folder)
        self.rng = random.Random(seed)
        self.down = down
        self.hosts = self.processes.hosts(nodes)
        self.violations: list[str] = []
        self.faults: Counter[str] = Counter()
        self.lives: list[Life] = []
        self.present: dict[str, Life] = {}
        self.due: list[tuple[float, str, str]] = []  # when, what, which node
        self.began = time.monotonic()
        self._numbers: Counter[str] = Counter()
        for index in range(nodes):
            self.start(f"n{index}", first=True)

    # ---- what is done -----------------------------------------------------------------------------------------------------------------

    def start(self, name: str, first: bool = False) -> None:
        number = self._numbers[name]
        self._numbers[name] += 1
        run = f"run{number}"
        arguments = ("--name", name, "--run-dir", run, "--total-env-steps", "1000000000", "--max-staleness", "64")
        node = ("node", "--peers", self.hosts, "--preset", "cartpole", *arguments, "--set", "run.log_interval_s=0.5")
        process = self.processes(*node, "--set", 'optimizer.anneal="none"')
        life = Life(name, number, process, self.processes.folder / run / "nodes" / name, time.monotonic(), first)
        self.present[name] = life
        self.lives.append(life)

    def fault(self) -> bool:
        """One more, to a node that learns; False when enough are down."""
        healthy = [life for life in self.present.values() if life.learns() and life.averaging_at is not None]
        if len(healthy) <= len(self._numbers) - self.down:
            return False
        life, kind = self.rng.choice(healthy), self.rng.choices(KINDS, WEIGHTS)[0]
        self.faults[kind] += 1
        if kind == "stop":
            life.stopped = True
            life.process.send(signal.SIGSTOP)
            self.due.append((time.monotonic() + self.rng.uniform(1.0, 8.0), "continue", life.name))
            return True
        life.process.send(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        status = life.process.end(20.0)
        if status != (-signal.SIGKILL if kind == "kill" else 143):
            self.violations.append(f"{self.at()} {life.name} ended with {status} after {kind}: {life.process.text[-500:]}")
        del self.present[life.name]
        self.due.append((time.monotonic() + self.rng.uniform(0.0, 3.0), "start", life.name))
        return True

    def do_what_is_due(self) -> None:
        now = time.monotonic()
        for item in [item for item in self.due if item[0] <= now]:
            self.due.remove(item)
            _, what, name = item
            if what == "start":
                self.start(name)
            else:
                life = self.present[name]
                life.process.send(signal.SIGCONT)
                life.stopped, life.moved_at = False, now

    # ---- what is seen -----------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        for life in list(self.present.values()):
            now = time.monotonic()
            if not life.process.running():
                self.violations.append(f"{self.at()} {life.name} has ended: {life.process.text[-800:]}")
                del self.present[life.name]
                continue
            life.process.read_on()
            self._read_lines(life, now)
            self._read_rows(life, now)
            self._judge(life, now)

    def _read_lines(self, life: Life, now: float) -> None:
        for line in life.process.lines[life.lines_read :]:
            if "adopted parameters" in line:
                life.adopted_at = life.adopted_at or now
            if life.averaging_at is None and "averaged with " in line and "averaged with 0/" not in line:
                life.averaging_at = now
        life.lines_read = len(life.process.lines)

    def _read_rows(self, life: Life, now: float) -> None:
        for row in life.rows.read():
            if row["env_steps"] > life.env_steps:
                if life.moved_at and not life.stopped:
                    life.longest_still_s = max(life.longest_still_s, now - life.moved_at)
                life.env_steps, life.moved_at = row["env_steps"], now
            life.mean_return, life.games = row.get("charts/episodic_return") or 0.0, row.get("charts/episodic_return_count") or 0
            if "system/rss_mb" in row:
                life.rss.append((now - life.started_at, row["system/rss_mb"]))

    def _judge(self, life: Life, now: float) -> None:
        if life.learns() and now - life.moved_at > STILL_S:
            self.violations.append(f"{self.at()} {life.name} has stood still for {now - life.moved_at:.1f} s")
            life.longest_still_s, life.moved_at = now - life.moved_at, now
        if life.first or life.averaging_at is not None or life.stopped:
            return
        if life.adopted_at is not None and now - life.adopted_at > ADOPTED_TO_AVERAGING_S:
            self.violations.append(f"{self.at()} {life.name} adopted {now - life.adopted_at:.1f} s ago and does not average")
            life.averaging_at = now
        elif now - life.started_at > START_TO_AVERAGING_S:
            self.violations.append(f"{self.at()} {life.name} started {now - life.started_at:.1f} s ago and does not average")
            life.averaging_at = now

    def at(self) -> str:
        return f"{time.monotonic() - self.began:.1f} s:"

    # ---- the play ---------------------------------------------------------------------------------------------------------------------

    def wait(self, condition: Any, limit_s: float, what: str) -> bool:
        """Goes on looking until ``condition()``; a violation when that takes longer."""
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                self.violations.append(f"{self.at()} not within {limit_s:g} s: {what}")
                return False
            self.do_what_is_due()
            self.look()
            time.sleep(POLL_S)
        return True

    def play(self, minutes: float, faults: int, target_minutes: float) -> dict[str, Any]:
        self.wait(lambda: all(life.averaging_at for life in self.present.values()), 60.0, "everybody averages at the start")
        until = time.monotonic() + 60 * minutes
        done, next_at = 0, time.monotonic()
        while done < faults and time.monotonic() < until:
            self.do_what_is_due()
            self.look()
            if time.monotonic() >= next_at and self.fault():
                done += 1
                next_at = time.monotonic() + self.rng.uniform(0.2, 1.8) * (until - time.monotonic()) / (faults - done + 1)
            time.sleep(POLL_S)
        self.wait(lambda: not self.due and len(self.present) == len(self._numbers), 30.0, "everybody is back")
        self.wait(lambda: all(life.averaging_at for life in self.present.values()), 40.0, "everybody averages again")
        started = time.monotonic()
        reached = self.wait(
            lambda: all(life.games >= 100 and life.mean_return >= TARGET for life in self.present.values()),
            60 * target_minutes,
            f"every node has a mean return of {TARGET:g}: { {name: life.mean_return for name, life in self.present.items()} }",
        )
        return self.end(minutes, done, time.monotonic() - started if reached else None)

    def end(self, minutes: float, faults: int, target_s: float | None) -> dict[str, Any]:
        for life in self.present.values():
            life.process.send(signal.SIGTERM)
        for life in self.present.values():
            status = life.process.end(20.0)
            if status != 143:
                self.violations.append(f"{life.name} ended with {status}: {life.process.text[-500:]}")
        readable = self._check_files()
        slopes = [slope for life in self.lives if (slope := _slope(life.rss)) is not None]
        if slopes and median(slopes) > RSS_SLOPE:
            self.violations.append(f"memory grows by {median(slopes):.2f} MB/min")
        back = [life for life in self.lives if not life.first and life.averaging_at is not None]
        return {
            "minutes": minutes,
            "faults": dict(self.faults),
            "asked": faults,
            "processes": len(self.lives),
            "longest_still_s": round(max(life.longest_still_s for life in self.lives), 2),
            "start_to_averaging_s": _spread([life.averaging_at - life.started_at for life in back if life.averaging_at]),
            "adopted_to_averaging_s": _spread(
                [life.averaging_at - life.adopted_at for life in back if life.averaging_at and life.adopted_at]
            ),
            "adopted": sum(life.adopted_at is not None for life in back),
            "came_back": len(back),
            "rss_slope_mb_per_min": _spread(slopes),
            "files_read": readable,
            "target_reached_after_s": None if target_s is None else round(target_s, 1),
            "violations": self.violations,
        }

    def _check_files(self) -> int:
        """Rows of every process, and the checkpoint of everyone who ended in order."""
        read = 0
        for life in self.lives:
            path = life.directory / "metrics.jsonl"
            if path.exists():
                rows, lines = list(read_rows(path)), path.read_bytes().count(b"\n")
                read += 1
                if len(rows) < lines:
                    self.violations.append(f"{path}: {lines - len(rows)} lines cannot be read")
            for checkpoint in life.directory.glob("**/*.safetensors"):
                try:
                    load_checkpoint(life.directory)
                    read += 1
                except Exception as error:
                    self.violations.append(f"{checkpoint}: {error}")
        return read


def _slope(points: list[tuple[float, float]]) -> float | None:
    """MB/min after the first minute; None for a short life."""
    late = np.array([point for point in points if point[0] > RSS_AFTER_S])
    if len(late) < 2 or late[-1, 0] - late[0, 0] < RSS_SPAN_S:
        return None
    return 60 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0])


def _spread(values: list[float]) -> dict[str, float] | None:
    return {"median": round(median(values), 2), "worst": round(max(values), 2), "count": len(values)} if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--down", type=int, default=2, help="so many at the same time at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target-minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zpala-soak-") as folder:
        soak = Soak(Path(folder), options.nodes, options.down, options.seed)
        try:
            result = soak.play(options.minutes, options.faults, options.target_minutes)
        finally:
            soak.processes.close()
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["violations"]))


if __name__ == "__main__":
    main()
