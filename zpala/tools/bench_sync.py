"""Synchronous data-parallel A2C: the classical alternative to gossip, a rival of ``zpala bench cluster``.

Runs as a process of its own per learner, ``python -m zpala.tools.bench_sync RUN.toml LINE LEARNERS THREADS FOLDER``, and says rows of
metrics as a node does. All learners average the gradient of every update by torch.distributed's all-reduce over gloo and make the same
step: they stay equal, and each waits for the slowest in every update. Beside the all-reduce everything is a node's, see ``bench_learner``.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch.distributed as dist

from zpala.config import Config, load_config
from zpala.rl.a2c import A2C
from zpala.tools.bench_learner import LocalLearner, say_row
from zpala.tools.parent import die_with_parent

ALGORITHM = "zpala.tools.bench_sync:SynchronousA2C"
LIMIT_S = 180.0  # one all-reduce, the wait for the slowest learner included; and the start


class SynchronousA2C(A2C):
    """A2C from the mean gradient of all learners, each rollout with the same weight. Needs the process group of ``join``."""

    waited_s = 0.0  # in all-reduces, for the others and for the sums

    def _differentiated(self) -> None:
        began = time.perf_counter()
        dist.all_reduce(self.flat.gradients)
        self.waited_s += time.perf_counter() - began
        self.flat.gradients.div_(dist.get_world_size())


def synchronous(config: Config) -> Config:
    """``config``, of a2c, for this algorithm: what "auto" means for a2c is said, since it means less for an algorithm of one's own."""
    a = config.algorithm
    settled = {
        "name": ALGORITHM,
        "normalize_advantage": a.normalize_advantage is True,
        "reuse_activations": a.reuse_activations is not False,
    }
    return config.model_copy(update={"algorithm": a.model_copy(update=settled)})


def join(folder: Path, line: int, learners: int) -> None:
    """Makes learner ``line`` (from 0) one of ``learners``, which find one another by a file in ``folder``."""
    limit = timedelta(seconds=LIMIT_S)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=line, world_size=learners, timeout=limit)


def leave() -> None:
    """Ends what ``join`` began."""
    dist.destroy_process_group()


def run(config: Config, line: int, learners: int, threads: int, folder: Path) -> None:
    """Learns until the process is told to end."""
    learner = LocalLearner(config, line, threads)
    join(folder, line, learners)
    dist.barrier()
    algorithm = cast(SynchronousA2C, learner.parts.algorithm)
    learner.report.start(time.monotonic())
    while True:
        learner.collect()
        learner.learn()
        say_row(f"n{line}", learner, {"gossip/exchanges": learner.updates, "gossip/gate_wait_s": algorithm.waited_s})


def main() -> None:
    """Learns as the command line says."""
    die_with_parent(os.environ)
    run_file, line, learners, threads, folder = sys.argv[1:]
    run(load_config(Path(run_file), {}, {}), int(line), int(learners), int(threads), Path(folder))


if __name__ == "__main__":
    main()
