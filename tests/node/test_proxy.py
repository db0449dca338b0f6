"""The proxy turns sockets, mail and time into the protocol's events and its actions into sends; here the protocol is a script."""

from __future__ import annotations

import math
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from tests.faults.raw_zmtp import RawClient
from tests.node.conftest import LIMIT_S, poll, receive, terminate
from zpala.gossip import codec, events
from zpala.gossip import messages as m
from zpala.gossip.actions import Action, Dial, Hangup, Log, Payload, SendDown, SendUp, ToLearner
from zpala.gossip.buffers import BufferPool
from zpala.gossip.protocol import Protocol
from zpala.node import sockets
from zpala.node.frames import Vector
from zpala.node.mailbox import GateChanged, LeaveRun, ProxyCounters, RunFinished, SnapshotReady, StateAdopted
from zpala.node.proxy import Proxy
from zpala.node.proxy_loop import REST_S, _without_superseded
from zpala.node.sockets import Context, Socket
from zpala.node.worker import Supervisor, WorkerFailed

NUMEL = 100_000
XID = m.ExchangeId(0, 1, 2)
HELLO = m.Hello(node="a", line=0, incarnation=1, condition=m.Condition(phase="waiting"))
FETCH = m.Fetch(session=7, xid=XID)
BUSY = m.Busy(session=7, xid=XID, reason="engaged")
LEAVE = m.Leave(session=7, incarnation=1, reason="end")
BUFFER = Payload("buffer", 0)
Event = tuple[Any, ...]


def data_of(payload: Vector) -> m.Data:
    return m.Data(session=7, xid=XID, snapshot=m.SnapshotDescription(version=1, nbytes=payload.nbytes, checksum=0, square_norm=1.0))


def view(progress: float) -> events.View:
    numbers = dict.fromkeys(events.View.__dataclass_fields__, 0)
    texts = {"phase": "running", "finish_reason": "", "all_reached_target": False, "eligible": ((1, 5),), "progress": progress}
    return events.View(**{**numbers, **texts})  # type: ignore[arg-type]


class Script(Protocol):
    """Notes every call of the proxy and answers with the actions that the test has prepared for it."""

    def __init__(self) -> None:  # none of the real one's parts
        self.calls: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.answers: dict[str, Callable[..., list[Action]]] = {}
        self.due = math.inf
        self.array: Vector = np.zeros(NUMEL, dtype=np.float32)
        self._pool = BufferPool([np.zeros(NUMEL, dtype=np.float32)])  # only asked how long its buffers are
        self.cost_s = 0.0
        self.admitted: Callable[[type | None], bool] = lambda kind: True

    def _note(self, name: str, *arguments: Any) -> list[Action]:
        self.calls.put((name, *arguments))
        answer = self.answers.get(name)
        return answer(*arguments) if answer else []

    def expect(self, name: str) -> Event:
        """The next call of that name; others before it are passed over."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            call = self.calls.get(timeout=max(0.0, deadline - time.monotonic()))
            if call[0] == name:
                return call[1:]

    def start(self, now: float) -> list[Action]:
        return self._note("start")

    def on_timer(self, now: float) -> list[Action]:
        self.due = math.inf
        return self._note("timer", now)

    def deadline(self) -> float:
        return self.due

    def admits(self, link: bytes, kind: type | None, now: float) -> bool:
        return self.admitted(kind)

    def on_unread(self, link: bytes, now: float) -> list[Action]:
        return self._note("unread", link)

    def on_up(self, link: bytes, message: m.UpMessage, now: float, key: str | None = None) -> list[Action]:
        return self._note("up", link, message)

    def on_down(self, line: int, message: m.DownMessage, payload: memoryview | None, now: float) -> list[Action]:
        return self._note("down", line, message, None if payload is None else bytes(payload))

    def on_bad_frame(self, line: int | None, link: bytes | None, error: Exception, now: float) -> list[Action]:
        return self._note("bad frame", line, link, error)

    def on_link_lost(self, link: bytes | None, line: int | None, now: float) -> list[Action]:
        return self._note("link lost", link, line)

    def on_sent(self, payload: Payload, now: float) -> list[Action]:
        return self._note("sent", payload)

    def on_cost(self, seconds: float, now: float) -> list[Action]:
        self.cost_s += seconds
        return []

    def on_published(self, published: events.Published, buffer: int, now: float) -> list[Action]:
        return self._note("published", published, buffer)

    def on_gate(self, closed: bool, now: float) -> list[Action]:
        return self._note("gate", closed)

    def on_finished(self, reason: str, now: float) -> list[Action]:
        return self._note("finished", reason)

    def on_state_captured(self, captured: events.StateCaptured, now: float) -> list[Action]:
        return self._note("captured", captured)

    def on_adopted(self, now: float) -> list[Action]:
        return self._note("adopted")

    def on_stop(self, now: float) -> list[Action]:
        return self._note("stop") or [ToLearner(events.Drained(reason="leave"))]

    def payload_array(self, payload: Payload) -> Vector:
        return self.array


class Stage:
    """A proxy with a scripted protocol, and sockets around it that play its peers."""

    def __init__(
        self, context: Context, supervisor: Supervisor, open_socket: Callable[[int], Socket], dead_link_s: float = sockets.DEAD_LINK_S
    ) -> None:
        self.context = context
        self.script = Script()
        self.addresses: dict[int, tuple[str, int]] = {}
        self.proxy = Proxy(
            context,
            supervisor,
            self.script,
            listener=sockets.listening_socket("127.0.0.1", 0),
            addresses=self.addresses,
            dead_link_s=dead_link_s,
        )
        self._open_socket = open_socket
        self.started = False

    def start(self) -> None:
        self.proxy.start()
        self.started = True

    def dealer(self) -> Socket:
        """A peer's DEALER, connected to the proxy."""
        made = self._open_socket(zmq.DEALER)
        made.connect(sockets.endpoint("127.0.0.1", self.proxy.port))
        return made

    def router(self, line: int) -> Socket:
        """A peer's ROUTER at ``line``, for the proxy to dial."""
        made = self._open_socket(zmq.ROUTER)
        made.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.addresses[line] = ("127.0.0.1", made.bind_to_random_port("tcp://127.0.0.1"))
        return made

    def mail(self, *kinds: type) -> Any:
        """The next mail of one of these kinds."""
        while True:
            poll(self.proxy.mailbox.socket)
            for message in self.proxy.mailbox.receive():
                if isinstance(message, kinds):
                    return message


@pytest.fixture
def stage(context: Context, supervisor: Supervisor, open_socket: Callable[[int], Socket]) -> Iterator[Stage]:
    made = Stage(context, supervisor, open_socket)
    yield made
    if made.started:
        made.proxy.stop()
    assert supervisor.failures == ()


def test_it_never_imports_torch() -> None:
    program = "import sys, zpala.node.proxy; assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_what_it_is_asked_to_start_with_happens(stage: Stage) -> None:
    peer = stage.router(1)
    stage.script.answers["start"] = lambda: [Dial(1), SendUp(1, HELLO)]
    stage.start()
    link, frame = receive(peer)
    assert codec.decode_up(frame) == HELLO
    stage.script.answers["down"] = lambda *_: [Hangup(1)]
    peer.send_multipart([link, codec.encode(BUSY)])
    assert stage.script.expect("down") == (1, BUSY, None)


def test_a_name_is_resolved_before_it_is_dialled(stage: Stage) -> None:
    peer = stage.router(1)
    stage.addresses[1] = ("localhost", stage.addresses[1][1])
    stage.script.answers["start"] = lambda: [Dial(1), SendUp(1, HELLO)]
    stage.start()
    assert codec.decode_up(receive(peer)[1]) == HELLO


def test_an_up_message_is_answered_down(stage: Stage) -> None:
    stage.script.answers["up"] = lambda link, message: [SendDown(link, BUSY)]
    stage.start()
    peer = stage.dealer()
    peer.send(codec.encode(FETCH))
    assert codec.decode_down(receive(peer)[0]) == BUSY
    assert stage.script.expect("up")[1] == FETCH


def test_actions_are_carried_out_in_order_and_what_they_cause_comes_after(stage: Stage) -> None:
    stage.script.answers["up"] = lambda link, message: [
        SendUp(9, LEAVE),  # nobody was dialled: the link is lost
        SendDown(link, BUSY),
        ToLearner(events.Start(version=1)),
    ]
    stage.script.answers["link lost"] = lambda link, line: [ToLearner(events.Start(version=2))]
    stage.start()
    peer = stage.dealer()
    peer.send(codec.encode(FETCH))
    assert codec.decode_down(receive(peer)[0]) == BUSY
    assert stage.script.expect("link lost") == (None, 9)
    assert [stage.mail(events.Start).version for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("numel", [10, NUMEL], ids=["copied", "tracked"])
def test_a_payload_goes_out_and_its_buffer_comes_back_once(stage: Stage, numel: int) -> None:
    stage.script.array = np.arange(numel, dtype=np.float32)
    message = data_of(stage.script.array)
    stage.script.answers["up"] = lambda link, _: [SendDown(link, message, BUFFER), SendDown(link, BUSY)]
    stage.start()
    peer = stage.dealer()
    peer.send(codec.encode(FETCH))
    header, payload = receive(peer)
    assert codec.decode_down(header) == message
    np.testing.assert_array_equal(np.frombuffer(payload, dtype=np.float32), np.arange(numel))
    assert codec.decode_down(receive(peer)[0]) == BUSY
    assert stage.script.expect("sent") == (BUFFER,)
    stage.proxy.stop()
    left = [stage.script.calls.get()[0] for _ in range(stage.script.calls.qsize())]
    assert "sent" not in left


def test_a_payload_to_a_peer_that_has_gone_comes_back_at_once(stage: Stage) -> None:
    stage.script.answers["up"] = lambda link, _: [SendDown(b"\0gone", data_of(stage.script.array), BUFFER)]
    stage.start()
    stage.dealer().send(codec.encode(FETCH))
    assert stage.script.expect("sent") == (BUFFER,)
    assert stage.script.expect("link lost") == (b"\0gone", None)


def test_a_peer_that_does_not_read_costs_messages_and_no_time(stage: Stage) -> None:
    """DATA to a peer that has stopped reading: sends fail in the end, others are served, every buffer is accounted for."""
    count = 60
    message = data_of(stage.script.array)
    stage.script.answers["up"] = lambda link, got: [SendDown(link, message, BUFFER)] if got == FETCH else [SendDown(link, BUSY)]
    stage.start()
    deaf, good = stage.dealer(), stage.dealer()
    deaf.setsockopt(zmq.RCVHWM, 1)
    for _ in range(count):
        deaf.send(codec.encode(FETCH))
    good.send(codec.encode(HELLO))
    assert codec.decode_down(receive(good)[0]) == BUSY
    received = 0
    while deaf.poll(200):
        assert len(deaf.recv_multipart()[1]) == message.snapshot.nbytes
        received += 1
    assert received >= 1
    for _ in range(count):
        assert stage.script.expect("sent") == (BUFFER,)


def test_a_peer_that_stops_while_data_are_under_way_gives_the_buffer_back(
    context: Context, supervisor: Supervisor, open_socket: Callable[[int], Socket]
) -> None:
    """Its kernel goes on acknowledging, so only the limit of the link ends it: what is under way is not lost to the pool for ever."""
    dead_link_s = 1.5
    stage = Stage(context, supervisor, open_socket, dead_link_s)
    stage.script.array = np.zeros(4_000_000, dtype=np.float32)  # 16 MB: more than the kernels take
    stage.script.answers["up"] = lambda link, _: [SendDown(link, data_of(stage.script.array), BUFFER)]
    stage.start()
    try:
        with RawClient.dealer(stage.proxy.port) as stopped:
            stopped.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            stopped.send(codec.encode(FETCH))
            stage.script.expect("up")
            began = time.monotonic()
            assert stage.script.expect("sent") == (BUFFER,)
            assert dead_link_s / 2 < time.monotonic() - began < 4 * dead_link_s
    finally:
        stage.proxy.stop()


def dialled(stage: Stage) -> tuple[Socket, bytes]:
    """Starts the proxy with line 1 dialled: that peer's ROUTER, and the routing id of the proxy there."""
    peer = stage.router(1)
    stage.script.answers["start"] = lambda: [Dial(1), SendUp(1, HELLO)]
    stage.start()
    return peer, receive(peer)[0]


def test_a_payload_is_handed_over_with_its_message(stage: Stage) -> None:
    sent = np.arange(NUMEL, dtype=np.float32)
    peer, link = dialled(stage)
    peer.send_multipart([link, codec.encode(data_of(sent)), sent.tobytes()])
    peer.send_multipart([link, codec.encode(BUSY)])
    assert stage.script.expect("down") == (1, data_of(sent), sent.tobytes())
    assert stage.script.expect("down") == (1, BUSY, None)


def test_a_payload_with_surplus_frames_is_none_and_they_are_read_away(stage: Stage) -> None:
    promised = data_of(np.zeros(4, dtype=np.float32))
    peer, link = dialled(stage)
    peer.send_multipart([link, codec.encode(promised), b"x" * 16, b"y" * 100, b"", b"z"])
    peer.send_multipart([link, codec.encode(BUSY), b"surplus"])
    peer.send_multipart([link, codec.encode(BUSY)])
    assert stage.script.expect("down") == (1, promised, b"")
    line, from_link, error = stage.script.expect("bad frame")
    assert (line, from_link) == (1, None)
    assert isinstance(error, codec.ProtocolError)
    assert stage.script.expect("down") == (1, BUSY, None)


def test_an_oversize_payload_costs_its_sender_the_connection_only(stage: Stage) -> None:
    peer, link = dialled(stage)
    other = stage.dealer()
    monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    peer.send_multipart([link, codec.encode(data_of(stage.script.array)), bytes(stage.script.array.nbytes + 10_000)])
    other.send(codec.encode(FETCH))
    assert stage.script.expect("up")[1] == FETCH
    poll(monitor)  # the proxy's libzmq has hung up on the sender
    peer.disable_monitor()
    monitor.close()


def test_garbage_of_all_kinds_while_a_good_peer_is_served(stage: Stage) -> None:
    stage.script.answers["up"] = lambda link, message: [SendDown(link, BUSY)]
    stage.start()
    good, rude = stage.dealer(), stage.dealer()
    garbage = [b"", b"garbage", codec.encode(FETCH)[:-1], codec.encode(BUSY), b"ZPA1" + bytes(4) + b"\xdf" + b"\xff" * 4]
    strangers = [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" + bytes(9) + b"\x7f\x03" + bytes(500),
    ]
    for frame in garbage:
        rude.send(frame)
        error = stage.script.expect("bad frame")[2]
        assert isinstance(error, codec.ProtocolError)
        good.send(codec.encode(FETCH))
        assert codec.decode_down(receive(good)[0]) == BUSY
    rude.send_multipart([codec.encode(FETCH)] * 3)
    assert stage.script.expect("bad frame")[0] is None
    for opening in strangers:
        with socket.create_connection(("127.0.0.1", stage.proxy.port), timeout=LIMIT_S) as raw:
            raw.sendall(opening)
            good.send(codec.encode(FETCH))
            assert codec.decode_down(receive(good)[0]) == BUSY
    rude.send(bytes(codec.UP_MAX + sockets.CURVE_OVERHEAD_BYTES + 1))
    good.send(codec.encode(FETCH))
    assert codec.decode_down(receive(good)[0]) == BUSY
    counters = stage.mail(ProxyCounters)
    while counters.bad_frames < len(garbage) + 1:
        counters = stage.mail(ProxyCounters)
    assert counters.bad_frames == len(garbage) + 1


def test_a_flood_keeps_nobody_from_being_served(stage: Stage) -> None:
    """A peer that sends without end gets its share of a turn: mail and other peers come in between."""
    stage.start()
    flood, good = stage.dealer(), stage.dealer()
    flood.setsockopt(zmq.SNDHWM, 0)
    count = 20_000
    frame = codec.encode(FETCH)
    for _ in range(count):
        flood.send(frame)
    stage.proxy.mailbox.send(GateChanged(closed=True))
    good.send(codec.encode(LEAVE))
    place: dict[str, int] = {}
    for number in range(count + 2):
        name, *rest = stage.script.calls.get(timeout=LIMIT_S)
        if name == "gate" or (name == "up" and rest[1] == LEAVE):
            place[name] = number
        if len(place) == 2:
            break
    assert set(place) == {"gate", "up"}
    assert max(place.values()) < count


def test_what_is_not_admitted_is_read_away_slowly_and_costs_nobody_else(stage: Stage) -> None:
    """A flood of 2000 refused messages: none reaches the protocol, the ROUTER rests in between, and an honest message overtakes them."""
    stage.script.admitted = lambda kind: kind is not m.Fetch
    stage.start()
    flood, good = stage.dealer(), stage.dealer()
    flood.setsockopt(zmq.SNDHWM, 0)
    count, frame = 2000, codec.encode(FETCH)
    for number in range(count):
        flood.send_multipart([frame, b"surplus"] if number % 10 == 0 else [frame])
    stage.script.expect("unread")
    began = time.monotonic()
    good.send(codec.encode(LEAVE))
    before = 0
    while (call := stage.script.calls.get(timeout=LIMIT_S))[0] != "up":
        before += call[0] == "unread"
    assert call[2] == LEAVE
    assert before < count / 2
    counters = ProxyCounters()
    while counters.rate_limited < count:
        counters = stage.mail(ProxyCounters)
    assert time.monotonic() - began > (count - before) / 2 * REST_S / 2, "two a rest, and a rest now and then is not due to them"
    assert counters.rate_limited == count
    assert (counters.messages_received, counters.bad_frames) == (count + 1, 0)
    assert stage.script.cost_s < counters.cpu_s / 2, "what strangers cost is not gossip's share"


def test_a_peer_that_vanishes_is_a_lost_link(stage: Stage) -> None:
    peer, _ = dialled(stage)
    peer.close()
    stage.script.answers["gate"] = lambda closed: [SendUp(1, FETCH)]
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:  # the kernel tells libzmq, libzmq drops the pipe; sends until then vanish, as they may
        stage.proxy.mailbox.send(GateChanged(closed=True))
        stage.script.expect("gate")
        stage.proxy.mailbox.send(RunFinished("probe"))
        name, *rest = stage.script.calls.get(timeout=LIMIT_S)
        if name == "link lost":
            assert rest == [None, 1]
            return
    pytest.fail("the link was never lost")


def test_mail_from_the_learner_becomes_events(stage: Stage) -> None:
    stage.start()
    published = events.Published(version=3, updates=3, applied_through=2)
    captured = events.StateCaptured(state_id=5, version=3, optimizer_steps=9)
    stage.script.answers["published"] = lambda *_: [ToLearner(events.SnapshotLent(buffer=2))]
    for message in (SnapshotReady(1, published), GateChanged(closed=True), captured, StateAdopted(), RunFinished("budget"), LeaveRun()):
        assert stage.proxy.mailbox.send(message)
    assert stage.script.expect("published") == (published, 1)
    assert stage.mail(events.SnapshotLent) == events.SnapshotLent(buffer=2)
    assert stage.script.expect("gate") == (True,)
    assert stage.script.expect("captured") == (captured,)
    assert stage.script.expect("adopted") == ()
    assert stage.script.expect("finished") == ("budget",)
    assert stage.script.expect("stop") == ()
    assert stage.mail(events.Drained).reason == "leave"


def test_a_timer_is_called_when_it_is_due(stage: Stage) -> None:
    stage.start()
    due = time.monotonic() + 0.03
    stage.script.due = due
    (now,) = stage.script.expect("timer")
    assert due <= now < due + 1.0


def test_the_cost_of_gossip_is_told(stage: Stage) -> None:
    def busy(closed: bool) -> list[Action]:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        return [Log("debug", "done")]

    stage.script.answers["gate"] = busy
    stage.start()
    stage.proxy.mailbox.send(GateChanged(closed=True))
    stage.script.expect("gate")
    counters = stage.mail(ProxyCounters)
    while counters.cpu_s < 0.02:
        counters = stage.mail(ProxyCounters)
    assert counters.cpu_s < 1.0
    assert stage.script.cost_s >= 0.02


def test_stop_says_leave_and_waits_until_it_is_said(stage: Stage) -> None:
    """The protocol may need some time to end an exchange before it leaves; its last words still go out."""
    peer, _ = dialled(stage)

    def stop() -> list[Action]:
        stage.script.due = time.monotonic() + 0.1
        return [Log("info", "leaving")]

    stage.script.answers["stop"] = stop
    stage.script.answers["timer"] = lambda now: [SendUp(1, LEAVE), Hangup(1), ToLearner(events.Drained(reason="leave"))]
    stage.proxy.stop()
    assert not stage.proxy.alive
    assert codec.decode_up(receive(peer)[1]) == LEAVE


def test_stop_has_a_limit_whatever_the_protocol_does(stage: Stage) -> None:
    stage.script.answers["stop"] = lambda: [Log("info", "never done")]
    stage.start()
    began = time.monotonic()
    stage.proxy.stop()
    assert time.monotonic() - began < 5.0


def test_who_was_told_to_leave_is_not_told_again(stage: Stage) -> None:
    stage.start()
    stage.proxy.mailbox.send(LeaveRun())
    stage.mail(events.Drained)
    stage.proxy.stop()
    names = [stage.script.calls.get()[0] for _ in range(stage.script.calls.qsize())]
    assert names.count("stop") == 1


def test_the_port_is_free_after_the_end() -> None:
    own: Context = zmq.Context()
    supervisor = Supervisor(own)
    stage = Stage(own, supervisor, own.socket)
    stage.start()
    stage.proxy.stop()
    supervisor.close()
    terminate(own)  # libzmq closes sockets in a thread of its own; now it has
    sockets.listening_socket("127.0.0.1", stage.proxy.port).close()


def test_nothing_is_left_open_by_a_life_of_a_proxy() -> None:
    counts = []
    for _ in range(4):
        own: Context = zmq.Context()
        supervisor = Supervisor(own)
        stage = Stage(own, supervisor, own.socket)
        peer, _ = dialled(stage)
        stage.proxy.stop()
        supervisor.close()
        peer.close(linger=0)
        terminate(own)
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[1:] == counts[:1] * 3


def test_an_error_of_ours_is_reported(context: Context, supervisor: Supervisor, open_socket: Callable[[int], Socket]) -> None:
    stage = Stage(context, supervisor, open_socket)
    stage.start()
    stage.proxy.mailbox.send(events.SnapshotLent(buffer=1))  # never sent in this direction
    failure = supervisor.wait(LIMIT_S)
    assert failure is not None
    assert failure.name == "proxy"
    with pytest.raises(WorkerFailed, match="not for the proxy"):
        supervisor.raise_if_failed()
    stage.proxy.stop()


def test_an_error_at_the_start_is_raised_there(context: Context, supervisor: Supervisor, open_socket: Callable[[int], Socket]) -> None:
    stage = Stage(context, supervisor, open_socket)

    def start() -> list[Action]:
        raise ValueError("this cannot start")

    stage.script.answers["start"] = start
    with pytest.raises(ValueError, match="this cannot start"):
        stage.proxy.start()
    assert supervisor.first is None


def test_a_learner_that_hangs_does_not_hold_the_proxy_up(stage: Stage) -> None:
    """More mail than the pipe holds: the proxy goes on, of views only the newest waits, and nothing else is lost."""
    pipe = 2 * sockets.INPROC_HWM
    views: list[Action] = [ToLearner(view(number / 1e6)) for number in range(pipe + 500)]
    stage.script.answers["gate"] = lambda closed: [*views, ToLearner(events.Start(version=7))]
    stage.start()
    stage.proxy.mailbox.send(GateChanged(closed=True))
    peer = stage.dealer()
    stage.script.answers["up"] = lambda link, message: [SendDown(link, BUSY)]
    stage.script.expect("gate")
    peer.send(codec.encode(FETCH))
    assert codec.decode_down(receive(peer)[0]) == BUSY  # and the learner has not read a word
    read = list[Any]()
    while not (read and isinstance(read[-1], events.Start)):
        read.append(stage.mail(events.View, events.Start))
    progress = [message.progress for message in read[:-1]]
    assert progress == sorted(progress)
    assert progress[-1] == (pipe + 499) / 1e6
    assert len(read) < pipe + 10


def test_only_what_is_superseded_is_dropped() -> None:
    start, lent = events.Start(version=1), events.SnapshotLent(buffer=0)
    old, new = view(0.1), view(0.2)
    counters = [ProxyCounters(messages_sent=number) for number in (1, 2)]
    assert list(_without_superseded([old, start, counters[0], new, counters[1], lent])) == [start, new, counters[1], lent]
