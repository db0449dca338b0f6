"""The cable between two namespaces does what it is told, judged by sockets at its ends."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.faults import namespaces
from tests.faults.namespaces import Cable, Host

PORT = 5671
LIMIT_S = 20.0
OBSTACLE = namespaces.obstacle("tc", "ss")

pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    with namespaces.two_hosts() as made:
        yield made


@pytest.fixture
def ends(cable: Cable) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP socket on each host."""
    first, second = (host.datagrams(PORT) for host in cable.hosts)
    with first, second:
        yield first, second


@pytest.fixture
def connection(cable: Cable) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection that the first host has dialled: its end on the first host, and on the second."""
    first, second = cable.hosts
    with second.server(PORT) as server, first.dial(second, PORT) as near:
        far, _ = server.accept()
        far.settimeout(LIMIT_S)
        with far:
            yield near, far


def arrives(source: socket.socket, target: socket.socket, wait_s: float) -> bool:
    """Whether a datagram from ``source`` reaches ``target``."""
    mark = f"{time.monotonic()}".encode()
    try:
        source.sendto(mark, target.getsockname())
    except OSError:  # no way there
        return False
    target.settimeout(wait_s)
    try:
        while target.recv(100) != mark:
            pass
    except TimeoutError:
        return False
    return True


def test_both_hosts_hear_each_other_and_nobody_else_hears_them(cable: Cable, ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    assert arrives(one, other, LIMIT_S)
    assert arrives(other, one, LIMIT_S)
    assert one.getsockname()[0] == "10.97.31.1"
    with pytest.raises(OSError, match="assign requested address"):
        socket.create_server((cable.hosts[0].address, PORT))  # out here there is no such address


def test_an_unplugged_cable_carries_nothing(cable: Cable, ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    with cable.unplugged():
        assert not arrives(one, other, 0.2)
        assert not arrives(other, one, 0.2)
    assert arrives(one, other, LIMIT_S)


def test_a_silent_cable_carries_nothing_and_says_nothing(cable: Cable, ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    with cable.silent():
        one.sendto(b"no error", other.getsockname())
        assert not arrives(one, other, 0.2)
        assert not arrives(other, one, 0.2)
    assert arrives(one, other, LIMIT_S)
    assert arrives(other, one, LIMIT_S)


def test_one_way_is_a_hole(cable: Cable, ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    with cable.one_way(cable.hosts[0]):
        assert not arrives(one, other, 0.2)
        assert arrives(other, one, LIMIT_S)
    assert arrives(one, other, LIMIT_S)


def test_a_limited_host_sends_no_faster(cable: Cable, connection: tuple[socket.socket, socket.socket]) -> None:
    near, far = connection
    nbytes = 100_000

    def seconds() -> float:
        began = time.monotonic()
        near.sendall(bytes(nbytes))
        got = 0
        while got < nbytes:
            got += len(far.recv(1 << 16))
        return time.monotonic() - began

    with cable.limited(cable.hosts[0], 1_000_000):
        slow = seconds()
    assert slow >= 8 * (nbytes - 8192) / 1e6, "100 kB less the bucket's content at 1 Mbit/s"
    assert seconds() < slow / 2


def test_a_connection_is_reset_on_both_sides(cable: Cable, connection: tuple[socket.socket, socket.socket]) -> None:
    near, far = connection
    near.sendall(b"alive")
    assert far.recv(100) == b"alive"
    assert cable.reset(cable.hosts[0], PORT) == 1
    with pytest.raises(ConnectionError):
        near.recv(1)
    with pytest.raises(ConnectionResetError):
        far.recv(1)
    assert cable.reset(cable.hosts[0], PORT) == 0


def test_programs_run_on_a_host(cable: Cable) -> None:
    for host in cable.hosts:
        shown = subprocess.run([*host.command, "ip", "-o", "addr"], capture_output=True, text=True, timeout=LIMIT_S, check=True)
        assert f"inet {host.address}/24" in shown.stdout


def test_nothing_is_left_behind() -> None:
    listed = namespaces.run("ip", "netns", "list")
    names: list[str] = []
    with pytest.raises(ZeroDivisionError):
        _fail_on(names)
    assert len(names) == 2
    after = namespaces.run("ip", "netns", "list")
    assert not [name for name in names if name in after and name not in listed]


def _fail_on(names: list[str]) -> None:
    with namespaces.two_hosts() as cable:
        names += [host.name for host in cable.hosts]
        raise ZeroDivisionError


def test_an_error_inside_a_host_comes_out(cable: Cable) -> None:
    host: Host = cable.hosts[0]
    with pytest.raises(ZeroDivisionError):
        host.inside(lambda: 1 // 0)
