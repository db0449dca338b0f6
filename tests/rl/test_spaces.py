"""The policy-gradient algorithms on every kind of action, and on observations of several parts: each learns what chance does not find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.environments import make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.policy_gradient import DRAWS, PolicyGradient
from zpala.rl.ppo import PPO, PPOSettings
from zpala.rl.rollout import Rollout
from zpala.rl.vtrace import VTrace, VTraceSettings

KINDS: list[tuple[type[PolicyGradient], Any]] = [
    (A2C, A2CSettings(gamma=0.5)),
    (PPO, PPOSettings(gamma=0.5, epochs=2, minibatch_size=128)),
    (VTrace, VTraceSettings(gamma=0.5)),
]


class Mark(gymnasium.Env[Any, Any]):
    """Shows one of three marks for a step; a game lasts 8 of them. Subclasses pay for an answer."""

    observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 8
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self._pay(action)
        self._left -= 1
        return self._show(), reward, self._left == 0, False, {}

    def _show(self) -> Any:
        self.mark = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.mark]

    def _pay(self, action: Any) -> float:
        raise NotImplementedError


class Two(Mark):
    """Half a point for the mark's number, half a point for whether it is the last one. By chance 8 (1/3 + 1/2) / 2 = 3.3."""

    action_space = spaces.MultiDiscrete([3, 2])

    def _pay(self, action: Any) -> float:
        return 0.5 * (action[0] == self.mark) + 0.5 * (action[1] == (self.mark == 2))


class Aim(Mark):
    """1 minus the distance to a place that the mark tells, in two directions. Always at 0: 8 (1 - 2/3) = 2.7."""

    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def _pay(self, action: Any) -> float:
        return 1.0 - float(np.abs(action - (self.mark - 1.0)).mean())


class Parts(Two):
    """The mark is the sum of a number and of a light in a picture."""

    observation_space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (1, 36, 36), np.uint8),
            "ear": spaces.Dict({"tone": spaces.Discrete(2), "noise": spaces.Box(-1, 1, (2,))}),
        }
    )

    def _show(self) -> Any:
        tone, light = int(self.np_random.integers(2)), int(self.np_random.integers(2))
        self.mark = tone + light
        eye = np.full((1, 36, 36), 255 * light, dtype=np.uint8)
        return {"eye": eye, "ear": {"tone": tone, "noise": self.np_random.uniform(-1, 1, 2).astype(np.float32)}}


def agent_for(kind: type[PolicyGradient], settings: Any, name: str, **network_options: Any) -> tuple[PolicyGradient, Any]:
    environments = make_environments(f"tests.rl.test_spaces:{name}", 16, seeds=list(range(16)))
    network = build_network(environments.spec, "nips_cnn" if name == "Parts" else "mlp", (32,), "tanh", False, 1, **network_options)
    flat = FlatParameters(network)
    optimizer = build_optimizer(OptimizerSettings(name="adam"), flat.numel)
    return kind(network, flat, optimizer, settings, seed=3), environments


def learn(agent: PolicyGradient, environments: Any, updates: int, lr: float = 5e-3) -> list[float]:
    rollout = Rollout(environments.spec, 8, 16, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 16))
    returns: list[float] = []
    for update in range(updates):
        agent.begin(rollout, update / updates)
        for t in range(8):
            for start, stop in ((0, 8), (8, 16)):
                rollout.set_actions(t, start, stop, agent.act(rollout, t, start, stop))
            returns += [game.return_ for game in environments.step(rollout.action(t, 0, 16), rollout.row(t, 0, 16))]
        assert agent.update(rollout, lr, update / updates).finite
        agent.flat.check()
        rollout.carry()
    environments.close()
    return returns


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_several_choices(kind: type[PolicyGradient], settings: Any) -> None:
    agent, environments = agent_for(kind, settings, "Two")
    returns = learn(agent, environments, 150)
    assert np.mean(returns[:16]) < 4.5
    assert np.mean(returns[-64:]) > 7.3
    chosen = agent.choose(torch.eye(3), torch.ones(3, dtype=torch.bool), None)
    assert chosen.tolist() == [[0, 0], [1, 0], [2, 1]]


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_continuous_actions(kind: type[PolicyGradient], settings: Any, squash: bool) -> None:
    agent, environments = agent_for(kind, replace(settings, entropy_coefficient=0.0), "Aim", squash_actions=squash)
    returns = learn(agent, environments, 250, lr=1e-2)
    assert np.mean(returns[:16]) < 2.7
    assert np.mean(returns[-64:]) > 5.0
    chosen = agent.choose(torch.eye(3), torch.ones(3, dtype=torch.bool), None)
    torch.testing.assert_close(chosen, torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]), rtol=0, atol=0.35)


def test_observations_of_several_parts() -> None:
    agent, environments = agent_for(PPO, replace(KINDS[1][1], epochs=8), "Parts", normalize_observations=True)
    assert agent.network.describe() == "normalized nips_cnn+mlp 1-16-32-288-256 relu, 260-32 tanh, policy 3+2, value 1"
    returns = learn(agent, environments, 50, lr=1e-3)
    assert np.mean(returns[:16]) < 5.0
    assert np.mean(returns[-64:]) > 7.0


def test_with_squashing_the_slab_has_actions_and_draws() -> None:
    agent, environments = agent_for(A2C, A2CSettings(), "Aim", squash_actions=True)
    rollout = Rollout(environments.spec, 4, 16, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 16))
    agent.begin(rollout, 0.0)
    for t in range(4):
        rollout.set_actions(t, 0, 16, agent.act(rollout, t, 0, 16))
        environments.step(rollout.action(t, 0, 16), rollout.row(t, 0, 16))
    torch.testing.assert_close(rollout.actions, 2.0 * rollout.extra[DRAWS].tanh())
    assert rollout.extra[DRAWS].abs().max() > 1.5
    environments.close()
