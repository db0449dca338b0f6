"""A node without learning, for ``zpala bench exchange``: a real protocol, a real proxy, and a learner that only publishes and applies.

Runs twice as a process of its own (see ``bench_peers``). Side 0 asks for one exchange after the other: it says that its gate is closed, as
a learner does that must not start its next update, so that the limit on gossip's share of the node does not apply. Side 1 answers. Both
publish whenever they have applied a delta, as every update boundary does. All guards are on.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from zpala.gossip import events
from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.protocol import BUFFERS_MIN, Protocol
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.node import sockets
from zpala.node.keys import Keyring, SecretKey, read_key
from zpala.node.mailbox import GateChanged, SnapshotReady
from zpala.node.proxy import Proxy
from zpala.node.threads import flush_denormals, prepare_process
from zpala.node.worker import Supervisor
from zpala.tools.bench_stamps import StampedProtocol, Stamps
from zpala.tools.bench_vectors import Vector, digest, start_vector
from zpala.tools.child import orders, say
from zpala.tools.parent import die_with_parent

LIMIT_S = 30.0
AGAIN_S = 0.5  # an exchange that came to nothing is asked for again after this
NO_END = 10**12


@dataclass(frozen=True, slots=True)
class Settings:
    """``size``: floats of the vector; ``key_files``: of both sides' secret keys, ``keys``: the public ones; "": no keys."""

    size: int
    side: int
    key_files: tuple[str, ...] = ("", "")
    keys: tuple[str, ...] = ("", "")

    @property
    def key(self) -> SecretKey | None:
        """This side's own. Raises SecurityRefused."""
        return read_key(Path(self.key_files[self.side])) if self.key_files[self.side] else None


class Learner:
    """Applies every delta at once and publishes after it; ``vector`` f32[size] is its model."""

    def __init__(self, proxy: Proxy, vector: Vector, buffers: Sequence[Vector], supervisor: Supervisor) -> None:
        self.vector = vector
        self.applied = 0
        self.stamps: list[tuple[float, float, float]] = []  # per delta: mail read, delta applied, snapshot handed over
        self._mailbox, self._supervisor = proxy.mailbox, supervisor
        self._buffers = buffers
        self._lent: deque[int] = deque()
        self._changed = False  # since the last snapshot
        self.ready = False  # the first snapshot has been handed over

    def turn(self, limit_s: float) -> None:
        """Waits for mail, at most ``limit_s`` seconds, and does what it says. Raises WorkerFailed."""
        self._mailbox.socket.poll(round(1000 * limit_s))
        self._supervisor.raise_if_failed()
        for message in self._mailbox.receive():
            match message:
                case events.Start():
                    self._changed = True
                case events.DeltaQueued(buffer=buffer):
                    read = time.monotonic()
                    self.vector += self._buffers[buffer]
                    self.applied += 1
                    self._changed = True
                    applied = time.monotonic()
                    self._publish()
                    self.stamps.append((read, applied, time.monotonic()))
                case events.SnapshotLent(buffer=buffer):
                    self._lent.append(buffer)
                case events.Fatal(text=text):
                    raise RuntimeError(text)
        self._publish()

    def ask(self) -> None:
        """For one exchange, now."""
        self._mailbox.send(GateChanged(True))
        self._mailbox.send(GateChanged(False))

    def _publish(self) -> None:
        if self._changed and self._lent:
            buffer = self._lent.popleft()
            np.copyto(self._buffers[buffer], self.vector)
            self._changed, self.ready = False, True
            # Nothing has been learnt: the version stays, and the proxy has no reason to offer by itself.
            published = events.Published(version=0, updates=0, applied_through=self.applied, waiting=True)
            self._mailbox.send(SnapshotReady(buffer, published))


class Node:
    """One side, from its start to its end."""

    def __init__(self, settings: Settings, hosts: HostList, listener: Any) -> None:
        key = settings.key
        self._context = sockets.node_context(encrypted=key is not None)
        self._supervisor = Supervisor(self._context)
        size, line = settings.size, settings.side
        state, *buffers = (np.zeros(size, dtype=np.float32) for _ in range(1 + BUFFERS_MIN))
        schema = Schema((TensorEntry("x", (size,), 0, size),), size)
        protocol = Protocol(
            line=line,
            hosts=hosts,
            topology=load_topology("full", len(hosts)),
            agreement={"schema": schema.fingerprint},
            schema=schema,
            settings=GossipSettings(initial="own"),
            node=hosts[line].name,
            incarnation=time.time_ns(),
            nonce=bytes([line + 1]) * 8,
            buffers=buffers,
            state_parts={"parameters": state},
            budget=NO_END,
            rng=random.Random(line),
            now=time.monotonic(),
        )
        self.stamps = Stamps()
        self._goal = 0  # deltas that every block so far has led to
        self._proxy = Proxy(
            self._context,
            self._supervisor,
            cast(Protocol, StampedProtocol(protocol, self.stamps)),
            listener=listener,
            addresses={host.line: (host.address, host.port) for host in hosts},
            keyring=None if key is None else Keyring(key, {host.line: host.key or "" for host in hosts}),
            prepare=flush_denormals,
        )
        self._proxy.start()
        self.learner = Learner(self._proxy, start_vector(line, size), protocol.buffers, self._supervisor)

    def join(self) -> None:
        """Until the run has started and the first snapshot is on its way to the proxy. Raises TimeoutError."""
        deadline = time.monotonic() + LIMIT_S
        while not self.learner.ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run did not start within {LIMIT_S:g} s")
            self.learner.turn(0.1)

    def block(self, count: int, *, asks: bool) -> dict[str, Any]:
        """``count`` exchanges, one after the other, as ``bench_peers.Block`` wants it."""
        learner, cpu_s, repeats = self.learner, time.process_time(), 0
        self._goal = goal = self._goal + count  # side 1 may have answered already
        deadline = time.monotonic() + LIMIT_S
        while learner.applied < goal:
            if asks:
                learner.ask()
            before, patience = learner.applied, time.monotonic() + AGAIN_S
            while learner.applied == before and time.monotonic() < patience:
                learner.turn(AGAIN_S)
            repeats += learner.applied == before
            if time.monotonic() > deadline:
                raise TimeoutError(f"{learner.applied} of {goal} exchanges within {LIMIT_S:g} s")
        cpu_s = time.process_time() - cpu_s
        rows = self.stamps.take(learner.stamps)
        learner.stamps.clear()
        return {
            "event": "block",
            "starts": [row["frozen_from"] for row in rows],
            "ends": [row["applied"] for row in rows],
            "cpu_s": cpu_s,
            "rows": rows,
            "repeats": repeats,
        }

    def close(self) -> None:
        self._proxy.stop()
        self._supervisor.close()
        self._context.destroy(linger=0)


def main() -> None:
    """Does what its orders say."""
    die_with_parent(os.environ)
    prepare_process(1)
    settings = Settings(**json.loads(sys.argv[1]))
    listener = sockets.listening_socket("127.0.0.1", 0)
    say({"event": "here", "port": listener.getsockname()[1]})
    told = orders()
    peers = next(told)["peers"]
    lines = [f"n{line} 127.0.0.1:{peer['port']} {key}" for line, (peer, key) in enumerate(zip(peers, settings.keys, strict=True))]
    node = Node(settings, parse_hosts("\n".join(lines), "hosts.txt"), listener)
    try:
        node.join()
        say({"event": "ready"})
        for order in told:
            if "result" in order:
                say({"event": "result", **digest(node.learner.vector)})
            else:
                say(node.block(order["count"], asks=settings.side == 0))
    finally:
        node.close()


if __name__ == "__main__":
    main()
