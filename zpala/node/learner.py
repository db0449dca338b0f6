"""The learner: the node's main thread. ``train`` is the whole loop, top to bottom: mix, act, learn, publish, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from zpala.node.actor import ActorGroup
from zpala.node.errors import NumericalError
from zpala.node.port import GossipPort, Progress
from zpala.node.report import Report
from zpala.rl.algorithm import Algorithm
from zpala.rl.rollout import Rollout
from zpala.rl.schedules import linear

Row = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a node's training ended. ``reason``: "budget" or "target"."""

    reason: str
    progress: Progress
    cluster_env_steps: int


def train(
    *,
    algorithm: Algorithm,
    rollout: Rollout,
    groups: Sequence[ActorGroup],
    port: GossipPort,
    report: Report,
    log: Callable[[Row], None],
    total_env_steps: int,
    lr: float,
    anneal: bool,
    faults: Path,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Trains until the cluster has spent its budget or reached its target; one turn of the loop is one update.

    The actors have been started: row 0 of ``rollout`` holds the first observations.

    Args:
        total_env_steps: the budget of the whole cluster.
        lr, anneal: learning rate, and whether it falls linearly to 0 with the cluster's progress.
        faults: folder for the batch of a non-finite loss.
    Raises:
        Interrupted: the process was told to end.
        NumericalError: the loss or its gradient is not finite; the batch lies in ``faults``.
        NodeError, WorkerFailed: refused by the peers; another thread of the node failed.
    """
    steps = rollout.num_steps
    env_steps = updates = adoptions = 0
    started = clock()

    while True:
        # Gossip: apply the neighbours' deltas, publish, wait until fresh news allows the next update.
        progress = Progress(updates, env_steps, env_steps / max(clock() - started, 1e-9), report.return_mean, report.return_count)
        with report.timed("gossip"):
            staleness = port.boundary(progress)
        if adoptions < port.adoptions:  # parameters and optimiser state are another node's
            adoptions = port.adoptions
            algorithm.optimizer.steps = port.optimizer_steps
            algorithm.adopted()
        cluster_env_steps = port.view.other_env_steps + env_steps
        finished = port.view.finish_reason or ("budget" if cluster_env_steps >= total_env_steps else "")
        if finished or (port.view.all_reached_target and updates > 0):
            return Outcome(finished or "target", progress, cluster_env_steps)

        # Act: one row after the other; while one group's environments step, the learner acts for the next group.
        share = min(cluster_env_steps / total_env_steps, 1.0)
        with report.timed("inference"):
            algorithm.begin(rollout, share)
        for t in range(steps):
            for group in groups:
                if t > 0:
                    with report.timed("env_step"):
                        report.games(group.wait(t))
                with report.timed("inference"):
                    rollout.set_actions(t, group.start, group.stop, algorithm.act(rollout, t, group.start, group.stop))
                with report.timed("env_step"):
                    group.send_actions(t)
        with report.timed("env_step"):
            for group in groups:
                report.games(group.wait(steps))

        # Learn: one synchronous update from the whole rollout.
        with report.timed("learn"):
            learning_rate = linear(lr, share) if anneal else lr
            statistics = algorithm.update(rollout, learning_rate, share)
        if not statistics.finite:
            raise NumericalError(_dump(rollout, faults, updates))
        env_steps += rollout.valid_steps()
        updates += 1
        rollout.carry()
        port.updated(algorithm.optimizer.steps)

        # Report.
        report.updated(statistics, learning_rate, staleness)
        if report.due(now := clock()):
            log(report.row(now, env_steps=env_steps, updates=updates))


def _dump(rollout: Rollout, faults: Path, updates: int) -> str:
    """Writes the batch of a non-finite loss; returns what to tell the person."""
    faults.mkdir(parents=True, exist_ok=True)
    path = faults / f"nonfinite-update-{updates}.safetensors"
    save_file(rollout.copies(), path)
    return (
        f"the loss of update {updates} or its gradient is not finite: the node stops so that no peer averages with it. "
        f"The batch lies in {path}. Lower --lr, or look for rewards or observations that are not finite."
    )
