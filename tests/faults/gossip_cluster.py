"""Starts ``gossip_node`` processes for tests, reads their rows, and does the sums of their vectors."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.cluster.processes import LIMIT_S, Process, Processes
from tests.faults.gossip_node import start_vector

HERE = Path(__file__).parent
GOSSIP = (sys.executable, str(HERE / "gossip_node.py"))
FAULTY = (sys.executable, str(HERE / "faulty_node.py"))

Row = dict[str, Any]


def gossip(
    processes: Processes, peers: Path, line: int, size: int, *, faulty: Sequence[object] = (), listen: int | None = None, drift: float = 0.0
) -> Process:
    """Node ``line`` of ``peers``, on another port than its line's when ``listen`` says so. ``faulty``: point, deed, options."""
    command = (*FAULTY, *map(str, faulty), "gossip") if faulty else GOSSIP
    where = () if listen is None else ("--listen", f"127.0.0.1:{listen}")
    return processes("--peers", peers, "--node", line, "--size", size, "--drift", drift, *where, command=command)


def last_row(process: Process) -> Row:
    """The newest row that has been read."""
    row: Row = json.loads([line for line in process.lines if line.startswith("{")][-1])
    return row


def wait_for_row(process: Process, condition: Callable[[Row], object], what: str, limit_s: float = LIMIT_S) -> Row:
    """The first row that is not older than this call and has ``condition``."""
    deadline = time.monotonic() + limit_s
    process.read_on()
    read = len(process.lines)
    while True:
        for line in process.lines[read:]:
            if line.startswith("{") and condition(row := json.loads(line)):
                return dict(row)
        read = len(process.lines)
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"{what}: not within {limit_s:g} s:\n{process.text}"
        process.wait_for("^{", left_s, after=read)


def mixed(row: Row, line: int) -> int:
    """How many deltas of ``line`` the node has added."""
    return int(row["with"].get(str(line), 0))


def end_in_order(nodes: Iterable[Process]) -> list[Row]:
    """SIGTERM to all; they drain and end. Their last rows, of when their proxies had ended."""
    nodes = list(nodes)
    for node in nodes:
        node.send(signal.SIGTERM)
    statuses = [node.end() for node in nodes]
    assert statuses == [0] * len(nodes), "\n".join(node.text for node in nodes)
    return [last_row(node) for node in nodes]


def total_at_start(lines: Iterable[int], size: int) -> np.ndarray:
    """Sum of the vectors that the nodes start from, float64."""
    return np.asarray(np.sum([start_vector(line, size).astype(np.float64) for line in lines], axis=0))


def total_at_end(folder: Path, lines: Iterable[int]) -> np.ndarray:
    """Sum of the vectors that the nodes saved, float64."""
    return np.asarray(np.sum([np.load(folder / f"{line}.npy").astype(np.float64) for line in lines], axis=0))
