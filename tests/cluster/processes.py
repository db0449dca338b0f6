"""Real ``zpala`` processes for tests: started, listened to, ended. One thread, no sleeps: a test waits for a line or for the end."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zpala.metrics import read_rows
from zpala.run_directory import load_checkpoint
from zpala.tools.launch import free_ports

LIMIT_S = 40.0  # a process needs some seconds to load torch; on a busy machine it may be many
ZPALA = (sys.executable, "-m", "zpala")
# CartPole with a network so small that an update takes a millisecond, and rows often enough to see what happened when.
SMALL = ("--preset", "cartpole", "--num-envs", "4", "--set", "network.hidden_sizes=[16]", "--set", "run.log_interval_s=0.25")


class Process:
    """A process whose stdout and stderr are one stream, read here only."""

    def __init__(self, command: Sequence[str], cwd: Path, variables: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZPALA_")}
        self._popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._popen.stdout is not None
        self._stdout = self._popen.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._rest = b""
        self._open = True
        self.pid = self._popen.pid
        self.lines: list[str] = []
        self.ended_at: float | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def read_on(self) -> None:
        """Reads what it has said by now."""
        while self._open and self._read(0.0):
            pass

    def wait_for(self, pattern: str, limit_s: float = LIMIT_S, *, after: int = 0) -> re.Match[str]:
        """The match in the first line that has ``pattern``, now or within ``limit_s`` seconds; the first ``after`` lines do not count."""
        deadline = time.monotonic() + limit_s
        read = after
        while True:
            for line in self.lines[read:]:
                if found := re.search(pattern, line):
                    return found
            read = len(self.lines)
            assert self._open, f"the process ended without a line with {pattern!r}:\n{self.text}"
            assert self._read(deadline), f"no line with {pattern!r} within {limit_s:g} s:\n{self.text}"

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Waits for the end; the exit status, negative after an uncaught signal."""
        deadline = time.monotonic() + limit_s
        while self._open:
            assert self._read(deadline), f"still running after {limit_s:g} s:\n{self.text}"
        status = self._popen.wait(max(deadline - time.monotonic(), 1.0))
        self.ended_at = self.ended_at or time.monotonic()
        return status

    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def close(self) -> None:
        """Kills what is left."""
        if self.running():
            self._popen.kill()
        self._popen.wait(10)
        self._stdout.close()

    def _read(self, deadline: float) -> bool:
        """Reads what is there, waiting for it; False: the deadline passed."""
        ready, _, _ = select.select([self._stdout], [], [], max(deadline - time.monotonic(), 0.0))
        if not ready:
            return False
        data = os.read(self._stdout.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self._open = False
            lines, self._rest = [self._rest], b""
        self.lines += [text for line in lines if (text := line.decode(errors="replace").rstrip())]
        return True


class Processes:
    """Starts processes in ``folder`` and ends all of them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    def __call__(self, *arguments: object, cwd: Path | None = None, command: Sequence[str] = ZPALA, **variables: str) -> Process:
        """``zpala`` with ``arguments``; ``variables`` of the environment besides the inherited ones that are not zpala's."""
        process = Process([*command, *map(str, arguments)], cwd or self.folder, variables)
        self._started.append(process)
        return process

    def node(self, peers: Path, *arguments: object, command: Sequence[str] = ZPALA) -> Process:
        """``zpala node`` with a small network; its run directory is ``run`` unless ``arguments`` say another."""
        directory = () if "--run-dir" in arguments else ("--run-dir", "run")
        return self("node", "--peers", peers, *SMALL, *directory, *arguments, command=command)

    def hosts(self, count: int, file: str = "hosts.txt") -> Path:
        """A hosts file of ``count`` nodes n0, n1, ... on free ports of this machine."""
        path = self.folder / file
        path.write_text("".join(f"n{index} 127.0.0.1:{port}\n" for index, port in enumerate(free_ports(count))))
        return path

    def close(self) -> None:
        for process in self._started:
            process.close()


def vector(node_directory: Path) -> np.ndarray:
    """The final parameters of a node, float64, in the order of their names."""
    model = load_checkpoint(node_directory).model
    return np.concatenate([model[name].ravel().astype(np.float64) for name in sorted(model)])


def spread(node_directories: Sequence[Path]) -> float:
    """max_i ||x_i - mean|| / ||mean|| of the final parameters."""
    vectors = np.stack([vector(path) for path in node_directories])
    mean = vectors.mean(axis=0)
    return float(np.linalg.norm(vectors - mean, axis=1).max() / np.linalg.norm(mean))


def column(node_directory: Path, key: str) -> list[float]:
    """The values of ``key`` in the rows of a node's metrics, in order."""
    return [float(row[key]) for row in read_rows(node_directory / "metrics.jsonl")]


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Is there such a process, and is it no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
