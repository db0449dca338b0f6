"""A node averages with two others while strangers send it a million damaged messages: a long test, played by hand.

    python -m tests.soak.fuzz --frames 1000000 --half-open 1000 --exchanges 1000

Three real processes average vectors on localhost, first undisturbed, then again while other processes send the first of them damaged
messages as fast as it reads them and leave connections half-open. A short one is in node/test_hostile.py. What must hold is printed with
the figures as one JSON document; exit status 1 if anything did not:

* the node reads that many damaged messages, and makes that many exchanges meanwhile and before;
* its exchanges take, at the 99th percentile, at most three times what they take undisturbed, or 50 ms more;
* its memory does not grow, its descriptors are back where they were, no process says anything of an exception, all end in order;
* the sum of the vectors is what they started from.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.cluster.processes import Process, Processes
from tests.faults.gossip_cluster import end_in_order, last_row, total_at_end, total_at_start
from tests.soak.fuzz_frames import LINE as ATTACKER
from tests.soak.fuzz_node import HONEST
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.schema import Schema, TensorEntry

ROOT = Path(__file__).resolve().parents[2]
DRIFT = 2.0**-10  # of the first node in every round; the second has as much the other way, the third none
ROUNDING = 1e-3  # of a coordinate of the sum, after some ten thousand additions in float32
TIMES, MORE_S = 3.0, 0.05  # the 99th percentile may be that many times the undisturbed one, or that much above it
RSS_SLOPE = 1.0  # MB/min
RSS_SETTLES = 0.25  # of the time: what is cached once is no growth
BACK_S = 15.0  # a half-open connection is ended after HANDSHAKE_IVL, 3 s
POLL_S = 0.1
START_S = 60.0


@dataclass
class Play:
    """What was seen in one life of the three nodes."""

    began: float = 0.0
    ended: float = 0.0
    received: int = 0  # messages of strangers and of peers that the node read in that time
    rss: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB
    descriptors: tuple[int, int] = (0, 0)
    rows: list[dict[str, Any]] = field(default_factory=list)
    clients: list[dict[str, int]] = field(default_factory=list)
    durations: np.ndarray = field(default_factory=lambda: np.zeros(0))  # seconds, of exchanges of the first node, as who began them saw it
    own: int = 0  # of them it began itself
    sum_error: float = 0.0

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.durations, percent))

    def slope(self) -> float:
        """MB/min of the first node's memory once it has settled: the median over quarters of the time, as one step is no leak."""
        points = np.array(self.rss)
        late = points[points[:, 0] > points[0, 0] + RSS_SETTLES * (points[-1, 0] - points[0, 0])]
        stretch = max(1, len(points) // 4)
        grown, took = (late[stretch:, column] - late[:-stretch, column] for column in (1, 0))
        return 60 * float(np.median(grown / took))

    def figures(self) -> dict[str, Any]:
        return {
            "seconds": round(self.ended - self.began, 1),
            "exchanges": self.durations.size,
            "exchanges_began_itself": self.own,
            "exchange_p50_ms": round(1e3 * self.percentile(50), 2),
            "exchange_p99_ms": round(1e3 * self.percentile(99), 2),
            "exchange_max_ms": round(1e3 * float(self.durations.max()), 2),
            "messages_received": self.received,
            "rss_mb": [round(self.rss[number * (len(self.rss) - 1) // 8][1], 1) for number in range(9)],
            "rss_slope_mb_per_min": round(self.slope(), 2),
            "descriptors": self.descriptors,
            "sum_error": self.sum_error,
            "clients": self.clients,
            "last_row": self.rows[0],
        }


class Fuzz:
    """``options``: of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.violations: list[str] = []

    def play(self, disturbed: bool) -> Play:
        with tempfile.TemporaryDirectory(prefix="zpala-fuzz-") as folder:
            processes = Processes(Path(folder))
            try:
                return self._play(processes, Play(), disturbed)
            finally:
                processes.close()

    def _play(self, processes: Processes, play: Play, disturbed: bool) -> Play:
        options, size = self.options, self.options.size
        peers = processes.hosts(ATTACKER + 1)
        hosts = parse_hosts(peers.read_text(), str(peers))
        schema = Schema((TensorEntry("x", (size,), 0, size),), size)
        nodes = [
            _start(processes, "fuzz_node", "--peers", peers, "--node", line, "--size", size, "--drift", drift)
            for line, drift in enumerate((DRIFT, -DRIFT, 0.0))
        ]
        node = nodes[0]
        self._wait(lambda: _row(node).get("live", 0) == HONEST - 1, START_S, nodes, "everybody averages")
        before = _descriptors(node)
        clients: list[Process] = []
        play.began, received, applied = time.monotonic(), _row(node)["received"], _row(node)["applied"]
        if disturbed:
            agreement = json.dumps({"layout": schema.fingerprint, "hosts": hosts.digest})
            where = hosts[0].port
            clients = [
                _start(processes, "fuzz_client", "frames", where, seed, options.connections, 4 * size, agreement)
                for seed in range(options.seed, options.seed + options.clients)
            ]
            clients.append(_start(processes, "fuzz_client", "half-open", where, options.seed, options.half_open))
        goal = options.frames if disturbed else 0

        def done() -> bool:
            row = _row(node)
            play.rss.append((time.monotonic(), _rss_mb(node)))
            enough = row["received"] - received >= 1.05 * goal and row["applied"] - applied >= options.exchanges
            return bool(enough) and (not clients or not clients[-1].running())

        self._wait(done, 60 * options.limit_minutes, [*nodes, *clients[:-1]], "all that was asked for")
        play.ended, play.received = time.monotonic(), _row(node)["received"] - received
        for client in clients:
            if client.running():
                client.send(signal.SIGTERM)
        for client in clients:
            if client.end() != 0:
                self.violations.append(f"a client failed: {client.text}")
            play.clients += [json.loads(line) for line in client.lines if line.startswith("{")]
        self._wait(lambda: _descriptors(node) <= before, BACK_S, nodes, f"as many descriptors as before, {before}")
        play.descriptors = (before, _descriptors(node))
        play.rows = end_in_order(nodes)
        for process in nodes:
            if "Traceback" in process.text:
                self.violations.append(f"an exception: {process.text[-2000:]}")
        self._read_results(processes.folder, play)
        return play

    def _wait(self, condition: Callable[[], bool], limit_s: float, processes: list[Process], what: str) -> None:
        """Until ``condition()``; a violation when it takes longer, an error when a process ends meanwhile."""
        until = time.monotonic() + limit_s
        while True:
            for process in processes:
                process.read_on()
                if not process.running():
                    raise RuntimeError(f"a process has ended: {process.text[-3000:]}")
            if condition():
                return
            if time.monotonic() > until:
                self.violations.append(f"not within {limit_s:g} s: {what}; {_row(processes[0])}")
                return
            time.sleep(POLL_S)

    def _read_results(self, folder: Path, play: Play) -> None:
        durations = []
        for line in range(HONEST):
            ended_at, took_s, own, other = np.load(folder / f"{line}.exchanges.npy").T
            chosen = (ended_at >= play.began) & (ended_at <= play.ended) & (own > 0) & ((line == 0) | (other == 0))
            durations.append(took_s[chosen])
        play.durations, play.own = np.concatenate(durations), durations[0].size
        rounds = [row["rounds"] for row in play.rows]
        start = total_at_start(range(HONEST), self.options.size) + DRIFT * (rounds[0] - rounds[1])
        play.sum_error = float(np.abs(total_at_end(folder, range(HONEST)) - start).max())

    def judge(self, quiet: Play, loud: Play) -> None:
        options = self.options
        limit_s = max(TIMES * quiet.percentile(99), quiet.percentile(99) + MORE_S)
        bad, limited = loud.rows[0]["bad_frames"], loud.rows[0].get("rate_limited", 0)
        opened = sum(client.get("opened", 0) for client in loud.clients)
        for holds, text in (
            (quiet.durations.size >= options.exchanges, f"{quiet.durations.size} undisturbed exchanges"),
            (loud.durations.size >= options.exchanges, f"{loud.durations.size} disturbed exchanges"),
            (loud.received >= options.frames, f"{loud.received} messages arrived"),
            (bad > 0 and bad + limited <= loud.received, f"{bad} bad frames, {limited} dropped unread"),
            (opened == options.half_open, f"{opened} half-open connections"),
            (loud.percentile(99) <= limit_s, f"99 % of the exchanges within {loud.percentile(99):.4f} s; {limit_s:.4f} s are allowed"),
            (loud.slope() <= RSS_SLOPE, f"memory grows by {loud.slope():.2f} MB/min"),
            (max(quiet.sum_error, loud.sum_error) < ROUNDING, f"the sums are wrong by {quiet.sum_error:g} and {loud.sum_error:g}"),
        ):
            if not holds:
                self.violations.append(text)


def _start(processes: Processes, module: str, *arguments: object) -> Process:
    return processes(*arguments, cwd=ROOT, command=(sys.executable, "-m", f"tests.soak.{module}"))


def _row(node: Process) -> dict[str, Any]:
    return last_row(node) if any(line.startswith("{") for line in node.lines[-20:]) else {}


def _descriptors(node: Process) -> int:
    return sum(1 for _ in Path(f"/proc/{node.pid}/fd").iterdir())


def _rss_mb(node: Process) -> float:
    return int(Path(f"/proc/{node.pid}/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000, help="damaged messages that the node must have read")
    parser.add_argument("--half-open", type=int, default=1000)
    parser.add_argument("--exchanges", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2, help="processes that send")
    parser.add_argument("--connections", type=int, default=4, help="of each of them")
    parser.add_argument("--size", type=int, default=4096, help="coordinates of the vectors")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-minutes", type=float, default=8.0, help="for each half")
    fuzz = Fuzz(parser.parse_args())
    quiet = fuzz.play(disturbed=False)
    loud = fuzz.play(disturbed=True)
    fuzz.judge(quiet, loud)
    print(json.dumps({"undisturbed": quiet.figures(), "disturbed": loud.figures(), "violations": fuzz.violations}, indent=2))
    sys.exit(bool(fuzz.violations))


if __name__ == "__main__":
    main()
