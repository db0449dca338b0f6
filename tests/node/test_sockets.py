"""Options are set where they should be, ports are given to one listener only, and libzmq does what the options promise."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

import pytest
import zmq
import zmq.utils.monitor

from tests.node.conftest import poll, receive
from zpala.gossip.codec import DOWN_HEADER_MAX, UP_MAX
from zpala.node import sockets
from zpala.node.sockets import Context, Socket

PAYLOAD_BYTES = 100_000


@pytest.fixture
def router(context: Context) -> Iterator[tuple[Socket, int]]:
    made, port = sockets.router_socket(context, sockets.listening_socket("127.0.0.1", 0))
    yield made, port
    made.close()


@pytest.fixture
def dealer(context: Context, router: tuple[Socket, int]) -> Iterator[Socket]:
    made = sockets.dealer_socket(context, sockets.endpoint("127.0.0.1", router[1]), PAYLOAD_BYTES)
    yield made
    made.close()


def send_when_connected(dealer: Socket, frame: bytes) -> None:
    assert dealer.poll(10_000, zmq.POLLOUT)
    dealer.send(frame, zmq.DONTWAIT)


def test_a_port_is_given_to_one_listener_only() -> None:
    with sockets.listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        for host in ("127.0.0.1", "*"):
            with pytest.raises(OSError, match="in use") as caught:
                sockets.listening_socket(host, port)
            assert caught.value.errno == errno.EADDRINUSE
    sockets.listening_socket("127.0.0.1", port).close()  # and it is free again at once


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_wildcard_is_reached_over_both_families(host: str) -> None:
    with sockets.listening_socket("*", 0) as listener:
        try:
            socket.create_connection((host, listener.getsockname()[1]), timeout=10).close()
        except OSError as error:
            if host == "::1" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                pytest.skip("this machine has no IPv6 loopback")
            raise
        listener.setblocking(True)
        listener.accept()[0].close()


def test_the_router_serves_the_port_of_the_listener_it_took_over(router: tuple[Socket, int], dealer: Socket) -> None:
    served, port = router
    assert served.getsockopt(zmq.LAST_ENDPOINT) == b"tcp://127.0.0.1:%d" % port
    send_when_connected(dealer, b"hello")
    link, frame = receive(served)
    assert frame == b"hello"
    served.send_multipart([link, b"welcome"])
    assert receive(dealer) == [b"welcome"]


def test_who_dials_before_the_router_exists_is_served(context: Context) -> None:
    listener = sockets.listening_socket("127.0.0.1", 0)
    early = sockets.dealer_socket(context, sockets.endpoint("127.0.0.1", listener.getsockname()[1]), PAYLOAD_BYTES)
    assert not early.poll(0, zmq.POLLOUT)
    late, _ = sockets.router_socket(context, listener)
    send_when_connected(early, b"hello")
    assert receive(late)[1:] == [b"hello"]
    early.close()
    late.close()


def test_an_ipv6_peer_is_dialled(context: Context) -> None:
    try:
        listener = sockets.listening_socket("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    router, port = sockets.router_socket(context, listener)
    dealer = sockets.dealer_socket(context, sockets.endpoint("::1", port), PAYLOAD_BYTES)
    send_when_connected(dealer, b"six")
    assert receive(router)[1:] == [b"six"]
    dealer.close()
    router.close()


def test_every_network_socket_has_the_common_options(router: tuple[Socket, int], dealer: Socket) -> None:
    for one in (router[0], dealer):
        assert one.getsockopt(zmq.LINGER) == 0
        assert one.getsockopt(zmq.IPV6) == 1
        assert one.getsockopt(zmq.HANDSHAKE_IVL) == 3_000
        assert one.getsockopt(zmq.TCP_MAXRT) == 10_000
        assert one.getsockopt(zmq.HEARTBEAT_IVL) == 0
        assert one.getsockopt(zmq.ROUTING_ID) == b""
    assert router[0].getsockopt(zmq.MAXMSGSIZE) == 4096 + 33
    assert dealer.getsockopt(zmq.MAXMSGSIZE) == PAYLOAD_BYTES + 4096 + 33
    assert dealer.getsockopt(zmq.IMMEDIATE) == 1


def test_a_send_to_a_peer_that_is_not_there_fails_at_once(context: Context, router: tuple[Socket, int]) -> None:
    with pytest.raises(zmq.ZMQError) as caught:
        router[0].send(b"nobody", zmq.SNDMORE | zmq.DONTWAIT)
    assert caught.value.errno == zmq.EHOSTUNREACH
    with sockets.listening_socket("127.0.0.1", 0) as mute:  # listens, never speaks ZMTP
        dealer = sockets.dealer_socket(context, sockets.endpoint("127.0.0.1", mute.getsockname()[1]), PAYLOAD_BYTES)
        with pytest.raises(zmq.Again):
            dealer.send(b"lost", zmq.DONTWAIT)
        dealer.close()


def test_the_up_limit_is_exact_and_an_oversize_frame_costs_only_its_sender(
    context: Context, router: tuple[Socket, int], dealer: Socket, open_socket: Callable[[int], Socket]
) -> None:
    served, port = router
    limit = UP_MAX + sockets.CURVE_OVERHEAD_BYTES
    rude = open_socket(zmq.DEALER)
    rude.connect(sockets.endpoint("127.0.0.1", port))
    rude.send(b"x" * limit)
    assert len(receive(served)[1]) == limit
    monitor = rude.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    rude.send(b"x" * (limit + 1))
    poll(monitor)  # libzmq has dropped the connection
    rude.disable_monitor()
    monitor.close()
    send_when_connected(dealer, b"good")
    assert receive(served)[1] == b"good"


def test_the_limit_of_a_dealer_is_exact(router: tuple[Socket, int], dealer: Socket) -> None:
    served, limit = router[0], PAYLOAD_BYTES + DOWN_HEADER_MAX + sockets.CURVE_OVERHEAD_BYTES
    send_when_connected(dealer, b"hello")
    link = receive(served)[0]
    served.send_multipart([link, b"x" * limit])
    assert len(receive(dealer)[0]) == limit
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    served.send_multipart([link, b"x" * (limit + 1)])
    poll(monitor)
    assert not dealer.poll(0)
    dealer.disable_monitor()
    monitor.close()


def test_who_connects_and_says_nothing_is_dropped(router: tuple[Socket, int]) -> None:
    with socket.create_connection(("127.0.0.1", router[1]), timeout=10) as silent:
        while silent.recv(1000):  # libzmq's own greeting, then the end
            pass


def test_inproc_endpoints_pair_up(context: Context, inproc_address: str) -> None:
    bound = sockets.inproc_pair_bound(context, inproc_address)
    connected = sockets.inproc_pair_connected(context, inproc_address)
    connected.send(b"up")
    bound.send(b"down")
    assert receive(bound) == [b"up"]
    assert receive(connected) == [b"down"]
    bound.close()
    connected.close()


def test_what_an_inbox_was_sent_survives_the_sender(context: Context, inproc_address: str) -> None:
    pull = sockets.inproc_pull(context, inproc_address)
    with sockets.inproc_push(context, inproc_address) as push:
        push.send(b"last words", zmq.DONTWAIT)
    assert receive(pull) == [b"last words"]
    pull.close()


def test_who_is_not_there_is_dialled_again_after_a_second_at_most(context: Context, open_socket: Callable[[int], Socket]) -> None:
    """Sooner at first. The pauses that libzmq tells of; with longer ones a peer would be found too late after an outage."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dealer = sockets.dealer_socket(context, sockets.endpoint("127.0.0.1", taken.getsockname()[1]), PAYLOAD_BYTES)
        try:
            dealer.monitor("inproc://retries", zmq.EVENT_CONNECT_RETRIED)
            monitor = open_socket(zmq.PAIR)
            monitor.connect("inproc://retries")
            pauses_ms = []
            for _ in range(6):
                poll(monitor)
                pauses_ms.append(int(zmq.utils.monitor.recv_monitor_message(monitor)["value"]))
            dealer.disable_monitor()
        finally:
            dealer.close()
    assert pauses_ms == sorted(pauses_ms)
    assert pauses_ms[0] <= 200
    assert pauses_ms[-1] == 1000
