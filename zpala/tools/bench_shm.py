"""Gossip of actor-learners over shared memory, inside one machine: the method that PALA follows, a rival of ``zpala bench cluster``.

Written from algorithm 1 of Assran et al. 2019, "Gossip-based Actor-Learner Architectures for Deep Reinforcement Learning", arXiv
1906.04585, with the directed ring that the paper's runs use. After every update of its own a learner

* broadcasts: its parameters go into the buffer that its successor reads, unless the last message there has not been read yet;
* mixes: x = (x + m) / 2 with the message m of its predecessor, if there is a new one; otherwise it goes on without,
* except after ``max_staleness`` updates without a new message: then it waits for one. 0: it never waits.

Only parameters are mixed, never the optimiser's state. Runs as ``python -m zpala.tools.bench_shm '<settings as JSON>'``: one process that
starts a process per learner, each of which says rows of metrics as a node does. Beside the mixing everything is a node's, see
``bench_learner``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from zpala.config import load_config
from zpala.node.build import build_parts
from zpala.node.specification import specification
from zpala.tools.bench_learner import LocalLearner, say_row
from zpala.tools.parent import PARENT_VARIABLE, die_with_parent
from zpala.tools.sleeping_environment import SLOWNESS_VARIABLE

LIMIT_S = 180.0  # for a message of the predecessor, and for the start; the published method waits for ever
STOP_LIMIT_S = 5.0
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class ShmSettings:
    """What is run. ``slowness``: of the last learner's environments; ``max_staleness``: 0: the gate is off; ``threads``: of each."""

    run_file: str
    learners: int
    max_staleness: int
    slowness: float
    threads: int


class Ring:
    """What the learners share: one buffer f32[numel] each, which its owner writes and its successor reads, never both at a time.

    ``unread[i]`` is set by learner i when it has written its buffer, and cleared by learner i + 1 when it has read it.
    """

    def __init__(self, context: SpawnContext, learners: int, numel: int) -> None:
        self.learners = learners
        self.buffers = [context.RawArray("f", numel) for _ in range(learners)]
        self.unread = [context.Event() for _ in range(learners)]
        self.start = context.Barrier(learners)

    def buffer(self, learner: int) -> Tensor:
        """The buffer of a learner, f32[numel], in this process."""
        return torch.from_numpy(np.frombuffer(self.buffers[learner], dtype=np.float32))


class Neighbours:
    """Learner ``line``'s part in the ring.

    Args:
        parameters: f32[numel], its own; changed in place.
        max_staleness: see the module; 0: no gate.
        limit_s: of one wait.
    """

    def __init__(self, ring: Ring, line: int, parameters: Tensor, max_staleness: int, limit_s: float = LIMIT_S) -> None:
        before = (line - 1) % ring.learners
        self.sent = self.mixed = self.skipped = 0  # messages; those not sent because the last one was unread
        self.staleness = 0  # updates since the last message was mixed in
        self.waited_s = 0.0
        self.distance = 0.0  # |m - x| / |x| at the last mixing that was asked to measure it
        self._alone = ring.learners == 1
        self._parameters = parameters
        self._out, self._in = ring.buffer(line), ring.buffer(before)
        self._out_unread, self._in_unread = ring.unread[line], ring.unread[before]
        self._max_staleness, self._limit_s = max_staleness, limit_s

    def updated(self, *, measure: bool = False) -> None:
        """To be called after every update of one's own. ``measure``: ``distance`` is wanted.

        Raises:
            TimeoutError: the gate was closed and the predecessor has sent nothing for ``limit_s`` seconds.
        """
        if self._alone:
            return
        self._broadcast()
        self.staleness += 1
        if not self._in_unread.is_set():
            if not self._max_staleness or self.staleness < self._max_staleness:
                return
            began = time.perf_counter()
            if not self._in_unread.wait(self._limit_s):
                raise TimeoutError(f"the predecessor has sent nothing for {self._limit_s:g} s: it hangs or has ended")
            self.waited_s += time.perf_counter() - began
        self._mix(measure)

    @torch.no_grad()
    def _broadcast(self) -> None:
        if self._out_unread.is_set():
            self.skipped += 1
            return
        self._out.copy_(self._parameters)
        self._out_unread.set()
        self.sent += 1

    @torch.no_grad()
    def _mix(self, measure: bool) -> None:
        if measure:
            self.distance = float((self._in - self._parameters).norm() / self._parameters.norm())
        self._parameters.lerp_(self._in, 0.5)
        self._in_unread.clear()
        self.staleness = 0
        self.mixed += 1


def learn(settings: ShmSettings, ring: Ring, line: int) -> None:
    """One learner's process: learns until it is told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent({PARENT_VARIABLE: str(os.getppid())})
    learner = LocalLearner(load_config(Path(settings.run_file), {}, {}), line, settings.threads)
    neighbours = Neighbours(ring, line, learner.parts.flat.parameters, settings.max_staleness)
    ring.start.wait(LIMIT_S)
    learner.report.start(time.monotonic())
    while True:
        learner.collect()
        learner.learn()
        with learner.report.timed("gossip"):
            neighbours.updated(measure=learner.report.due(time.monotonic()))
        say_row(
            f"n{line}",
            learner,
            {
                "gossip/exchanges": neighbours.mixed,
                "gossip/gate_wait_s": neighbours.waited_s,
                "gossip/consensus_distance": neighbours.distance,
            },
        )


def run(settings: ShmSettings) -> int:
    """Starts the learners and stays until one of them ends; returns its exit status. None of them outlives this process."""
    config = load_config(Path(settings.run_file), {}, {})
    spec = specification(config.environment)
    numel = build_parts(config, spec, 0, torch.device("cpu")).flat.numel
    context = multiprocessing.get_context("spawn")
    ring = Ring(context, settings.learners, numel)
    learners = [context.Process(target=learn, args=(settings, ring, line), daemon=True) for line in range(settings.learners)]
    try:
        for line, process in enumerate(learners):
            os.environ[SLOWNESS_VARIABLE] = str(settings.slowness if line == settings.learners - 1 else 1.0)
            process.start()
        while not (ended := wait([process.sentinel for process in learners], LOOK_S)):
            pass
        first = next(process for process in learners if process.sentinel in ended)
        first.join(STOP_LIMIT_S)
        return abs(first.exitcode or 1)
    finally:
        for process in learners:
            if process.pid is not None:
                process.terminate()
        for process in learners:
            if process.pid is not None:
                process.join(STOP_LIMIT_S)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Runs what the command line says."""
    die_with_parent(os.environ)
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run(ShmSettings(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
