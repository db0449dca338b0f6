"""How much memory this process has for itself, how much there is, and when it is too much.

Whoever reaches the port of a node without keys can send a message that never ends, and libzmq keeps what has come of it: so a node looks at
its own memory, and ends in order, with a checkpoint, before the system ends it without one. Owned: a file that stays open, because there
may be no descriptor left when it is needed. Main thread only.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

LOOK_S: Final = 1.0
STOP_SHARE: Final = 0.9  # of the memory that there is, unless a limit is given
WARN_SHARE: Final = 0.8  # of the limit
_MB: Final = 1e6
_TRIM_THRESHOLD: Final = -1  # glibc, malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT_BYTES: Final = 2**30
_TUNED_BY_USER: Final = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")

_log = logging.getLogger(__name__)


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Lets this process keep blocks of up to a gigabyte that it has freed, for the next update, which asks for the same ones again.

    glibc gives large blocks back at once and takes them anew, page by page, each of them zeroed by the system: of a minibatch of 256 images
    a tenth of the time, sometimes more: it depends on what lies behind them. What a process holds is then the most that it has used.

    Returns: whether it was told so. Not where ``environ`` says that the person tunes the allocator, nor without glibc.
    """
    if any(name in environ for name in _TUNED_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def available_bytes(root: Path = Path("/")) -> int | None:
    """The memory of this machine, or what the control groups of this process leave it of that; None where nobody says.

    Args:
        root: of the file system; another one in tests.
    """
    found = [limit for path in (*_group_files(root),) if (limit := _number(path)) is not None]
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                found.append(1024 * int(line.split()[1]))
    except OSError:
        pass
    return min(found, default=None)


def _group_files(root: Path) -> Iterator[Path]:
    """The files that may hold a limit: of this process's group and those above it, cgroup v2 and v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = ("sys/fs/cgroup", "memory.max") if not controllers else ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        path = Path(group.lstrip("/"))
        for folder in (path, *path.parents):
            yield root / mount / folder / name


def _number(path: Path) -> int | None:
    """The number in ``path``; None when there is no such file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


class Memory:
    """``limit_mb`` in megabytes of 10^6 bytes; None: ``STOP_SHARE`` of what there is."""

    def __init__(self, limit_mb: int | None, *, available: int | None) -> None:
        self._given = limit_mb is not None
        share = None if available is None else STOP_SHARE * available
        self.limit_bytes: float | None = share if limit_mb is None else limit_mb * _MB
        self.too_much = ""  # what to tell the person, once it is
        self._warned = False
        self._look_at = 0.0
        try:
            self._file: int | None = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None

    def exceeded(self, now: float) -> bool:
        """Whether this process has ever been found above the limit; looks every ``LOOK_S`` seconds. ``now``: monotonic seconds."""
        if now >= self._look_at and self._file is not None and self.limit_bytes is not None and not self.too_much:
            self._look_at = now + LOOK_S
            self._judge(self._used_bytes(self._file), self.limit_bytes)
        return bool(self.too_much)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _judge(self, used: int, limit: float) -> None:
        origin = "node.max_memory_mb" if self._given else f"{STOP_SHARE:.0%} of what this machine or its control group has"
        what = f"this node's memory is {used / _MB:.0f} MB; its limit is {limit / _MB:.0f} MB ({origin})"
        if used > limit:
            self.too_much = what
        elif used > WARN_SHARE * limit and not self._warned:
            self._warned = True
            _log.warning("%s: above that it ends, with a checkpoint", what)

    @staticmethod
    def _used_bytes(file: int) -> int:
        """Resident memory without the pages of files, which the system can take back."""
        _, resident, shared, *_ = os.pread(file, 256, 0).split()
        return (int(resident) - int(shared)) * resource.getpagesize()
