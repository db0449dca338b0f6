"""Reinforcement learning on tensors: environments, networks, rollouts, returns, algorithms. Never threads, never a network connection."""

from zpala.rl.a2c import A2C, A2CLoss, A2CSettings, UpdateStatistics, a2c_loss
from zpala.rl.environments import (
    AtariSettings,
    Environments,
    EnvironmentSpec,
    Episode,
    StepRow,
    UnknownEnvironment,
    UnsupportedEnvironment,
    environment_spec,
    make_environments,
)
from zpala.rl.flat import FlatEntry, FlatParameters
from zpala.rl.networks import MLP, ActorCritic, ImpalaResNet, NatureCNN, NipsCNN, build_network
from zpala.rl.optimizers import Adam, Optimizer, OptimizerSettings, RMSprop, build_optimizer, clip_gradient_norm
from zpala.rl.returns import Discounts, discounts, n_step_returns
from zpala.rl.rollout import Rollout
from zpala.rl.schedules import linear
from zpala.rl.seeding import actor_seed, environment_seeds, node_seed, torch_seed

__all__ = [
    "A2C",
    "MLP",
    "A2CLoss",
    "A2CSettings",
    "ActorCritic",
    "Adam",
    "AtariSettings",
    "Discounts",
    "EnvironmentSpec",
    "Environments",
    "Episode",
    "FlatEntry",
    "FlatParameters",
    "ImpalaResNet",
    "NatureCNN",
    "NipsCNN",
    "Optimizer",
    "OptimizerSettings",
    "RMSprop",
    "Rollout",
    "StepRow",
    "UnknownEnvironment",
    "UnsupportedEnvironment",
    "UpdateStatistics",
    "a2c_loss",
    "actor_seed",
    "build_network",
    "build_optimizer",
    "clip_gradient_norm",
    "discounts",
    "environment_seeds",
    "environment_spec",
    "linear",
    "make_environments",
    "n_step_returns",
    "node_seed",
    "torch_seed",
]
