"""The virtual network and clock by themselves: order, loss, blocked directions, pauses."""

from __future__ import annotations

from typing import Any

import pytest

from zpala.gossip.messages import Heartbeat
from zpala.sim.clock import EPOCH_S, Clock
from zpala.sim.cluster import VirtualCluster
from zpala.sim.network import TCP_LIMIT_S


class Process:
    def __init__(self) -> None:
        self.alive = True
        self.paused = False
        self.backlog: list[Any] = []


def test_calls_come_in_the_order_of_time_and_then_of_making() -> None:
    clock = Clock()
    seen: list[str] = []
    for name, when in (("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.5)):
        clock.later(when, seen.append, None, name)
    assert not clock.run(1.9)
    assert (seen, clock.now) == (["a", "b"], EPOCH_S + 1.9)
    assert clock.run(1.0, lambda: len(seen) == 3)
    assert (seen, clock.now) == (["a", "b", "c"], EPOCH_S + 2.0)
    clock.run(0.0)
    assert (seen, clock.events) == (["a", "b", "c", "d"], 4)


def test_the_dead_are_not_called_and_the_paused_later() -> None:
    clock, dead, paused = Clock(), Process(), Process()
    seen: list[str] = []
    dead.alive, paused.paused = False, True
    clock.later(1.0, seen.append, dead, "dead")
    clock.later(1.0, seen.append, paused, "paused")
    clock.run(2.0)
    assert seen == []
    assert len(paused.backlog) == 1
    paused.backlog[0]()
    assert seen == ["paused"]


def pair() -> tuple[VirtualCluster, list[tuple[float, int, str]]]:
    """Two nodes that run; and everything that the second one hears from the first's DEALER, as (time, session, kind)."""
    cluster = VirtualCluster(2, 3, periods=0.1)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(2.0)
    heard: list[tuple[float, int, str]] = []
    protocol = cluster.nodes[1].protocol
    on_up = protocol.on_up

    def listen(link: bytes, message: Any, now: float, key: str | None = None) -> Any:
        heard.append((now, message.session if isinstance(message, Heartbeat) else 0, type(message).__name__))
        return on_up(link, message, now, key)

    protocol.on_up = listen  # type: ignore[method-assign]
    return cluster, heard


def test_a_blocked_direction_holds_its_messages_and_the_other_one_does_not() -> None:
    cluster, heard = pair()
    cluster.network.block(0, 1)
    cluster.run(0.01)  # what was under way arrives
    heard.clear()
    began, got = cluster.now, cluster.nodes[0].protocol.metrics()["applied"]
    cluster.run(1.8)  # shorter than the silence that makes a suspect
    assert heard == []
    assert cluster.network.held > 2
    cluster.network.unblock(0, 1)
    cluster.run(0.1)
    assert [kind for when, _, kind in heard if when >= began + 1.8].count("Heartbeat") >= 3  # all of them, late and in order
    assert [when for when, _, _ in heard] == sorted(when for when, _, _ in heard)
    cluster.run(2.0)
    assert cluster.nodes[0].protocol.metrics()["applied"] > got
    assert cluster.network.resets == 0


def test_what_is_blocked_for_longer_than_tcp_tries_is_lost() -> None:
    cluster, heard = pair()
    cluster.network.block(0, 1)
    cluster.run(0.01)  # what was under way arrives
    heard.clear()
    cluster.run(TCP_LIMIT_S)
    assert cluster.network.resets == 1
    cluster.network.heal()
    cluster.run(1.0)
    assert {kind for _, _, kind in heard} >= {"Hello", "Heartbeat"}
    assert len({session for _, session, kind in heard if kind == "Heartbeat"}) == 1  # none of the old session's
    cluster.quiesce()
    assert cluster.problems() == []


def test_a_replayed_message_comes_by_its_own_link_and_changes_nothing() -> None:
    cluster, heard = pair()
    cluster.network.reset_pair(0, 1)
    cluster.run(0.3)  # the new links are up
    cluster.network._heard = type(cluster.network._heard)(item for item in cluster.network._heard if item[1] == 1)
    before = len(heard)
    for _ in range(50):
        cluster.network.replay()
    assert cluster.network.replayed == 50 == len(heard) - before
    assert cluster.nodes[1].protocol.metrics()["no_session"] > 0  # some of them were of the old link
    cluster.run(2.0)
    cluster.quiesce()
    assert cluster.problems() == []
    assert cluster.ledger.half_applied() == []


@pytest.mark.parametrize("codec_every", [0, 1])
def test_the_codec_changes_no_outcome(codec_every: int) -> None:
    def play(every: int) -> list[bytes]:
        cluster = VirtualCluster(3, 5, periods=0.1, codec_every=every)
        cluster.run(10.0)
        assert cluster.problems() == []
        return [node.learner.vector.tobytes() for node in cluster.nodes]

    assert play(codec_every) == play(10)
