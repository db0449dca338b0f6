"""Whatever frames arrive, reading gives a message or a reason, and the socket stands at the start of the next message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from tests.node.conftest import poll, receive
from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.gossip.codec import ProtocolError
from zpala.node import frames, sockets
from zpala.node.frames import FrameReader, Vector
from zpala.node.sockets import Context, Socket

NUMEL = 40_000  # 160 kB: more than pyzmq copies
XID = m.ExchangeId(0, 1, 2)
FETCH = m.Fetch(session=7, xid=XID)
OFFER = m.Offer(session=7, xid=XID, snapshot=m.SnapshotDescription(version=1, nbytes=4, checksum=0, square_norm=1.0))
BUSY = m.Busy(session=7, xid=XID, reason="engaged")


def data_of(payload: Vector) -> m.Data:
    return m.Data(session=7, xid=XID, snapshot=m.SnapshotDescription(version=1, nbytes=payload.nbytes, checksum=0, square_norm=1.0))


@pytest.fixture
def pair(context: Context) -> Iterator[tuple[Socket, Socket]]:
    """A ROUTER and a DEALER that is connected to it."""
    router, port = sockets.router_socket(context, sockets.listening_socket("127.0.0.1", 0))
    dealer = sockets.dealer_socket(context, sockets.endpoint("127.0.0.1", port), NUMEL * 4)
    assert dealer.poll(10_000, zmq.POLLOUT)
    yield router, dealer
    router.close()
    dealer.close()


@pytest.fixture
def link(pair: tuple[Socket, Socket]) -> bytes:
    """The routing id that the ROUTER gave the DEALER."""
    router, dealer = pair
    dealer.send(b"x")
    return receive(router)[0]


def read_down(dealer: Socket) -> frames.Down:
    poll(dealer)
    down = FrameReader().read_down(dealer)
    assert down is not None
    return down


def test_up_message(pair: tuple[Socket, Socket]) -> None:
    router, dealer = pair
    frame = codec.encode(FETCH)
    assert frames.send_up(dealer, frame)
    poll(router)
    up = FrameReader().read_up(router)
    assert up is not None
    assert up.message == FETCH
    assert up.nbytes == len(frame)
    assert FrameReader().read_up(router) is None


@pytest.mark.parametrize(
    "parts",
    [[b""], [b"garbage"], [b"ZPA1"], [codec.encode(FETCH), b""], [codec.encode(FETCH), b"x" * 4096], [b""] * 50, [codec.encode(BUSY)]],
    ids=["empty", "garbage", "short", "empty surplus", "surplus", "many", "down message"],
)
def test_a_bad_up_message_is_refused_and_the_next_one_is_read(pair: tuple[Socket, Socket], parts: list[bytes]) -> None:
    router, dealer = pair
    dealer.send_multipart(parts)
    dealer.send(codec.encode(FETCH))
    reader, read = FrameReader(), list[Any]()
    while len(read) < 2:
        poll(router)
        read.append(reader.read_up(router))
    assert isinstance(read[0].message, ProtocolError)
    assert read[0].nbytes == sum(map(len, parts))
    assert read[1].message == FETCH


@pytest.mark.parametrize("parts", [[b""], [b"garbage"], [codec.encode(FETCH)], [codec.encode(FETCH), b"x" * 4096], [b""] * 50])
def test_what_is_not_admitted_is_read_away_and_not_decoded(pair: tuple[Socket, Socket], parts: list[bytes]) -> None:
    router, dealer = pair
    dealer.send_multipart(parts)
    dealer.send(codec.encode(OFFER))
    asked: list[type | None] = []

    def admits(link: bytes, kind: type | None) -> bool:
        asked.append(kind)
        return kind is m.Offer

    reader, read = FrameReader(), list[Any]()
    while len(read) < 2:
        poll(router)
        read.append(reader.read_up(router, admits))
    assert (read[0].message, read[0].nbytes) == (None, sum(map(len, parts)))
    assert (read[1].message, read[1].link) == (OFFER, read[0].link)
    assert asked == [m.Fetch if parts[0] == codec.encode(FETCH) else None, m.Offer]


def test_a_header_at_the_limit_of_the_buffer_is_not_truncated_to_a_message(pair: tuple[Socket, Socket]) -> None:
    router, dealer = pair
    dealer.send(codec.encode(FETCH).ljust(codec.UP_MAX + 20, b"\0"))
    poll(router)
    up = FrameReader().read_up(router)
    assert up is not None
    assert isinstance(up.message, ProtocolError)
    assert up.message.code == "limit"


def test_down_message_without_payload(pair: tuple[Socket, Socket], link: bytes) -> None:
    router, dealer = pair
    assert frames.send_down(router, link, codec.encode(BUSY)) is True
    down = read_down(dealer)
    assert (down.message, down.payload, down.frames) == (BUSY, None, 1)


@pytest.mark.parametrize("numel", [1, 1000, NUMEL])
def test_a_payload_arrives_whole(pair: tuple[Socket, Socket], link: bytes, numel: int) -> None:
    router, dealer = pair
    sent = np.arange(numel, dtype=np.float32)
    tracker = frames.send_down(router, link, codec.encode(data_of(sent)), sent)
    assert not isinstance(tracker, bool)
    assert tracker.done or numel * 4 >= zmq.COPY_THRESHOLD
    down = read_down(dealer)
    assert (down.message, down.frames) == (data_of(sent), 2)
    assert down.payload is not None
    np.testing.assert_array_equal(np.frombuffer(down.payload, dtype=np.float32), sent)
    tracker.wait(10.0)  # the buffer is free once it is out


def test_a_payload_lives_as_long_as_its_view(pair: tuple[Socket, Socket], link: bytes) -> None:
    """Whatever is read after it, and although nobody holds the message."""
    router, dealer = pair
    sent = [np.full(NUMEL, number, dtype=np.float32) for number in range(8)]
    for each in sent:
        frames.send_down(router, link, codec.encode(data_of(each)), each)
    frames.send_down(router, link, codec.encode(BUSY))
    views = [read_down(dealer).payload for _ in sent]
    assert read_down(dealer).message == BUSY
    for view, each in zip(views, sent, strict=True):
        assert view is not None
        assert view == each.data.cast("B")


@pytest.mark.parametrize("tail", [[b"1234"], [b"x" * 40_001], [b"x" * 40_000, b"y"], [b"x" * 40_000, b"y" * 5, b"z" * 6]])
def test_the_true_size_of_a_payload_is_told(pair: tuple[Socket, Socket], link: bytes, tail: list[bytes]) -> None:
    """Too short, too long, and surplus frames: never the size that the header promises."""
    router, dealer = pair
    promised = data_of(np.zeros(10_000, dtype=np.float32))
    router.send_multipart([link, codec.encode(promised), *tail])
    router.send_multipart([link, codec.encode(BUSY)])
    down = read_down(dealer)
    assert (down.nbytes, down.frames) == (len(codec.encode(promised)) + sum(map(len, tail)), 1 + len(tail))
    assert down.payload is not None
    assert down.payload.nbytes == (len(tail[0]) if len(tail) == 1 else 0) != promised.snapshot.nbytes
    assert read_down(dealer).message == BUSY


@pytest.mark.parametrize(
    "parts", [[b""], [b"garbage"], [codec.encode(BUSY), b"x"], [codec.encode(FETCH)], [b"x" * 5000], [b"x" * 5000, b"y" * 5000]]
)
def test_a_bad_down_message_is_refused_and_the_next_one_is_read(pair: tuple[Socket, Socket], link: bytes, parts: list[bytes]) -> None:
    router, dealer = pair
    router.send_multipart([link, *parts])
    router.send_multipart([link, codec.encode(BUSY)])
    down = read_down(dealer)
    assert isinstance(down.message, ProtocolError)
    assert (down.nbytes, down.frames) == (sum(map(len, parts)), len(parts))
    assert read_down(dealer).message == BUSY


@pytest.mark.parametrize("header", [codec.encode(data_of(np.zeros(1, dtype=np.float32))), codec.encode(BUSY), b"garbage"])
def test_no_more_frames_are_read_than_may_be(pair: tuple[Socket, Socket], link: bytes, header: bytes) -> None:
    """Of a payload that is followed by what was not read nothing is used."""
    router, dealer = pair
    router.send_multipart([link, header, b"1234", b"x", b"y"])
    poll(dealer)
    down = FrameReader().read_down(dealer, 2)
    assert down is not None
    assert (down.frames, down.nbytes, dealer.rcvmore) == (2, len(header) + 4, 1)
    assert not down.payload


def test_a_missing_payload_is_told(pair: tuple[Socket, Socket], link: bytes) -> None:
    router, dealer = pair
    message = data_of(np.zeros(4, dtype=np.float32))
    router.send_multipart([link, codec.encode(message)])
    down = read_down(dealer)
    assert (down.message, down.payload) == (message, None)


def test_a_send_to_a_peer_that_has_gone_sends_nothing(pair: tuple[Socket, Socket]) -> None:
    router, _ = pair
    payload = np.zeros(NUMEL, dtype=np.float32)
    assert frames.send_down(router, b"\0gone", codec.encode(data_of(payload)), payload) is False
    assert frames.send_down(router, b"\0gone", codec.encode(BUSY)) is False


def test_a_full_pipe_loses_whole_messages_only(pair: tuple[Socket, Socket], link: bytes) -> None:
    """A peer that does not read: sends fail in the end, and what it reads later is complete messages."""
    router, dealer = pair
    payload = np.ones(NUMEL, dtype=np.float32)
    results = [frames.send_down(router, link, codec.encode(data_of(payload)), payload) for _ in range(400)]
    sent = sum(result is not False for result in results)
    assert sent < 400
    for _ in range(sent):
        down = read_down(dealer)
        assert down.payload == payload.data.cast("B")
    assert not dealer.poll(0)
