"""A node without learning: one vector, real proxies, a real process, as in ``examples/average_consensus.py``, for tests that break it.

    python gossip_node.py --peers hosts.txt --node 1 --size 4096 [--listen HOST:PORT] [--drift X] [--key FILE]

With ``--drift`` it adds X to every coordinate in every round, as if it learned. Says how far it is in one JSON object per line, whenever
that has changed. SIGTERM ends it: it drains, says its last row, and saves its vector as ``<node>.npy`` beside the hosts file. Everybody
can compute the vector that a node starts from.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.gate import Gate
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.node.claim import claim_line
from zpala.node.connection import Connection
from zpala.node.keys import read_key
from zpala.node.port import Progress
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor

PERIOD_S = 0.01  # between two update boundaries
ROW_S = 0.2  # between two rows; a reader that looks away for long must not fill the pipe
BUDGET = 10**12  # never reached: SIGTERM ends a node
# A peer is missed sooner than by default, still late enough for a busy machine, and a doubt is given up sooner.
SETTINGS = GossipSettings(
    initial="own",
    max_distance=10.0,
    max_share=0.5,
    heartbeat_s=0.3,
    suspect_s=1.5,
    dead_s=3.0,
    offer_timeout_s=1.0,
    exchange_timeout_s=2.0,
    retransmit_s=0.3,
    keep_s=3.0,
    gate_limit_s=30.0,
)
SHOWN = (
    "aborted",
    "unanswered",
    "applied",
    "applied_late",
    "buffers_free",
    "bad_frames",
    "rate_limited",
    "dead",
    "defects",
    "deltas_queued",
    "doubts",
    "doubts_open",
    "rejected_checksum",
    "retransmits",
    "sends_in_flight",
    "suspects",
)


def start_vector(line: int, size: int) -> np.ndarray:
    """f32[size] of node ``line``."""
    return np.random.default_rng(line).normal(1.0, 0.5, size).astype(np.float32)


class _Counted(Gate):
    """Counts the deltas that were added, by the line that they came from."""

    def __init__(self) -> None:
        super().__init__(SETTINGS.max_staleness, SETTINGS.gate_limit_s)
        self.mixed_with: Counter[int] = Counter()

    def mixed(self, line: int, peer_version: int, updates: int, from_doubt: bool = False) -> bool:
        self.mixed_with[line] += 1
        return super().mixed(line, peer_version, updates, from_doubt)


def _count_closed(connection: Connection, lines: int) -> dict[int, int]:
    """Exchanges with each line that were begun and ended without being applied, whoever ended them; who is busy began none."""
    closed = dict.fromkeys(range(lines), 0)  # all lines at once: the proxy's thread counts while this one reads
    exchanges = connection.protocol._exchanges
    ended = exchanges._ended

    def count(ending: Ending, now: float) -> None:
        closed[ending.exchange.peer.line] += ending.step not in (Step.COMPLETED, Step.REFUSED)
        ended(ending, now)

    exchanges._ended = count
    return closed


class _Rows:
    def __init__(self, connection: Connection, gate: _Counted, closed: dict[int, int]) -> None:
        self._connection = connection
        self._gate = gate
        self._closed = closed
        self._last: dict[str, Any] = {}
        self._due = 0.0

    def say(self, *, rounds: int, live: int, force: bool = False) -> None:
        """``rounds`` alone is no change. The counters belong to the proxy's thread: seen from here they may be a moment old."""
        if time.monotonic() < self._due and not force:
            return
        metrics = self._connection.protocol.metrics()
        received = self._connection.port.counters.messages_received
        row: dict[str, Any] = {"live": live, "with": dict(self._gate.mixed_with), "closed": dict(self._closed), "received": received}
        row.update({name: metrics[name] for name in SHOWN})
        if row != self._last or force or rounds % 100 == 0:
            sys.stdout.write(json.dumps({"rounds": rounds, **row}) + "\n")
            sys.stdout.flush()
            self._last, self._due = row, time.monotonic() + ROW_S


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--listen", default=None)
    parser.add_argument("--drift", type=float, default=0.0)
    parser.add_argument("--key", type=Path, default=None)
    given = parser.parse_args()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0002)
    hosts = parse_hosts(given.peers.read_text(encoding="utf-8"), str(given.peers))
    topology = load_topology("full", len(hosts))
    vector = torch.from_numpy(start_vector(given.node, given.size))
    schema = Schema((TensorEntry("x", (given.size,), 0, given.size),), given.size)
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        supervisor = Supervisor(context)
        stack.callback(supervisor.close)
        keys = () if given.key is None else (read_key(given.key),)
        claim = claim_line(hosts, name=hosts.hosts[given.node].name, listen=given.listen, keys=keys)
        stack.callback(claim.close)
        connection = Connection(
            context,
            supervisor,
            claim=claim,
            hosts=hosts,
            topology=topology,
            agreement={"layout": schema.fingerprint, "hosts": hosts.digest},
            schema=schema,
            settings=SETTINGS,
            weights=Weights(vector),
            budget=BUDGET,
        )
        closed = _count_closed(connection, len(hosts))
        with connection as port:
            port.gate = gate = _Counted()
            rows = _Rows(connection, gate, closed)
            port.join(90.0)
            rounds = 0
            while not told and not port.view.finish_reason:
                port.boundary(Progress(updates=rounds, env_steps=rounds))
                vector += given.drift
                port.updated()
                rounds += 1
                rows.say(rounds=rounds, live=port.view.live)
                time.sleep(PERIOD_S)
            port.drain("budget", Progress(updates=rounds, env_steps=rounds), SETTINGS.drain_s + 5.0)
        rows.say(rounds=rounds, live=port.view.live, force=True)
    np.save(given.peers.with_name(f"{given.node}.npy"), vector.numpy())


if __name__ == "__main__":
    main()
