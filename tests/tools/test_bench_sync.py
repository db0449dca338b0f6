"""A2C in step: replicas stay equal to the bit, and are what one process learns from all rollouts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zpala.config import Config, load_config
from zpala.rl.rollout import Rollout
from zpala.tools.bench_learner import LocalLearner
from zpala.tools.bench_sync import ALGORITHM, synchronous
from zpala.tools.sleeping_environment import NAME

PROGRAM = Path(__file__).with_name("synchronous_learner.py")
LIMIT_S = 150.0
UPDATES, LEARNERS = 4, 2


def settings(**overrides: object) -> Config:
    values = {
        "environment.id": NAME,
        "environment.args.step_s": 0.0,
        "environment.args.episode_steps": 7,
        "environment.num_envs": 3,
        "algorithm.num_steps": 4,
        "algorithm.max_grad_norm": 0.05,  # so small that the gradient is scaled: before or after the mean makes a difference
        "network.hidden_sizes": [8],
        "node.device": "cpu",
    }
    return load_config(None, {**values, **{name.replace("__", "."): value for name, value in overrides.items()}}, {})


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """(line, update) -> parameters f32[numel], of two real processes."""
    folder = tmp_path_factory.mktemp("synchronous")
    run_file = folder / "run.toml"
    run_file.write_text(synchronous(settings()).to_toml(), encoding="utf-8")
    arguments = [str(LEARNERS), str(folder), str(UPDATES)]
    processes = [subprocess.Popen([sys.executable, str(PROGRAM), str(run_file), str(line), *arguments]) for line in range(LEARNERS)]
    try:
        assert [process.wait(LIMIT_S) for process in processes] == [0] * LEARNERS
    finally:
        for process in processes:
            process.kill()
            process.wait(LIMIT_S)
    return {(line, update): np.load(folder / f"{line}-{update}.npy") for line in range(LEARNERS) for update in range(UPDATES)}


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_replicas_are_equal_to_the_bit(replicas: dict[tuple[int, int], np.ndarray[tuple[int], np.dtype[np.float32]]]) -> None:
    for update in range(UPDATES):
        assert replicas[0, update].tobytes() == replicas[1, update].tobytes()
    assert replicas[0, 0].tobytes() != replicas[0, UPDATES - 1].tobytes()


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_they_are_what_one_process_learns_from_both_rollouts(
    replicas: dict[tuple[int, int], np.ndarray[tuple[int], np.dtype[np.float32]]],
) -> None:
    config = settings()
    collectors = [LocalLearner(config, line, 1) for line in range(LEARNERS)]
    reference = LocalLearner(settings(environment__num_envs=LEARNERS * config.environment.num_envs), 0, 1)
    joint = Rollout(reference.rollout.spec, config.algorithm.num_steps, LEARNERS * config.environment.num_envs)
    parameters = reference.parts.flat.parameters
    for update in range(UPDATES):
        for collector in collectors:
            collector.parts.flat.parameters.copy_(parameters)
            collector.collect()
            collector.updates += 1
        for name, tensor in joint.tensors().items():
            tensor.copy_(torch.cat([collector.rollout.tensors()[name] for collector in collectors], dim=1))
        reference.parts.algorithm.begin(joint, 0.0)
        statistics = reference.parts.algorithm.update(joint, config.optimizer.lr, 0.0)
        assert statistics.named["grad_norm"] > config.algorithm.max_grad_norm
        np.testing.assert_allclose(parameters.numpy(), replicas[0, update], rtol=1e-4, atol=2e-6)
    for learner in (*collectors, reference):
        learner.close()


def test_what_auto_means_for_a2c_is_said() -> None:
    made = synchronous(settings())
    assert made.algorithm.name == ALGORITHM
    values = {name: made.algorithm_values()[name] for name in ("normalize_advantage", "reuse_activations", "gamma")}
    assert values == {name: settings().algorithm_values()[name] for name in values}
    assert synchronous(settings(algorithm__normalize_advantage=True)).algorithm.normalize_advantage is True
