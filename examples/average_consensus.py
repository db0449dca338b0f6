"""Gossip alone, without learning: N processes, one vector each, and how far they are from the mean of all starts.

    python examples/average_consensus.py --nodes 8 --size 1700000 --slow 10

Every process starts from another vector, one of them works ``--slow`` times slower, and all of them exchange with random partners until
everybody has the mean. Prints the distance from the true mean while it shrinks, then checks three things against the vectors at the
start: every node has the mean, the mean of the nodes has not moved, and what it cost in bytes. Exit status 0 when both distances are
below ``--tolerance``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zmq

from zpala.gossip.hosts import parse_hosts
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.node.claim import claim_line
from zpala.node.connection import Connection
from zpala.node.port import Progress
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor
from zpala.tools.launch import free_ports

PERIOD_S = 0.01  # between two update boundaries of a fast node


def start_vector(line: int, size: int) -> np.ndarray:
    """The vector f32[size] that node ``line`` starts from; anybody can compute it, so that the true mean is known."""
    return np.random.default_rng(line).normal(1.0, 0.5, size).astype(np.float32)


def true_mean(nodes: int, size: int) -> np.ndarray:
    """Mean of all starts in float64."""
    mean = np.zeros(size)
    for line in range(nodes):
        mean += start_vector(line, size) / nodes
    return mean


def distance(vector: np.ndarray, mean: np.ndarray) -> float:
    """Relative distance ||x - mean|| / ||mean||."""
    return float(np.linalg.norm(vector - mean) / np.linalg.norm(mean))


def node(arguments: argparse.Namespace) -> int:
    """One process: join, exchange until the rounds are over and the neighbours are close, save the vector."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0002)
    hosts = parse_hosts(arguments.peers.read_text(encoding="utf-8"), str(arguments.peers))
    topology = load_topology(arguments.topology, len(hosts))
    size = arguments.size - arguments.size % 16
    vector = torch.from_numpy(start_vector(arguments.node, size))
    mean = true_mean(len(hosts), size)
    schema = Schema((TensorEntry("x", (size,), 0, size),), size)
    settings = GossipSettings(initial="own", max_distance=2.0, drain_distance=3e-7, drain_s=30.0, max_share=0.5)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    supervisor = Supervisor(context)
    claim = claim_line(hosts, name=hosts.hosts[arguments.node].name)
    period_s = PERIOD_S * (arguments.slow if arguments.node == 0 else 1)
    connection = Connection(
        context,
        supervisor,
        claim=claim,
        hosts=hosts,
        topology=topology,
        agreement={"layout": schema.fingerprint, "hosts": hosts.digest, "topology": topology.digest()},
        schema=schema,
        settings=settings,
        weights=Weights(vector),
        budget=arguments.rounds * len(hosts),
    )
    with connection as port:
        port.join(90.0)
        rounds, started, told = 0, time.monotonic(), 0.0
        while not port.view.finish_reason and port.view.other_env_steps + rounds < arguments.rounds * len(hosts):
            port.boundary(Progress(updates=rounds, env_steps=rounds))
            port.updated()
            rounds += 1
            if (elapsed := time.monotonic() - started) >= told:
                told = elapsed + 0.5
                print(json.dumps({"node": arguments.node, "t": round(elapsed, 2), "distance": distance(vector.numpy(), mean)}), flush=True)
            time.sleep(period_s)
        port.drain("budget", Progress(updates=rounds, env_steps=rounds), settings.drain_s + 5.0)
        summary = {
            "node": arguments.node,
            "rounds": rounds,
            "exchanges": port.view.exchanges,
            "bytes_sent": port.view.bytes_sent,
            "bytes_received": port.view.bytes_received,
            "defects": port.view.defects,
            "seconds": round(time.monotonic() - started, 2),
        }
    np.save(arguments.peers.with_name(f"{arguments.node}.npy"), vector.numpy())
    print(json.dumps({"summary": summary}), flush=True)
    supervisor.close()
    context.destroy(linger=0)
    claim.close()
    return 0


def main(arguments: argparse.Namespace) -> int:
    """Starts the processes, shows what they say, judges the result."""
    with tempfile.TemporaryDirectory() as folder:
        peers = Path(folder) / "hosts.txt"
        peers.write_text("".join(f"n{i} 127.0.0.1:{port}\n" for i, port in enumerate(free_ports(arguments.nodes))), encoding="utf-8")
        command = [sys.executable, __file__, "--peers", str(peers), "--topology", arguments.topology]
        for option in ("size", "slow", "rounds"):
            command += [f"--{option}", str(getattr(arguments, option))]
        processes = [subprocess.Popen([*command, "--node", str(i)], stdout=subprocess.PIPE, text=True) for i in range(arguments.nodes)]
        try:
            outputs = [process.communicate(timeout=arguments.limit)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            print(f"exit statuses {[process.returncode for process in processes]}", file=sys.stderr)
            return 1
        rows = [json.loads(line) for output in outputs for line in output.splitlines()]
        size = arguments.size - arguments.size % 16
        mean = true_mean(arguments.nodes, size)
        ends = [np.load(Path(folder) / f"{i}.npy") for i in range(arguments.nodes)]

    print("seconds   largest distance from the mean")
    by_time: dict[float, list[float]] = {}
    for row in rows:
        if "t" in row:
            by_time.setdefault(round(2 * row["t"]) / 2, []).append(row["distance"])
    for t, distances in sorted(by_time.items()):
        print(f"{t:7.1f}   {max(distances):.2e}")
    for row in rows:
        if "summary" in row:
            print("  ".join(f"{key} {value}" for key, value in row["summary"].items()))
    worst = max(distance(end, mean) for end in ends)
    moved = distance(sum(end.astype(np.float64) for end in ends) / len(ends), mean)
    sent = sum(row["summary"]["bytes_sent"] for row in rows if "summary" in row)
    good = worst < arguments.tolerance and moved < arguments.tolerance
    print(f"worst node {worst:.2e} from the true mean, mean of the nodes moved by {moved:.2e}, {sent / 1e6:.1f} MB sent")
    print("good" if good else f"BAD: more than {arguments.tolerance:g}")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8, help="processes")
    parser.add_argument("--size", type=int, default=100_000, help="floats of the vector")
    parser.add_argument("--slow", type=float, default=10.0, help="how many times slower node 0 is")
    parser.add_argument("--rounds", type=int, default=200, help="mean number of update boundaries per node before the drain")
    parser.add_argument("--topology", default="full")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative distance")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which everything is stopped")
    parser.add_argument("--node", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--peers", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.exit(main(given) if given.node is None else node(given))
