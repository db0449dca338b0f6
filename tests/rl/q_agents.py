"""Agents with a small network of action values, for the tests of the value-based algorithms."""

from __future__ import annotations

from typing import TypeVar

from tests.rl.rollouts import spec
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActionValues, build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.q_learning import QLearning

FOUR = spec(num_actions=4)

Agent = TypeVar("Agent", bound=QLearning)


def small_network(given: EnvironmentSpec = FOUR, *, normalize: bool = False) -> ActionValues:
    """The same parameters every time."""
    network = build_network(given, "mlp", (16,), "tanh", False, 3, heads="action_values", normalize_observations=normalize)
    assert isinstance(network, ActionValues)
    return network


def q_agent(
    kind: type[Agent], settings: object, network: ActionValues | None = None, *, seed: int = 5, optimizer: str = "rmsprop"
) -> Agent:
    """An agent with the same parameters every time."""
    network = small_network() if network is None else network
    flat = FlatParameters(network)
    adam = OptimizerSettings(name="adam" if optimizer == "adam" else "rmsprop")
    return kind(network, flat, build_optimizer(adam, flat.numel), settings, seed=seed)  # type: ignore[arg-type, call-arg]
