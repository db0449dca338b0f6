"""An honest node of ``tests.soak.fuzz``: ``tests.faults.gossip_node``, which notes when its exchanges ended and how long they took.

Takes the same options. At its end the exchanges lie as rows (when, seconds, 1.0 if its own, line of the other) beside the vector, as
``<node>.exchanges.npy``; when is in seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import atexit
import dataclasses
import sys
from pathlib import Path

import numpy as np

from tests.faults import gossip_node
from zpala.gossip.exchange_state import Ending, Step
from zpala.gossip.protocol import Protocol
from zpala.node import connection

HONEST = 3  # lines; the fourth is the attacker's


class NotingProtocol(Protocol):
    """Notes every exchange that was applied."""

    def _on_ended(self, ending: Ending, now: float) -> None:
        super()._on_ended(ending, now)
        if ending.step is Step.COMPLETED:
            exchange = ending.exchange
            own = exchange.xid.line == self._line
            EXCHANGES[NOTED[0] % len(EXCHANGES)] = now, now - exchange.started_at, float(own), float(exchange.peer.line)
            NOTED[0] += 1


EXCHANGES = np.full((200_000, 4), -1.0)  # written at once: the node's memory is watched; after that many the oldest are forgotten
NOTED = [0]


def main() -> None:
    vars(connection)["Protocol"] = NotingProtocol
    gossip_node.SETTINGS = dataclasses.replace(gossip_node.SETTINGS, wait_for=HONEST)
    peers, node = (sys.argv[sys.argv.index(name) + 1] for name in ("--peers", "--node"))
    atexit.register(lambda: np.save(Path(peers).with_name(f"{node}.exchanges.npy"), EXCHANGES[: NOTED[0]]))
    gossip_node.main()


if __name__ == "__main__":
    main()
