"""hosts.txt while the run lives: looked at every second, taken up when it has grown, and only when it is whole and right.

Owned: the thread that looks. A file system may hang, and a topology may take long to compute: neither may hold the proxy up, nor the
learner. What the thread finds goes into a deque that the proxy empties; it passes on whole lists with their topology and nothing else.

A change counts once two looks have seen the same file, so nobody's half-written copy is read. A file that cannot be read, has a wrong line
or is no continuation of the list in force changes nothing: it is said once, and the file is looked at again when it changes.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zpala.gossip.hosts import HostList, HostsError, parse_hosts
from zpala.gossip.topology import Topology, TopologyError, load_topology
from zpala.node.sockets import Context
from zpala.node.worker import Supervisor, Worker, WorkerControl, WorkerFailed

LOOK_S: Final = 1.0
BYTES_MAX: Final = 32 * 2**20  # more than the most lines of the greatest length
STOP_LIMIT_S: Final = 1.0
NAMES_SHOWN: Final = 8

_Stamp = tuple[int, int, int]  # mtime in nanoseconds, size, inode

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Growth:
    """The list that is in force from now on, and the graph over it."""

    hosts: HostList
    topology: Topology


class HostsFile:
    """What has become of the file ``path``, which held ``hosts`` when the node started; ``topology`` is the graph over them."""

    def __init__(self, path: Path, hosts: HostList, topology: Topology) -> None:
        self._path = path
        self._hosts = hosts
        self._topology = topology
        self._seen: list[_Stamp | None] | None = None  # at the last look
        self._judged: list[_Stamp | None] | None = None
        self._said = ""

    def look(self) -> Growth | None:
        """The list to go by from now on; None: the one so far. Reads the file only when it has changed, and has been left alone since."""
        seen, self._seen = self._seen, self._stamps()
        if self._seen != seen or self._seen == self._judged:
            return None
        try:
            growth = self._read()
            problem = ""
        except OSError as error:
            growth, problem = None, f"{self._path}: cannot read hosts.txt ({error.strerror}); put it back"
        except UnicodeDecodeError:
            growth, problem = None, f"{self._path}: hosts.txt is not UTF-8 text; put it back"
        except (HostsError, TopologyError) as error:
            growth, problem = None, str(error)
        if self._stamps() != self._seen:  # it was being written after all
            return None
        self._judged = self._seen
        if problem and problem != self._said:
            _log.warning("%s. This node goes on with the %d nodes that it knows.", problem, len(self._hosts))
        self._said = problem
        if growth is not None:
            self._tell(growth.hosts)
            self._hosts, self._topology = growth.hosts, growth.topology
        return growth

    def _stamps(self) -> list[_Stamp | None]:
        """Of hosts.txt and of the topology's file, which has to fit it."""
        return [_stamp(self._path), _stamp(Path(self._topology.source))]

    def _read(self) -> Growth | None:
        """Raises OSError, UnicodeDecodeError, HostsError, TopologyError."""
        with self._path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
        if len(content) > BYTES_MAX:
            raise HostsError(f"{self._path}: more than {BYTES_MAX >> 20} MiB are no hosts.txt; put it back")
        hosts = parse_hosts(content.decode("utf-8"), str(self._path))
        problem = self._hosts.discontinued(hosts, str(self._path))
        if problem is not None:
            raise HostsError(problem)
        if [(host.identity, host.host_port) for host in hosts] == [(host.identity, host.host_port) for host in self._hosts]:
            return None
        same_size = len(hosts) == len(self._hosts)
        return Growth(hosts, self._topology if same_size else load_topology(self._topology.name, len(hosts)))

    def _tell(self, hosts: HostList) -> None:
        before = len(self._hosts)
        if len(hosts) > before:
            names = [host.name for host in hosts.hosts[before : before + NAMES_SHOWN]]
            more = " and more" * (len(hosts) - before > NAMES_SHOWN)
            _log.info("%s: %d nodes now, %d before: new are %s%s", self._path, len(hosts), before, ", ".join(names), more)
        for old, new in zip(self._hosts, hosts, strict=False):
            if old.host_port != new.host_port:
                _log.info("%s:%d: %s has moved from %s to %s", self._path, new.source_line, new.name, old.host_port, new.host_port)


class HostsWatch:
    """The thread that looks at ``file`` every ``look_s`` seconds and puts what it finds at the end of ``growths``."""

    def __init__(self, context: Context, supervisor: Supervisor, file: HostsFile, growths: deque[Growth], look_s: float = LOOK_S) -> None:
        self._file = file
        self._growths = growths
        self._look_s = look_s
        self._worker = Worker(context, "hosts file", self._run, supervisor)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """A thread that hangs in its file system is left behind: it ends with the process."""
        try:
            self._worker.stop(STOP_LIMIT_S)
        except WorkerFailed as failed:
            _log.warning("%s: the process ends without it", failed)

    def _run(self, control: WorkerControl) -> None:
        control.ready()
        while not control.stop_requested(self._look_s):
            growth = self._file.look()
            if growth is not None:
                self._growths.append(growth)


def _stamp(path: Path) -> _Stamp | None:
    """None when there is no such file. Opened, because over NFS only that asks the server anew."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_mtime_ns, status.st_size, status.st_ino
