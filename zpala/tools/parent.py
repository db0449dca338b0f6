"""Ties a process's life to that of the ``zpala launch`` that started it: no node outlives its launcher, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PARENT_VARIABLE = "ZPALA_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent(environ: Mapping[str, str]) -> None:
    """Asks the kernel for SIGTERM when the parent ends, if ``ZPALA_PARENT_PID`` names it; ends at once if it has ended already.

    Must run in the main thread before others start. Where the kernel cannot do it (not Linux) it does nothing.
    """
    parent = environ.get(PARENT_VARIABLE, "")
    if not parent.isdigit():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)
