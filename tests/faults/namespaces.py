"""Two hosts made of network namespaces and joined by a cable, and what can happen to the cable. Needs root and iproute2: ``obstacle`` says.

Nothing outside the two namespaces is touched, and they go with the context manager; what a killed test run has left is swept by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

ADDRESSES: Final = ("10.97.31.1", "10.97.31.2")
LIMIT_S: Final = 20.0
_NAME: Final = re.compile(r"zpala(\d+)[a-z]\d*")  # of a test run's process id
_numbers: Final = itertools.count()
_NOBODY: Final = "02:00:00:00:00:99"  # an Ethernet address that neither host has
_CLONE_NEWNET: Final = 0x40000000

T = TypeVar("T")


def run(*command: str) -> str:
    """Its stdout; an assertion when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def obstacle(*tools: str) -> str | None:
    """Why namespaces cannot be made here, or lack one of ``tools`` (beside ip); None: they can. Asked for by making one."""
    missing = [tool for tool in ("ip", *tools) if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)} (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"zpala{os.getpid()}p"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "delete", name)
    except AssertionError as error:
        return f"network namespaces cannot be made: {error}"
    return None


class Host:
    """One of the two. ``command`` stands before what is to run on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.command = ("ip", "netns", "exec", name)

    def inside(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in a thread that has entered the host: a socket that was made there stays there."""
        made: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path(f"/var/run/netns/{self.name}").open() as namespace:
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter, name=f"inside {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return made[0]

    def server(self, port: int) -> socket.socket:
        """A TCP socket that listens on this host."""
        return self.inside(lambda: socket.create_server((self.address, port)))

    def dial(self, other: Host, port: int) -> socket.socket:
        return self.inside(lambda: socket.create_connection((other.address, port), timeout=LIMIT_S))

    def datagrams(self, port: int) -> socket.socket:
        """A UDP socket of this host."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((self.address, port))
            return made

        return self.inside(make)


class Cable:
    """The two hosts and the cable between them."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self.hosts = hosts

    @contextlib.contextmanager
    def limited(self, host: Host, bits_per_s: int, *, burst_bytes: int = 8192, queue_ms: int = 400) -> Iterator[None]:
        """What ``host`` sends passes a token bucket; what waits longer than ``queue_ms`` is dropped."""
        bucket = ("rate", f"{bits_per_s}bit", "burst", str(burst_bytes), "latency", f"{queue_ms}ms")
        run("tc", "-n", host.name, "qdisc", "replace", "dev", "eth0", "root", "tbf", *bucket)
        try:
            yield
        finally:
            run("tc", "-n", host.name, "qdisc", "delete", "dev", "eth0", "root")

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Nothing passes either way, and nobody is told."""
        first = self.hosts[0]
        run("ip", "-n", first.name, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            run("ip", "-n", first.name, "link", "set", "eth0", "up")

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Both have their carrier and nothing that is sent arrives, as behind a switch that has failed: no error tells anybody."""
        pairs = list(zip(self.hosts, reversed(self.hosts), strict=True))
        for host, other in pairs:
            run("ip", "-n", host.name, "neigh", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        try:
            yield
        finally:
            for host, other in pairs:
                run("ip", "-n", host.name, "neigh", "delete", other.address, "dev", "eth0")

    @contextlib.contextmanager
    def one_way(self, mute: Host) -> Iterator[None]:
        """Nothing that ``mute`` sends to the other host leaves it; it hears everything."""
        (other,) = (host for host in self.hosts if host is not mute)
        run("ip", "-n", mute.name, "route", "add", "blackhole", f"{other.address}/32")
        try:
            yield
        finally:
            run("ip", "-n", mute.name, "route", "delete", "blackhole", f"{other.address}/32")

    def reset(self, host: Host, port: int) -> int:
        """Kills every established connection of ``host`` that has ``port`` at either end: both sides see a RST. Returns how many."""
        ports = ("(", "sport", "=", f":{port}", "or", "dport", "=", f":{port}", ")")
        listed = run(*host.command, "ss", "-H", "-t", "-K", "state", "established", *ports)
        return len(listed.splitlines())


@contextlib.contextmanager
def two_hosts() -> Iterator[Cable]:
    """Two hosts with one address each on ``eth0``."""
    _sweep()
    number = next(_numbers)
    names = [f"zpala{os.getpid()}{letter}{number}" for letter in "ab"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            for command in (f"addr add {address}/24 dev eth0", "link set lo up", "link set eth0 up"):
                run("ip", "-n", name, *command.split())
        yield Cable((Host(names[0], ADDRESSES[0]), Host(names[1], ADDRESSES[1])))
    finally:
        _delete(names)


def _sweep() -> None:
    """Deletes the hosts of test runs whose process is no more."""
    folder = Path("/var/run/netns")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    _delete([name for name in names if (found := _NAME.fullmatch(name)) and not Path(f"/proc/{found.group(1)}").exists()])


def _delete(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=LIMIT_S, check=False)
