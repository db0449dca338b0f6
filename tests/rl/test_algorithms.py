"""What must hold for every learning algorithm that zpala brings along."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from zpala.config import ALGORITHM_NAMES, Config, load_config
from zpala.rl.algorithm import Algorithm
from zpala.rl.algorithms import ALGORITHMS, build_algorithm
from zpala.rl.environments import Environments, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout

NAMES = sorted(ALGORITHMS)

# Q-learning explores for ever unless told otherwise, and a replay that is larger than a test's few steps teaches nothing.
OVERRIDES: dict[str, dict[str, object]] = {
    "nstep_q": {"nstep_q.final_epsilons": [0.01], "nstep_q.epsilon_shares": [1.0], "nstep_q.target_update_steps": 10},
    "dqn": {"dqn.final_epsilon": 0.01, "dqn.learning_starts": 0, "dqn.batch_size": 256, "dqn.target_update_steps": 50},
}


def build(name: str, environments: Environments, **overrides: object) -> Algorithm:
    values: dict[str, object] = {"algorithm.name": name, **OVERRIDES.get(name, {}), **overrides}
    config: Config = load_config(None, values, {})
    network = build_network(environments.spec, "auto", (32,), "tanh", False, 1, heads=ALGORITHMS[name].HEADS)
    flat = FlatParameters(network)
    optimizer = build_optimizer(OptimizerSettings(name="adam"), flat.numel)
    return build_algorithm(name, config.algorithm_values(), network, flat, optimizer, seed=5)


def learn(agent: Algorithm, environments: Environments, updates: int, steps: int = 8, lr: float = 3e-3) -> list[float]:
    """Returns of the games of so many updates."""
    count = environments.num_envs
    rollout = Rollout(environments.spec, steps, count, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, count))
    returns = []
    for update in range(updates):
        agent.begin(rollout, update / updates)
        for t in range(steps):
            for start, stop in ((0, count // 2), (count // 2, count)):
                rollout.set_actions(t, start, stop, agent.act(rollout, t, start, stop))
            returns += [game.return_ for game in environments.step(rollout.action(t, 0, count), rollout.row(t, 0, count))]
        assert agent.update(rollout, lr, update / updates).finite
        agent.flat.check()
        rollout.carry()
    return returns


def test_the_run_file_and_the_registry_have_the_same_names() -> None:
    assert tuple(ALGORITHMS) == ALGORITHM_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_comes_from_the_run_file(name: str) -> None:
    values = load_config(None, {"algorithm.name": name}, {}).algorithm_values(on_cpu=False)
    settings = ALGORITHMS[name].Settings
    assert {field.name for field in fields(settings)} <= values.keys()
    assert settings(**{field.name: values[field.name] for field in fields(settings)}) == settings()


@pytest.mark.parametrize("name", NAMES)
def test_a_guessing_game_is_solved_in_seconds(name: str) -> None:
    """Random play gets 8/3 of 8 points."""
    environments = make_environments("tests.rl.scripted:GuessEnv", 8, seeds=list(range(8)))
    agent = build(name, environments, **{"algorithm.gamma": 0.5})
    returns = learn(agent, environments, 150)
    assert np.mean(returns[:16]) < 4.5
    assert np.mean(returns[-64:]) > 7.5
    observations = torch.eye(3)
    assert agent.choose(observations, torch.ones(3, dtype=torch.bool), None).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_is_told_and_not_applied(name: str) -> None:
    environments = make_environments("tests.rl.scripted:GuessEnv", 4, seeds=list(range(4)))
    agent = build(name, environments)
    rollout = Rollout(environments.spec, 4, 4, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 4))
    agent.begin(rollout, 0.0)
    for t in range(4):
        rollout.set_actions(t, 0, 4, agent.act(rollout, t, 0, 4))
        environments.step(rollout.action(t, 0, 4), rollout.row(t, 0, 4))
    rollout.rewards[2, 1] = float("nan")
    before = agent.flat.parameters.clone()
    assert not agent.update(rollout, 1e-3, 0.0).finite
    assert torch.equal(agent.flat.parameters, before)
    assert agent.optimizer.steps == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dqn"])
def test_a_rollout_of_reset_steps_alone_changes_nothing(name: str) -> None:
    """Though the optimiser's momentum would move on with a gradient of 0. (dqn learns from its replay whatever has come.)"""
    environments = make_environments("tests.rl.scripted:make_vector", 4, seeds=list(range(4)))
    agent = build(name, environments)
    rollout = Rollout(environments.spec, 9, 4, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 4))
    found = []
    for valid in (True, False):
        agent.begin(rollout, 0.0)
        for t in range(9):
            rollout.set_actions(t, 0, 4, agent.act(rollout, t, 0, 4))
            environments.step(rollout.action(t, 0, 4), rollout.row(t, 0, 4))
        rollout.valid.logical_and_(torch.tensor(valid))
        before = agent.flat.parameters.clone()
        statistics = agent.update(rollout, 1e-2, 0.0)
        assert statistics.finite
        assert torch.equal(agent.flat.parameters, before) is not valid
        found.append((agent.optimizer.steps, list(statistics.named)))
        rollout.carry()
    assert found[0] == found[1]
    environments.close()


@pytest.mark.parametrize("name", NAMES)
def test_reset_steps_teach_nothing(name: str) -> None:
    """A vector environment that resets in a step of its own: whatever stands in those steps, the parameters become the same."""
    parameters = []
    for garbage in (0.0, 1e6):
        environments = make_environments("tests.rl.scripted:make_vector", 4, seeds=list(range(4)))
        agent = build(name, environments)
        rollout = Rollout(environments.spec, 9, 4, extra=agent.per_step())
        environments.reset(rollout.observation(0, 0, 4))
        for _ in range(2):
            agent.begin(rollout, 0.0)
            for t in range(9):
                rollout.set_actions(t, 0, 4, agent.act(rollout, t, 0, 4))
                environments.step(rollout.action(t, 0, 4), rollout.row(t, 0, 4))
            assert (~rollout.valid).sum() >= 8
            rollout.rewards[~rollout.valid] = garbage
            assert agent.update(rollout, 1e-2, 0.0).finite
            rollout.carry()
        parameters.append(agent.flat.parameters.clone())
    assert torch.equal(parameters[0], parameters[1])
