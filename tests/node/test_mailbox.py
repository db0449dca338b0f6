"""Every message that may travel between learner and proxy survives its bytes; everything else raises."""

from __future__ import annotations

import dataclasses
import threading
import types
import typing
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.node.conftest import poll
from zpala.gossip import events
from zpala.node import mailbox, sockets
from zpala.node.mailbox import LeaveRun, Mailbox, SnapshotReady, StateAdopted, decode, encode, message_types
from zpala.node.sockets import Context

PLAIN = {int: -(2**40), float: 0.1, str: "zwölf", bytes: b"\x00\xff", bool: True, type(None): None}


def example_of(annotation: Any) -> Any:
    """A value of an annotated type, made by walking the annotation."""
    if annotation in PLAIN:
        return PLAIN[annotation]
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return example(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(example_of(arguments[0]) for _ in range(3))
        return tuple(example_of(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return example_of(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    raise AssertionError(f"no example of {annotation}: a mailbox message has plain fields only")


def example(kind: type[Any]) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: example_of(hints[field.name]) for field in dataclasses.fields(kind)})


def test_every_event_of_the_protocol_is_a_message() -> None:
    declared = {*typing.get_args(events.ToLearnerEvent), *typing.get_args(events.FromLearnerEvent)}
    assert declared <= set(message_types().values())
    assert declared == {value for value in message_types().values() if value.__module__ == events.__name__}


@pytest.mark.parametrize("kind", list(message_types().values()), ids=lambda kind: kind.__name__)
def test_round_trip_of_every_message(kind: type[Any]) -> None:
    message = example(kind)
    back = decode(encode(message))
    assert type(back) is kind
    assert back == message
    for field in dataclasses.fields(kind):
        assert type(getattr(back, field.name)) is type(getattr(message, field.name))


@pytest.mark.parametrize("stranger", [object(), (1, 2), {"a": 1}, None, StateAdopted])
def test_only_messages_are_encoded(stranger: object) -> None:
    with pytest.raises(TypeError):
        encode(stranger)


def test_a_number_of_numpy_is_refused_rather_than_changed() -> None:
    with pytest.raises(TypeError, match="int64"):
        encode(events.SnapshotLent(buffer=np.int64(3)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb(["SnapshotLent", 7]),
        msgpack.packb(msgpack.ExtType(9, b"")),
        msgpack.packb(msgpack.ExtType(1, msgpack.packb(["SnapshotLent"]))),
        msgpack.packb(msgpack.ExtType(1, msgpack.packb(["SnapshotLent", 1, 2]))),
        encode(events.SnapshotLent(buffer=1)) + b"\x00",
    ],
)
def test_other_bytes_are_refused(frame: bytes) -> None:
    with pytest.raises((ValueError, msgpack.UnpackException)):
        decode(frame)


def test_an_unknown_message_is_refused() -> None:
    with pytest.raises((KeyError, ValueError)):
        decode(msgpack.packb(msgpack.ExtType(1, msgpack.packb(["Formatted", "c:"]))))


def test_messages_arrive_in_order_across_threads(context: Context, inproc_address: str) -> None:
    learner = Mailbox(sockets.inproc_pair_bound(context, inproc_address))
    count = 200

    def proxy() -> None:
        mine = Mailbox(sockets.inproc_pair_connected(context, inproc_address))
        for buffer in range(count):
            assert mine.send(events.SnapshotLent(buffer=buffer))
        mine.close()

    thread = threading.Thread(target=proxy)
    thread.start()
    received: list[Any] = []
    while len(received) < count:
        poll(learner.socket)
        received.extend(learner.receive())
    thread.join(10.0)
    assert [message.buffer for message in received] == list(range(count))
    assert list(learner.receive()) == []
    learner.close()


def test_a_full_mailbox_says_so_and_takes_mail_again(context: Context, inproc_address: str) -> None:
    sender = Mailbox(sockets.inproc_pair_bound(context, inproc_address))
    reader = Mailbox(sockets.inproc_pair_connected(context, inproc_address))
    sent = 0
    while sender.send(LeaveRun(), limit_s=0):
        sent += 1
    assert sent == 2 * sockets.INPROC_HWM  # the pipe holds what either end allows
    assert not sender.send(LeaveRun(), limit_s=0.01)
    assert len(list(reader.receive())) == sent
    assert sender.send(LeaveRun())
    sender.close()
    reader.close()


def test_the_published_event_travels_with_its_buffer() -> None:
    published = events.Published(version=7, updates=5, applied_through=3, env_steps=80, rate=400.0, waiting=True)
    assert decode(encode(mailbox.SnapshotReady(1, published))) == SnapshotReady(buffer=1, published=published)
