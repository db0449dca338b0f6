"""The listening end of a node's port: who has come in is sent away, all at once, when the process runs short of file descriptors.

libzmq limits no number of connections, ends none that has shaken hands however silent it is, cannot be told to end a certain one, and,
when there is no descriptor left, tries to accept the next one again and again with half a core. But a ROUTER that stops listening ends all
connections that came in there. So it does, and listens again at once: the nodes of the run are back within ``RECONNECT_IVL`` and say
HELLO, as after any reset; who only held a connection has lost it. Owned: a second descriptor of the listening socket, so that the port
stays this node's in between. Belongs to the proxy's thread.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from typing import Final

import zmq

from zpala.node.sockets import Socket

LOOK_S: Final = 1.0  # counting 20,000 open files takes 10 ms
CLEAR_S: Final = 5.0  # at least, from one time that everybody is sent away to the next
RESERVE_SHARE: Final = 0.1  # of the descriptors this process may have ...
RESERVE_MAX: Final = 200  # ... and at most so many are kept for the node itself: its own dials, its files

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE)

_log = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Lets this process open as many files as the system allows it; returns how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a kernel that allows less than the hard limit
            return soft
    return hard


class Door:
    """To be made before the ROUTER takes ``listener`` over, and closed after it."""

    def __init__(self, listener: socket.socket) -> None:
        self.cleared = 0
        self._listener = os.dup(listener.fileno())
        self._spare: int | None = os.dup(self._listener)  # what the ROUTER is given next: then there may be no descriptor for it
        self._router: Socket | None = None
        self._endpoint = ""
        self._look_at = 0.0

    def belongs_to(self, router: Socket) -> None:
        """``router`` listens."""
        self._router = router
        self._endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)

    def watch(self, now: float) -> None:
        """Looks every ``LOOK_S`` seconds how many descriptors are left."""
        if self._router is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        self._spare = self._duplicate() if self._spare is None else self._spare
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        left = limit - _open_files(limit)
        if left >= min(RESERVE_MAX, int(RESERVE_SHARE * limit)) or self._spare is None:
            return
        self._look_at = now + CLEAR_S
        if not self.cleared:
            _log.warning(
                "%d of %d file descriptors are left: all connections that came in are ended, this run's nodes come back by themselves. "
                "Keep strangers from this port, or raise the limit (ulimit -Hn)",
                max(0, left),
                limit,
            )
        self.cleared += 1
        self._router.unbind(self._endpoint)
        self._router.setsockopt(zmq.USE_FD, self._spare)
        self._spare = None  # the ROUTER's now
        self._router.bind(self._endpoint)

    def _duplicate(self) -> int | None:
        """None: there is no descriptor for it yet."""
        try:
            return os.dup(self._listener)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return None

    def close(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
        os.close(self._listener)


def _open_files(limit: int) -> int:
    """How many descriptors are in use; ``limit`` when there is not even one for looking, 0 where /proc does not exist."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError as error:
        return limit if error.errno in _NO_ROOM else 0
