"""Rollouts of noise, and agents to act in them, for the tests of the policy-gradient algorithms."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from zpala.rl.action_spaces import Discrete
from zpala.rl.algorithm import Algorithm
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.policies import Categorical, Evaluated
from zpala.rl.rollout import Rollout


def spec(shape: tuple[int, ...] = (3,), dtype: str = "float32", num_actions: int = 2) -> EnvironmentSpec:
    return EnvironmentSpec("test", shape, np.dtype(dtype), Discrete(num_actions), 1, False, "test")


Agent = TypeVar("Agent", bound=Algorithm)


def agent_of(kind: type[Agent], settings: object, given: EnvironmentSpec | None = None, optimizer: str = "rmsprop") -> Agent:
    """An agent with a small network, the same parameters every time."""
    network = build_network(given or spec(), "auto", (16,), "tanh", False, 1)
    flat = FlatParameters(network)
    adam = OptimizerSettings(name="adam" if optimizer == "adam" else "rmsprop")
    return kind(network, flat, build_optimizer(adam, flat.numel), settings, seed=5)


def noisy_rollout(agent: Algorithm, steps: int, envs: int, given: EnvironmentSpec | None = None, seed: int = 0) -> Rollout:
    """A rollout of noise in which ``agent`` has acted: some games terminate, some are truncated, some rows are reset steps."""
    rollout = Rollout(given or spec(), steps, envs, extra=agent.per_step())
    fill_with_noise(rollout, seed)
    act_everywhere(agent, rollout)
    return rollout


def fill_with_noise(rollout: Rollout, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rollout.observations.normal_(generator=generator)
    rollout.final_observations.normal_(generator=generator)
    rollout.rewards.normal_(generator=generator)
    for tensor, probability in ((rollout.terminated, 0.2), (rollout.truncated, 0.2), (rollout.valid, 0.8)):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) < probability)


def act_everywhere(agent: Algorithm, rollout: Rollout, progress: float = 0.0) -> None:
    agent.begin(rollout, progress)
    for t in range(rollout.num_steps):
        rollout.set_actions(t, 0, rollout.num_envs, agent.act(rollout, t, 0, rollout.num_envs))


def categorical(logits: Tensor, actions: Tensor) -> Evaluated:
    """What a softmax of ``logits`` f32[B, A] says of ``actions`` i64[B]; of those below 0, as of action 0."""
    return Categorical(logits.shape[-1]).evaluate(logits, actions.clamp(min=0))
