"""The learning algorithms by name, and how one is built from the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zpala.rl.a2c import A2C
from zpala.rl.algorithm import Algorithm
from zpala.rl.dqn import DQN
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.nstep_q import NStepQ
from zpala.rl.optimizers import Optimizer
from zpala.rl.ppo import PPO
from zpala.rl.vtrace import VTrace

ALGORITHMS: Mapping[str, type[Algorithm]] = {"a2c": A2C, "ppo": PPO, "nstep_q": NStepQ, "dqn": DQN, "vtrace": VTrace}


def build_settings(name: str, values: Mapping[str, object]) -> Any:
    """The ``Settings`` of the algorithm ``name``; see ``build_algorithm``."""
    kind = ALGORITHMS[name].Settings
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def build_algorithm(
    name: str, values: Mapping[str, object], network: Network, flat: FlatParameters, optimizer: Optimizer, *, seed: int
) -> Algorithm:
    """The algorithm ``name`` of ``ALGORITHMS``.

    Args:
        values: one for every field of its ``Settings``; others are not looked at.
        network, flat, optimizer, seed: see ``Algorithm``.
    """
    kind, settings = ALGORITHMS[name], build_settings(name, values)
    return kind(network, flat, optimizer, settings, seed=seed)
