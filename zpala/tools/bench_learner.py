"""One actor-learner in one thread, without a network: what the rivals of ``zpala bench cluster`` add their communication to.

Environments, network, loss, optimiser and seeds are those of a node with the same run file and line, so that only the communication
differs. It steps its environments itself, where a node has an actor thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

from zpala.config import Config
from zpala.node.build import build_parts, choose_device
from zpala.node.report import Report
from zpala.node.specification import specification
from zpala.node.threads import prepare_process
from zpala.rl.environments import make_environments
from zpala.rl.rollout import Rollout
from zpala.rl.seeding import environment_seeds


class LocalLearner:
    """Learner number ``line`` (from 0) of a run.

    Args:
        threads: of torch and, in Atari games, of the simulator.
    Raises:
        UsageError: see ``specification`` and ``build_parts``.
    """

    def __init__(self, config: Config, line: int, threads: int) -> None:
        prepare_process(threads)
        e = config.environment
        device = choose_device(config.node.device)
        spec = specification(e)
        self.parts = build_parts(config, spec, line, device)
        self.report = Report(spec.frame_skip, config.run.log_interval_s, time.monotonic())
        self.rollout = Rollout(
            spec,
            config.algorithm.num_steps,
            e.num_envs,
            pinned=device.type == "cuda",
            extra=self.parts.algorithm.per_step(),
            device=device,
        )
        self.env_steps = self.updates = 0
        self._learning_rate = config.optimizer.lr
        self._environments = make_environments(
            e.id,
            e.num_envs,
            seeds=environment_seeds(config.run.seed, line, 0, e.num_envs),
            num_threads=threads,
            args=e.args,
            atari=e.atari_settings(),
            max_episode_steps=e.max_episode_steps,
        )
        self._environments.reset(self.rollout.observation(0, 0, e.num_envs))

    def collect(self) -> None:
        """Fills the rollout."""
        rollout, algorithm, every = self.rollout, self.parts.algorithm, self.rollout.num_envs
        if self.updates > 0:
            rollout.carry()
        algorithm.begin(rollout, 0.0)
        for t in range(rollout.num_steps):
            with self.report.timed("inference"):
                rollout.set_actions(t, 0, every, algorithm.act(rollout, t, 0, every))
            with self.report.timed("env_step"):
                episodes = self._environments.step(rollout.action(t, 0, every), rollout.row(t, 0, every))
            self.report.games((episode.return_, episode.length) for episode in episodes)

    def learn(self) -> None:
        """One update from the rollout. Raises FloatingPointError when its loss or gradient is not finite."""
        with self.report.timed("learn"):
            statistics = self.parts.algorithm.update(self.rollout, self._learning_rate, 0.0)
        if not statistics.finite:
            raise FloatingPointError(f"the loss of update {self.updates} or its gradient is not finite. Lower --lr.")
        self.env_steps += self.rollout.valid_steps()
        self.updates += 1
        self.report.updated(statistics, self._learning_rate, 0)

    def close(self) -> None:
        """Frees the simulators."""
        self._environments.close()


def say_row(name: str, learner: LocalLearner, communication: Mapping[str, float]) -> None:
    """Writes a row of metrics to stdout as a node does, in one piece, when one is due. ``communication``: what else stands in it."""
    if learner.report.due(now := time.monotonic()):
        row = learner.report.row(now, env_steps=learner.env_steps, updates=learner.updates)
        sys.stdout.write(json.dumps({"event": "metrics", "node": name, **row, **communication}) + "\n")
        sys.stdout.flush()
