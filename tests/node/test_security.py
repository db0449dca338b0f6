"""With keys: who is let in, who is not, what is said of it, and that nobody's failed attempt costs the honest ones anything."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from tests.faults.raw_zmtp import RawClient
from tests.faults.zmtp_frames import greeting
from tests.node.conftest import LIMIT_S, poll, receive, terminate
from tests.node.pair import Pair
from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.gossip.codec import DOWN_HEADER_MAX, UP_MAX
from zpala.node import sockets
from zpala.node.keys import Keyring, SecretKey, new_key
from zpala.node.links import REDIAL_S, Links
from zpala.node.security import KEYS_PER_SOURCE, SOURCES_MAX, Admission, failed_handshakes
from zpala.node.sockets import Context, Socket

PAYLOAD_BYTES = 100_000
CONDITION = m.Condition(phase="waiting")
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"  # of ZMTP 3.0, up to the mechanism
LATER = 2**62  # an incarnation that would fence any other


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[[], SecretKey]:
    names = iter(range(1000))
    return lambda: new_key(tmp_path, f"k{next(names)}")


class Door:
    """A ROUTER with its ZAP handler, served by the test's own thread."""

    def __init__(self, context: Context, key: SecretKey, allowed: set[str], port: int = 0) -> None:
        self.key = key
        self.poller = zmq.Poller()
        self.admission = Admission(context, self.poller, allowed)
        listener = sockets.listening_socket("127.0.0.1", port)
        self.router, self.port = sockets.router_socket(context, listener, own_key=key, monitor=self.admission.monitor)
        self.poller.register(self.router, zmq.POLLIN)

    @property
    def address(self) -> str:
        return sockets.endpoint("127.0.0.1", self.port)

    def serve_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s"
            self.admission.serve(dict(self.poller.poll(20)))

    def close(self) -> None:
        self.router.disable_monitor()
        self.router.close()
        self.admission.close()


@pytest.fixture
def allowed() -> set[str]:
    return set()


@pytest.fixture
def make_door(context: Context, make_key: Callable[[], SecretKey], allowed: set[str]) -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def factory(key: SecretKey | None = None, port: int = 0, let_in: set[str] | None = None) -> Door:
        made.append(Door(context, key or make_key(), allowed if let_in is None else let_in, port))
        return made[-1]

    yield factory
    for door in made:
        if not door.router.closed:
            door.close()


@pytest.fixture
def knock(open_socket: Callable[[int], Socket]) -> Callable[..., Socket]:
    """A DEALER of a stranger's making: any key pair (None: no CURVE), any idea of the server's key."""

    def dial(address: str, key: SecretKey | None, server_key: SecretKey | None = None) -> Socket:
        made = open_socket(zmq.DEALER)
        if key is not None and server_key is not None:
            made.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(server_key.public))
            made.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(key.public))
            made.setsockopt(zmq.CURVE_SECRETKEY, key.secret)
        made.connect(address)
        return made

    return dial


def say(stranger: Socket, frame: bytes) -> None:
    """Sends, unless the stranger has been refused already: then there is nobody left to send to, and a send would wait for ever."""
    with contextlib.suppress(zmq.Again):
        stranger.send(frame, zmq.DONTWAIT)


# ---- the ZAP handler -----------------------------------------------------------------------------------------------------------------


def test_who_is_allowed_comes_in_under_the_name_of_its_key(
    make_door: Callable[..., Door], make_key: Callable[[], SecretKey], allowed: set[str], knock: Callable[..., Socket]
) -> None:
    door, key = make_door(), make_key()
    allowed.add(key.public)
    client = knock(door.address, key, door.key)
    client.send(b"hello")
    door.serve_until(lambda: door.router.poll(0))
    for frame in door.router.recv_multipart(copy=False):
        assert frame.get("User-Id") == key.public
    assert (door.admission.denied, door.admission.failed) == (0, 0)


def test_the_keys_are_asked_for_even_if_nobody_can_answer(
    context: Context, make_key: Callable[[], SecretKey], knock: Callable[..., Socket]
) -> None:
    """Without a ZAP handler, libzmq would let in every key there is; with an enforced domain it lets in none."""
    server, client_key, monitor = make_key(), make_key(), sockets.monitor_address()
    events = sockets.monitor_socket(context, monitor)
    router, port = sockets.router_socket(context, sockets.listening_socket("127.0.0.1", 0), own_key=server, monitor=monitor)
    client = knock(sockets.endpoint("127.0.0.1", port), client_key, server)
    client.send(b"hello")
    poll(events)
    assert not router.poll(0)
    assert (router.getsockopt(zmq.ZAP_ENFORCE_DOMAIN), router.getsockopt(zmq.ZAP_DOMAIN)) == (1, b"zpala")
    router.disable_monitor()
    events.close()
    router.close()


def test_an_error_while_a_key_is_judged_refuses_that_one_and_the_next_is_served(
    make_door: Callable[..., Door], make_key: Callable[[], SecretKey], knock: Callable[..., Socket], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(set[str]):
        asked = 0

        def __contains__(self, key: object) -> bool:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("the list has been dropped")
            return super().__contains__(key)

    first, second = make_key(), make_key()
    faulty = Faulty([first.public, second.public])
    door = make_door(let_in=faulty)
    refused = knock(door.address, first, door.key)
    refused.send(b"first")
    door.serve_until(lambda: door.admission.denied)
    knock(door.address, second, door.key).send(b"second")
    door.serve_until(lambda: door.router.poll(0))
    assert receive(door.router)[1:] == [b"second"]
    assert (faulty.asked, door.admission.denied) == (2, 1)
    assert not door.router.poll(0)
    assert ["the list has been dropped" in record.message for record in caplog.records] == [True]


def test_the_place_where_libzmq_asks_is_free_as_soon_as_it_is_closed(context: Context) -> None:
    """Else whoever opens the next door in the same process is told that the address is in use, every other time."""
    for _ in range(200):
        poller = zmq.Poller()
        Admission(context, poller, set()).close()


@pytest.mark.parametrize(
    "request_", [[], [b"link"], [b"link", b"", b"1.0"], [b"link", b"", b"2.0", b"1", b"zpala", b"", b"", b"CURVE", b""]]
)
def test_requests_that_make_no_sense_harm_nobody(make_door: Callable[..., Door], request_: list[bytes]) -> None:
    door = make_door()
    door.admission._answer(request_)
    assert door.admission.denied == 1


def test_many_unknown_keys_are_all_counted_and_few_of_them_logged(
    make_door: Callable[..., Door], make_key: Callable[[], SecretKey], knock: Callable[..., Socket], caplog: pytest.LogCaptureFixture
) -> None:
    door, keys = make_door(), [make_key() for _ in range(3 * KEYS_PER_SOURCE)]
    for number, key in enumerate([*keys, *keys], start=1):
        knock(door.address, key, door.key).send(b"hello")
        door.serve_until(lambda number=number: door.admission.denied == number)  # type: ignore[misc]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == KEYS_PER_SOURCE
    for key, text in zip(keys, said, strict=False):
        assert f"somebody at 127.0.0.1 was refused: the key {key.public} stands on no line of hosts.txt" in text
    assert ["only counted" in text for text in said] == [False] * (KEYS_PER_SOURCE - 1) + [True]
    assert not door.router.poll(0)


def test_many_addresses_do_not_silence_what_else_is_to_be_said(make_door: Callable[..., Door], caplog: pytest.LogCaptureFixture) -> None:
    """As many sources as are named, each with an unknown key; then somebody without any."""
    door = make_door()
    for number in range(2 * SOURCES_MAX):
        source = f"10.0.{number // 256}.{number % 256}".encode()
        door.admission._answer([b"x", b"", b"1.0", b"1", sockets.ZAP_DOMAIN, source, b"", b"CURVE", bytes(32)])
    assert door.admission.denied == 2 * SOURCES_MAX
    assert len(caplog.messages) == SOURCES_MAX - 2
    client = RawClient(door.port)
    client.send_raw(greeting())
    door.serve_until(lambda: door.admission.failed)
    client.close()
    assert caplog.messages[-1].startswith("a connection to this node's port was refused: it uses no keys")


def test_a_node_without_keys_says_once_that_others_have_some(
    make_key: Callable[[], SecretKey], make_pair: Callable[..., Pair], knock: Callable[..., Socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Its hosts.txt is an old copy: the nodes with keys cannot tell it, so it has to see by itself."""
    pair = make_pair(1_008)
    pair.more(1)
    own, other = make_key(), make_key()
    address = sockets.endpoint("127.0.0.1", pair.ports[0])
    text = (
        "a connection to this node's port was refused: it uses keys, and this node's hosts.txt has none: give every node the same hosts.txt"
    )
    number = 0
    while number < 3 or text not in caplog.messages:  # some are broken off by the dialling end before there is anything to say of them
        number += 1
        assert number < 30, "nothing is said"
        say(knock(address, own, other), b"hello")
        pair.run_until(lambda number=number: pair.learners[0].counters.handshakes_failed >= number)  # type: ignore[misc]
    assert [message for message in caplog.messages if "was refused" in message] == [text]
    assert pair.learners[1].counters.handshakes_failed == 0
    pair.more(3)


# ---- sizes ---------------------------------------------------------------------------------------------------------------------------


def test_the_limits_are_exact_under_curve(
    context: Context, make_door: Callable[..., Door], make_key: Callable[[], SecretKey], allowed: set[str]
) -> None:
    door, key = make_door(), make_key()
    allowed.add(key.public)
    monitor = sockets.monitor_address()
    dealer = sockets.dealer_socket(context, door.address, PAYLOAD_BYTES, own_key=key, peer_key=door.key.public_bytes)
    door.serve_until(lambda: dealer.poll(0, zmq.POLLOUT))
    down_max = PAYLOAD_BYTES + DOWN_HEADER_MAX
    dealer.send(b"u" * UP_MAX)
    link, frame = receive(door.router)
    assert len(frame) == UP_MAX
    door.router.send_multipart([link, b"d" * down_max])
    assert len(receive(dealer)[0]) == down_max

    dealer.monitor(monitor, zmq.EVENT_DISCONNECTED)
    disconnected = sockets.monitor_socket(context, monitor)
    door.router.send_multipart([link, b"d" * (down_max + 1)])
    poll(disconnected)
    assert not dealer.poll(0)
    dealer.disable_monitor()
    disconnected.close()
    dealer.close()

    again = sockets.dealer_socket(context, door.address, PAYLOAD_BYTES, own_key=key, peer_key=door.key.public_bytes)
    again.monitor(monitor := sockets.monitor_address(), zmq.EVENT_DISCONNECTED)
    disconnected = sockets.monitor_socket(context, monitor)
    door.serve_until(lambda: again.poll(0, zmq.POLLOUT))
    again.send(b"u" * (UP_MAX + 1))
    poll(disconnected)
    assert not door.router.poll(0)
    again.disable_monitor()
    disconnected.close()
    again.close()


# ---- a peer that refuses, or is refused, at first --------------------------------------------------------------------------------------


def links_to(context: Context, poller: zmq.Poller, door: Door, own: SecretKey, expected: SecretKey) -> Links:
    """Links with one peer, line 1, that is at ``door``; its line has the key ``expected``."""
    return Links(context, poller, {1: ("127.0.0.1", door.port)}, PAYLOAD_BYTES, keyring=Keyring(own, {0: own.public, 1: expected.public}))


def freed(port: int) -> int:
    """Waits until the port of a ROUTER that was closed is free: libzmq closes it in a thread of its own."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), sockets.listening_socket("127.0.0.1", port):
            return port
    pytest.fail(f"port {port} is not free within {LIMIT_S:g} s")


def serve_until(door: Door, links: Links, poller: zmq.Poller, condition: Callable[[], object]) -> int:
    """How often the links said that this node's key is not known."""
    denied = 0

    def turn() -> bool:
        nonlocal denied
        ready = dict(poller.poll(0))
        denied += links.read_monitors(ready)
        for line, dealer in links.dealers():
            if ready.get(dealer, 0) & zmq.POLLOUT:
                links.on_writable(line)
        return bool(condition())

    door.serve_until(turn)
    return denied


def test_a_key_that_is_added_later_comes_in_with_the_next_dial(
    context: Context,
    make_door: Callable[..., Door],
    make_key: Callable[[], SecretKey],
    allowed: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """libzmq gives up for good when it is denied: the redial that makes every failing link anew brings this one back too."""
    door, own, poller = make_door(), make_key(), zmq.Poller()
    links = links_to(context, poller, door, own, door.key)
    links.dial(1)
    assert links.send(1, b"hello", 0.0, keep=True)
    assert serve_until(door, links, poller, lambda: links.refusals.count) == 1
    assert (links.refusals.count, door.admission.denied) == (1, 1)
    text = f"127.0.0.1:{door.port} does not let this node in: this node's key {own.public} stands on no line of its hosts.txt"
    assert text in caplog.messages
    allowed.add(own.public)
    links.redial(REDIAL_S)
    serve_until(door, links, poller, lambda: links.messages_sent)
    assert links.redials == 1
    assert receive(door.router)[1] == b"hello"
    links.close()


def test_a_peer_with_the_wrong_key_gets_nothing_until_it_has_the_right_one(
    context: Context,
    make_door: Callable[..., Door],
    make_key: Callable[[], SecretKey],
    allowed: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, right, poller = make_key(), make_key(), zmq.Poller()
    allowed.add(own.public)
    wrong = make_door()
    links = links_to(context, poller, wrong, own, right)
    links.dial(1)
    assert links.send(1, b"hello", 0.0, keep=True)
    assert serve_until(wrong, links, poller, lambda: links.refusals.count >= 6) == 0, "that is another mistake"
    assert links.messages_sent == 0
    assert wrong.admission.failed >= 5
    assert wrong.admission.denied == 0, "it never came to a key"
    said = f"127.0.0.1:{wrong.port} breaks off every handshake: is the key on its line of hosts.txt really its own?"
    assert [text for text in caplog.messages if "breaks off" in text] == [said]
    assert len([text for text in caplog.messages if "was refused: it expects another key here" in text]) == 1
    wrong.close()
    mended = make_door(right, freed(wrong.port))
    serve_until(mended, links, poller, lambda: links.messages_sent)
    assert receive(mended.router)[1] == b"hello"
    links.close()


# ---- two honest nodes and others -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Siege:
    """Two nodes that exchange, a third line whose key the attacker may have, and the keys of all."""

    pair: Pair
    keys: list[SecretKey]
    stranger: SecretKey

    @property
    def address(self) -> str:
        return sockets.endpoint("127.0.0.1", self.pair.hosts[0].port)

    def exchange(self, count: int = 3) -> None:
        """The two go on: ``count`` more deltas each."""
        wanted = [learner.deltas + count for learner in self.pair.learners]
        self.pair.run_until(lambda: all(learner.deltas >= one for learner, one in zip(self.pair.learners, wanted, strict=True)))

    def refused(self) -> int:
        counters = self.pair.learners[0].counters
        return counters.keys_denied + counters.handshakes_failed


@pytest.fixture
def siege(make_key: Callable[[], SecretKey]) -> Iterator[Siege]:
    keys = [make_key() for _ in range(3)]
    pair = Pair(50_000, keys=keys, others=[("127.0.0.1", 2)])  # a privileged port: nobody answers there
    made = Siege(pair, keys, make_key())
    made.exchange()
    yield made
    made.exchange()
    pair.stop()
    assert all(supervisor.first is None for supervisor in pair.supervisors)
    assert not any(protocol.metrics()["renewed"] or protocol.metrics()["bad_frames"] for protocol in pair.protocols)


def hello(siege: Siege, line: int, incarnation: int = LATER) -> bytes:
    """Equal to the honest ones' in everything but who says it."""
    return codec.encode(m.Hello(node="x", line=line, incarnation=incarnation, agreement=siege.pair.agreement, condition=CONDITION))


STRANGERS = {
    "unknown key": ("stands on no line of hosts.txt", "denied"),
    "no key": ("it uses no keys", "failed"),
    "wrong server key": ("it expects another key here", "failed"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_who_has_no_right_key_is_served_nothing_and_told_of_once(
    siege: Siege, kind: str, knock: Callable[..., Socket], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    peers = []
    for number in range(3):
        before = siege.refused()
        match kind:
            case "unknown key":
                peers.append(knock(siege.address, siege.stranger, siege.keys[0]))
            case "no key":
                peers.append(knock(siege.address, None))
            case _:
                peers.append(knock(siege.address, siege.keys[2], siege.stranger))
        say(peers[-1], hello(siege, 1 + number % 2))
        siege.pair.run_until(lambda before=before: siege.refused() > before)  # type: ignore[misc]
        siege.exchange(1)
    text, how = STRANGERS[kind]
    counters = siege.pair.learners[0].counters
    assert (counters.keys_denied if how == "denied" else counters.handshakes_failed) >= 3
    assert len([message for message in caplog.messages if text in message]) == 1
    assert not any(peer.poll(0) for peer in peers), "no answer of any sort"
    metrics = siege.pair.protocols[0].metrics()
    assert (metrics["forged"], metrics["rejects_sent"], metrics["no_session"]) == (0, 0, 0), "the protocol never heard of them"


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        pytest.param(b"\x01\x00", False, id="ZMTP 1.0"),
        pytest.param(b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00", False, id="ZMTP 2.0"),
        pytest.param(GREETING + b"NULL".ljust(20, b"\0") + bytes(32), True, id="ZMTP 3.0 NULL"),
        pytest.param(GREETING + b"PLAIN".ljust(20, b"\0") + bytes(32), True, id="ZMTP 3.0 PLAIN"),
        pytest.param(GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO" + bytes(194), True, id="CURVE"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", False, id="HTTP"),
    ],
)
def test_older_protocols_are_no_way_round_the_keys(siege: Siege, greeting: bytes, told: bool) -> None:
    """The node hangs up, whatever comes after the greeting. libzmq tells its monitor of what it has understood so far as to refuse it."""
    before = siege.refused()
    frame = hello(siege, 1)
    with socket.create_connection(("127.0.0.1", siege.pair.hosts[0].port), timeout=LIMIT_S) as raw:
        raw.sendall(greeting + b"\x02" + len(frame).to_bytes(8, "big") + frame)
        siege.exchange(1)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):  # its greeting, then the end
                pass
    if told:
        siege.pair.run_until(lambda: siege.refused() > before)
    metrics = siege.pair.protocols[0].metrics()
    assert (metrics["forged"], metrics["no_session"], metrics["bad_frames"]) == (0, 0, 0)


def test_twenty_impostors_do_not_disturb_the_real_ones(
    siege: Siege, knock: Callable[..., Socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten with keys that nobody knows, ten with the right key of line 2 who say that they are another: none is believed."""
    caplog.clear()
    incarnations = [peer["incarnation"] for peer in siege.pair.protocols[0].describe()["peers"]]
    strangers, insiders = [], []
    for number in range(10):
        strangers.append(knock(siege.address, siege.stranger, siege.keys[0]))
        say(strangers[-1], hello(siege, number % 3))
        insiders.append(knock(siege.address, siege.keys[2], siege.keys[0]))
        insiders[-1].send(hello(siege, number % 2))
        siege.exchange(1)
    for insider in insiders:
        siege.pair.run_until(lambda insider=insider: insider.poll(0))  # type: ignore[misc]
        reject = codec.decode_down(receive(insider)[0])
        assert isinstance(reject, m.Reject)
        assert (reject.code, reject.yours) == ("key", siege.keys[2].public)
        insider.send(codec.encode(m.Leave(session=1, incarnation=LATER, reason="end")))
        siege.pair.run_until(lambda insider=insider: insider.poll(0))  # type: ignore[misc]
        assert codec.decode_down(receive(insider)[0]) == m.Nack(code="no_session")
    siege.pair.run_until(lambda: siege.pair.learners[0].counters.keys_denied == 10)
    assert siege.pair.protocols[0].metrics()["forged"] == 10
    assert [peer["incarnation"] for peer in siege.pair.protocols[0].describe()["peers"]] == incarnations
    for line in range(2):
        port = siege.pair.hosts[line].port
        assert len([text for text in caplog.messages if f"claims to be 127.0.0.1:{port} and was refused" in text]) == 1
    assert not any(stranger.poll(0) for stranger in strangers)


def test_nothing_is_left_open_by_two_lives_with_keys(make_key: Callable[[], SecretKey], knock: Callable[..., Socket]) -> None:
    """Contexts end, within the limit of ``terminate``: no socket, no monitor is forgotten, even while strangers knock."""
    for _ in range(2):
        keys = [make_key(), make_key()]
        pair = Pair(1_008, keys=keys)
        for _ in range(20):
            say(knock(sockets.endpoint("127.0.0.1", pair.hosts[0].port), None), b"?")
        pair.run_until(lambda pair=pair: min(learner.deltas for learner in pair.learners) >= 1)  # type: ignore[misc]
        pair.stop()


def test_a_monitor_never_makes_libzmq_wait(context: Context) -> None:
    """More events than two high-water marks, and nobody reads: the ROUTER's I/O thread goes on serving."""
    address = sockets.monitor_address()
    monitor = sockets.monitor_socket(context, address)
    router, port = sockets.router_socket(context, sockets.listening_socket("127.0.0.1", 0), monitor=address)
    count = 2 * sockets.INPROC_HWM + 500
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as raw:
            raw.sendall(GREETING + b"CURVE".ljust(20, b"\0") + bytes(32))
            while raw.recv(4096):
                pass
    told = 0
    while told < count:
        poll(monitor)
        told += len(list(failed_handshakes(monitor)))
    router.disable_monitor()
    monitor.close()
    router.close()


@pytest.mark.parametrize(("encrypted", "threads"), [(False, 1), (True, 2)])
def test_encryption_has_a_second_thread(encrypted: bool, threads: int) -> None:
    own = sockets.node_context(encrypted=encrypted)
    assert own.get(zmq.IO_THREADS) == threads
    terminate(own)
