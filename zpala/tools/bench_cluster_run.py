"""Runs one cluster on this machine for some seconds and says how fast every learner of it was: real nodes, or a rival's processes.

A thread per process reads what it says; all of them are gone when ``measure_cluster`` returns. Whoever is measured says the same rows of
metrics, about twice per second, and goes on until the last of its cluster has been measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zpala.config import Config
from zpala.console import FORMAT_VARIABLE
from zpala.exit_codes import ExitCode
from zpala.tools.bench_node import NO_END, SILENCE_LIMIT_S, measured
from zpala.tools.bench_shm import ShmSettings
from zpala.tools.bench_sync import synchronous
from zpala.tools.child import Child, ChildFailed
from zpala.tools.launch import free_ports
from zpala.tools.sleeping_environment import SLOWNESS_VARIABLE
from zpala.tools.start import ask_for_large_pages, wait_without_spinning

ROW_INTERVAL_S = 0.5
START_LIMIT_S = 180.0  # of a whole cluster: every process imports torch, and they share the cores

Row = Mapping[str, Any]
Kind = Literal["zpala", "sync", "shm"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is run.

    Attributes:
        kind: real nodes, synchronous learners (``bench_sync``), or gossip over shared memory (``bench_shm``).
        slowness: the environments of the last learner are so many times slower; only those that sleep know it.
        threads: of torch and Atari's simulator in each learner.
        shm_staleness: the bound of "shm" on the age of messages in updates; 0: none.
    """

    config: Config
    nodes: int
    kind: Kind = "zpala"
    slowness: float = 1.0
    threads: int = 1
    shm_staleness: int = 0


@dataclass(frozen=True, slots=True)
class LearnerSpeed:
    """One learner over its measured interval.

    Attributes:
        sps: env_steps per second.
        exchanges_per_s: how often another's parameters (of "sync": gradients) were averaged in.
        gate_share: share of the time that it waited in the gate (of "sync": in all-reduces).
        cpu_share: cores busy.
        distance: mean relative distance from the neighbour at an exchange, 0.0 where nobody says.
        trace: (seconds since the start, env_steps) of all rows, from the first on.
    """

    sps: float
    updates_per_s: float
    exchanges_per_s: float
    gate_share: float
    cpu_share: float
    rss_mb: float
    distance: float
    trace: Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class ClusterSpeed:
    """All learners in the order of their lines. ``facts``: of run.json of the first node; empty of a rival."""

    learners: Sequence[LearnerSpeed]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sps(self) -> float:
        return sum(learner.sps for learner in self.learners)

    @property
    def cpu(self) -> float:
        """Cores busy, all processes together."""
        return sum(learner.cpu_share for learner in self.learners)

    @property
    def exchanges_per_update(self) -> float:
        """How often a learner averaged another's parameters in, per update of its own: one exchange counts for both of its nodes."""
        return sum(learner.exchanges_per_s for learner in self.learners) / sum(learner.updates_per_s for learner in self.learners)

    def mean(self, name: str) -> float:
        """Of the learners' figures called ``name``."""
        return float(np.mean([getattr(learner, name) for learner in self.learners]))

    def document(self) -> dict[str, Any]:
        """For JSON, without the traces."""
        learners = [{key: value for key, value in asdict(learner).items() if key != "trace"} for learner in self.learners]
        return {"steps_per_second": self.sps, "cpu": self.cpu, "exchanges_per_update": self.exchanges_per_update, "learners": learners}


def measure_cluster(cluster: Cluster, *, seconds: float, warmup_s: float) -> ClusterSpeed:
    """Starts the learners, lets them train for ``warmup_s`` seconds, measures ``seconds`` more and stops them.

    Raises: ChildFailed: one of them did not get there; the text has its last words.
    """
    wait_without_spinning()
    ask_for_large_pages()
    config = endless(cluster)
    with tempfile.TemporaryDirectory(prefix="zpala-bench-") as folder, ExitStack() as stack:
        run_file = Path(folder, "run.toml")
        run_file.write_text(config.to_toml(), encoding="utf-8")
        children = [stack.enter_context(child) for child in _START[cluster.kind](cluster, Path(folder), run_file)]
        rows = watch(children, cluster.nodes, seconds, warmup_s)
        intervals = [measured(rows[name], seconds, warmup_s) for name in names(cluster.nodes)]
        learners = [learner_speed(interval or [], rows[name]) for name, interval in zip(names(cluster.nodes), intervals, strict=True)]
        of_run = Path(folder, "run", "nodes", names(1)[0], "run.json")
        return ClusterSpeed(learners, json.loads(of_run.read_text(encoding="utf-8")) if of_run.exists() else {})


def names(nodes: int) -> list[str]:
    return [f"n{line}" for line in range(nodes)]


def endless(cluster: Cluster) -> Config:
    """The configuration of ``cluster``'s run file: no end but ours, rows that come often, threads as it says."""
    config = cluster.config
    run = {"directory": None, "total_env_steps": NO_END, "target_return": None, "log_interval_s": ROW_INTERVAL_S}
    node = {"name": None, "listen": None, "insecure": False, "key": None, "threads": cluster.threads}
    config = config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "gossip": config.gossip.model_copy(update={"wait_for": "all", "start_timeout_s": START_LIMIT_S}),
            "node": config.node.model_copy(update=node),
        }
    )
    return synchronous(config) if cluster.kind == "sync" else config


def watch(children: Sequence[Child], learners: int, seconds: float, warmup_s: float) -> Mapping[str, list[Row]]:
    """Reads rows until each of ``learners`` learners has been measured, and stops ``children``; rows by the learners' names.

    Raises: ChildFailed: of the first that failed.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    done: set[str] = set()
    over = threading.Event()
    deadline = time.monotonic() + START_LIMIT_S + 10 * (warmup_s + seconds)

    def read(child: Child) -> None:
        for event in child.events(SILENCE_LIMIT_S):
            if over.is_set():
                return
            if time.monotonic() > deadline:
                raise ChildFailed("the cluster was not measured in time: its updates take too long for --seconds.", ExitCode.UNEXPECTED)
            if event.get("event") == "metrics":
                name = str(event["node"])
                rows[name].append(event)
                if measured(rows[name], seconds, warmup_s) is not None:
                    done.add(name)
                    if len(done) == learners:
                        over.set()
        if not over.is_set():
            raise ChildFailed("a learner ended before it was measured.", ExitCode.UNEXPECTED)

    with ThreadPoolExecutor(len(children), "bench") as pool:
        readers = [pool.submit(read, child) for child in children]
        try:
            finished, _ = wait(readers, return_when=FIRST_EXCEPTION)
            error = next((reader.exception() for reader in finished if reader.exception() is not None), None)
        finally:
            over.set()
        if error is not None:
            for child in children:
                child.kill()  # whoever waits for the one that failed says nothing more
            raise error
        list(pool.map(lambda child: child.stop(), children))
    return rows


def learner_speed(interval: Sequence[Row], rows: Sequence[Row]) -> LearnerSpeed:
    """The figures between the first and the last row of ``interval``, a part of ``rows``."""
    first, last = interval[0], interval[-1]
    seconds: float = last["time_s"] - first["time_s"]

    def per_second(name: str) -> float:
        grown: float = last.get(name, 0.0) - first.get(name, 0.0)
        return grown / seconds

    spent_s = np.diff([row["time_s"] for row in interval])
    return LearnerSpeed(
        sps=per_second("env_steps"),
        updates_per_s=per_second("updates"),
        exchanges_per_s=per_second("gossip/exchanges"),
        gate_share=per_second("gossip/gate_wait_s"),
        cpu_share=float(np.average([row["system/cpu_share"] for row in interval[1:]], weights=spent_s)),
        rss_mb=last["system/rss_mb"],
        distance=float(np.mean([row.get("gossip/consensus_distance", 0.0) for row in interval[1:]])),
        trace=[(row["time_s"], row["env_steps"]) for row in rows],
    )


def times_for_the_same(speeds: Sequence[ClusterSpeed], warmup_s: float) -> tuple[int, list[list[float]]]:
    """How long every learner of several clusters took for the same env_steps: from the most that any had made after ``warmup_s`` seconds to
    the least that any has made in the end, interpolated between rows.

    Returns: these env_steps, at least 1, and for each cluster the seconds of its learners.
    Raises: ChildFailed: there are none, because one is too slow.
    """
    traces = [learner.trace for speed in speeds for learner in speed.learners]
    first = max(next(env_steps for time_s, env_steps in trace if time_s >= warmup_s) for trace in traces)
    last = min(trace[-1][1] for trace in traces)
    if last <= first:
        raise ChildFailed(f"no learner's {first} env_steps are everybody's: measure for longer (--seconds).", ExitCode.UNEXPECTED)

    def took(trace: Sequence[tuple[float, int]]) -> float:
        times, env_steps = zip(*trace, strict=True)
        begin, end = np.interp([first, last], env_steps, times)
        return float(end - begin)

    return last - first, [[took(learner.trace) for learner in speed.learners] for speed in speeds]


# ------------------------------------------------------------------------------------------------------------------- what is started


def _nodes(cluster: Cluster, folder: Path, run_file: Path) -> list[Child]:
    hosts = folder / "hosts.txt"
    ports = free_ports(cluster.nodes)
    hosts.write_text("".join(f"{name} 127.0.0.1:{port}\n" for name, port in zip(names(cluster.nodes), ports, strict=True)))
    command = [sys.executable, "-m", "zpala", "node", "--peers", str(hosts), str(run_file), "--run-dir", str(folder / "run"), "--name"]
    return [
        Child(f"zpala node {name}", [*command, name], {FORMAT_VARIABLE: "json", **_slowness(cluster, line)})
        for line, name in enumerate(names(cluster.nodes))
    ]


def _synchronous(cluster: Cluster, folder: Path, run_file: Path) -> list[Child]:
    command = [sys.executable, "-m", "zpala.tools.bench_sync", str(run_file)]
    return [
        Child(
            f"synchronous learner {line}",
            [*command, str(line), str(cluster.nodes), str(cluster.threads), str(folder)],
            _slowness(cluster, line),
        )
        for line in range(cluster.nodes)
    ]


def _shared(cluster: Cluster, folder: Path, run_file: Path) -> list[Child]:
    settings = ShmSettings(str(run_file), cluster.nodes, cluster.shm_staleness, cluster.slowness, cluster.threads)
    return [Child("shared-memory learners", [sys.executable, "-m", "zpala.tools.bench_shm", json.dumps(asdict(settings))], {})]


def _slowness(cluster: Cluster, line: int) -> dict[str, str]:
    return {SLOWNESS_VARIABLE: str(cluster.slowness)} if line == cluster.nodes - 1 else {}


_START: Mapping[Kind, Callable[[Cluster, Path, Path], list[Child]]] = {"zpala": _nodes, "sync": _synchronous, "shm": _shared}
