"""The toxic proxy does what it says, at the byte that it says: judged from both ends of plain sockets, with own clocks and bytes."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.toxic_proxy import Fault, Happened, ToxicProxy
from tests.faults.zmtp_frames import frame, greeting

LIMIT_S = 20.0


class EchoServer:
    """Sends back what it gets; notes how each connection ended."""

    def __init__(self) -> None:
        self.endings: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", int(self._listener.getsockname()[1]))
        self._threads = [threading.Thread(target=self._accept, name="echo")]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._listener.fileno() < 0 or not self._threads:
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="echo")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(LIMIT_S)
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
                self.endings.append("end")
            except ConnectionError:
                self.endings.append("reset")

    def close(self) -> None:
        threads, self._threads = self._threads, []
        socket.create_connection(self.address).close()  # wakes the accept
        for thread in threads:
            thread.join(LIMIT_S)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[ToxicProxy]:
    with ToxicProxy(echo.address, seed=7) as made:
        yield made


@pytest.fixture
def client(proxy: ToxicProxy) -> Iterator[socket.socket]:
    with dial(proxy) as made:
        yield made


def dial(proxy: ToxicProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT_S)


def receive(client: socket.socket, count: int) -> bytes:
    """Exactly ``count`` bytes, or fewer when the connection ends before."""
    got = b""
    while len(got) < count and (data := client.recv(count - len(got))):
        got += data
    return got


def round_trip_s(client: socket.socket, data: bytes = b"x") -> float:
    began = time.monotonic()
    client.sendall(data)
    assert receive(client, len(data)) == data
    return time.monotonic() - began


def pattern(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def test_an_innocent_proxy_changes_nothing(proxy: ToxicProxy, client: socket.socket, echo: EchoServer) -> None:
    sent = pattern(300_000)
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    assert receive(client, len(sent)) == sent
    sender.join()
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    proxy.wait(lambda: proxy.open == 0)
    assert echo.endings == ["end"]
    assert (proxy.connections, proxy.resets) == (1, 0)
    for way in (proxy.up, proxy.down):
        assert way.counts == {"received": len(sent), "delivered": len(sent), "swallowed": 0, "ends_swallowed": 0, "delayed": 0}
        assert way.happened == []


def test_both_ways_of_several_connections_stay_apart(proxy: ToxicProxy) -> None:
    clients = [dial(proxy) for _ in range(5)]
    for number, client in enumerate(clients):
        client.sendall(bytes([number]) * 1000)
    for number, client in enumerate(clients):
        assert receive(client, 1000) == bytes([number]) * 1000
        client.close()
    assert proxy.connections == 5


def test_latency_is_added_per_way(proxy: ToxicProxy, client: socket.socket) -> None:
    plain = round_trip_s(client)
    proxy.up.delay(0.2)
    assert 0.2 <= round_trip_s(client) < 0.2 + plain + 2.0
    proxy.down.delay(0.3)
    assert 0.5 <= round_trip_s(client) < 0.5 + plain + 2.0
    proxy.up.delay(0.0)
    proxy.down.delay(0.0)
    assert round_trip_s(client) < 0.2
    assert (proxy.up.counts["delayed"], proxy.down.counts["delayed"]) == (2, 1)


def test_jitter_comes_from_the_seed_and_keeps_the_order(echo: EchoServer) -> None:
    sums = []
    for _ in range(2):
        with ToxicProxy(echo.address, seed=3) as proxy, dial(proxy) as client:
            proxy.up.delay(0.01, 0.01)
            for number in range(10):
                client.sendall(bytes([number]))
                proxy.wait(lambda number=number: proxy.up.counts["received"] == number + 1)  # type: ignore[misc]
            assert receive(client, 10) == bytes(range(10))
            assert proxy.up.counts["delayed"] == 10
            sums.append(proxy.up.delay_sum_s)
    source = random.Random(2 * 3)
    assert sums[0] == sums[1] == pytest.approx(sum(0.01 + source.uniform(-0.01, 0.01) for _ in range(10)))


def test_a_rate_is_kept(proxy: ToxicProxy, client: socket.socket) -> None:
    sent = pattern(40_000)
    proxy.down.limit(100_000.0)
    took = round_trip_s(client, sent)
    assert took >= 0.38, "40 kB at 100 kB/s, less the last piece, which is paid for afterwards"
    assert took < 4.0
    proxy.down.limit(float("inf"))
    assert round_trip_s(client, sent) < 0.3


@pytest.mark.parametrize("after", [0, 1, 1000, 100_000])
def test_a_reset_comes_after_exactly_so_many_bytes(proxy: ToxicProxy, client: socket.socket, echo: EchoServer, after: int) -> None:
    sent = pattern(after + 500)
    assert round_trip_s(client, b"before") < LIMIT_S
    proxy.down.arm(Fault.RESET, after=after)
    client.sendall(sent)
    assert receive(client, after) == sent[:after]
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    proxy.wait(lambda: proxy.open == 0 and echo.endings)
    assert echo.endings == ["reset"]
    assert proxy.down.happened == [Happened(Fault.RESET, 1, len(b"before") + after)]
    assert proxy.resets == 1
    with dial(proxy) as again:
        assert round_trip_s(again) < LIMIT_S


def test_one_bit_of_one_byte_is_flipped(proxy: ToxicProxy, client: socket.socket) -> None:
    sent = pattern(10_000)
    proxy.up.arm(Fault.FLIP, after=4321)
    client.sendall(sent)
    assert receive(client, len(sent)) == sent[:4321] + bytes([sent[4321] ^ 1]) + sent[4322:]
    assert proxy.up.happened == [Happened(Fault.FLIP, 1, 4321)]
    assert round_trip_s(client, sent) < LIMIT_S, "once only"


def test_what_a_stall_holds_back_comes_later(proxy: ToxicProxy, client: socket.socket) -> None:
    sent = pattern(50_000)
    proxy.down.arm(Fault.STALL, after=20_000)
    client.sendall(sent)
    assert receive(client, 20_000) == sent[:20_000]
    proxy.wait(lambda: proxy.down.happened == [Happened(Fault.STALL, 1, 20_000)])
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(LIMIT_S)
    proxy.down.stall(False)
    assert receive(client, 30_000) == sent[20_000:]
    proxy.up.stall()
    client.sendall(b"later")
    proxy.wait(lambda: proxy.up.counts["received"] == 50_005)
    assert proxy.up.counts["delivered"] == 50_000
    proxy.up.stall(False)
    assert receive(client, 5) == b"later"


def test_one_way_is_swallowed_and_healing_resets_what_lost_bytes(proxy: ToxicProxy, client: socket.socket, echo: EchoServer) -> None:
    assert round_trip_s(client) < LIMIT_S
    proxy.down.swallow()
    client.sendall(b"answer me")
    proxy.wait(lambda: proxy.down.counts["swallowed"] == 9)
    assert proxy.up.counts["delivered"] == 10, "the other way is whole"
    with dial(proxy) as late:  # is accepted, and never answered
        late.sendall(b"anybody?")
        proxy.wait(lambda: proxy.down.counts["swallowed"] == 17)
        assert proxy.open == 2
        proxy.down.swallow(False)
        for lossy in (client, late):
            with pytest.raises(ConnectionResetError):
                lossy.recv(1)
    proxy.wait(lambda: len(echo.endings) == 2)
    with dial(proxy) as healed:
        assert round_trip_s(healed) < LIMIT_S


def test_a_swallowing_way_says_no_end_either(proxy: ToxicProxy, client: socket.socket, echo: EchoServer) -> None:
    assert round_trip_s(client) < LIMIT_S
    proxy.up.swallow()
    client.close()
    proxy.wait(lambda: proxy.up.counts["ends_swallowed"] == 1)
    assert (proxy.open, echo.endings) == (1, [])
    proxy.up.swallow(False)
    proxy.wait(lambda: proxy.open == 0 and echo.endings == ["reset"])


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_ends_what_is_open(proxy: ToxicProxy, client: socket.socket, reset: bool) -> None:
    assert round_trip_s(client) < LIMIT_S
    proxy.cut(reset=reset)
    assert (proxy.open, proxy.resets) == (0, int(reset))
    if reset:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    else:
        assert client.recv(1) == b""


def test_a_target_that_does_not_listen_costs_the_client_a_reset(echo: EchoServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    with ToxicProxy(address) as proxy:
        with pytest.raises(ConnectionResetError), dial(proxy) as client:
            client.recv(1)
        proxy.wait(lambda: proxy.resets == 1)


def test_a_fault_is_placed_inside_a_big_frame(proxy: ToxicProxy, client: socket.socket) -> None:
    """The stream is ZMTP: small frames, commands and empty ones before the big one count for nothing."""
    body = pattern(5000)
    before = greeting() + frame(b"", 1) + frame(b"small") + frame(bytes(6000), 4) + frame(bytes(999), 1)
    proxy.down.arm(Fault.FLIP, frame=1000, offset=2500)
    sent = before + frame(body) + frame(body)
    client.sendall(sent)
    wrong = [at for at, (one, other) in enumerate(zip(receive(client, len(sent)), sent, strict=True)) if one != other]
    assert wrong == [len(before) + 9 + 2500]
    assert proxy.down.happened == [Happened(Fault.FLIP, 1, wrong[0])]
