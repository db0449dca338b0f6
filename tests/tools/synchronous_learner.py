"""A process of test_bench_sync: one synchronous learner that writes its parameters down after every update."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from zpala.config import load_config
from zpala.tools.bench_learner import LocalLearner
from zpala.tools.bench_sync import join, leave


def main() -> None:
    run_file, line, learners, folder, updates = sys.argv[1:]
    learner = LocalLearner(load_config(Path(run_file), {}, {}), int(line), 1)
    join(Path(folder), int(line), int(learners))
    for update in range(int(updates)):
        learner.collect()
        learner.learn()
        np.save(Path(folder, f"{line}-{update}.npy"), learner.parts.flat.parameters.numpy())
    leave()
    learner.close()


if __name__ == "__main__":
    main()
