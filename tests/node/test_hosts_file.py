"""hosts.txt while a run lives: what is taken up, what is not, what is said of it, and how often the file is read."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from pathlib import Path

import pytest

from tests.node.conftest import LIMIT_S
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.topology import load_topology
from zpala.node.hosts_file import BYTES_MAX, Growth, HostsFile, HostsWatch
from zpala.node.sockets import Context
from zpala.node.worker import Supervisor

TWO = "n0 10.0.0.1:5000\nn1 10.0.0.2:5000\n"
THREE = TWO + "n2 10.0.0.3:5000\n"


class Copy:
    """A hosts.txt of two nodes, and what looks at it. Each change is another file for the system, whatever its clock's grain."""

    def __init__(self, folder: Path, topology: str = "full") -> None:
        self.path = folder / "hosts.txt"
        self._time = 10**9
        self.write(TWO)
        hosts = parse_hosts(TWO, "hosts.txt")
        self.file = HostsFile(self.path, hosts, load_topology(topology, 2))
        assert self.settled() is None, "what the node started with is no news"

    def write(self, text: str | bytes) -> None:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self._time += 10**9
        os.utime(self.path, ns=(self._time, self._time))

    def settled(self) -> Growth | None:
        """What comes of the file, which nobody writes any more."""
        assert self.file.look() is None, "the first look at a change only notes it"
        return self.file.look()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("text", [THREE, THREE.replace("\n", "\r\n"), "# more\n\n" + THREE.rstrip() + "  # the new one"])
def test_a_longer_list_comes_with_its_topology_once(copy: Copy, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    copy.write(text)
    growth = copy.settled()
    assert growth is not None
    assert [host.name for host in growth.hosts] == ["n0", "n1", "n2"]
    assert growth.topology.neighbours(0) == {1, 2}
    assert copy.file.look() is None
    assert f"{copy.path}: 3 nodes now, 2 before: new are n2" in caplog.messages
    copy.write(text + "\n# nothing else\n")
    assert copy.settled() is None


def test_a_file_that_is_still_being_written_is_not_read(copy: Copy) -> None:
    for text in (TWO[:30], TWO + "n2 10.0.0.3:50", THREE, THREE + "n3 10.0.0.4:5000\n"):
        copy.write(text)
        assert copy.file.look() is None
    growth = copy.file.look()
    assert growth is not None
    assert len(growth.hosts) == 4


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (TWO + "n2 10.0.0.3\n", "hosts.txt:3: '10.0.0.3' has no port; write host:port"),
        (TWO + "n1 10.0.0.3:5000\n", "hosts.txt:3: the name n1 stands in line 2 already"),
        (TWO[:17], "hosts.txt:1: the file ends after 1 nodes and had 2: n1, line 2 until now, is missing"),
        ("", "hosts.txt:1: no node in the file"),
        ("n1 10.0.0.2:5000\nn0 10.0.0.1:5000\n", "hosts.txt:1: node number 1 was n0 and is now n1"),
        (b"\xff\xfe\n", "hosts.txt is not UTF-8 text"),
        (b"#" * (BYTES_MAX + 1), "more than 32 MiB are no hosts.txt"),
    ],
    ids=["no port", "twice", "shorter", "empty", "swapped", "bytes", "huge"],
)
def test_what_is_wrong_is_said_once_and_changes_nothing_until_it_is_mended(
    copy: Copy, bad: str | bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        copy.write(bad)
        assert copy.settled() is None
        assert copy.file.look() is None
    (text,) = warnings(caplog)
    assert said in text
    assert str(copy.path) in text
    assert "goes on with the 2 nodes that it knows" in text
    copy.write(THREE)
    growth = copy.settled()
    assert growth is not None
    assert len(growth.hosts) == 3
    assert len(warnings(caplog)) == 1


def test_a_file_that_is_away_for_a_while(copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    copy.path.unlink()
    assert copy.settled() is None
    assert copy.file.look() is None
    (text,) = warnings(caplog)
    assert "cannot read hosts.txt (No such file or directory)" in text
    copy.write(THREE)
    assert copy.settled() is not None


def test_a_node_that_has_moved(copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    copy.write(TWO.replace("0.2:5000", "7.7:5001"))
    growth = copy.settled()
    assert growth is not None
    assert growth.hosts[1].host_port == "10.0.7.7:5001"
    assert f"{copy.path}:2: n1 has moved from 10.0.0.2:5000 to 10.0.7.7:5001" in caplog.messages


def test_a_topology_that_does_not_fit_yet_is_tried_again_when_its_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edges = tmp_path / "graph.edges"
    edges.write_text("0 1\n")
    copy = Copy(tmp_path, str(edges))
    copy.write(THREE)
    assert copy.settled() is None
    (text,) = warnings(caplog)
    assert "not connected for 3 nodes" in text
    edges.write_text("0 1\n1 2\n")
    growth = copy.settled()
    assert growth is not None
    assert growth.topology.neighbours(1) == {0, 2}


def test_the_thread_looks_and_ends_when_it_is_told_to(copy: Copy, context: Context) -> None:
    growths: deque[Growth] = deque()
    supervisor = Supervisor(context)
    watch = HostsWatch(context, supervisor, copy.file, growths, look_s=0.02)
    watch.start()
    copy.write(THREE)
    deadline = time.monotonic() + LIMIT_S
    while not growths and time.monotonic() < deadline:
        assert supervisor.wait(0.01) is None
    watch.stop()
    assert [len(growth.hosts) for growth in growths] == [3]
    assert supervisor.first is None
    supervisor.close()
