"""What every thread of a node does first, and how many threads a node's libraries get."""

from __future__ import annotations

import os
import sys

import torch

from zpala.node.memory import keep_freed_memory

SWITCH_INTERVAL_S = 0.0002  # a thread that waits for the GIL gets it after this: keeps the proxy's answers within milliseconds


def flush_denormals() -> None:
    """First in every thread (design D14b): arithmetic on denormals is tens of times slower.

    RMSprop's second moment of a unit without gradient becomes denormal after some thousand updates.
    """
    torch.set_flush_denormal(True)


def prepare_process(threads: int) -> None:
    """Before the process's first parallel operation: torch's pool gets ``threads`` threads, which flush denormals too."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory(os.environ)
    flush_denormals()
    torch.set_num_threads(threads)


def share_of_cores(nodes: int) -> int:
    """Cores that this process may use, shared among ``nodes`` nodes of this machine (design D14); at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, nodes))
