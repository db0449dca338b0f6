"""The raw peer against libzmq itself: when it wants to, it is a peer like any other; and the scanner finds every frame in any chunks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.faults.raw_zmtp import RawClient, RawServer
from tests.faults.zmtp_frames import COMMAND, LONG, MORE, FrameScanner, command, frame, greeting, ready

LIMIT_MS = 20_000


OpenSocket = Callable[[int], zmq.Socket[bytes]]


@pytest.fixture
def open_socket() -> Iterator[OpenSocket]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def factory(kind: int) -> zmq.Socket[bytes]:
        made.append(context.socket(kind))
        return made[-1]

    yield factory
    for one in made:
        one.close(linger=0)
    context.term()


def test_a_raw_client_talks_with_a_router(open_socket: OpenSocket) -> None:
    router = open_socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with RawClient.dealer(port) as client:
        for bodies in ([b"short"], [b""], [b"x" * 255], [b"x" * 256], [b"head", b"", b"y" * 70_000]):
            client.send(*bodies)
            assert router.poll(LIMIT_MS)
            link, *got = router.recv_multipart()
            assert got == bodies
            router.send_multipart([link, *bodies])
            assert client.receive() == bodies
        client.send_raw(frame(b"a short body with a long size", long=True))
        assert router.poll(LIMIT_MS)
        assert router.recv_multipart()[1:] == [b"a short body with a long size"]


def test_a_raw_server_talks_with_a_dealer_and_answers_its_pings(open_socket: OpenSocket) -> None:
    dealer = open_socket(zmq.DEALER)
    dealer.setsockopt(zmq.HEARTBEAT_IVL, 50)
    dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
    with RawServer() as server:
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        dealer.send(b"hello")
        with server.router() as connection:
            assert connection.receive() == [b"hello"]
            connection.send(b"welcome", b"payload")
            assert dealer.poll(LIMIT_MS)
            assert dealer.recv_multipart() == [b"welcome", b"payload"]
            ping = connection.receive_frame()
            assert (ping.flags & COMMAND, ping.body[:5]) == (COMMAND, b"\x04PING")


def test_the_end_of_a_connection_is_noticed(open_socket: OpenSocket) -> None:
    router = open_socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with RawClient(port) as client:
        client.send_raw(b"GET / HTTP/1.1\r\n\r\n" + bytes(64))
        assert client.ended() < 20.0
    with RawClient.dealer(port) as client, pytest.raises(AssertionError, match=r"open after 0\.1 s"):
        client.ended(0.1)


def test_frames_have_the_bytes_of_the_specification() -> None:
    assert greeting()[:12] == b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01"
    assert greeting()[12:32] == b"NULL" + bytes(16)
    assert len(greeting()) == 64
    assert frame(b"abc", MORE) == b"\x01\x03abc"
    assert frame(b"a" * 256)[:9] == b"\x02\0\0\0\0\0\0\x01\0"
    assert command(b"PING", b"\0\x64xy") == b"\x04\x09\x04PING\0\x64xy"
    assert ready(b"DEALER") == b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


def test_the_scanner_finds_the_frames_however_the_stream_is_cut() -> None:
    source = random.Random(5)
    bodies = [source.randbytes(source.choice((0, 1, 200, 255, 256, 3000))) for _ in range(40)]
    flags = [source.choice((0, MORE, COMMAND)) for _ in bodies]
    stream = greeting() + b"".join(frame(body, flag) for body, flag in zip(bodies, flags, strict=True))
    for most in (1, 7, 100, 5000):
        scanner, at, found = FrameScanner(), 0, list[tuple[bytes, int]]()
        while at < len(stream):
            chunk = stream[at : at + source.randint(1, most)]
            at += len(chunk)
            for piece in scanner.feed(chunk):
                if piece.offset == 0:
                    found.append((b"", piece.flags & ~LONG))
                body, flag = found.pop()
                assert len(body) == piece.offset
                found.append((body + chunk[piece.start : piece.start + piece.length], flag))
        assert found == [(body, flag) for body, flag in zip(bodies, flags, strict=True) if body]
