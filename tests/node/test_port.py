"""When the learner's end of gossip publishes, seen from the proxy's end of the mailbox, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import zmq

from zpala.gossip.events import Published, SnapshotLent, View
from zpala.gossip.gate import Gate
from zpala.node.mailbox import Mailbox, SnapshotReady
from zpala.node.port import ALONE_S, PUBLISH_SHARE, GossipPort, Progress
from zpala.node.snapshots import Completed, SnapshotBuffers
from zpala.node.sockets import inproc_pair_bound, inproc_pair_connected
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor

COPY_S = 0.001


class Bench:
    """A port and the other end of its mailbox. Every copy takes ``COPY_S`` of the clock."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.now = 100.0
        self.parameters = torch.zeros(16)
        self._vectors = [torch.zeros(16) for _ in range(2)]
        self._proxy = Mailbox(inproc_pair_bound(context, "inproc://test-port"))
        self._learner = Mailbox(inproc_pair_connected(context, "inproc://test-port"))
        self._supervisor = Supervisor(context)
        snapshots: SnapshotBuffers[Published] = SnapshotBuffers(self._vectors, self._copy)
        buffers = [vector.numpy() for vector in self._vectors]
        self.port = GossipPort(
            self._learner,
            self._supervisor,
            Weights(self.parameters),
            snapshots,
            Gate(16, 1.0, 0),
            buffers=buffers,
            state_parts={},
            clock=lambda: self.now,
        )
        for number in range(len(self._vectors)):
            self._proxy.send(SnapshotLent(buffer=number))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> Completed:
        target.copy_(source)
        self.now += COPY_S
        return Completed()

    def hear(self, live: int) -> None:
        self._proxy.send(View(live=live))

    def update(self, seconds: float) -> list[int]:
        """One update that ends so much later, and its boundary; the versions that were published there."""
        self.now += seconds
        self.parameters += 1.0
        self.port.updated()
        self.port.boundary(Progress(updates=self.port.version))
        found = []
        for message in self._proxy.receive():
            assert isinstance(message, SnapshotReady)
            assert np.array_equal(self._vectors[message.buffer].numpy(), np.full(16, float(self.port.version), dtype=np.float32))
            found.append(message.published.version)
            self._proxy.send(SnapshotLent(buffer=message.buffer))
        return found

    def close(self) -> None:
        for mailbox in (self._proxy, self._learner):
            mailbox.close()
        self._supervisor.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with zmq.Context() as context:
        made = Bench(context)
        yield made
        made.close()


def test_copies_take_a_small_share_of_the_time_where_somebody_may_ask(bench: Bench) -> None:
    bench.hear(live=1)
    assert bench.update(0.001) == [1]
    least = COPY_S / PUBLISH_SHARE
    assert bench.update(0.6 * least) == []
    assert bench.update(0.6 * least) == [3]
    assert bench.update(1.1 * least) == [4]


def test_who_is_alone_publishes_now_and_then(bench: Bench) -> None:
    assert bench.update(0.001) == [1]
    published = [version for _ in range(100) for version in bench.update(ALONE_S / 10.5)]
    assert published == list(range(12, 101, 11))
    bench.hear(live=1)  # somebody came: as soon as copies allow
    assert bench.update(COPY_S / PUBLISH_SHARE) == [102]
