"""Who holds a TCP port of this machine: for error texts only, read from /proc (Linux, this network namespace), never needed to go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # the state column of /proc/net/tcp


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port; ``pid`` is None when it belongs to somebody else, whose files we may not look at."""

    pid: int | None
    command: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "another user's process"
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


def port_holder(port: int, proc: Path = Path("/proc")) -> Holder | None:
    """The process that listens on ``port``; None when /proc names no listener (not Linux, another namespace, or gone meanwhile)."""
    inodes = {inode for table in ("net/tcp", "net/tcp6") for inode in _listening_inodes(proc / table, port)}
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in _processes(proc):
        if links & set(_descriptors(process)):
            return Holder(int(process.name), _command(process))
    return Holder(None)


def _listening_inodes(table: Path, port: int) -> Iterator[str]:
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        columns = line.split()
        if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
            yield columns[9]


def _processes(proc: Path) -> Iterator[Path]:
    return (entry for entry in proc.iterdir() if entry.name.isdigit())


def _descriptors(process: Path) -> Iterator[str]:
    try:
        names = os.listdir(process / "fd")
    except OSError:  # not ours to look at, or gone
        return
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            yield os.readlink(process / "fd" / name)


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()[:80]
