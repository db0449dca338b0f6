"""The third peer of two honest nodes, played with raw sockets: it joins their run and offers; what it does wrong is the test's."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tests.faults.raw_zmtp import RawNode, RawServer
from tests.node.pair import Pair
from zpala.gossip import codec
from zpala.gossip import messages as m

NUMEL: Final = 10_000
RAW: Final = 2  # its line
LIMIT_S: Final = 40.0
_BACK_OFF_S: Final = 0.002  # an honest node does not offer again at once


def meanwhile(pair: Pair, attack: Callable[[], None], limit_s: float = LIMIT_S) -> None:
    """Plays the honest learners while ``attack`` runs in a thread of its own; they average during it and after it."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            attack()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="attack")
    thread.start()
    pair.run_until(lambda: not thread.is_alive(), limit_s)
    thread.join()
    if errors:
        raise errors[0]
    pair.more(3)


def raw_node(pair: Pair, server: RawServer, *, incarnation: int = 5) -> RawNode:
    return RawNode(server, pair.ports[0], line=RAW, incarnation=incarnation, agreement=pair.agreement)


def join(node: RawNode) -> None:
    """A session each way with node 0, as a running member of its run."""
    node.nonce = node.hello().nonce
    node.condition = m.Condition(phase="running", updates=1, version=1)
    node.serve(0)
    node.heartbeat()


def offer_until_accepted(node: RawNode) -> tuple[m.Offer, m.Accept]:
    """The node is often engaged, with its other peer or in an offer to this one, which is declined."""
    deadline = time.monotonic() + LIMIT_S
    snapshot = m.SnapshotDescription(version=1, nbytes=4 * NUMEL, checksum=0, square_norm=1.0)
    for number in itertools.count():
        offer = m.Offer(session=node.welcome.session, xid=m.ExchangeId(RAW, node.incarnation, number), snapshot=snapshot)
        node.client.say(offer)
        answer = node.client.hear(m.Accept, m.Busy, m.Nack, down=True)
        if isinstance(answer, m.Accept):
            return offer, answer
        assert isinstance(answer, m.Busy), answer
        while (said := node.server.receive_within(_BACK_OFF_S)) is not None:
            message = codec.decode_up(said[0])
            if isinstance(message, m.Offer):
                node.server.say(m.Busy(session=node.session, xid=message.xid, reason="engaged"))
        assert time.monotonic() < deadline, f"BUSY for {LIMIT_S:g} s: {answer.reason}"
    raise AssertionError("unreachable")


def hear_about(node: RawNode, kind: type, xid: m.ExchangeId) -> Any:
    """What the node says next of this kind about exchange ``xid`` on its DEALER."""
    while (message := node.server.hear(kind, down=False)).xid != xid:
        pass
    return message
