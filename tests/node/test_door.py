"""Connections that never end by themselves: they are held, until they have nearly taken every file descriptor."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node.conftest import LIMIT_S, few_descriptors
from tests.node.pair import Pair
from tests.node.raw_peer import meanwhile
from zpala.node.door import raise_descriptor_limit

ROOT = Path(__file__).resolve().parents[2]

# Each connection shakes hands and stops in the middle of a frame. On a line of stdin it says how many have been ended, on the next it ends.
STALLED = """
import select, socket, sys
from tests.faults.zmtp_frames import greeting, ready
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for one in held:
    one.sendall(greeting() + ready(b"DEALER", Identity=b"") + b"\\x00\\x20half")
print("held", flush=True)
sys.stdin.readline()
ended = 0
for one in select.select(held, [], [], 0)[0]:
    one.setblocking(False)
    try:
        while data := one.recv(4096):
            pass
        ended += 1
    except BlockingIOError:
        pass
    except ConnectionError:
        ended += 1
print(ended, flush=True)
sys.stdin.readline()
"""


def test_the_limit_is_raised_to_what_the_system_allows() -> None:
    with few_descriptors(20):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] < hard
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_who_stalls_in_a_frame_is_held_until_descriptors_run_short(
    make_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that are silent in the middle of a frame outlast the limit on handshakes. When next to no descriptor is left, all are
    ended, and the honest ones come back."""
    pair = make_pair(10_000)
    pair.more(2)
    before = open_files()
    with stalled(pair.ports[0], 40) as held:
        with socket.create_connection(("127.0.0.1", pair.ports[0]), LIMIT_S) as silent:
            meanwhile(pair, lambda: wait_for_end(silent))  # it never shook hands, and came after them
        assert held.ended() == 0
    pair.run_until(lambda: open_files() < before + 5)  # those 40 have gone, or there would be room for the crowd
    with few_descriptors(100), stalled(pair.ports[0], 120) as crowd:
        pair.run_until(lambda: any("file descriptors are left: all connections that came in are ended" in text for text in caplog.messages))
        pair.more(3)
        pair.run_until(lambda: open_files() < before + 50)  # whoever found no descriptor before has come in now
        assert crowd.ended() > 80
        pair.more(3)
    assert pair.metric("dead") == [0, 0]
    assert pair.metric("defects") == [0, 0]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


class Stalled:
    """Connections of another process, so that they cost this one no descriptors but those of the node."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._line() == "held"

    def ended(self) -> int:
        """How many of them the node has ended; to be asked once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def stalled(port: int, count: int) -> Iterator[Stalled]:
    command = [sys.executable, "-c", STALLED, str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield Stalled(process)
        process.communicate("\n", timeout=LIMIT_S)
