"""``zpala`` with a learner that hangs when it is told to: ``hanging_learner.py FILE node --peers ...``.

SIGUSR1 says that its next update hangs, another one that it goes on. FILE holds the way: ``free`` waits in C and lets go of the GIL, as for
a device that does not answer; ``held`` waits in C and does not; ``loop`` runs Python and is never asked to let go; ``stop`` stops the whole
process, as a machine that is paused, and is ended by SIGCONT.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from zpala import cli
from zpala.rl.a2c import A2C
from zpala.rl.algorithm import Statistics
from zpala.rl.rollout import Rollout

NEVER_S = 1000.0


def hang(kind: str, told: list[int]) -> None:
    """Returns when ``told`` has grown."""
    match kind:
        case "free":
            ctypes.CDLL(None).pause()  # until a signal
        case "held":
            ctypes.PyDLL(None).pause()
        case "loop":
            interval_s = sys.getswitchinterval()
            sys.setswitchinterval(NEVER_S)
            while not told:
                pass
            sys.setswitchinterval(interval_s)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            raise ValueError(kind)


def say(text: str) -> None:
    """One write, not print: other threads write lines as well."""
    os.write(sys.stdout.fileno(), f"fault: {text}\n".encode())


def main() -> None:
    file = Path(sys.argv[1])
    sys.argv = ["zpala", *sys.argv[2:]]
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    update = A2C.update

    def hang_when_told(self: A2C, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        if told:
            told.clear()
            kind = file.read_text()
            say(f"hangs, {kind}")
            hang(kind, told)
            told.clear()
            say("goes on")
        return update(self, rollout, learning_rate, progress)

    A2C.update = hang_when_told  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
