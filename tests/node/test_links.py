"""DEALERs: a HELLO waits for its connection, everything else is lost without one, and a link that fails for long is made anew."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.node.conftest import few_descriptors, receive
from zpala.gossip.codec import DOWN_HEADER_MAX
from zpala.node import sockets
from zpala.node.links import REDIAL_MAX_S, REDIAL_S, Links
from zpala.node.sockets import Context, Socket

PAYLOAD_BYTES = 1000


@pytest.fixture
def router(context: Context) -> Iterator[tuple[Socket, int]]:
    made, port = sockets.router_socket(context, sockets.listening_socket("127.0.0.1", 0))
    yield made, port
    made.close()


@pytest.fixture
def addresses(router: tuple[Socket, int]) -> dict[int, tuple[str, int]]:
    return {0: ("127.0.0.1", router[1]), 1: ("127.0.0.1", router[1])}


@pytest.fixture
def poller() -> zmq.Poller:
    return zmq.Poller()


@pytest.fixture
def links(context: Context, poller: zmq.Poller, addresses: dict[int, tuple[str, int]]) -> Iterator[Links]:
    made = Links(context, poller, addresses, PAYLOAD_BYTES)
    yield made
    made.close()


def turn(links: Links, poller: zmq.Poller) -> None:
    """What the proxy does with the links in one turn."""
    ready = dict(poller.poll(10_000))
    assert ready, "nothing happened within 10 s"
    if links.resolver.socket in ready:
        links.on_resolved()
    for line, dealer in links.dealers():
        if ready.get(dealer, 0) & zmq.POLLOUT:
            links.on_writable(line)


def test_whoever_has_moved_is_dialled_there_from_the_next_dial_on(
    links: Links, poller: zmq.Poller, router: tuple[Socket, int], mute: socket.socket
) -> None:
    links.know({0: ("127.0.0.1", mute.getsockname()[1])}, {})
    links.dial(0)
    links.know({0: ("127.0.0.1", router[1])}, {})
    links.hangup(0)
    links.dial(0)
    assert links.send(0, b"hello", 0.0, keep=True)
    while links.messages_sent == 0:
        turn(links, poller)
    assert receive(router[0])[1] == b"hello"


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A port that takes connections and never answers: no link to it is ever ready."""
    with sockets.listening_socket("127.0.0.1", 0) as made:
        yield made


def test_a_hello_waits_for_the_connection_and_only_the_last_one(
    context: Context, links: Links, poller: zmq.Poller, addresses: dict[int, tuple[str, int]], mute: socket.socket
) -> None:
    addresses[0] = ("127.0.0.1", mute.getsockname()[1])
    links.dial(0)
    for number in range(3):
        assert links.send(0, b"hello %d" % number, 0.0, keep=True)
    router, _ = sockets.router_socket(context, mute)
    while links.messages_sent == 0:
        turn(links, poller)
    assert links.send(0, b"heartbeat", 0.0, keep=False)
    assert [receive(router)[1] for _ in range(2)] == [b"hello 2", b"heartbeat"]
    assert poller.poll(0) == [], "a link that has nothing to send is not polled for room"
    router.close()


def test_what_is_no_hello_is_lost_without_a_connection(links: Links, addresses: dict[int, tuple[str, int]], mute: socket.socket) -> None:
    addresses[0] = ("127.0.0.1", mute.getsockname()[1])
    assert not links.send(0, b"never dialled", 0.0, keep=False)
    links.dial(0)
    assert not links.send(0, b"not connected yet", 0.0, keep=False)
    assert links.messages_sent == 0


def test_dial_and_hangup_twice(links: Links, poller: zmq.Poller) -> None:
    for _ in range(2):
        links.dial(0)
    assert [line for line, _ in links.dealers()] == [0]
    for _ in range(2):
        links.hangup(0)
    assert list(links.dealers()) == []
    assert poller.sockets == [(links.resolver.socket, zmq.POLLIN)]


def test_what_was_sent_before_hanging_up_arrives(links: Links, poller: zmq.Poller, router: tuple[Socket, int]) -> None:
    links.dial(0)
    links.send(0, b"hello", 0.0, keep=True)
    while links.messages_sent == 0:
        turn(links, poller)
    assert links.send(0, b"leave", 0.0, keep=False)
    links.hangup(0)
    assert [receive(router[0])[1] for _ in range(2)] == [b"hello", b"leave"]


def test_a_dropped_link_is_closed_at_once_and_made_anew_later(links: Links, poller: zmq.Poller, router: tuple[Socket, int]) -> None:
    links.drop(0, 1.0)  # there is none
    links.dial(0)
    links.drop(0, 1.0)
    assert list(links.dealers()) == []
    assert poller.sockets == [(links.resolver.socket, zmq.POLLIN)]
    assert not links.send(0, b"lost", 2.0, keep=False)
    assert links.send(0, b"hello", 2.0, keep=True)
    links.redial(0.9 + REDIAL_S)
    assert list(links.dealers()) == []
    links.redial(1.0 + REDIAL_S)
    while links.messages_sent == 0:
        turn(links, poller)
    assert receive(router[0])[1] == b"hello"


def test_a_failing_link_is_made_anew_with_back_off(links: Links, addresses: dict[int, tuple[str, int]], mute: socket.socket) -> None:
    addresses[0] = ("127.0.0.1", mute.getsockname()[1])
    links.dial(0)
    now, times = 0.0, list[float]()
    for _ in range(4000):
        links.send(0, b"hello", now, keep=True)
        links.redial(now)
        if len(times) < links.redials:
            times.append(now)
        now += 0.1
    gaps = [round(later - earlier) for earlier, later in zip([0.0, *times], times, strict=False)]
    assert gaps == [5, 10, 20, 40, 60, 60, 60, 60, 60]
    assert (gaps[0], gaps[-1]) == (REDIAL_S, REDIAL_MAX_S)


def test_the_address_is_asked_for_again(
    links: Links, poller: zmq.Poller, router: tuple[Socket, int], addresses: dict[int, tuple[str, int]], mute: socket.socket
) -> None:
    """A peer that moved while nobody could reach it is found by the next dial."""
    addresses[0] = ("127.0.0.1", mute.getsockname()[1])
    links.dial(0)
    links.send(0, b"hello", 0.0, keep=True)
    addresses[0] = ("127.0.0.1", router[1])
    links.redial(REDIAL_S)
    while links.messages_sent == 0:
        turn(links, poller)
    assert receive(router[0])[1] == b"hello"


def test_an_oversize_frame_ends_a_session_for_ever_and_a_redial_brings_it_back(
    links: Links, poller: zmq.Poller, context: Context, router: tuple[Socket, int]
) -> None:
    """libzmq does not reconnect after a protocol error of its peer: sends fail from then on, until the link is made anew."""
    links.dial(0)
    links.send(0, b"hello", 0.0, keep=True)
    while links.messages_sent == 0:
        turn(links, poller)
    link = receive(router[0])[0]
    dealer = dict(links.dealers())[0]
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    router[0].send_multipart([link, b"x" * (PAYLOAD_BYTES + DOWN_HEADER_MAX + sockets.CURVE_OVERHEAD_BYTES + 1)])
    receive(monitor)
    dealer.disable_monitor()
    monitor.close()
    while links.send(0, b"into the void", 1.0, keep=False):
        poller.poll(1)
    assert links.send(0, b"hello again", 1.0, keep=True)
    links.redial(1.0 + REDIAL_S)
    assert links.redials == 1
    sent = links.messages_sent
    while links.messages_sent == sent:
        turn(links, poller)
    arrived = b""
    while arrived != b"hello again":
        arrived = receive(router[0])[1]


def test_names_are_resolved_before_they_are_dialled(
    context: Context, poller: zmq.Poller, router: tuple[Socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Callable[[], tuple[str, ...]]] = [lambda: ("127.0.0.1",)]

    def look_up(host: str) -> tuple[str, ...]:
        if not answers:
            raise OSError("name not known")
        return answers.pop()()

    links = Links(context, poller, {0: ("node1", router[1])}, PAYLOAD_BYTES)
    monkeypatch.setattr(links.resolver, "_lookup", look_up)
    links.dial(0)
    assert list(links.dealers()) == []
    assert links.send(0, b"hello", 0.0, keep=True)
    while links.messages_sent == 0:
        turn(links, poller)
    assert receive(router[0])[1] == b"hello"
    links.close()


def test_an_unknown_name_is_said_once_and_asked_again(
    context: Context, poller: zmq.Poller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = list[str]()

    def look_up(host: str) -> tuple[str, ...]:
        asked.append(host)
        raise OSError("name not known")

    links = Links(context, poller, {0: ("no-such-host.invalid", 5670)}, PAYLOAD_BYTES)
    monkeypatch.setattr(links.resolver, "_lookup", look_up)
    links.dial(0)
    now = 0.0
    for attempts in range(1, 4):
        turn(links, poller)
        links.send(0, b"hello", now, keep=True)
        now += REDIAL_MAX_S
        links.redial(now)
        assert links.redials == attempts
    links.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no-such-host.invalid:5670 cannot be dialled: the name is not known here (name not known); asking again"
    ]


def test_a_peer_that_cannot_be_dialled_for_want_of_descriptors_is_dialled_later(
    links: Links, poller: zmq.Poller, router: tuple[Socket, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can reach the port can take them all. That must not end the node."""
    with few_descriptors(0):
        for line in (0, 1):
            links.dial(line)
            assert links.send(line, b"hello", 0.0, keep=True)
        links.redial(REDIAL_S)
    assert list(links.dealers()) == []
    assert len([text for text in caplog.messages if "cannot be dialled for now: Too many open files" in text]) == 1
    links.redial(3 * REDIAL_S)
    assert len(list(links.dealers())) == 2
    while links.messages_sent < 2:
        turn(links, poller)
    assert [receive(router[0])[1] for _ in range(2)] == [b"hello", b"hello"]
