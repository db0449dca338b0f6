"""What a slow link costs and what is got out of it: two learning nodes with and without gossip, in turn. A measurement, played by hand.

    python -m tests.soak.link_speed --mbit 100 1000 --pairs 5 --json link_speed.jsonl

Needs root and iproute2, and a machine that does nothing else. Two network namespaces are joined by a cable on which each side's sending is
limited to so many Mbit/s (a token bucket). On each runs a real ``zpala node``, which exchanges as often as it can (``gossip.max_share`` 1);
its environments sleep, so that the cores are not what is short. Of every rate:

* the learners' env_steps/s with gossip : without, over neighbouring runs;
* exchanges per second : what the link allows. That is measured too, between the runs: both vectors over one plain TCP connection at once,
  nothing computed.

One line per run and one per rate; every rate is appended to ``--json`` as one object. Nothing is judged: exit status 0.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster.processes import ZPALA, vector
from tests.faults import namespaces
from tests.faults.namespaces import Cable, Host
from tests.soak.learning import source_commit
from zpala.config import Config, load_config
from zpala.console import FORMAT_VARIABLE
from zpala.tools.bench_circumstances import cores_here
from zpala.tools.bench_cluster_run import Cluster, ClusterSpeed, endless, learner_speed, names, watch
from zpala.tools.bench_node import measured
from zpala.tools.bench_pairs import Pair, orders, summarise
from zpala.tools.child import Child
from zpala.tools.sleeping_environment import NAME as SLEEPING

PORT = 5670
BURST_S = 0.002  # of the token bucket
BURST_BYTES = 65_536  # at least: one segment as the kernel hands it over
VECTORS = 10  # one after the other, for what the link allows
LIMIT_S = 120.0


def configuration(hidden: int, step_s: float, gossip: bool) -> Config:
    """``hidden``: width of both layers of both networks; ``step_s``: seconds that a step of the environments takes."""
    settings: dict[str, Any] = {
        "environment.id": SLEEPING,
        "environment.num_envs": 8,
        "environment.args": {"step_s": step_s},
        "network.hidden_sizes": [hidden, hidden],
        "gossip.enabled": gossip,
        "gossip.max_share": 1.0,
    }
    return load_config(None, settings, {})


def learn(cable: Cable, config: Config, seconds: float, warmup_s: float) -> tuple[ClusterSpeed, int]:
    """One run of two nodes, and the bytes of a model, float32. Raises ChildFailed."""
    cluster = Cluster(config, nodes=2)
    labels = names(2)
    with tempfile.TemporaryDirectory(prefix="zpala-link-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "run.toml").write_text(endless(cluster).to_toml(), encoding="utf-8")
        lines = [f"{label} {host.address}:{PORT}\n" for label, host in zip(labels, cable.hosts, strict=True)]
        (folder / "hosts.txt").write_text("".join(lines), encoding="utf-8")
        words = ["node", "--peers", str(folder / "hosts.txt"), str(folder / "run.toml"), "--run-dir", str(folder / "run"), "--insecure"]
        children = [
            stack.enter_context(Child(f"zpala node {label}", [*host.command, *ZPALA, *words, "--name", label], {FORMAT_VARIABLE: "json"}))
            for label, host in zip(labels, cable.hosts, strict=True)
        ]
        rows = watch(children, 2, seconds, warmup_s)
        learners = [learner_speed(measured(rows[label], seconds, warmup_s) or [], rows[label]) for label in labels]
        return ClusterSpeed(learners), 4 * vector(folder / "run/nodes" / labels[0]).size


def link_s(hosts: Sequence[Host], nbytes: int) -> float:
    """Seconds that ``nbytes`` bytes both ways at once take over plain TCP, on average of ``VECTORS``."""
    listener = hosts[0].server(PORT)
    try:
        dialled = hosts[1].dial(hosts[0], PORT)
        accepted, _ = listener.accept()
    finally:
        listener.close()
    ends = (dialled, accepted)
    threads = [threading.Thread(target=_read, args=(end, VECTORS * nbytes)) for end in ends]
    threads += [threading.Thread(target=_write, args=(end, VECTORS, nbytes)) for end in ends]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    took = time.monotonic() - began
    for end in ends:
        end.close()
    assert not any(thread.is_alive() for thread in threads), f"the link takes more than {LIMIT_S:g} s for {VECTORS} vectors"
    return took / VECTORS


def _read(end: socket.socket, nbytes: int) -> None:
    place = memoryview(bytearray(1 << 20))
    while nbytes > 0:
        got = end.recv_into(place)
        assert got, "the link ended"
        nbytes -= got


def _write(end: socket.socket, count: int, nbytes: int) -> None:
    payload = bytes(nbytes)
    for _ in range(count):
        end.sendall(payload)


def measure(mbit: int, options: argparse.Namespace) -> dict[str, Any]:
    """All pairs of one rate."""
    pairs: list[Pair] = []
    runs: list[ClusterSpeed] = []
    shares: list[float] = []
    nbytes = 0
    with namespaces.two_hosts() as cable, ExitStack() as stack:
        burst = max(BURST_BYTES, round(125_000 * mbit * BURST_S))
        for host in cable.hosts:
            stack.enter_context(cable.limited(host, 1_000_000 * mbit, burst_bytes=burst))
        for order in orders(options.pairs):
            speeds: dict[bool, ClusterSpeed] = {}
            for gossip in (True, False) if order == "AB" else (False, True):
                config = configuration(options.hidden, options.step_s, gossip)
                speeds[gossip], nbytes = learn(cable, config, options.seconds, options.warmup)
            allowed = 1 / link_s(cable.hosts, nbytes)
            pairs.append(Pair(order, speeds[True].sps, speeds[False].sps))
            runs.append(speeds[True])
            shares.append(speeds[True].mean("exchanges_per_s") / allowed)
            print(
                f"{mbit} Mbit/s: {speeds[True].sps:,.0f} / {speeds[False].sps:,.0f} env_steps/s = {pairs[-1].ratio:.3f}, "
                f"{speeds[True].mean('exchanges_per_s'):.2f} of {allowed:.2f} exchanges/s = {shares[-1]:.3f}, "
                f"cores busy {speeds[True].cpu:.2f} / {speeds[False].cpu:.2f}",
                flush=True,
            )
    summary = summarise(pairs)
    print(f"{mbit} Mbit/s, {nbytes / 1e6:.1f} MB: env_steps/s with gossip : without {summary}; exchanges {statistics.median(shares):.3f}")
    return {
        "mbit": mbit,
        "nbytes": nbytes,
        "cores": cores_here(),
        "step_s": options.step_s,
        "seconds": options.seconds,
        "commit": source_commit(),
        "pairs": [asdict(pair) for pair in pairs],
        "ratio": asdict(summary),
        "exchange_shares": shares,
        "with_gossip": [run.document() for run in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=int, nargs="+", default=[100, 1000], help="of the link, each way")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run, after --warmup")
    parser.add_argument("--warmup", type=float, default=3.0)
    parser.add_argument(
        "--hidden", type=int, default=920, help="width of both hidden layers of both networks: 920 make 1.7 million parameters"
    )
    parser.add_argument("--step-s", type=float, default=0.02, help="seconds that a step of the environments takes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    obstacle = namespaces.obstacle("tc")
    if obstacle is not None:
        sys.exit(f"tests.soak.link_speed: {obstacle}")
    for mbit in options.mbit:
        found = measure(mbit, options)
        if options.json is not None:
            with options.json.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
