"""Does the speed last? One learner trains for as many env_steps as a game takes, and its late speed is compared with its early one.

    python -m tests.soak.lasting --preset gala --json lasting.jsonl
    python -m tests.soak.lasting --preset paac --num-envs 16 --set network.name=nature_cnn
    python -m tests.soak.lasting --preset gala --sb3

Weights and running averages of an optimiser may become denormal numbers, memory may grow, so that a run slows down after an hour. This one
notes the time at every ``MARK`` env_steps and divides the speed between 2.0 and 2.5 million env_steps by that between 0.1 and 0.3 million.
``--sb3`` trains stable-baselines3's A2C or PPO on the same environments with the preset's values instead (the extra ``bench``). Speeds of
a machine that other work runs on say nothing; two of these side by side, each held to a core of its own (``taskset``), see the same
machine. One line per mark, then early and late speed and their ratio, appended to ``--json`` with all marks. Nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.processes import Process, Processes
from tests.soak.learning import ROOT, source_commit
from tests.soak.new_rows import NewRows
from zpala.config import load_config, parse_assignment
from zpala.tools.bench_against import sb3_settings
from zpala.tools.bench_sb3 import measure

MARK = 100_000  # env_steps
EARLY = (100_000, 300_000)
LATE = (2_000_000, 2_500_000)
POLL_S = 1.0
START_LIMIT_S = 300.0


class Marks:
    """(env_steps, seconds since the training began) at the first update that reached each multiple of ``MARK``."""

    def __init__(self) -> None:
        self.passed: list[tuple[int, float]] = []

    def note(self, env_steps: int, seconds: float) -> None:
        if env_steps >= MARK * (len(self.passed) + 1):
            self.passed.append((env_steps, seconds))
            print(f"{env_steps:,} env_steps after {seconds:,.0f} s", flush=True)

    def speed(self, between: tuple[int, int]) -> float | None:
        """env_steps/s; None: the run did not come so far."""
        first, last = (mark // MARK - 1 for mark in between)
        if last >= len(self.passed):
            return None
        (before, began), (after, ended) = self.passed[first], self.passed[last]
        return (after - before) / (ended - began)


class MarkedLearner:
    """Called by stable-baselines3 after every step of all environments, like ``zpala.tools.bench_sb3.Stopwatch``."""

    def __init__(self, num_envs: int, total_env_steps: int, marks: Marks) -> None:
        self.env_steps, self.seconds = 0, 0.0
        self._num_envs, self._total, self._marks = num_envs, total_env_steps, marks
        self._began = time.perf_counter()

    def __call__(self, local_names: dict[str, Any], global_names: dict[str, Any]) -> bool:
        self.env_steps += self._num_envs
        self.seconds = time.perf_counter() - self._began
        self._marks.note(self.env_steps, self.seconds)
        return self.env_steps < self._total


def play_zpala(options: Sequence[object], total_env_steps: int, marks: Marks) -> None:
    """One node without peers. Raises AssertionError when it ends by itself before it is through."""
    with tempfile.TemporaryDirectory(prefix="zpala-lasting-") as folder:
        processes = Processes(Path(folder))
        try:
            run = processes.folder / "run"
            log = ("--set", "run.log_interval_s=2", "--run-dir", run, "--total-env-steps", total_env_steps + MARK)
            node = processes("launch", "-n", 1, *options, *log, cwd=ROOT)
            follow(node, NewRows(run / "nodes" / "n0"), total_env_steps, marks)
            node.send(signal.SIGTERM)
            node.end()
        finally:
            processes.close()


def follow(node: Process, rows: NewRows, total_env_steps: int, marks: Marks) -> None:
    """Reads its rows until it has made ``total_env_steps``."""
    heard = time.monotonic()
    while True:
        time.sleep(POLL_S)
        node.read_on()
        for row in rows.read():
            heard = time.monotonic()
            marks.note(row["env_steps"], row["time_s"])
            if row["env_steps"] >= total_env_steps:
                return
        assert node.running(), f"the node has ended: {node.text[-2000:]}"
        assert time.monotonic() - heard < START_LIMIT_S, f"no row for {START_LIMIT_S:g} s: {node.text[-2000:]}"


def main() -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=cores, help="of torch; by default one per core that may be used")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--total-env-steps", type=int, default=LATE[1])
    parser.add_argument("--sb3", action="store_true", help="stable-baselines3 in the node's place")
    parser.add_argument("--sb3-vector", default="subproc", choices=("subproc", "dummy"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    marks = Marks()
    counts = {"run.seed": options.seed, "environment.num_envs": options.num_envs, "node.threads": options.threads}
    settings = [*(f"{key}={value}" for key, value in counts.items()), *options.settings]
    words = ["--preset", options.preset, *(word for setting in settings for word in ("--set", setting))]
    commit = source_commit()
    if options.sb3:
        config = load_config(None, {"preset": options.preset, **dict(map(parse_assignment, settings))}, {})
        wanted = sb3_settings(config, seconds=0.0, warmup_s=0.0, threads=options.threads, vector=options.sb3_vector)
        measure(wanted, MarkedLearner(options.num_envs, options.total_env_steps, marks))
    else:
        play_zpala(words, options.total_env_steps, marks)
    early, late = marks.speed(EARLY), marks.speed(LATE)
    ratio = None if early is None or late is None else late / early
    who = "stable-baselines3" if options.sb3 else "zpala"
    print(f"{who} {' '.join(words)}: early {early} env_steps/s, late {late} env_steps/s, ratio {ratio}")
    if options.json is not None:
        record = {
            "who": who,
            "options": words,
            "commit": commit,
            "cores": cores,
            "early": early,
            "late": late,
            "ratio": ratio,
            "marks": marks.passed,
        }
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
