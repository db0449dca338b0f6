"""Puts a model on the network: builds the protocol, its buffers, the proxy and the learner's port, and takes them down again.

Used by ``node.run_node`` and by programs that average a vector of their own (``examples/average_consensus.py``).
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import zmq

from zpala.gossip.events import Published
from zpala.gossip.gate import Gate
from zpala.gossip.hosts import HostList
from zpala.gossip.protocol import BUFFERS_MIN, LENT, Protocol
from zpala.gossip.schema import Schema
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology
from zpala.node.claim import Claim
from zpala.node.hosts_file import Growth, HostsFile, HostsWatch
from zpala.node.keys import Keyring
from zpala.node.port import GossipPort
from zpala.node.proxy import Proxy
from zpala.node.snapshots import SnapshotBuffers, copier, host_vectors
from zpala.node.sockets import DEAD_LINK_S
from zpala.node.threads import flush_denormals
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor


class Connection:
    """One node's part in gossip, open from ``__enter__`` to ``__exit__``.

    Args:
        claim: the node's line, its listening socket, and its key when the lines of ``hosts`` have keys.
        agreement: what every node of the run must have equal (design D8), see ``Protocol``.
        hosts_file: where ``hosts`` was read; nodes that are appended to it come in while the run lives. None: the list stays as it is.
        weights: the live model, flat f32[numel].
        budget: env_steps of the whole cluster.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        supervisor: Supervisor,
        *,
        claim: Claim,
        hosts: HostList,
        topology: Topology,
        agreement: Mapping[str, str],
        schema: Schema,
        settings: GossipSettings,
        weights: Weights,
        budget: int,
        target_return: float | None = None,
        hosts_file: Path | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        growths: deque[Growth] = deque()
        self._watch: HostsWatch | None = None
        if hosts_file is not None:
            self._watch = HostsWatch(context, supervisor, HostsFile(hosts_file, hosts, topology), growths)
        device, numel = weights.parameters.device, weights.parameters.numel()
        buffers, parts = (host_vectors(count, numel, device) for count in (BUFFERS_MIN, len(weights.part_names)))
        state_parts = {name: part.numpy() for name, part in zip(weights.part_names, parts, strict=True)}
        snapshots: SnapshotBuffers[Published] = SnapshotBuffers(buffers, copier(device, LENT))
        self.protocol = Protocol(
            line=claim.line,
            hosts=hosts,
            topology=topology,
            agreement=agreement,
            schema=schema,
            settings=settings,
            node=hosts.hosts[claim.line].name,
            incarnation=time.time_ns(),
            nonce=secrets.token_bytes(8),
            buffers=[buffer.numpy() for buffer in buffers],
            state_parts=state_parts,
            budget=budget,
            target_return=target_return,
            rng=random.Random(int.from_bytes(os.urandom(8), "little")),
            now=time.monotonic(),
        )
        self._vectors = (*buffers, *parts)  # the NumPy views borrow this memory
        self._proxy = Proxy(
            context,
            supervisor,
            self.protocol,
            listener=claim.listener,
            addresses={host.line: (host.address, host.port) for host in hosts.hosts},
            dead_link_s=max(DEAD_LINK_S, 2.0 * settings.exchange_timeout_s),
            growths=growths,
            keyring=None if claim.key is None else Keyring(claim.key, {host.line: host.key or "" for host in hosts}),
            prepare=flush_denormals,
        )
        self._make_port: Callable[[], GossipPort] = lambda: GossipPort(
            self._proxy.mailbox,
            supervisor,
            weights,
            snapshots,
            Gate(settings.max_staleness, settings.gate_limit_s, settings.max_lead),
            buffers=self.protocol.buffers,
            state_parts=state_parts,
            interrupted=interrupted,
        )

    def __enter__(self) -> GossipPort:
        self._proxy.start()
        if self._watch is not None:
            self._watch.start()
        self.port = self._make_port()
        return self.port

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None or self.port.drained is None:
            self.port.leave()
        if self._watch is not None:
            self._watch.stop()
        self._proxy.stop()
