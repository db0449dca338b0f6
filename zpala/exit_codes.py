"""The exit statuses of every zpala command and what each means. README.md's table is tested against this one."""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """A batch script can tell by the status alone whether to correct the input (2), the network (3) or the run itself."""

    FINISHED = 0
    UNEXPECTED = 1
    USAGE = 2
    NETWORK = 3
    SECURITY = 4
    NUMERICAL = 5
    ACTORS = 7
    DUPLICATE = 8
    CUDA = 9
    TARGET_MISSED = 10
    MEMORY = 11
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.FINISHED: "finished: budget spent, target reached, or the command did its work",
    ExitCode.UNEXPECTED: "unexpected error, with a traceback",
    ExitCode.USAGE: "usage: command line, run file, topology, environment, run directory, or nodes that do not agree; nothing was trained",
    ExitCode.NETWORK: "network: port taken, no line of its own in hosts.txt, another run on the same addresses, no start",
    ExitCode.SECURITY: "security: others could reach the node without keys, or its key is missing, open to others or not that of its line",
    ExitCode.NUMERICAL: "numerical: loss or gradient not finite, or the node diverged from its peers",
    ExitCode.ACTORS: "actors: an environment hung or failed",
    ExitCode.DUPLICATE: "duplicate: the same node already runs elsewhere",
    ExitCode.CUDA: "CUDA: device missing, lost or out of memory",
    ExitCode.TARGET_MISSED: "target missed: the budget is spent and target_return was not reached; everything is saved",
    ExitCode.MEMORY: "memory: the node grew beyond node.max_memory_mb, so it left the run; everything is saved",
    ExitCode.HANGUP: "the terminal was closed (SIGHUP); nohup keeps a run going",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C (SIGINT)",
    ExitCode.TERMINATED: "terminated by SIGTERM",
}


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a process of zpala to end in order: SIGINT, SIGTERM, and SIGHUP unless it is ignored (nohup)."""
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    return (signal.SIGINT, signal.SIGTERM, *hangup)
