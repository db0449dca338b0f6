"""What do keys cost? Two real processes average a large vector on localhost, with keys and without, in turn: a measurement, played by hand.

    python -m tests.soak.keys --pairs 3 --seconds 20

Printed for each play, and as medians: exchanges per second, and CPU time per exchange and node, which includes whatever else the two do
in that time. A vector of f32 goes each way in an exchange.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.cluster.processes import Process, Processes
from tests.faults.gossip_cluster import GOSSIP, wait_for_row
from zpala.node.keys import new_key
from zpala.tools.launch import free_ports

NODES = 2
START_S = 60.0
WARM_EXCHANGES = 20


def cpu_s(process: Process) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def play(keyed: bool, size: int, seconds: float) -> dict[str, float]:
    """Exchanges per second, and CPU milliseconds per exchange and node."""
    with tempfile.TemporaryDirectory(prefix="zpala-keys-") as folder:
        processes = Processes(Path(folder))
        try:
            hosts = Path(folder, "hosts.txt")
            keys = [new_key(Path(folder), f"k{line}") if keyed else None for line in range(NODES)]
            ports = free_ports(NODES)
            hosts.write_text("".join(f"n{line} 127.0.0.1:{ports[line]} {key.public if key else ''}\n" for line, key in enumerate(keys)))
            nodes = [
                processes("--peers", hosts, "--node", line, "--size", size, *(("--key", key.path) if key else ()), command=GOSSIP)
                for line, key in enumerate(keys)
            ]
            first = nodes[0]
            row = wait_for_row(first, lambda row: row["applied"] >= WARM_EXCHANGES, "they average", START_S)
            applied, spent, began = row["applied"], sum(map(cpu_s, nodes)), time.monotonic()
            row = wait_for_row(
                first, lambda row: time.monotonic() - began >= seconds and row["applied"] > applied, "they go on", 3 * seconds
            )
            took, spent = time.monotonic() - began, sum(map(cpu_s, nodes)) - spent
            for node in nodes:
                node.send(signal.SIGTERM)
            for node in nodes:
                if node.end() != 0:
                    raise RuntimeError(node.text)
        finally:
            processes.close()
    exchanges = row["applied"] - applied
    return {"exchanges_per_s": round(exchanges / took, 2), "cpu_ms_per_exchange_and_node": round(1e3 * spent / exchanges / NODES, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--size", type=int, default=1_700_000, help="coordinates of the vector")
    options = parser.parse_args()
    plays: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for _ in range(options.pairs):
        for name, played in plays.items():
            played.append(play(name == "with", options.size, options.seconds))
            print(name, played[-1], file=sys.stderr, flush=True)
    medians = {name: {what: median(each[what] for each in played) for what in played[0]} for name, played in plays.items()}
    print(json.dumps({"medians": medians, "plays": plays}, indent=2))


if __name__ == "__main__":
    main()
