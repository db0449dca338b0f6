"""A measured child process that says one JSON object per line on stdout: read with a limit on every wait, stopped with all it started.

One that takes orders is told them the same way, one JSON object per line of its stdin; ``orders`` and ``say`` are its own end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from zpala.exit_codes import ExitCode
from zpala.tools.parent import PARENT_VARIABLE

STOP_LIMIT_S = 15.0  # after SIGTERM, then the child is killed
REMEMBERED_LINES = 30  # of what it says besides JSON, for the error text


class ChildFailed(Exception):
    """A measured process ended, or said nothing for too long; ``exit_code`` is its own where it has one."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Child:
    """Use as a context manager: the process, and every process of its group, is gone afterwards.

    Args:
        name: what error texts call it.
        variables: added to this process's environment, without its ``ZPALA_*``.
        takes_orders: it has a stdin, see ``tell``.
    """

    def __init__(self, name: str, command: Sequence[str], variables: dict[str, str], *, takes_orders: bool = False) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ZPALA_")}
        self._name = name
        self._lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if takes_orders else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment | {PARENT_VARIABLE: str(os.getpid())} | variables,
            process_group=0,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait(STOP_LIMIT_S)
            for stream in (self._process.stdout, self._process.stdin):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def tell(self, order: Mapping[str, Any]) -> None:
        """One order, small enough for the pipe. Raises ChildFailed when the process does not listen any more."""
        stream = self._process.stdin
        if stream is None:
            raise ValueError(f"{self._name} takes no orders")
        try:
            stream.write(json.dumps(order).encode() + b"\n")
            stream.flush()
        except BrokenPipeError:
            raise self._failed("does not listen any more", ExitCode.UNEXPECTED) from None

    def events(self, limit_s: float) -> Iterator[dict[str, Any]]:
        """The objects it says, until it ends.

        Raises:
            ChildFailed: ``limit_s`` seconds passed without a word, or it ended with an exit status other than 0.
        """
        for line in self._read(limit_s):
            try:
                event = json.loads(line) if line.startswith("{") else None
            except json.JSONDecodeError:
                event = None
            if isinstance(event, dict):
                if event.get("event") == "log":
                    self._lines.append(str(event.get("text", "")))
                yield event
            elif line.strip():
                self._lines.append(line)
        status = self._process.wait(STOP_LIMIT_S)
        if status != 0:
            raise self._failed(f"ended with exit status {status}", status if status > 0 else 128 - status)

    def stop(self) -> int:
        """SIGTERM unless it has ended, and its exit status; whatever it says until then is dropped."""
        if self._process.poll() is None:
            self._process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        try:
            for _ in self._read(STOP_LIMIT_S):
                if time.monotonic() > deadline:
                    break
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, ChildFailed):
            self._signal(signal.SIGKILL)
            return self._process.wait(STOP_LIMIT_S)

    def kill(self) -> None:
        """SIGKILL to it and all that it started; whoever reads its events finds them ended."""
        self._signal(signal.SIGKILL)

    def _read(self, limit_s: float) -> Iterator[str]:
        stream = self._process.stdout
        if stream is None or stream.closed:
            return
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while True:
                if not selector.select(limit_s):
                    raise self._failed(f"said nothing for {limit_s:g} s", ExitCode.UNEXPECTED)
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode("utf-8", errors="replace") for line in lines)
        if rest:
            yield rest.decode("utf-8", errors="replace")

    def _failed(self, what: str, exit_code: int) -> ChildFailed:
        said = "\n".join(self._lines)
        return ChildFailed(f"{self._name} {what}." + (f" Its last words:\n{said}" if said else ""), exit_code)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def orders() -> Iterator[dict[str, Any]]:
    """In the child: the orders it is given, until its parent closes the pipe or ends."""
    for line in sys.stdin:
        yield json.loads(line)


def say(event: Mapping[str, Any]) -> None:
    """In the child: one object for its parent."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
