"""How much a link may say: every limit and one more; what happens beyond; and that honest nodes stay below."""

from __future__ import annotations

import itertools

import pytest

from tests.gossip.test_protocol import hello, make, of_type
from zpala.gossip import limits
from zpala.gossip import messages as m
from zpala.gossip.codec import ProtocolError
from zpala.gossip.limits import Allowance, LinkLimits
from zpala.gossip.sessions import HELLO_MOST_OFTEN_S
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import VirtualCluster

T = 1000.0
BAD = ProtocolError("magic", "no message")


@pytest.mark.parametrize(
    ("kind", "has_session", "allowance"),
    [
        (m.Fetch, True, limits.UP),
        (None, True, limits.UP),
        (m.Fetch, False, limits.STRANGER),
        (None, False, limits.STRANGER),
        (m.Hello, True, limits.HELLO),
        (m.Hello, False, limits.HELLO),
        (m.Offer, True, limits.OFFER),
    ],
)
def test_so_many_at_once_and_no_more(kind: type | None, has_session: bool, allowance: Allowance) -> None:
    link_limits = LinkLimits()
    assert all(link_limits.admits(b"x", kind, has_session, T) for _ in range(allowance.burst))
    assert not link_limits.admits(b"x", kind, has_session, T)
    assert link_limits.admits(b"y", kind, has_session, T), "every link has its own"
    assert not link_limits.admits(b"x", kind, has_session, T + 0.9 / allowance.per_s)
    assert link_limits.admits(b"x", kind, has_session, T + 1.0 / allowance.per_s)
    assert not link_limits.admits(b"x", kind, has_session, T + 1.0 / allowance.per_s)


def test_hellos_and_offers_beyond_their_limit_leave_the_rest_of_a_link_alone() -> None:
    link_limits = LinkLimits()
    for kind, allowance in ((m.Hello, limits.HELLO), (m.Offer, limits.OFFER)):
        assert [link_limits.admits(b"x", kind, True, T) for _ in range(allowance.burst + 1)].count(True) == allowance.burst
    assert link_limits.admits(b"x", m.Ok, True, T)


def test_the_limits_are_above_what_honest_nodes_need() -> None:
    """Measured, see the module; whoever lowers one must measure again."""
    assert limits.HELLO.per_s * HELLO_MOST_OFTEN_S >= 1.0
    assert (limits.UP.per_s, limits.UP.burst) >= (3 * 1390, 2 * 1700)
    assert (limits.OFFER.per_s, limits.OFFER.burst) >= (3 * 480, 2 * 580)
    assert limits.STRANGER.per_s > limits.HELLO.per_s


def test_one_strike_too_many_and_a_link_is_ignored_for_a_while() -> None:
    link_limits = LinkLimits()
    assert not any(link_limits.strike(b"x", T) for _ in range(limits.STRIKE.burst))
    assert link_limits.admits(b"x", m.Ok, True, T)
    assert link_limits.strike(b"x", T)
    assert not link_limits.admits(b"x", m.Ok, True, T)
    assert link_limits.admits(b"y", m.Ok, True, T)
    assert not link_limits.admits(b"x", m.Ok, True, T + limits.IGNORED_S - 0.001)
    assert link_limits.admits(b"x", m.Ok, True, T + limits.IGNORED_S)


def test_a_strike_now_and_then_is_forgiven() -> None:
    """A later version of the protocol may send a message of an unknown type with every heartbeat."""
    link_limits = LinkLimits()
    assert not any(link_limits.strike(b"x", T + number / limits.STRIKE.per_s) for number in range(1000))


def test_complaints_are_a_second_apart() -> None:
    link_limits = LinkLimits()
    told = [link_limits.complains(b"x", T + number / 10) for number in range(31)]
    assert [number for number, is_told in enumerate(told) if is_told] == [0, 10, 20, 30]


def test_a_flood_of_fresh_links_takes_no_more_room_and_frees_nobody_who_goes_on() -> None:
    link_limits = LinkLimits()
    for _ in range(limits.STRIKE.burst + 1):
        link_limits.strike(b"loud", T)
    for number in range(limits.LINKS_MAX - 1):
        link_limits.admits(b"%d" % number, m.Ok, False, T)
    assert len(link_limits) == limits.LINKS_MAX
    assert not link_limits.admits(b"loud", m.Ok, True, T), "as many as there is room for"
    for number in range(3 * limits.LINKS_MAX):
        link_limits.admits(b"fresh %d" % number, m.Ok, False, T)
        assert not link_limits.admits(b"loud", m.Ok, True, T)
    assert len(link_limits) == limits.LINKS_MAX


# ---- in a node ------------------------------------------------------------------------------------------------------------------------


def test_a_node_ignores_who_sends_rubbish_and_says_so_once_a_second() -> None:
    protocol = make()
    for _ in range(limits.STRIKE.burst):
        assert of_type(protocol.on_bad_frame(None, b"x", BAD, 0.1), m.Nack)[0].code == "bad_message"
    assert protocol.admits(b"x", m.Hello, 0.1)
    protocol.on_bad_frame(None, b"x", BAD, 0.1)
    assert not protocol.admits(b"x", m.Hello, 0.1)
    said = [of_type(protocol.on_unread(b"x", 0.1 + number / 100), m.Nack) for number in range(150)]
    assert [nack for nacks in said for nack in nacks] == [m.Nack(code="limit")] * 2
    assert (protocol.metrics()["bad_frames"], protocol.metrics()["rate_limited"]) == (limits.STRIKE.burst + 1, 150)
    assert protocol.admits(b"y", m.Hello, 0.1)
    assert of_type(protocol.on_up(b"y", hello(), 0.1), m.Welcome)


def test_a_session_makes_room() -> None:
    protocol = make()
    protocol.on_up(b"x", hello(), 0.1)
    for link, allowance in ((b"x", limits.UP), (b"y", limits.STRANGER)):
        admitted = sum(1 for _ in itertools.takewhile(lambda _: protocol.admits(link, m.Ok, 0.1), range(10**6)))  # noqa: B023
        assert admitted == allowance.burst


def test_a_bad_answer_is_no_strike() -> None:
    """A DEALER has one peer, which this node has chosen to ask; its connection can be made anew."""
    protocol = make()
    for _ in range(100):
        protocol.on_bad_frame(1, None, BAD, 0.1)
    assert protocol.admits(b"", m.Ok, 0.1)


def test_what_a_limit_drops_is_as_good_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits far below what honest nodes need nothing is lost but time."""
    monkeypatch.setattr(limits, "UP", Allowance(10.0, 3))
    monkeypatch.setattr(limits, "OFFER", Allowance(2.0, 1))
    cluster = VirtualCluster(4, 5, periods=0.05)
    assert cluster.run(30.0, cluster.all_started)
    cluster.run(20.0)
    assert cluster.counter("rate_limited") > 100
    assert cluster.counter("applied") > 20
    monkeypatch.undo()
    cluster.quiesce()
    assert cluster.problems() == []
    assert cluster.ledger.half_applied() == []
    assert cluster.drift_error() < 2e-4


@pytest.mark.parametrize("max_lead", [0, 4])
def test_honest_nodes_are_never_limited(max_lead: int) -> None:
    """Also near the end of the run, with a heartbeat every 0.1 s, and with those that ``max_lead`` takes."""
    cluster = VirtualCluster(4, 6, periods=0.002, settings=GossipSettings(max_lead=max_lead, max_share=1.0), budget=8_000)
    assert cluster.run(60.0, lambda: all(node.drained for node in cluster.nodes))
    assert cluster.counter("applied") > 40
    assert cluster.counter("rate_limited") == 0
