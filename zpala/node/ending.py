"""How a node ends: signals, exit statuses, the text for a person, and the limit on the end itself (design D17, D18).

Runs in the main thread, except the watchdog, a timer thread that only ends the process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch

from zpala.exit_codes import ExitCode, ending_signals
from zpala.node.actor import ACTOR
from zpala.node.errors import NodeError
from zpala.node.worker import WorkerFailed
from zpala.run_directory import RunDirectoryError

SAME_SIGNAL_S = 0.5
EXIT_LIMIT_S = 6.0  # after that the process ends whoever is still there

_log = logging.getLogger(__name__)


def exit_code_of(error: BaseException) -> int:
    """The exit status with which ``error`` ends the node (design D18)."""
    match error:
        case NodeError():
            return error.exit_code
        case WorkerFailed(__cause__=NodeError() as cause):
            return cause.exit_code
        case WorkerFailed() if error.name.startswith(ACTOR):
            return ExitCode.ACTORS
        case torch.OutOfMemoryError() | torch.AcceleratorError():
            return ExitCode.CUDA
        case RunDirectoryError():
            return ExitCode.USAGE
        case _:
            return ExitCode.UNEXPECTED


def tell(error: Exception) -> None:
    """One paragraph for what a person can mend; a traceback where the fault lies in code, ours or the environment's."""
    match error:
        case NodeError():
            _log.error("%s", error.text)
        case WorkerFailed():
            cause = error.__cause__
            _log.error("%s", error, exc_info=None if isinstance(cause, NodeError) else cause)
        case torch.OutOfMemoryError():
            _log.error("CUDA out of memory: %s Use fewer --num-envs, or --device cpu.", error)
        case torch.AcceleratorError():
            _log.error("the CUDA device failed: %s", error)
        case _:
            _log.error("the node failed unexpectedly: %s: %s", type(error).__name__, error, exc_info=error)


@dataclass(slots=True)
class Ending:
    """The exit status as known so far."""

    exit_code: int = int(ExitCode.UNEXPECTED)

    def take(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What the node ends with, if it is an exception."""
        if error is not None:
            self.exit_code = int(exit_code_of(error))


@dataclass(slots=True)
class Stop:
    """The first signal that asked this process to end."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and, unless nohup ignores it, SIGHUP set the flag that every wait polls; a second one ends the process at once.

    A second one within ``SAME_SIGNAL_S`` is the first one's echo: the kernel repeats a parent's death for every thread that the parent had,
    and tools signal a process and its group.
    """
    stop = Stop()
    first_at = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if stop.signal is None:
            stop.signal, first_at = number, now
        elif now - first_at > SAME_SIGNAL_S:
            os._exit(128 + number)

    old = {number: signal.signal(number, handle) for number in ending_signals()}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def exit_watchdog(ending: Ending) -> threading.Timer:
    """Once started, the process has ``EXIT_LIMIT_S`` seconds to end in order: a thread that hangs must not keep it."""
    watchdog = threading.Timer(EXIT_LIMIT_S, lambda: os._exit(ending.exit_code))
    watchdog.daemon = True
    return watchdog
